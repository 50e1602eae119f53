"""Read and write configurations as YAML, with errors that name the field and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from saeinterp.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


def parse_config(cls: type[C], data: Mapping[str, Any], *, source: str = "configuration") -> C:
    """Validate plain data as `cls`.

    Raises:
        ConfigError: Naming every wrong field; unknown keys come with the nearest valid name.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        problems = [_explain(cls, item) for item in error.errors()]
        raise ConfigError(
            "; ".join(problems),
            field=source,
            next_step=f"fix {'it' if len(problems) == 1 else 'them'} and run again",
        ) from error


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file (None: all defaults) and apply `a.b=value` overrides (values are YAML).

    Raises:
        ConfigError: The file is missing, not YAML, or holds a wrong value.
    """
    data, source = ({}, "configuration") if path is None else (read_yaml(path), str(path))
    return parse_config(cls, override(data, overrides), source=source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing, not YAML, or holds no mapping.
    """
    source = str(path)
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise ConfigError("no such file", field="--config", got=source, next_step="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {error}", field=source) from error
    if not isinstance(data, dict):
        raise ConfigError("holds no mapping", field=source, got=type(data).__name__, expected="'key: value' lines")
    return data


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The mapping with `a.b=value` assignments put in (values are YAML); `data` stays as it is.

    Raises:
        ConfigError: One is no assignment, or goes below a value.
    """
    data = dict(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError("not an assignment", field="--set", got=assignment, expected="a.b=value")
        node = data
        *parents, leaf = key.split(".")
        for parent in parents:
            section = node.get(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{parent} is a value, not a section", field="--set", got=assignment)
            # A copy: sections that share one YAML anchor are one dict, and only the one named here changes.
            node[parent] = node = dict(section)
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {error}", field="--set", got=assignment) from error
    return data


def dump_config(config: BaseModel) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(cls: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        valid = _fields_at(cls, item["loc"][:-1])
        nearest = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{where}' ({hint})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" or isinstance(item["input"], dict):
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (got {item['input']!r})"


def _fields_at(cls: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    current: Any = cls
    for part in loc:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part)
        if info is None:
            return []
        current = info.annotation
        models = [a for a in (current, *get_args(current)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)
