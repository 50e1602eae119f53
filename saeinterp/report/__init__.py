"""Reports: one `results.json`, and Markdown and a single offline HTML page rendered from it.

Also what can be made of a report or of the artifacts behind it: the report again, CSV, a JSON Schema, files for
Neuronpedia, a model card.
"""

from saeinterp.report.exports.model_card import write_model_card
from saeinterp.report.exports.neuronpedia import Target, write_neuronpedia
from saeinterp.report.exports.schema import results_schema
from saeinterp.report.exports.spreadsheets import write_csv
from saeinterp.report.rebuilding import rebuild
from saeinterp.report.results import Failure, Results
from saeinterp.report.summary import fitting, summary_markdown, summary_tables
from saeinterp.report.values import Number
from saeinterp.report.writing import render, write_report, write_report_recipe

__all__ = [
    "Failure",
    "Number",
    "Results",
    "Target",
    "fitting",
    "rebuild",
    "render",
    "results_schema",
    "summary_markdown",
    "summary_tables",
    "write_csv",
    "write_model_card",
    "write_neuronpedia",
    "write_report",
    "write_report_recipe",
]
