"""Hookpoints: module outputs by name, captured or replaced during a forward pass.

`layers.N` is block N of the base model under whatever name the architecture gives it (`model.layers.N`,
`transformer.h.N`, ...); its output is the residual stream *after* block N, which is `hidden_states[N+1]`
except for the last block, where transformers stores the final norm's output there. `layers.N.mlp` and full
module paths (`model.layers.3.self_attn`) work too. The surprising choice: `capture` stops the forward pass
by an exception raised in the last hook, which needs no knowledge of the architecture.

Shapes: B contexts, T tokens, d width of the module's output.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saeinterp.errors import ConfigError, DataError
from saeinterp.subject.placement import input_device

_BLOCK = re.compile(r"(?:layers|h|blocks)\.(\d+)((?:\.\w+)*)")


class _ForwardStoppedError(Exception):
    """Raised inside the last hook; never leaves this module."""


_TUPLE_LENGTHS: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()


class _Blocks(NamedTuple):
    path: str
    modules: nn.ModuleList


def resolve(model: Any, name: str) -> nn.Module:
    """The module a hookpoint name stands for.

    Raises:
        ConfigError: No such module; offers the nearest hookpoint that exists.
    """
    return _resolve(model, name)[1]


def module_path(model: Any, name: str) -> str:
    """The full module path of a hookpoint, such as `model.layers.9` or `transformer.h.9`.

    Raises:
        ConfigError: No such module.
    """
    return _resolve(model, name)[0]


def blocks(model: Any) -> list[nn.Module]:
    """The model's blocks, in order.

    Raises:
        ConfigError: The architecture has no list of blocks.
    """
    return list(_blocks(model).modules)


def capture(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None, hookpoints: Sequence[str]
) -> dict[str, Tensor]:
    """Outputs of the named modules for one batch; the forward pass ends at the deepest of them.

    Args:
        model: A transformers causal LM.
        input_ids: `[B, T]` token ids, right-padded.
        attention_mask: `[B, T]`, 1 on tokens and 0 on padding; None when nothing is padded.
        hookpoints: Names, see the module docstring.

    Returns:
        `{hookpoint: [B, T, d]}` in the model's dtype, each on the device of its module. Padding rows hold nonsense.

    Raises:
        ConfigError: A hookpoint does not exist, does not run, or gives no `[B, T, d]` tensor.
    """
    found: dict[str, Tensor] = {}
    wanted = {name: resolve(model, name) for name in dict.fromkeys(hookpoints)}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = found[name] = _hidden(name, output)
            if hidden.shape[:2] != input_ids.shape:
                raise _no_stream(name, tuple(hidden.shape))
            if len(found) == len(wanted):
                raise _ForwardStoppedError

        return hook

    if not wanted:
        return {}
    handles = [module.register_forward_hook(listen(name)) for name, module in wanted.items()]
    try:
        with torch.inference_mode(), contextlib.suppress(_ForwardStoppedError):
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in wanted if name not in found]
    if silent:
        raise ConfigError("never runs in a forward pass", field="capture.hookpoints", got=silent[0])
    return {name: found[name] for name in wanted}


@contextlib.contextmanager
def recorded(model: Any, hookpoints: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, every forward pass leaves the hookpoints' outputs `[B, T, d]` in the dictionary it yields.

    Unlike `capture` it lets passes run to their ends, for those whose last hidden state is needed too.

    Raises:
        ConfigError: A hookpoint does not exist, or gives no tensor `[B, T, d]` (raised by the forward pass).
    """
    found: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[name] = _hidden(name, output)

        return hook

    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(hookpoints):
            stack.callback(resolve(model, name).register_forward_hook(listen(name)).remove)
        yield found


@contextlib.contextmanager
def splice(
    model: Any, hookpoint: str, replace: Callable[[Tensor], Tensor], *, skip_before: bool = False
) -> Iterator[None]:
    """Within the context, the hookpoint's output `[B, T, d]` becomes `replace(output)`.

    Args:
        replace: Called once per forward pass; its result is cast to the output's dtype and must have its shape.
        skip_before: Do not compute this block nor those before it (they hand their input on). Only valid where
            `replace` ignores its argument, since that argument is then the embedding output; everything after
            the hookpoint is computed exactly as without it.

    Raises:
        ConfigError: No such hookpoint, or `skip_before` on a hookpoint that is not a block.
        DataError: `replace` returned another shape (raised by the forward pass).
    """
    path, target = _resolve(model, hookpoint)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = _hidden(hookpoint, output)
        new = replace(hidden)
        if new.shape != hidden.shape:
            raise DataError(
                "the replacement has another shape",
                field=hookpoint,
                got=tuple(new.shape),
                expected=str(tuple(hidden.shape)),
            )
        new = new.to(device=hidden.device, dtype=hidden.dtype)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    with contextlib.ExitStack() as stack:
        if skip_before:
            stack.enter_context(_pass_through(model, path, target, hookpoint))
        handle = target.register_forward_hook(hook)
        stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def _pass_through(model: Any, path: str, target: nn.Module, hookpoint: str) -> Iterator[None]:
    found = _blocks(model)
    index = next((i for i, block in enumerate(found.modules) if block is target), None)
    if index is None:
        raise ConfigError(
            "only the output of a block can be spliced with skip_before",
            field="hookpoint",
            got=hookpoint,
            expected=f"a block such as 'layers.{len(found.modules) // 2}'",
        )
    saved: list[tuple[nn.Module, Any]] = []
    try:
        for block in list(found.modules)[: index + 1]:
            length = _tuple_length(model, block)
            # Replaced on the instance: blocks keep their attributes, which models read (`attention_type`).
            saved.append((block, block.__dict__.get("forward")))
            block.__dict__["forward"] = _identity(length)
        yield
    finally:
        for block, forward in saved:
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = forward


def _identity(length: int | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if length is None else (hidden, *(None for _ in range(length - 1)))

    return forward


def _tuple_length(model: Any, block: nn.Module) -> int | None:
    """None when a block returns a tensor, else the length of the tuple it returns (one tiny pass, remembered)."""
    if block not in _TUPLE_LENGTHS:
        seen: list[int | None] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(None if isinstance(output, Tensor) else len(output))
            raise _ForwardStoppedError

        handle = block.register_forward_hook(hook)
        try:
            device = input_device(model)
            with torch.inference_mode(), contextlib.suppress(_ForwardStoppedError):
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        finally:
            handle.remove()
        _TUPLE_LENGTHS[block] = seen[0]
    return _TUPLE_LENGTHS[block]


def _hidden(name: str, output: Any) -> Tensor:
    hidden = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) and output else None
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise _no_stream(name, tuple(hidden.shape) if isinstance(hidden, Tensor) else type(output).__name__)
    return hidden


def _no_stream(name: str, got: object) -> ConfigError:
    return ConfigError(
        f"gives no tensor [contexts, tokens, width] but {got}",
        field="capture.hookpoints",
        got=name,
        next_step="name a block, its mlp or its attention, such as 'layers.0.mlp'",
    )


def _resolve(model: Any, name: str) -> tuple[str, nn.Module]:
    match = _BLOCK.fullmatch(name)
    if match is not None:
        found = _blocks(model)
        index = int(match.group(1))
        if index >= len(found.modules):
            last = len(found.modules) - 1
            raise ConfigError(
                f"layer {index} does not exist: the subject has {last + 1} layers",
                field="capture.hookpoints",
                got=name,
                expected=f"layers.0 to layers.{last}",
                next_step=f"did you mean 'layers.{last}{match.group(2)}'?",
            )
        path = f"{found.path}.{index}{match.group(2)}"
    else:
        path = name
    module = dict(model.named_modules()).get(path) if path else None
    if module is None:
        raise ConfigError(
            "no such module in the subject",
            field="capture.hookpoints",
            got=name,
            expected=f"layers.0 to layers.{len(_blocks(model).modules) - 1}, or a module path",
            next_step=_nearest(model, path),
        )
    return path, module


def _nearest(model: Any, path: str) -> str:
    names = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "list module paths with model.named_modules()"


def _blocks(model: Any) -> _Blocks:
    """The module list with as many entries as the configuration has layers."""
    expected = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected:
            return _Blocks(path, module)
    raise ConfigError(
        f"found no list of {expected} blocks in {type(model).__name__}",
        field="capture.hookpoints",
        next_step="name modules by their full paths",
    )
