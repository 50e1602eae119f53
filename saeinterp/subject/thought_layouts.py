"""The tensors of CODI and Coconut checkpoints by name and shape, and how they become a model and a projection.

The surprising choice: a LoRA is merged here, by two products, instead of through peft: the checkpoint holds peft's
names but not its settings. Every tensor must have its place: what is missing, left over or of another shape is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saeinterp.config import ThoughtsConfig
from saeinterp.errors import SubjectError

CHECKPOINT_FIELD = "positions.thoughts.checkpoint"
_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight")
_PROJECTION = ("1.weight", "1.bias", "3.weight", "3.bias")
_NORM = ("ln.weight", "ln.bias")
_SPARE = "embedding.weight"  # Coconut's wrapper names the embedding a second time
_BUFFERS = re.compile(r".*(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)")  # of older versions of transformers


@dataclass(frozen=True)
class Layout:
    """What a checkpoint holds.

    Attributes:
        shapes: Of every tensor, by its key in the file.
        weights: Weight of the causal model -> key.
        lora: Module of the causal model -> keys of A `[r, in]` and B `[out, r]`.
        prj: Part of the projection (`1.weight`) -> key.
        alpha: Of the LoRA.
    """

    shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, str]
    lora: Mapping[str, tuple[str, str]]
    prj: Mapping[str, str]
    alpha: float

    def extend(self, model: Any) -> None:
        """Give the model as many tokens as the checkpoint has; the new rows are drawn.

        Raises:
            SubjectError: No embedding, or one of another width.
        """
        name, width = _input_name(model), model.get_input_embeddings().embedding_dim
        key = next((self.weights[other] for other in _embeddings(model) if other in self.weights), None)
        if key is None:
            raise misfit(f"lacks the embedding, {name}", got=_some(self.weights), expected=f"a tensor of {name}")
        rows, columns = self.shapes[key]
        if columns != width:
            raise misfit(f"{key} has another width than the subject", got=columns, expected=f"{width} columns")
        model.resize_token_embeddings(rows, mean_resizing=False)

    def projection(self, model: Any) -> nn.Sequential:
        """A projection of the checkpoint's shape, freshly drawn: Dropout, Linear, GELU, Linear and LayerNorm.

        Raises:
            SubjectError: The checkpoint has none, or one of another width.
        """
        width = model.get_input_embeddings().embedding_dim
        missing = [part for part in _PROJECTION if part not in self.prj]
        if missing:
            raise misfit(
                f"lacks prj.{missing[0]}, a part of the projection",
                got=_some(self.shapes),
                expected="a CODI checkpoint with a projection",
                next_step="set positions.thoughts.feedback: identity",
            )
        hidden = self.shapes[self.prj["1.weight"]][0]
        made = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        if any(part in self.prj for part in _NORM):
            made.add_module("ln", nn.LayerNorm(width))
        for part, value in made.state_dict().items():
            _check_shape(self.prj.get(part, f"prj.{part}"), self.shapes.get(self.prj.get(part, "")), tuple(value.shape))
        return made

    def load(self, model: Any, projection: nn.Sequential | None, read: Callable[[str], Tensor]) -> None:
        """Put the checkpoint's weights into a model that `extend` gave its tokens, and into its projection.

        Raises:
            SubjectError: Naming a tensor that is missing, has no place, or has another shape.
        """
        wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        keys = {name: key for name, key in self.weights.items() if name in wanted or not _BUFFERS.fullmatch(name)}
        self._share(model, keys)
        stray = sorted(name for name in keys if name not in wanted)
        if stray:
            raise misfit(f"{keys[stray[0]]} has no place in the subject", got=stray[0], expected=_some(wanted))
        missing = sorted(name for name in wanted if name not in keys)
        if missing:
            raise misfit(f"lacks {len(missing)} weights, such as {missing[0]}", got=_some(self.weights))
        for name, key in keys.items():
            _check_shape(key, self.shapes[key], wanted[name])
        tensors = {name: read(key) for name, key in keys.items()}
        for module, pair in self.lora.items():
            self._merge(model, module, pair, tensors, read)
        model.load_state_dict(tensors, strict=True)
        if projection is not None:
            projection.load_state_dict({part: read(self.prj[part]) for part in projection.state_dict()})

    def _share(self, model: Any, keys: dict[str, str]) -> None:
        """Let tied embeddings have one key, whichever of their names was stored."""
        inside, *others = _embeddings(model)
        tied = model.get_output_embeddings() is not None and (
            model.get_output_embeddings().weight is model.get_input_embeddings().weight
        )
        spare = keys.pop(_SPARE, None)
        candidates = [keys.get(inside), spare, *((keys.get(name) for name in others) if tied else ())]
        found = next((key for key in candidates if key is not None), None)
        if found is not None:
            keys[inside] = found
            if tied:
                keys.update((name, found) for name in others if name != _SPARE)

    def _merge(
        self, model: Any, module: str, pair: tuple[str, str], tensors: dict[str, Tensor], read: Callable[[str], Tensor]
    ) -> None:
        """Add a LoRA's update to the weight of its module, in float32."""
        name = f"{module}.weight"
        if name not in tensors:
            raise misfit(f"{pair[0]} has no place in the subject", got=module, expected="a module with a weight")
        # GPT-2 keeps its matrices the other way round.
        turned = type(model.get_submodule(module)).__name__ == "Conv1D"
        rows, columns = reversed(tensors[name].shape) if turned else tensors[name].shape
        rank = self.shapes[pair[0]][0]
        _check_shape(pair[0], self.shapes[pair[0]], (rank, columns))
        _check_shape(pair[1], self.shapes[pair[1]], (rows, rank))
        down, up = (read(key).float() for key in pair)
        update = self.alpha / rank * (up @ down)
        tensors[name] = tensors[name].float() + (update.T if turned else update)


def read_layout(shapes: Mapping[str, tuple[int, ...]], config: ThoughtsConfig) -> Layout:
    """Sort a checkpoint's tensors by what they are.

    Raises:
        SubjectError: A tensor is none of the format, or half of a LoRA is missing.
    """
    weights: dict[str, str] = {}
    prj: dict[str, str] = {}
    halves: dict[str, dict[str, str]] = {}
    for key in shapes:
        if config.format == "coconut":
            weights[key.removeprefix("base_causallm.")] = key
        elif key.startswith("prj."):
            prj[key.removeprefix("prj.")] = key
        elif not key.startswith("codi."):
            raise misfit(f"{key} is no tensor of a CODI checkpoint", got=key, expected="names such as codi.… and prj.…")
        else:
            name = key.removeprefix("codi.").removeprefix("base_model.model.")
            half = _LORA.fullmatch(name)
            if half is None:
                weights[name.replace(".base_layer.", ".")] = key
            else:
                halves.setdefault(half.group(1), {})[half.group(2)] = key
    for module, found in halves.items():
        if len(found) < 2:
            raise misfit(f"has one half of the LoRA of {module}", got=next(iter(found.values())), expected="A and B")
    lora = {module: (found["A"], found["B"]) for module, found in halves.items()}
    return Layout(shapes, weights, lora, prj, config.lora_alpha)


def misfit(problem: str, *, got: object, expected: str | None = None, next_step: str | None = None) -> SubjectError:
    """The error of a checkpoint that does not fit."""
    return SubjectError(
        problem,
        field=CHECKPOINT_FIELD,
        got=got,
        expected=expected,
        next_step=next_step or "name the model it was trained from as the subject, and check positions.thoughts.format",
    )


def _check_shape(key: str, shape: tuple[int, ...] | None, wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise misfit(f"{key} has another shape" if shape else f"lacks {key}", got=shape, expected=f"shape {wanted}")


def _embeddings(model: Any) -> list[str]:
    """The names an embedding can be stored under: the input's, the output's, and Coconut's second one."""
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return [names[id(inside)], *([] if outside is None else [names[id(outside)]]), _SPARE]


def _input_name(model: Any) -> str:
    return _embeddings(model)[0]


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:4])
