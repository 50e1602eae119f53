"""Where a subject's weights lie: on one device, or spread by accelerate over GPUs, memory and disk.

A spread model moves its inputs by itself: hooks on its modules fetch what is needed for each product and hand
activations from device to device, so what a hookpoint gives lies on the device of its module. The surprising choice:
one device is *not* a special case of spreading, because accelerate's hooks, and loading through them, change nothing
there but the time it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saeinterp.config import Placement
from saeinterp.errors import ConfigError
from saeinterp.subject.devices import resolve_device


def placed(device: str | Placement) -> Placement:
    """A placement, from the name of a device too."""
    return device if isinstance(device, Placement) else Placement(device=device)


def main_device(placement: Placement) -> str:
    """The device of an unspread model (`auto` resolved); of a spread one `cuda` where it uses GPUs, else `cpu`.

    Raises:
        ConfigError: A device that does not exist here.
    """
    if not isinstance(placement.device_map, dict):
        return resolve_device(placement.device)
    named = _numbered(placement)
    for module, device in named.items():
        if device != "disk":
            _check_device(device, module)
    return "cpu" if set(named.values()) <= {"cpu", "disk"} else "cuda"


def memory_limits(placement: Placement) -> dict[int | str, int | str] | None:
    """`max_memory` as accelerate takes it; None lets it use what is free."""
    limits: dict[int | str, int | str] | None = None
    if placement.max_memory is not None:
        limits = {int(key) if key.isdigit() else key: size for key, size in placement.max_memory.items()}
    elif placement.device == "cpu":
        import psutil

        # As transformers does where it looks itself; naming no GPU leaves them out.
        limits = {"cpu": int(0.9 * psutil.virtual_memory().available)}
    return limits


def fit_map(model: Any, placement: Placement) -> dict[str, int | str]:
    """The devices of a placement that names them, one for every module.

    Args:
        model: The model or its shell on the meta device.

    Raises:
        ConfigError: A name is no module's, a module has no device, or tied weights lie on disk and elsewhere.
    """
    named = _numbered(placement)
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for name in named:
        if name not in modules:
            raise ConfigError(
                "no such module in the subject",
                field="subject.device_map",
                got=name,
                expected="module paths such as 'model.layers.0', or '' for all that are not named",
                next_step="list module paths with model.named_modules()",
            )
    for name, _ in model.named_parameters():
        if _device_of(name, named) is None:
            raise ConfigError(
                "leaves a module without a device",
                field="subject.device_map",
                got=name.rpartition(".")[0],
                expected="a device for every module; '' stands for all that are not named",
                next_step="add it",
            )
    for name, other in getattr(model, "all_tied_weights_keys", {}).items():
        places = {_device_of(name, named), _device_of(other, named)}
        if len(places) > 1 and "disk" in places:
            raise ConfigError(
                "puts tied weights on disk and elsewhere",
                field="subject.device_map",
                got=f"{name}, {other}",
                expected="one device for both",
                next_step="name the same device for both",
            )
    return _spelled_out(model, named)


def spread(model: Any, placement: Placement, *, offload: str) -> Any:
    """Spread a model that lies in memory; returns it with accelerate's hooks.

    Args:
        offload: A folder for what goes to disk.

    Raises:
        ConfigError: See `fit_map`.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if isinstance(placement.device_map, dict):
        chosen = fit_map(model, placement)
    else:
        limits: Any = memory_limits(placement)
        whole = {"no_split_module_classes": list(model._no_split_modules or []), "dtype": model.dtype}
        if placement.device_map != "sequential":
            limits = get_balanced_memory(model, limits, low_zero=placement.device_map == "balanced_low_0", **whole)
        chosen = _spelled_out(model, infer_auto_device_map(model, max_memory=limits, **whole))
    return dispatch_model(model, device_map=chosen, offload_dir=offload, skip_keys=model._skip_keys_device_placement)


def input_device(model: Any) -> torch.device:
    """The device on which a model expects token ids, spread or not."""
    embedding = model.get_input_embeddings()
    # Weights that are fetched for each pass have no device of their own in between.
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if device is None:
        return torch.device(next(embedding.parameters()).device)
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _numbered(placement: Placement) -> dict[str, int | str]:
    """The named devices, GPUs by number."""
    assert isinstance(placement.device_map, dict)
    numbers = {module: str(device).removeprefix("cuda:") for module, device in placement.device_map.items()}
    return {module: int(number) if number.isdigit() else number for module, number in numbers.items()}


def _device_of(weight: str, named: Mapping[str, int | str]) -> int | str | None:
    """The device of the longest name that holds a weight; None where there is none."""
    holding = [name for name in named if name in ("", weight) or weight.startswith(f"{name}.")]
    return named[max(holding, key=len)] if holding else None


def _spelled_out(model: Any, named: Mapping[str, int | str]) -> dict[str, int | str]:
    """The map without names inside names, which accelerate misreads: `{"": 0, "lm_head": 1}` names all others."""
    if set(named) == {""} and named[""] != "disk":
        return dict(named)
    result: dict[str, int | str] = {}

    def visit(module: Any, path: str, inherited: int | str | None) -> None:
        device = named.get(path, inherited)
        inside = path == "" or any(name.startswith(f"{path}.") for name in named)
        if not inside:
            assert device is not None, path
            result[path] = device
            return
        below = f"{path}." if path else ""
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            own = named.get(below + name, device)
            if own is not None:
                result[below + name] = own
        for name, child in module.named_children():
            visit(child, below + name, device)

    visit(model, "", None)
    return result


def _check_device(device: int | str, module: str) -> None:
    try:
        resolve_device(f"cuda:{device}" if isinstance(device, int) else device)
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            field="subject.device_map",
            got=f"{module}: {device}",
            expected="the number of a GPU, 'cpu' or 'disk'",
            next_step="correct the device, or run on a machine that has it",
        ) from error
