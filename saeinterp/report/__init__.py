"""Reports: one `results.json`, and Markdown and a single offline HTML page rendered from it."""

from saeinterp.report.results import Failure, Results
from saeinterp.report.values import Number
from saeinterp.report.writing import render, write_report, write_report_recipe

__all__ = ["Failure", "Number", "Results", "render", "write_report", "write_report_recipe"]
