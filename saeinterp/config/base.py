"""What every configuration model shares: frozen, strict, and split into what changes a result and what does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["train", "health", "explain", "score"]
SPLITS: tuple[Split, ...] = get_args(Split)


def place(default: Any) -> Any:
    """A field that says where or how fast, not what: it never enters a recipe."""
    return Field(default, json_schema_extra={"in_recipe": False})


_WORDS = {
    "lr": "learning rate",
    "llm": "LLM",
    "saes": "SAEs",
    "api": "API",
    "url": "URL",
    "gb": "GB",
    "a": "A",
    "b": "B",
}


def _title(name: str, info: Any) -> str:
    """The heading of a field in a form, from its key: `base_url` is `Base URL`."""
    if name in ("k", "ks"):
        return name
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, field docstrings become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, field_title_generator=_title)


def recipe_of(config: BaseModel) -> dict[str, Any]:
    """The JSON values of a configuration that change results (fields declared with `place` left out)."""
    result: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, Mapping) and extra.get("in_recipe") is False:
            continue
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            result[name] = recipe_of(value)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            result[name] = [recipe_of(item) for item in value]
        else:
            result[name] = json.loads(json.dumps(value))
    return result
