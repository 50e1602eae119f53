"""Frozen configuration models, the same for YAML, Python and the Prefect form.

Unknown keys are errors that offer the nearest valid name. Values that only change where or how fast a
result is computed are declared with `place()`: `recipe_of` leaves them out of recipes.
"""

from saeinterp.config.base import SPLITS, Config, Split, place, recipe_of
from saeinterp.config.flows import CompareExplainersConfig, CompareModelsConfig, ExplainFeaturesConfig, TrainSaesConfig
from saeinterp.config.grading import (
    ComparisonConfig,
    ExamplesConfig,
    ExplainerConfig,
    HealthConfig,
    LLMConfig,
    ScorerConfig,
)
from saeinterp.config.reading import dump_config, load_config, parse_config
from saeinterp.config.subject import (
    CaptureConfig,
    CorpusConfig,
    CorpusSource,
    DeviceMap,
    MaxMemory,
    Placement,
    SplitFractions,
    SplitTokens,
    SubjectConfig,
)
from saeinterp.config.training import LaunchConfig, TrainingConfig

__all__ = [
    "SPLITS",
    "CaptureConfig",
    "CompareExplainersConfig",
    "CompareModelsConfig",
    "ComparisonConfig",
    "Config",
    "CorpusConfig",
    "CorpusSource",
    "DeviceMap",
    "ExamplesConfig",
    "ExplainFeaturesConfig",
    "ExplainerConfig",
    "HealthConfig",
    "LLMConfig",
    "LaunchConfig",
    "MaxMemory",
    "Placement",
    "ScorerConfig",
    "Split",
    "SplitFractions",
    "SplitTokens",
    "SubjectConfig",
    "TrainSaesConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "place",
    "recipe_of",
]
