"""Write docs/reference/{configuration,python}.md from the code: `python docs/generate.py`."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from saeinterp import config as configs

REFERENCE = Path(__file__).parent / "reference"
FLOWS = {
    "train-saes": configs.TrainSaesConfig,
    "explain-features": configs.ExplainFeaturesConfig,
    "compare-explainers": configs.CompareExplainersConfig,
    "compare-models": configs.CompareModelsConfig,
    "probe-latents": configs.ProbeLatentsConfig,
    "correlate-tokens": configs.CorrelateTokensConfig,
    "compare-interpretability": configs.CompareInterpretabilityConfig,
}
INTRODUCTION = """# Configuration

Made from the code by `python docs/generate.py`; a test holds the two together.

Every flow takes one configuration, the same in YAML, in Python and in the Prefect form. Unknown keys are
errors that offer the nearest valid name. Values marked *place* say where or how fast something runs; they
never enter a recipe, so changing them computes nothing again.
"""


PACKAGES = (
    *(
        "artifacts",
        "config",
        "errors",
        "estimates",
        "subject",
        "sae",
        "latents",
        "health",
        "enrichment",
        "explain",
        "compare",
    ),
    *("report", "stats"),
)
PYTHON = """# Python

Made from the code by `python docs/generate.py`; a test holds the two together. A worked example is in
[how-to/notebook.md](../how-to/notebook.md).

A step is a pair: `thing_recipe(...)` says what would be made and computes nothing; `thing(...)` makes the artifact, or
returns it at once where it exists. Inputs of a recipe are recipes or artifacts (`Ref`), inputs of a step are artifacts.
A recipe takes the step's arguments without `store`, `device`, `launcher` and `progress`, and is not listed here.

`progress` is called as `progress(done, total, unit)`. `device` is `auto`, `cpu`, `cuda`, `cuda:N` or a `Placement`
(`subject_config.placement`), which may spread the subject. Errors derive from `saeinterp.errors.SaeinterpError` and
name the field, what it got, what was expected and the next step.

`build_corpus` takes its tokenizer from `subject`. A model with random weights has the tokenizer of the pretrained one:
give both the corpus built for the pretrained model, so that they see the same text.
"""


def configuration() -> str:
    """docs/reference/configuration.md."""
    lines = [INTRODUCTION]
    sections: dict[str, type[BaseModel]] = {}
    for name, model in FLOWS.items():
        lines += [f"## `{name}`", "", model.__doc__ or "", "", "| section | kind |", "|---|---|"]
        for field, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                sections[kind.__name__] = kind
                lines.append(f"| `{field}` | [{kind.__name__}](#{kind.__name__.lower()}) |")
            else:
                text = (info.description or "").replace("\n", " ")
                default = _default(info.get_default(call_default_factory=True))
                lines.append(f"| `{field}` | {text} Default: `{default}`. |")
        lines.append("")
    for inner in (
        *("CorpusSource", "SplitFractions", "SplitTokens", "HealthDataset", "Thresholds", "ThoughtsConfig"),
        *("LLMConfig", "ServingConfig", "BudgetConfig"),
    ):
        sections[inner] = getattr(configs, inner)
    for name, model in sorted(sections.items()):
        lines += [f"## {name}", "", model.__doc__ or "", "", "| key | default | meaning |", "|---|---|---|"]
        for field, info in model.model_fields.items():
            extra = info.json_schema_extra
            mark = " *place*" if isinstance(extra, dict) and extra.get("in_recipe") is False else ""
            default = "required" if info.is_required() else f"`{_default(info.get_default(call_default_factory=True))}`"
            text = (info.description or "").replace("|", "\\|").replace("\n", " ")
            lines.append(f"| `{field}` | {default} | {text}{mark} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see its section"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return ", ".join(str(item.model_dump(exclude_defaults=True)) for item in value)
    return json.dumps(value)


def python() -> str:
    """docs/reference/python.md: the public names of each subpackage with the first sentence of their docstrings."""
    lines = [PYTHON]
    for package in PACKAGES:
        module = importlib.import_module(f"saeinterp.{package}")
        public = getattr(module, "__all__", None) or [
            name
            for name, item in vars(module).items()
            if not name.startswith("_") and getattr(item, "__module__", None) == module.__name__
        ]
        lines += [f"## saeinterp.{package}", "", _sentence(module), "", "| name | |", "|---|---|"]
        for name in sorted(public, key=str.casefold):
            item = getattr(module, name)
            if name.endswith("_recipe") or not (inspect.isclass(item) or inspect.isfunction(item)):
                continue
            shown = f"{name}({', '.join(_parameters(item))})" if inspect.isfunction(item) else name
            text = " ".join(part for part in (_sentence(item), _methods(item)) if part)
            lines.append(f"| `{shown}` | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _parameters(function: Any) -> list[str]:
    """Names with their defaults; keyword-only ones after a star."""
    shown: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            name = ("*" if parameter.kind is parameter.VAR_POSITIONAL else "**") + name
        if parameter.default is parameter.empty:
            shown.append(name)
        elif isinstance(parameter.default, str | int | float | bool | tuple | None):
            shown.append(f"{name}={parameter.default!r}")
        else:
            shown.append(f"{name}=...")
    return shown


def _methods(item: Any) -> str:
    """The public methods and properties that a class defines itself."""
    if not inspect.isclass(item) or issubclass(item, BaseModel | BaseException):
        return ""
    kinds = (classmethod, staticmethod, property, cached_property)
    found = [
        name
        for name, value in vars(item).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]
    return ", ".join(f"`.{name}`" for name in found)


def _sentence(item: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
    if inspect.isclass(item) and text == " ".join((inspect.getdoc(item.__mro__[1]) or "").split("\n\n")[0].split()):
        return ""  # inherited, or made by NamedTuple
    return re.split(r"(?<!al)(?<!\s)\.\s(?=[A-Z`])", text, maxsplit=1)[0].removesuffix(".").replace("|", "\\|") + "."


PAGES = {"configuration.md": configuration, "python.md": python}


if __name__ == "__main__":
    for name, render in PAGES.items():
        (REFERENCE / name).write_text(render(), encoding="utf-8")
