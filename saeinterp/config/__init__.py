"""Frozen configuration models, the same for YAML, Python and the Prefect form.

Unknown keys are errors that offer the nearest valid name. Values that only change where or how fast a
result is computed are declared with `place()`: `recipe_of` leaves them out of recipes.
"""

from saeinterp.config.absorption import AbsorptionConfig
from saeinterp.config.base import SPLITS, Config, Split, place, recipe_of
from saeinterp.config.comparison import ComparisonConfig
from saeinterp.config.enrichment import (
    AssociationPreset,
    ConceptsConfig,
    EnrichmentConfig,
    PositionsConfig,
    ProblemsConfig,
    ThoughtsConfig,
)
from saeinterp.config.explaining import ExamplesConfig, ExplainerConfig, ScorerConfig
from saeinterp.config.flows import CompareExplainersConfig, CompareModelsConfig, ExplainFeaturesConfig, TrainSaesConfig
from saeinterp.config.grades import PROFILES, WORST_CASE, GradingConfig, Thresholds
from saeinterp.config.health import HealthConfig, HealthDataset
from saeinterp.config.interpretability import CompareInterpretabilityConfig, CorrelateTokensConfig
from saeinterp.config.llm import BudgetConfig, LLMConfig, ServingConfig
from saeinterp.config.probing import ProbeLatentsConfig, SparseProbingConfig
from saeinterp.config.reading import dump_config, load_config, override, parse_config, read_yaml
from saeinterp.config.reporting import ReportConfig
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
    "PROFILES",
    "SPLITS",
    "WORST_CASE",
    "AbsorptionConfig",
    "AssociationPreset",
    "BudgetConfig",
    "CaptureConfig",
    "CompareExplainersConfig",
    "CompareInterpretabilityConfig",
    "CompareModelsConfig",
    "ComparisonConfig",
    "ConceptsConfig",
    "Config",
    "CorpusConfig",
    "CorpusSource",
    "CorrelateTokensConfig",
    "DeviceMap",
    "EnrichmentConfig",
    "ExamplesConfig",
    "ExplainFeaturesConfig",
    "ExplainerConfig",
    "GradingConfig",
    "HealthConfig",
    "HealthDataset",
    "LLMConfig",
    "LaunchConfig",
    "MaxMemory",
    "Placement",
    "PositionsConfig",
    "ProbeLatentsConfig",
    "ProblemsConfig",
    "ReportConfig",
    "ScorerConfig",
    "ServingConfig",
    "SparseProbingConfig",
    "Split",
    "SplitFractions",
    "SplitTokens",
    "SubjectConfig",
    "ThoughtsConfig",
    "Thresholds",
    "TrainSaesConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "override",
    "parse_config",
    "place",
    "read_yaml",
    "recipe_of",
]
