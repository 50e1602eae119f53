"""Preparing the model under study: it is found, fingerprinted, described, and converted where that is needed.

A subject's recipe holds what the checkpoint *contains* (a fingerprint, or the hub commit), never where it
lies, so a moved folder recomputes nothing. The surprising choice: the control stores no weights; they are
drawn from the seed, in float32, whenever it is loaded. Quantised weights are likewise made at loading; those of an
adapter are merged here, once (see `adapters.py`), so its subject takes the disk of a whole checkpoint.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.config import SubjectConfig
from saeinterp.errors import ConfigError
from saeinterp.progress import Progress, silent
from saeinterp.subject.adapters import Adapter, adapter_fingerprint, find_adapter, merge_adapter, require_peft
from saeinterp.subject.autoclasses import auto_classes, explained, quiet, refuse_gaps
from saeinterp.subject.devices import resolve_dtype
from saeinterp.subject.origins import Origin, check_folder, download, find_origin, origin_fingerprint
from saeinterp.subject.quantization import check_quantization, own_quantization, refuse_quantized

VERSION = 1


def prepare_subject_recipe(config: SubjectConfig) -> Recipe:
    """The recipe of a subject.

    Raises:
        SubjectError: The model does not exist, is not reachable, or has no safetensors.
    """
    origin, adapter = find_origin(config), find_adapter(config)
    title = _title(origin, config, adapter)
    values = {
        "weights": config.weights,
        "dtype": resolve_dtype(config.dtype, config.device),
        "fingerprint": origin_fingerprint(origin, weights=config.weights == "pretrained"),
        "title": title,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.weights == "random":
        values["weights_seed"] = config.weights_seed
    if config.quantization != "none":
        values["quantization"] = config.quantization
    if adapter is not None:
        values["adapter"] = adapter_fingerprint(adapter)
    return Recipe(kind="subject", name=_slug(title), version=VERSION, config=values)


def prepare_subject(config: SubjectConfig, *, store: ArtifactStore, progress: Progress | None = None) -> Artifact:
    """Make sure the subject can be loaded, converting GGUF checkpoints to safetensors and merging an adapter once.

    Payload: `subject.json`, and `model/` for converted and merged checkpoints and for the control (without weights).
    Merging takes four bytes of memory per parameter.

    Raises:
        SubjectError: The model or its adapter does not exist, is not reachable, has no safetensors, does not fit the
            other; there is no tokenizer.
        ConfigError: `quantization` of random weights, or of a checkpoint that is quantised already.
        MissingDependencyError: `quantization` without bitsandbytes, `adapter` without peft.
    """
    check_quantization(config)
    recipe = prepare_subject_recipe(config)
    origin, adapter = find_origin(config), find_adapter(config)
    if adapter is not None:
        require_peft(adapter)
    report = progress or silent

    def write(space: Workspace) -> None:
        report(0, 1, "checkpoint")
        own = space.out / "model"
        path = download(origin, config) if origin.kind == "hub" else origin.path
        assert path is not None
        if origin.kind != "gguf":
            check_folder(path, weights=config.weights == "pretrained")
        with quiet(), explained(config.model):
            merged = None
            if config.weights == "random":
                description = _write_description(path, own, trust_remote_code=config.trust_remote_code)
            elif adapter is not None:
                description, merged = _merge(path, own, adapter, config, dtype=recipe.config["dtype"])
            elif origin.kind == "gguf":
                description = _convert_gguf(path, own, dtype=recipe.config["dtype"])
            else:
                description = _read_description(path, config)
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
        if config.quantization != "none":
            facts["quantization"] = config.quantization
        if merged is not None:
            facts["adapter"] = merged
        write_json(space.out / "subject.json", facts)
        space.counts = {key: description[key] for key in ("num_layers", "d_model", "vocab_size")}
        report(1, 1, "checkpoint")

    return store.build(recipe, write)


def _title(origin: Origin, config: SubjectConfig, adapter: Adapter | None) -> str:
    if config.weights == "random":
        return f"{origin.title} (random weights)"
    title = origin.title if adapter is None else f"{origin.title} + {adapter.title}"
    return title if config.quantization == "none" else f"{title} ({config.quantization})"


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "subject"


def _read_description(folder: Path, subject: SubjectConfig) -> dict[str, Any]:
    auto = auto_classes()
    trust = subject.trust_remote_code
    config = auto.config.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    if subject.quantization != "none":
        refuse_quantized(config, subject)
    auto.tokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
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
        _copy_code(folder, own)
    return _facts(config)


def _convert_gguf(path: Path, own: Path, *, dtype: str) -> dict[str, Any]:
    """Dequantise a .gguf checkpoint into a safetensors folder."""
    model, tokenizer = _load_gguf(path)
    return _save(model, tokenizer, own, dtype=dtype)


def _merge(
    path: Path, own: Path, adapter: Adapter, subject: SubjectConfig, *, dtype: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge an adapter into a checkpoint and save the sum; facts of the model, and of the adapter."""
    if path.is_file():
        model, tokenizer = _load_gguf(path)
    else:
        model, tokenizer = _load_full(path, subject)
    model, about = merge_adapter(model, adapter, base=subject.model, dtype=dtype)
    description = _save(model, tokenizer, own, dtype=dtype)
    if subject.trust_remote_code and path.is_dir():
        _copy_code(path, own)
    return description, about


def _load_full(folder: Path, subject: SubjectConfig) -> tuple[Any, Any]:
    """A checkpoint folder's model, in float32 on the CPU, and its tokenizer."""
    import torch

    auto = auto_classes()
    options: dict[str, Any] = {"trust_remote_code": subject.trust_remote_code, "local_files_only": True}
    config = auto.config.from_pretrained(folder, **options)
    own = own_quantization(config)
    if own is not None:
        raise ConfigError(
            f"{subject.model} is quantised ({own}), and an adapter is merged into full weights",
            field="subject.adapter",
            got=subject.adapter,
            next_step="name the checkpoint before quantisation; subject.quantization quantises after the merge",
        )
    tokenizer = auto.tokenizer.from_pretrained(folder, **options)
    model, loading = auto.model.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    refuse_gaps(model, loading, subject.model)
    return model, tokenizer


def _load_gguf(path: Path) -> tuple[Any, Any]:
    """A .gguf checkpoint's model, dequantised in float32, and its tokenizer."""
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
    return model, tokenizer


def _save(model: Any, tokenizer: Any, own: Path, *, dtype: str) -> dict[str, Any]:
    import torch

    _clean(model.config)
    model.to(getattr(torch, dtype)).save_pretrained(own)
    tokenizer.save_pretrained(own)
    return _facts(model.config)


def _copy_code(folder: Path, own: Path) -> None:
    for code in folder.glob("*.py"):
        shutil.copy(code, own)


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
