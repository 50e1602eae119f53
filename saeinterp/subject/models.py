"""The model under study, loaded: pretrained or with random weights, on one device or spread, quantised or not.

The surprising choice: the control stores no weights; they are drawn from the seed, in float32, whenever it is loaded.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.config import Placement, SubjectConfig
from saeinterp.errors import BudgetError, SubjectError
from saeinterp.subject.autoclasses import auto_classes, explained, quiet, refuse_gaps
from saeinterp.subject.origins import (
    DEMO,
    DEMO_WIDTH,
    Origin,
    check_folder,
    download,
    find_origin,
    folder_fingerprint,
)
from saeinterp.subject.placement import (
    fit_map,
    input_device,
    main_device,
    memory_limits,
    placed,
    spread,
)
from saeinterp.subject.preparing import prepare_subject
from saeinterp.subject.quantization import own_quantization, quantization_settings, silence_casts


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
        device: Where token ids go, such as `cpu` or `cuda:0`; the whole model too, unless it is spread.
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
    subject: Artifact | SubjectConfig, *, device: str | Placement = "auto", store: ArtifactStore | None = None
) -> Subject:
    """Load a prepared subject; a `SubjectConfig` is prepared first (in `store`, default `SAEINTERP_ROOT`).

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, or a placement that may spread the model.

    Raises:
        SubjectError: Its checkpoint has gone, has changed, or cannot be read.
        ConfigError: The device does not exist here, or a `device_map` does not fit the model.
        BudgetError: The model does not fit.
        MissingDependencyError: Quantised without bitsandbytes.
    """
    if isinstance(subject, SubjectConfig):
        device = subject.placement if device == "auto" else device
        subject = prepare_subject(subject, store=store or ArtifactStore())
    info = subject_info(subject)
    placement = placed(device)
    main = main_device(placement)
    folder = _checkpoint_folder(subject, info)
    with quiet(), explained(info["model"]), _fits(info, placement, main):
        tokenizer = load_tokenizer(subject)
        read = _draw if info["weights"] == "random" else _read
        model = read(folder, info, placement, main).eval().requires_grad_(False)
    return Subject(
        model=model,
        tokenizer=tokenizer,
        name=info["title"],
        num_layers=info["num_layers"],
        d_model=info["d_model"],
        vocab_size=info["vocab_size"],
        device=main if placement.device_map == "single" else str(input_device(model)),
        dtype=info["dtype"],
    )


def _draw(folder: Path, info: dict[str, Any], placement: Placement, main: str) -> Any:
    """The control: fresh weights, drawn in memory and moved from there."""
    import torch

    auto = auto_classes()
    trust = info["trust_remote_code"]
    config = auto.config.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(info["weights_seed"])
        # Drawn in float32, so that every dtype rounds the same numbers.
        model = auto.model.from_config(config, dtype=torch.float32, trust_remote_code=trust)
    model = model.to(getattr(torch, info["dtype"]))
    if placement.device_map == "single":
        return model.to(main)
    with contextlib.ExitStack() as stack:
        model = spread(model, placement, offload=stack.enter_context(_offload_folder()))
        # What lies there is read at every pass: the folder goes when the model does.
        weakref.finalize(model, stack.pop_all().close)
    return model


def _read(folder: Path, info: dict[str, Any], placement: Placement, main: str) -> Any:
    """The checkpoint's own weights, quantised on the way where that is asked for."""
    import torch

    auto = auto_classes()
    options: dict[str, Any] = {"trust_remote_code": info["trust_remote_code"], "local_files_only": True}
    config = auto.config.from_pretrained(folder, **options)
    dtype = getattr(torch, info["dtype"])
    quantization = info.get("quantization", "none")
    quantised = quantization != "none" or own_quantization(config) is not None
    if quantised:
        silence_casts()
    if quantization != "none":
        options["quantization_config"] = quantization_settings(quantization, dtype)
    with contextlib.ExitStack() as stack:
        if placement.device_map != "single":
            if isinstance(placement.device_map, dict):
                with torch.device("meta"):
                    shell = auto.model.from_config(config, trust_remote_code=info["trust_remote_code"])
                options["device_map"] = fit_map(shell, placement)
            else:
                options["device_map"] = placement.device_map
            options["max_memory"] = memory_limits(placement)
            # Weights of safetensors files are read from where they are; this is for those that must be rewritten.
            options["offload_folder"] = stack.enter_context(_offload_folder())
        elif quantised:
            # Quantised weights are made, or unpacked, where they are to stay: most kinds cannot be moved afterwards.
            options["device_map"] = {"": torch.cuda.current_device() if main == "cuda" else main}
        model, loading = auto.model.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        weakref.finalize(model, stack.pop_all().close)
    refuse_gaps(model, loading, info["model"])
    return model if "device_map" in options else model.to(main)


def _offload_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="saeinterp-offload-")


@contextlib.contextmanager
def _fits(info: dict[str, Any], placement: Placement, main: str) -> Iterator[None]:
    """Say what to do when the weights do not fit."""
    import torch

    quantization = info.get("quantization", "none")
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = "a larger GPU, subject.device_map: auto (several GPUs, memory and disk)"
        if quantization == "none":
            smaller += ", subject.quantization: int8 or nf4"
        if info["dtype"] == "float32":
            smaller += ", subject.dtype: bfloat16"
        if placement.device_map != "single":
            smaller = "lower subject.max_memory for that GPU: activations need room besides the weights"
        raise BudgetError(
            f"{info['title']} does not fit on {main} in {info['dtype'] if quantization == 'none' else quantization}",
            field="subject.device" if placement.device_map == "single" else "subject.device_map",
            got=main if placement.device_map == "single" else placement.device_map,
            next_step=smaller if placement.device_map != "single" else f"use {smaller}, or device: cpu",
        ) from error
    except ValueError as error:
        if quantization == "none" or "CPU or the disk" not in str(error):
            raise
        raise BudgetError(
            f"{info['title']} does not fit on the GPUs in {quantization}, and quantised weights stay on GPUs",
            field="subject.device_map",
            got=placement.device_map,
            expected="room for all weights on the visible GPUs",
            next_step="add GPUs, raise subject.max_memory, or set subject.quantization: none (memory and disk then "
            "take the rest)",
        ) from error


def load_tokenizer(subject: Artifact) -> Any:
    """The tokenizer of a prepared subject, without loading its weights.

    Raises:
        SubjectError: Its checkpoint has gone or has changed.
    """
    info = subject_info(subject)
    with quiet(), explained(info["model"]):
        return auto_classes().tokenizer.from_pretrained(
            _checkpoint_folder(subject, info), trust_remote_code=info["trust_remote_code"], local_files_only=True
        )


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
            next_step=f"put it back, or remove {subject.place} and name its new place; nothing else is recomputed",
        )
    if not from_hub and folder_fingerprint(folder, weights=info["weights"] == "pretrained") != info["fingerprint"]:
        raise SubjectError(
            "the folder has changed since this subject was prepared",
            field="subject.model",
            got=str(folder),
            next_step="run again from the start: the changed checkpoint gets a recipe of its own",
        )
    return folder
