"""Checkpoints of models that reason in continuous thoughts: CODI (LoRA and a projection) and Coconut.

CODI stores `codi.` + peft's names (`base_model.model.….base_layer.weight`, `….lora_A.default.weight`) and `prj.` for
Dropout, Linear, GELU, Linear, LayerNorm; its three tokens (pad, bot, eot) follow the vocabulary. Coconut stores a plain
causal model, with or without `base_causallm.`; its three tokens (start, end, latent) follow the tokenizer's. The
surprising choice: the base's weights come from the checkpoint too, which holds all of them; the subject gives
architecture and tokenizer. The control keeps its random weights, and draws a projection of the checkpoint's shape.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.config import Placement, ThoughtsConfig
from saeinterp.errors import ConfigError, SubjectError
from saeinterp.subject.fingerprints import files_fingerprint
from saeinterp.subject.models import load_subject, subject_info
from saeinterp.subject.origins import first_line, hub_commit, network_errors, raise_refusal
from saeinterp.subject.placement import placed
from saeinterp.subject.thought_layouts import CHECKPOINT_FIELD, misfit, read_layout
from saeinterp.subject.thoughts import Thinker, identity

log = logging.getLogger(__name__)

_KINDS = "a folder with the checkpoint's *.safetensors, or a hub id"
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt)|checkpoint_\d+")  # the last is what Coconut's own code writes


def checkpoint_fingerprint(config: ThoughtsConfig) -> str | None:
    """What the checkpoint contains: a hash of its files, or its hub commit; None without a checkpoint.

    Raises:
        SubjectError: There is no such folder or repository, or it holds no safetensors.
    """
    if config.checkpoint is None:
        return None
    folder = _local(config)
    return f"commit:{_commit(config)}" if folder is None else files_fingerprint(_files(folder), root=folder)


def find_bot(config: ThoughtsConfig, *, tokenizer: Any, vocab_size: int) -> int | None:
    """The token that begins the thoughts: the configured one, else the checkpoint's, else None.

    Args:
        vocab_size: Of the subject, before a checkpoint extends it.

    Raises:
        ConfigError: The tokenizer has no such token.
    """
    if isinstance(config.bot, str):
        known = tokenizer.get_vocab().get(config.bot)
        if known is None:
            raise ConfigError(
                "the tokenizer has no such token",
                field="positions.thoughts.bot",
                got=config.bot,
                expected="the text of one token, special ones included, or an id",
                next_step="leave bot out to take the checkpoint's, or name an id",
            )
        return int(known)
    if config.bot is not None or config.checkpoint is None:
        return config.bot
    return vocab_size + 1 if config.format == "codi" else len(tokenizer)


def load_thinker(
    subject: Artifact, config: ThoughtsConfig, *, bot: int | None, device: str | Placement = "auto"
) -> Thinker:
    """Load a prepared subject with the weights, vocabulary and projection of its thoughts.

    Raises:
        SubjectError: The checkpoint does not exist, is pickled, or does not fit the subject; the tensor is named.
        ConfigError: A checkpoint for a spread or quantised subject; `bot` is beyond the vocabulary.
    """
    if config.checkpoint is not None:
        _refuse_split(subject, placed(device))
    loaded = load_subject(subject, device=device)
    model, feed = loaded.model, identity
    if config.checkpoint is not None:
        info = subject_info(subject)
        stored = _Stored(_folder(config))
        layout = read_layout(stored.shapes, config)
        seed = info["weights_seed"] if info["weights"] == "random" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            layout.extend(model)
            projection = layout.projection(model) if config.feedback == "mlp" else None
        if seed is None:
            layout.load(model, projection, stored.read)
        if projection is not None:
            feed = projection.to(device=loaded.device, dtype=model.dtype)
        model.eval().requires_grad_(False)
    rows = model.get_input_embeddings().num_embeddings
    if bot is not None and not 0 <= bot < rows:
        raise ConfigError(
            "is no token of this model",
            field="positions.thoughts.bot",
            got=bot,
            expected=f"an id from 0 to {rows - 1}",
        )
    return Thinker(dataclasses.replace(loaded, vocab_size=rows), feed)


class _Stored:
    """The tensors of a folder of safetensors: shapes at once, values when they are read."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            try:
                with safe_open(path, "pt") as handle:
                    for key in handle.keys():  # noqa: SIM118 - it is no mapping
                        self._places[key] = path
                        self.shapes[key] = tuple(handle.get_slice(key).get_shape())
            except (OSError, SafetensorError) as error:
                raise SubjectError(
                    f"cannot be read: {first_line(error)}",
                    field=CHECKPOINT_FIELD,
                    got=str(path),
                    next_step="check that it was copied whole",
                ) from error

    def read(self, key: str) -> Tensor:
        with safe_open(self._places[key], "pt") as handle:
            return handle.get_tensor(key)


def _refuse_split(subject: Artifact, placement: Placement) -> None:
    quantization = subject_info(subject).get("quantization", "none")
    if placement.device_map == "single" and quantization == "none":
        return
    spread = placement.device_map != "single"
    raise ConfigError(
        "a checkpoint's weights replace those of a whole model on one device",
        field="subject.device_map" if spread else "subject.quantization",
        got=placement.device_map if spread else quantization,
        expected="single" if spread else "none",
        next_step="leave it out where positions.thoughts names a checkpoint",
    )


def _local(config: ThoughtsConfig) -> Path | None:
    """The folder a checkpoint's name stands for; None for a hub id."""
    assert config.checkpoint is not None
    path = Path(config.checkpoint).expanduser()
    if path.is_dir():
        if config.revision is not None:
            log.warning("positions.thoughts.revision %r is ignored: %s is local", config.revision, path)
        return path.absolute()
    if path.exists() or config.checkpoint.startswith((".", "/", "~")) or config.checkpoint.count("/") > 1:
        if path.is_file() and _PICKLE.fullmatch(path.name):
            raise _pickled(str(path), path.name)
        raise SubjectError(
            "is a file" if path.exists() else "no such folder",
            field=CHECKPOINT_FIELD,
            got=config.checkpoint,
            expected=_KINDS,
            next_step="name the folder it lies in" if path.exists() else f"check the path ({path.absolute()})",
        )
    return None


def _commit(config: ThoughtsConfig) -> str:
    assert config.checkpoint is not None
    return hub_commit(
        config.checkpoint, config.revision, field=CHECKPOINT_FIELD, kinds=_KINDS, file="model.safetensors"
    )


def _folder(config: ThoughtsConfig) -> Path:
    """The checkpoint's folder, fetched from the hub as far as it is not in the cache."""
    folder = _local(config)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    name, commit = config.checkpoint, _commit(config)
    assert name is not None
    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=["*.safetensors"]))
    except network_errors() as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        raise_refusal(name, commit, error, field=CHECKPOINT_FIELD, kinds=_KINDS)
        raise SubjectError(
            f"cannot be fetched from the hub ({first_line(error)})",
            field=CHECKPOINT_FIELD,
            got=name,
            next_step="check the network (HF_HUB_OFFLINE, proxy) or name a local folder",
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise _pickled(name, "pytorch_model.bin or the like")
    return folder


def _files(folder: Path) -> list[Path]:
    """The safetensors of a folder.

    Raises:
        SubjectError: There are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.is_file() and _PICKLE.fullmatch(path.name))
    if pickles:
        raise _pickled(str(folder), pickles[0])
    raise misfit("holds no *.safetensors", got=str(folder), expected=_KINDS, next_step="copy or convert the weights")


def _pickled(where: str, name: str) -> SubjectError:
    return SubjectError(
        f"the weights are pickled ({name}), and unpickling runs code of whoever wrote them",
        field=CHECKPOINT_FIELD,
        got=where,
        expected="*.safetensors",
        next_step="if you trust it: state = torch.load(FILE, weights_only=True, map_location='cpu'), then "
        "safetensors.torch.save_file({key: value.clone() for key, value in state.items()}, 'model.safetensors'), and "
        "name the folder of that file",
    )
