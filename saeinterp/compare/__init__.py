"""Comparisons: of explainers on the same latents, and of models layer by layer."""

from saeinterp.compare.comparability import (
    ComparabilityRow,
    check_comparability,
    comparability_row,
    fold_rows,
    require_comparable,
)
from saeinterp.compare.explainers import (
    compare_explainers,
    compare_explainers_recipe,
    read_explainer_comparison,
)
from saeinterp.compare.models import compare_models, compare_models_recipe
from saeinterp.compare.results import ExplainerComparison
from saeinterp.compare.scores import ComparedExplainers, compare_scores
from saeinterp.compare.tables import ScoreTable, read_score_table

__all__ = [
    "ComparabilityRow",
    "ComparedExplainers",
    "ExplainerComparison",
    "ScoreTable",
    "check_comparability",
    "comparability_row",
    "compare_explainers",
    "compare_explainers_recipe",
    "compare_models",
    "compare_models_recipe",
    "compare_scores",
    "fold_rows",
    "read_explainer_comparison",
    "read_score_table",
    "require_comparable",
]
