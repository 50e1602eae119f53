"""Which flows there are, and how their configuration is read from files, presets and overrides."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from saeinterp import config as configs
from saeinterp.config import load_config
from saeinterp.errors import ConfigError

FLOWS: dict[str, tuple[str, type[BaseModel]]] = {
    "train-saes": ("flows.train_saes:train_saes", configs.TrainSaesConfig),
    "explain-features": ("flows.explain_features:explain_features", configs.ExplainFeaturesConfig),
    "compare-explainers": ("flows.compare_explainers:compare_explainers", configs.CompareExplainersConfig),
    "compare-models": ("flows.compare_models:compare_models", configs.CompareModelsConfig),
    "probe-latents": ("flows.probe:probe_latents", configs.ProbeLatentsConfig),
    "correlate-tokens": ("flows.correlate_tokens:correlate_tokens", configs.CorrelateTokensConfig),
    "compare-interpretability": (
        "flows.compare_interpretability:compare_interpretability",
        configs.CompareInterpretabilityConfig,
    ),
}


def model_of(flow: str) -> type[BaseModel]:
    """The configuration model of a flow.

    Raises:
        ConfigError: There is no such flow.
    """
    if flow not in FLOWS:
        raise ConfigError("no such flow", field="FLOW", got=flow, expected=", ".join(FLOWS))
    return FLOWS[flow][1]


def preset_files() -> list[Path]:
    """The packaged preset files."""
    import deployments

    return sorted((Path(deployments.__file__).parent / "presets").glob("*.yaml"))


def preset_file(name: str, *, field: str = "--config") -> Path:
    """The file of one preset.

    Raises:
        ConfigError: There is none of that name.
    """
    known = {file.stem: file for file in preset_files()}
    if name not in known:
        raise ConfigError("no such preset", field=field, got=name, expected=", ".join(known))
    return known[name]


def configuration(flow: str, source: str | None, overrides: list[str]) -> BaseModel:
    """A flow's configuration from a YAML file or `preset:NAME` (None: all defaults) and `a.b=value` overrides.

    Raises:
        ConfigError: No such flow, preset or file, or a wrong value.
    """
    model = model_of(flow)
    if source is not None and source.startswith("preset:"):
        return load_config(model, preset_file(source.removeprefix("preset:")), overrides)
    return load_config(model, source, overrides)
