"""Preparing the model under study: it is found, fingerprinted, described, and converted where that is needed.

A subject's recipe holds what the checkpoint *contains* (a fingerprint, or the hub commit), never where it
lies, so a moved folder recomputes nothing. The surprising choice: the control stores no weights; they are
drawn from the seed, in float32, whenever it is loaded. Quantised weights are likewise made at loading.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.config import SubjectConfig
from saeinterp.progress import Progress, silent
from saeinterp.subject.autoclasses import auto_classes, explained, quiet
from saeinterp.subject.devices import resolve_dtype
from saeinterp.subject.origins import Origin, check_folder, download, find_origin, origin_fingerprint
from saeinterp.subject.quantization import check_quantization, refuse_quantized

VERSION = 1


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
    if config.quantization != "none":
        values["quantization"] = config.quantization
    return Recipe(kind="subject", name=_slug(_title(origin, config)), version=VERSION, config=values)


def prepare_subject(config: SubjectConfig, *, store: ArtifactStore, progress: Progress | None = None) -> Artifact:
    """Make sure the subject can be loaded, converting GGUF checkpoints to safetensors once.

    Payload: `subject.json`, and `model/` for converted checkpoints and for the control (without weights).

    Raises:
        SubjectError: The model does not exist, is not reachable, has no safetensors or no tokenizer.
        ConfigError: `quantization` of random weights, or of a checkpoint that is quantised already.
        MissingDependencyError: `quantization` without bitsandbytes.
    """
    check_quantization(config)
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
        with quiet(), explained(config.model):
            if config.weights == "random":
                description = _write_description(path, own, trust_remote_code=config.trust_remote_code)
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
        write_json(space.out / "subject.json", facts)
        space.counts = {key: description[key] for key in ("num_layers", "d_model", "vocab_size")}
        report(1, 1, "checkpoint")

    return store.build(recipe, write)


def _title(origin: Origin, config: SubjectConfig) -> str:
    if config.weights == "random":
        return f"{origin.title} (random weights)"
    return origin.title if config.quantization == "none" else f"{origin.title} ({config.quantization})"


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
