"""The model under study: hub id, local folder, .gguf file, the packaged demo model, or its random-weights control.

A subject's recipe holds what the checkpoint *contains* (a fingerprint, or the hub commit), never where it
lies, so a moved folder recomputes nothing. The surprising choice: the control stores no weights; they are
drawn from the seed, in float32, whenever it is loaded.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, read_json, write_json
from saeinterp.config import SubjectConfig
from saeinterp.errors import BudgetError, SubjectError
from saeinterp.progress import Progress, silent
from saeinterp.subject.autoclasses import auto_classes
from saeinterp.subject.devices import resolve_device, resolve_dtype
from saeinterp.subject.origins import (
    DEMO,
    DEMO_WIDTH,
    Origin,
    check_folder,
    download,
    find_origin,
    first_line,
    folder_fingerprint,
    origin_fingerprint,
)

VERSION = 1


@dataclass(frozen=True)
class Subject:
    """A loaded model: in eval mode, without gradients.

    Attributes:
        model: A transformers `PreTrainedModel` with a language-modelling head.
        tokenizer: Its tokenizer.
        name: Short title for reports, with ` (random weights)` for the control.
        num_layers: Number of blocks.
        d_model: Width of the residual stream.
        vocab_size: Rows of the embedding.
        device: Where the model is, such as `cpu` or `cuda:0`.
        dtype: Compute type: `bfloat16`, `float16` or `float32`.
    """

    model: Any
    tokenizer: Any
    name: str
    num_layers: int
    d_model: int
    vocab_size: int
    device: str
    dtype: str


def prepare_subject_recipe(config: SubjectConfig) -> Recipe:
    """The recipe of a subject.

    Raises:
        SubjectError: The model does not exist, is not reachable, or has no safetensors.
    """
    origin = find_origin(config)
    values = {
        "weights": config.weights,
        "dtype": resolve_dtype(config.dtype, config.device),
        "fingerprint": origin_fingerprint(origin, weights=config.weights == "pretrained"),
        "title": _title(origin, config),
        "trust_remote_code": config.trust_remote_code,
    }
    if config.weights == "random":
        values["weights_seed"] = config.weights_seed
    return Recipe(kind="subject", name=_slug(_title(origin, config)), version=VERSION, config=values)


def prepare_subject(config: SubjectConfig, *, store: ArtifactStore, progress: Progress | None = None) -> Artifact:
    """Make sure the subject can be loaded, converting GGUF checkpoints to safetensors once.

    Payload: `subject.json`, and `model/` for converted checkpoints and for the control (without weights).

    Raises:
        SubjectError: The model does not exist, is not reachable, has no safetensors or no tokenizer.
    """
    recipe = prepare_subject_recipe(config)
    origin = find_origin(config)
    report = progress or silent

    def write(space: Workspace) -> None:
        report(0, 1, "checkpoint")
        own = space.out / "model"
        path = download(origin, config) if origin.kind == "hub" else origin.path
        assert path is not None
        if origin.kind != "gguf":
            check_folder(path, weights=config.weights == "pretrained")
        with _quiet(), _explained(config.model):
            if config.weights == "random":
                description = _write_description(path, own, trust_remote_code=config.trust_remote_code)
            elif origin.kind == "gguf":
                description = _convert_gguf(path, own, dtype=recipe.config["dtype"])
            else:
                description = _read_description(path, trust_remote_code=config.trust_remote_code)
        facts = {
            "model": config.model,
            "title": recipe.config["title"],
            "revision": origin.commit,
            "weights": config.weights,
            "weights_seed": config.weights_seed if config.weights == "random" else None,
            "dtype": recipe.config["dtype"],
            "source": "self" if own.exists() else "folder",
            "path": None if own.exists() else str(path),
            "fingerprint": recipe.config["fingerprint"],
            "trust_remote_code": config.trust_remote_code,
            **description,
        }
        write_json(space.out / "subject.json", facts)
        space.counts = {key: description[key] for key in ("num_layers", "d_model", "vocab_size")}
        report(1, 1, "checkpoint")

    return store.build(recipe, write)


def subject_info(subject: Artifact) -> dict[str, Any]:
    """The facts of a prepared subject (`subject.json`): layers, width, vocabulary, dtype, origin."""
    info: dict[str, Any] = read_json(subject.file("subject.json"))
    return info


def subject_width(config: SubjectConfig) -> int | None:
    """Width of the residual stream as far as it is known without downloading or converting anything, else None.

    Raises:
        SubjectError: The model does not exist or is not reachable.
    """
    origin = find_origin(config)
    if config.model == DEMO:
        return DEMO_WIDTH
    if origin.kind == "folder":
        assert origin.path is not None
        check_folder(origin.path, weights=False)
        path = origin.path / "config.json"
    elif origin.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(config.model, "config.json", revision=origin.commit)
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    else:
        return None
    values = read_json(path)
    values = values.get("text_config", values)
    width = values.get("hidden_size", values.get("n_embd", values.get("d_model")))
    return None if width is None else int(width)


def load_subject(
    subject: Artifact | SubjectConfig, *, device: str = "auto", store: ArtifactStore | None = None
) -> Subject:
    """Load a prepared subject; a `SubjectConfig` is prepared first (in `store`, default `SAEINTERP_ROOT`).

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.

    Raises:
        SubjectError: Its checkpoint has gone, has changed, or cannot be read.
        ConfigError: The device does not exist here.
    """
    if isinstance(subject, SubjectConfig):
        device = subject.device if device == "auto" else device
        subject = prepare_subject(subject, store=store or ArtifactStore())
    import torch

    auto = auto_classes()
    info = subject_info(subject)
    place = resolve_device(device)
    folder = _checkpoint_folder(subject, info)
    dtype = getattr(torch, info["dtype"])
    trust = info["trust_remote_code"]
    with _quiet(), _explained(info["model"]):
        tokenizer = load_tokenizer(subject)
        if info["weights"] == "random":
            config = auto.config.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(info["weights_seed"])
                # Drawn in float32, so that every dtype rounds the same numbers.
                model = auto.model.from_config(config, dtype=torch.float32, trust_remote_code=trust).to(dtype)
        else:
            model, loading = auto.model.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust,
                local_files_only=True,
                output_loading_info=True,
            )
            missing = sorted(loading["missing_keys"])
            if missing:
                # transformers fills the gaps with random weights and only warns.
                raise SubjectError(
                    f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}",
                    field="subject.model",
                    got=info["model"],
                    expected="a checkpoint of a causal language model",
                    next_step="use the checkpoint that has a language-modelling head",
                )
    try:
        model = model.eval().requires_grad_(False).to(place)
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"{info['title']} does not fit on {place} in {info['dtype']}",
            field="subject.device",
            got=place,
            next_step="use a larger GPU, subject.dtype: bfloat16, or device: cpu",
        ) from error
    return Subject(
        model=model,
        tokenizer=tokenizer,
        name=info["title"],
        num_layers=info["num_layers"],
        d_model=info["d_model"],
        vocab_size=info["vocab_size"],
        device=place,
        dtype=info["dtype"],
    )


def load_tokenizer(subject: Artifact) -> Any:
    """The tokenizer of a prepared subject, without loading its weights.

    Raises:
        SubjectError: Its checkpoint has gone or has changed.
    """
    info = subject_info(subject)
    with _quiet(), _explained(info["model"]):
        return auto_classes().tokenizer.from_pretrained(
            _checkpoint_folder(subject, info), trust_remote_code=info["trust_remote_code"], local_files_only=True
        )


def _title(origin: Origin, config: SubjectConfig) -> str:
    return origin.title + (" (random weights)" if config.weights == "random" else "")


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "subject"


def _checkpoint_folder(subject: Artifact, info: dict[str, Any]) -> Path:
    if info["source"] == "self":
        return subject.file("model")
    folder = Path(info["path"])
    from_hub = info["revision"] is not None
    if not folder.is_dir():
        if from_hub:
            config = SubjectConfig(model=info["model"], revision=info["revision"])
            return download(Origin("hub", info["title"], None, info["revision"]), config)
        raise SubjectError(
            "the folder of this subject has gone",
            field="subject.model",
            got=str(folder),
            next_step=f"put it back, or remove {subject.path} and name its new place; nothing else is recomputed",
        )
    if not from_hub and folder_fingerprint(folder, weights=info["weights"] == "pretrained") != info["fingerprint"]:
        raise SubjectError(
            "the folder has changed since this subject was prepared",
            field="subject.model",
            got=str(folder),
            next_step="run again from the start: the changed checkpoint gets a recipe of its own",
        )
    return folder


def _read_description(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    auto = auto_classes()
    config = auto.config.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    auto.tokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    return _facts(config)


def _write_description(path: Path, own: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """Save configuration and tokenizer, without weights."""
    auto = auto_classes()
    if path.is_file():
        options: dict[str, Any] = {"gguf_file": path.name}
        folder = path.parent
    else:
        options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        folder = path
    config = auto.config.from_pretrained(folder, **options)
    tokenizer = auto.tokenizer.from_pretrained(folder, **options)
    _clean(config)
    config.save_pretrained(own)
    tokenizer.save_pretrained(own)
    if trust_remote_code:
        for code in folder.glob("*.py"):
            shutil.copy(code, own)
    return _facts(config)


def _convert_gguf(path: Path, own: Path, *, dtype: str) -> dict[str, Any]:
    """Dequantise a .gguf checkpoint into a safetensors folder."""
    import torch

    auto = auto_classes()
    tokenizer = auto.tokenizer.from_pretrained(path.parent, gguf_file=path.name)
    loaded = auto.model.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = loaded.config
    _clean(config)
    state = loaded.state_dict()
    # A fresh shell for the weights: the loaded model remembers that it was quantised and refuses to be saved.
    with torch.device("meta"):
        model = auto.model.from_config(config, dtype=torch.float32)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.to(getattr(torch, dtype)).save_pretrained(own)
    tokenizer.save_pretrained(own)
    return _facts(config)


def _clean(config: Any) -> None:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # GGUF files carry free text here, hub ids carry machine paths; neither belongs in an artifact.
    config._name_or_path = ""


def _facts(config: Any) -> dict[str, Any]:
    text = config.get_text_config()
    return {
        "architecture": config.model_type,
        "num_layers": int(text.num_hidden_layers),
        "d_model": int(text.hidden_size),
        "vocab_size": int(text.vocab_size),
        "max_positions": getattr(text, "max_position_embeddings", None),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of our own."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise on unreadable checkpoints into a `SubjectError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SubjectError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        hint = "check that the folder holds config.json, tokenizer files and complete *.safetensors"
        if "trust_remote_code" in str(error):
            hint = "set trust_remote_code: true if you trust whoever wrote that checkpoint's code"
        raise SubjectError(
            f"cannot be loaded: {first_line(error)}", field="subject.model", got=model, next_step=hint
        ) from error
