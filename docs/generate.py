"""Write docs/reference/configuration.md from the configuration models: `python docs/generate.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from saeinterp import config as configs

TARGET = Path(__file__).parent / "reference" / "configuration.md"
FLOWS = {
    "train-saes": configs.TrainSaesConfig,
    "explain-features": configs.ExplainFeaturesConfig,
    "compare-explainers": configs.CompareExplainersConfig,
    "compare-models": configs.CompareModelsConfig,
    "probe-latents": configs.ProbeLatentsConfig,
}
INTRODUCTION = """# Configuration

Made from the code by `python docs/generate.py`; a test holds the two together.

Every flow takes one configuration, the same in YAML, in Python and in the Prefect form. Unknown keys are
errors that offer the nearest valid name. Values marked *place* say where or how fast something runs; they
never enter a recipe, so changing them computes nothing again.
"""


def render() -> str:
    """The page as Markdown."""
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
    for inner in ("CorpusSource", "SplitFractions", "SplitTokens", "LLMConfig", "HealthDataset", "Thresholds"):
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


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
