"""Layer health: how well a subject works on an SAE's reconstructions, and how the dictionary is used."""

from saeinterp.health.checks import Check, integrity_checks
from saeinterp.health.documents import METRICS, DocumentSums
from saeinterp.health.evaluation import evaluate_health, evaluate_health_recipe, read_health
from saeinterp.health.reconstruction import measure_reconstruction
from saeinterp.health.summary import MIN_GAP, health_checks, health_values
from saeinterp.health.tally import Reconstruction, RowMask

__all__ = [
    "METRICS",
    "MIN_GAP",
    "Check",
    "DocumentSums",
    "Reconstruction",
    "RowMask",
    "evaluate_health",
    "evaluate_health_recipe",
    "health_checks",
    "health_values",
    "integrity_checks",
    "measure_reconstruction",
    "read_health",
]
