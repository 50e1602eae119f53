"""Layer health: how well a subject works on an SAE's reconstructions, and how the dictionary is used."""

from saeinterp.health.checks import Check, integrity_checks
from saeinterp.health.decoder_cosine import TopCosine, decoder_top_cosine, random_top_cosines, top_cosine
from saeinterp.health.documents import METRICS, DocumentSums
from saeinterp.health.evaluation import (
    EvaluatedLayers,
    evaluate_health,
    evaluate_health_recipe,
    evaluate_layers,
    read_health,
)
from saeinterp.health.grading.results import DatasetGrade, LayerGrades, SaeGrade
from saeinterp.health.grading.rules import Grade, grade_layer
from saeinterp.health.grading.step import grade_layers, grade_layers_recipe, grade_rows, read_grades
from saeinterp.health.letters.absorption import (
    measure_absorption,
    measure_absorption_recipe,
    read_absorption,
)
from saeinterp.health.letters.probes import LetterProbes, letter_probes, letter_probes_recipe, read_letter_probes
from saeinterp.health.overlap import Overlap, training_overlap
from saeinterp.health.probing.step import probe_labels, probe_labels_recipe, read_probes
from saeinterp.health.reconstruction import Measured, Site, measure_reconstruction, measure_sites
from saeinterp.health.summary import MIN_GAP, health_checks, health_values
from saeinterp.health.tally import Reconstruction, RowMask

__all__ = [
    "METRICS",
    "MIN_GAP",
    "Check",
    "DatasetGrade",
    "DocumentSums",
    "EvaluatedLayers",
    "Grade",
    "LayerGrades",
    "LetterProbes",
    "Measured",
    "Overlap",
    "Reconstruction",
    "RowMask",
    "SaeGrade",
    "Site",
    "TopCosine",
    "decoder_top_cosine",
    "evaluate_health",
    "evaluate_health_recipe",
    "evaluate_layers",
    "grade_layer",
    "grade_layers",
    "grade_layers_recipe",
    "grade_rows",
    "health_checks",
    "health_values",
    "integrity_checks",
    "letter_probes",
    "letter_probes_recipe",
    "measure_absorption",
    "measure_absorption_recipe",
    "measure_reconstruction",
    "measure_sites",
    "probe_labels",
    "probe_labels_recipe",
    "random_top_cosines",
    "read_absorption",
    "read_grades",
    "read_health",
    "read_letter_probes",
    "read_probes",
    "top_cosine",
    "training_overlap",
]
