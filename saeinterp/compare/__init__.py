"""Comparisons: of explainers on the same latents, and of models layer by layer."""

from saeinterp.compare.comparability import (
    ComparabilityRow,
    check_comparability,
    comparability_row,
    fold_rows,
    require_comparable,
)
from saeinterp.compare.explainer_pairs import compare_pairs, compare_pairs_recipe, read_explainer_pairs
from saeinterp.compare.explainers import (
    compare_explainers,
    compare_explainers_recipe,
    read_explainer_comparison,
)
from saeinterp.compare.interpretability import (
    compare_interpretability,
    compare_interpretability_recipe,
    read_interpretability,
)
from saeinterp.compare.interpretability_results import InterpretabilityComparison
from saeinterp.compare.models import compare_models, compare_models_recipe
from saeinterp.compare.pair_results import ExplainerPairs
from saeinterp.compare.results import ExplainerComparison
from saeinterp.compare.scorer_results import ScorerAgreement
from saeinterp.compare.scorers import compare_scorers, compare_scorers_recipe, read_scorer_agreement
from saeinterp.compare.scores import ComparedExplainers, compare_scores
from saeinterp.compare.tables import ScoreTable, read_score_table

__all__ = [
    "ComparabilityRow",
    "ComparedExplainers",
    "ExplainerComparison",
    "ExplainerPairs",
    "InterpretabilityComparison",
    "ScoreTable",
    "ScorerAgreement",
    "check_comparability",
    "comparability_row",
    "compare_explainers",
    "compare_explainers_recipe",
    "compare_interpretability",
    "compare_interpretability_recipe",
    "compare_models",
    "compare_models_recipe",
    "compare_pairs",
    "compare_pairs_recipe",
    "compare_scorers",
    "compare_scorers_recipe",
    "compare_scores",
    "fold_rows",
    "read_explainer_comparison",
    "read_explainer_pairs",
    "read_interpretability",
    "read_score_table",
    "read_scorer_agreement",
    "require_comparable",
]
