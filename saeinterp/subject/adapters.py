"""PEFT adapters (LoRA and the like): found, fingerprinted, and merged into the weights once, as a subject is prepared.

A merged subject is an ordinary checkpoint afterwards, so it loads, spreads and quantises as any other and nothing
downstream knows of adapters. The surprising choice: base and adapter meet in float32 on the CPU, whatever the subject
computes in, so that every type rounds the same sum, and float32 keeps all of it. What the type's rounding leaves out
is measured: an update is often a hundredth of the weight it changes, and bfloat16 keeps eight bits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeinterp.config import SubjectConfig
from saeinterp.errors import MissingDependencyError, SaeinterpError, SubjectError
from saeinterp.subject.fingerprints import files_fingerprint
from saeinterp.subject.origins import first_line, hub_commit, network_errors, raise_refusal

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FIELD = "subject.adapter"
_KINDS = "a folder written by peft's save_pretrained, or a hub id such as 'org/my-lora'"
_INSTALL = (
    "pip install 'saeinterp[adapters]', or merge the adapter with peft and name the merged folder as subject.model"
)
_PROBE = 8  # tokens of the pass that compares the merged weights with the adapter
_SAME = 1e-3  # relative; float32 sums in another order differ by about 1e-6


@dataclass(frozen=True)
class Adapter:
    """Where an adapter comes from: `path` is its folder, or None for a hub repository at `commit`."""

    name: str
    title: str
    path: Path | None = None
    commit: str | None = None


def find_adapter(config: SubjectConfig) -> Adapter | None:
    """Locate what `config.adapter` names; None where it names nothing or the weights are random.

    Raises:
        SubjectError: There is no such folder or repository, it holds no adapter, or only a pickled one.
    """
    if config.adapter is None or config.weights == "random":
        return None
    name = config.adapter
    path = Path(name).expanduser()
    if path.is_dir():
        if config.adapter_revision is not None:
            log.warning("subject.adapter_revision %r is ignored: %s is local", config.adapter_revision, name)
        check_adapter(path)
        return Adapter(name, path.absolute().name, path.absolute())
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SubjectError(
            "is a file" if path.exists() else "no such folder",
            field=_FIELD,
            got=name,
            expected=_KINDS,
            next_step=f"name the folder that holds {CONFIG}"
            if path.exists()
            else f"check the path ({path.absolute()})",
        )
    commit = hub_commit(name, config.adapter_revision, field=_FIELD, kinds=_KINDS, file=CONFIG)
    return Adapter(name, name.rsplit("/", 1)[-1], None, commit)


def adapter_fingerprint(adapter: Adapter) -> str:
    """What the adapter contains: a hash of its settings and weights, or its hub commit."""
    if adapter.path is None:
        return f"commit:{adapter.commit}"
    return files_fingerprint([adapter.path / CONFIG, adapter.path / WEIGHTS], root=adapter.path)


def check_adapter(folder: Path) -> None:
    """Refuse folders that hold no adapter, or a pickled one.

    Raises:
        SubjectError: Naming what is missing.
    """
    if not (folder / CONFIG).is_file():
        whole = (folder / "config.json").is_file()
        raise SubjectError(
            f"the folder holds no {CONFIG}",
            field=_FIELD,
            got=str(folder),
            expected=_KINDS,
            next_step="it holds a whole checkpoint: name it as subject.model" if whole else "check the path",
        )
    if (folder / WEIGHTS).is_file():
        return
    pickled = (folder / "adapter_model.bin").is_file()
    raise SubjectError(
        "the weights are pickled (adapter_model.bin), and unpickling runs code of whoever wrote them"
        if pickled
        else "there are no weights",
        field=_FIELD,
        got=str(folder),
        expected=WEIGHTS,
        next_step="if you trust it, load it with PeftModel.from_pretrained and save it again with peft 0.18 or newer"
        if pickled
        else "copy or download the weights",
    )


def download_adapter(adapter: Adapter) -> Path:
    """The folder of an adapter, fetched from the hub as far as it is not in the cache.

    Raises:
        SubjectError: Gated, gone, out of reach, or without safetensors.
    """
    if adapter.path is not None:
        return adapter.path
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(adapter.name, revision=adapter.commit, allow_patterns=[CONFIG, WEIGHTS]))
    except network_errors() as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        raise_refusal(adapter.name, adapter.commit, error, field=_FIELD, kinds=_KINDS)
        raise SubjectError(
            f"cannot be fetched from the hub ({first_line(error)})",
            field=_FIELD,
            got=adapter.name,
            next_step="check the network (HF_HUB_OFFLINE, proxy) or name a local folder",
        ) from error
    check_adapter(folder)
    return folder


def require_peft(adapter: Adapter) -> None:
    """Refuse an adapter before anything is fetched where peft is not installed.

    Raises:
        MissingDependencyError: With the command that installs it.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError("peft is not installed", field=_FIELD, got=adapter.name, next_step=_INSTALL)


def merge_adapter(model: Any, adapter: Adapter, *, base: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    """Add an adapter's update to the weights of a model.

    Args:
        model: The base, in float32 on the CPU; it is changed.
        base: What `subject.model` names, compared with the base that the adapter says it was trained on.
        dtype: What the sum will be cast to; only to say how much of the update that leaves out.

    Returns:
        The merged model, and what `subject.json` says of the adapter.

    Raises:
        SubjectError: It does not fit this base (modules, shapes), changes inputs instead of weights, is damaged, or
            the merged model computes something else than base and adapter together.
    """
    import torch
    from peft import PeftConfig, PeftModel

    folder = download_adapter(adapter)
    with _explained(adapter):
        settings = PeftConfig.from_pretrained(str(folder))
    if settings.is_prompt_learning:
        raise SubjectError(
            f"{_kind(settings)} adds inputs to the model and changes no weights, so there is nothing to merge",
            field=_FIELD,
            got=adapter.name,
            expected="an adapter of weights, such as LoRA",
            next_step="train a LoRA instead; prompts cannot be a subject",
        )
    trained_on = settings.base_model_name_or_path or None
    matches = None if trained_on is None else _same_base(trained_on, base)
    if matches is False:
        log.warning("subject.adapter: %s says it was trained on %s, not on %s", adapter.name, trained_on, base)
    tied = _untie(model)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, _PROBE), generator=_generator())
    with torch.inference_mode():
        before = model(ids, use_cache=False).logits
    with _explained(adapter), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, str(folder), torch_device="cpu").eval()
    _refuse_gaps(wrapped, folder, adapter, [str(item.message) for item in heard])
    with torch.inference_mode():
        together = wrapped(input_ids=ids, use_cache=False).logits
    rounded_away = _rounded_away(wrapped, settings, getattr(torch, dtype))
    with _explained(adapter), warnings.catch_warnings(record=True):  # of tied weights, which are dealt with here
        merged = wrapped.merge_and_unload(safe_merge=True).eval()
    with torch.inference_mode():
        after = merged(ids, use_cache=False).logits
    difference = float((after - together).abs().max())
    if not difference <= _SAME * float(together.abs().max()):
        raise SubjectError(
            f"merged into the weights it computes something else: logits differ by up to {difference:.3g}",
            field=_FIELD,
            got=f"{adapter.name} ({_kind(settings)})",
            expected="an adapter that can be merged",
            next_step="merge it with the tool that trained it, and name the merged folder as subject.model",
        )
    changes = not torch.equal(before, after)
    if not changes:
        log.warning("subject.adapter: %s changes nothing: its update is zero", adapter.name)
    if tied:
        _tie_again(merged)
    return merged, {
        "adapter": adapter.name,
        "title": adapter.title,
        "commit": adapter.commit,
        "fingerprint": adapter_fingerprint(adapter),
        "type": _kind(settings),
        "trained_on": trained_on,
        "trained_on_matches": matches,
        "changes_logits": changes,
        "rounded_away": rounded_away,
    }


def _rounded_away(wrapped: Any, settings: Any, dtype: Any) -> float | None:
    """|what remains of the update in the subject's type − the update| / |the update|, over all matrices of a LoRA.

    None for other kinds of adapters, whose update is no sum, and for one that changes nothing.
    """
    if _kind(settings) != "LORA" or getattr(settings, "use_dora", False):
        return None
    lost = size = 0.0
    for module in wrapped.modules():
        if "default" not in getattr(module, "lora_A", ()):
            continue
        weight, update = module.get_base_layer().weight, module.get_delta_weight("default")
        remains = (weight + update).to(dtype).double() - weight.to(dtype).double()
        lost += float((remains - update).square().sum())
        size += float(update.square().sum())
    return round((lost / size) ** 0.5, 4) if size else None


def _same_base(trained_on: str, base: str) -> bool:
    """Whether two names can mean one checkpoint: equal, or equal in their last part (a hub id and its local copy)."""
    ours, theirs = (text.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower() for text in (base, trained_on))
    return ours == theirs


def _untie(model: Any) -> bool:
    """Give the unembedding weights of its own where it shares the embedding's; returns whether it did.

    An adapter of one of the two was trained with the other unchanged, and merging into shared weights changes both.
    """
    import torch

    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    if outside is None or inside.weight is not outside.weight:
        return False
    outside.weight = torch.nn.Parameter(outside.weight.detach().clone(), requires_grad=False)
    return True


def _tie_again(model: Any) -> None:
    """Share the weights again, or write down that they differ now."""
    import torch

    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    same = torch.equal(inside.weight, outside.weight)
    if same:
        outside.weight = inside.weight
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = same


def _refuse_gaps(wrapped: Any, folder: Path, adapter: Adapter, heard: list[str]) -> None:
    """Refuse what leaves a model half tuned: peft only warns of missing weights and skips those without a place."""
    from safetensors import safe_open

    lacking = next((text for text in heard if text.startswith("Found missing adapter keys")), None)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        saved = set(file.keys())

    def plain(name: str) -> str:
        for part in (".default", ".modules_to_save", ".base_layer", ".original_module"):
            name = name.replace(part, "")
        return name

    known = {plain(name) for name, _ in (*wrapped.named_parameters(), *wrapped.named_buffers())}
    stray = sorted(name for name in saved if plain(name) not in known)
    if lacking is None and not stray:
        return
    raise SubjectError(
        f"its weights do not fit this base: {stray[0]} has no place there"
        if stray
        else f"its weights do not fit this base: {lacking[:300] if lacking else ''}",
        field=_FIELD,
        got=adapter.name,
        expected=f"an adapter of {type(wrapped.get_base_model()).__name__} with weights for every module it names",
        next_step="name the base it was trained on as subject.model",
    )


def _kind(settings: Any) -> str:
    return str(getattr(settings.peft_type, "value", settings.peft_type))


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def _explained(adapter: Adapter) -> Iterator[None]:
    """Turn what peft and safetensors raise on adapters that do not fit into a `SubjectError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SaeinterpError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, ImportError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        fits = "size mismatch" in text or "target modules" in text.lower()
        raise SubjectError(
            f"does not fit this base: {text}" if fits else f"cannot be loaded: {text}",
            field=_FIELD,
            got=adapter.name,
            expected=_KINDS,
            next_step="name the base it was trained on as subject.model"
            if fits
            else f"check {CONFIG} and {WEIGHTS}; an adapter of a newer peft needs pip install --upgrade peft",
        ) from error
