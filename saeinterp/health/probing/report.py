"""The probes of a labelled table as Markdown: numbers beside their nulls, and no adjectives."""

from __future__ import annotations

from typing import Any

import polars as pl

from saeinterp.stats import number

_NAMES = {"sae": "SAE", "random-sae": "random SAE", "activations": "activations"}


def probing_report(results: dict[str, Any], probes: pl.DataFrame) -> str:
    """The report of one table.

    Args:
        results: The content of `results.json`.
        probes: One row per hookpoint, class, features and k.
    """
    settings = results["settings"]
    unit = "groups" if settings["group_column"] else "distinct texts"
    classes = ", ".join(f"{name} ({n['train']} training, {n['test']} test)" for name, n in results["classes"].items())
    lines = [
        f"# Sparse probing: {results['table']['title']}",
        "",
        f"{results['rows']} texts, {results['groups']} {unit}; classes: {classes}. {results['truncated']} texts were "
        f"cut to {settings['context_length']} tokens. A text is the {settings['pooling']} over its unmasked tokens. "
        "One class is told from the rest by a balanced logistic regression on the k latents whose means differ most in "
        "the training rows; all numbers are on test rows.",
        "",
        "## Means over classes",
        "",
        *_table(
            ["layer", "probe of", "k", "AUROC", "permuted labels", "accuracy", "majority class", "F1", "always yes"],
            [
                [
                    row["hookpoint"],
                    _NAMES[row["features"]],
                    "all" if row["k"] is None else str(row["k"]),
                    *(
                        _cell(row[name])
                        for name in ("auroc", "permuted_auroc", "accuracy", "null_accuracy", "f1", "null_f1")
                    ),
                ]
                for row in results["layers"]
            ],
        ),
        "",
        "## Classes",
        "",
        f"p: share of {settings['permutations']} probes of permuted labels, and this one, whose AUROC is at "
        f"least as high; {number(1 / (1 + settings['permutations']))} is the smallest possible, and it is not adjusted "
        "for the number of rows here. Intervals are 95% over test texts, given the probe: Wilson's for accuracy (over "
        "groups: a bootstrap), a bootstrap for F1; where a score leaves the bootstrap nothing to vary there is none.",
        "",
        *_table(
            ["layer", "class", "probe of", "k", "latents", "AUROC", "p", "accuracy", "majority class", "F1"],
            [
                [
                    row["hookpoint"],
                    row["label"].replace("|", "\\|"),
                    _NAMES[row["features"]],
                    "all" if row["k"] is None else str(row["k"]),
                    "" if row["latents"] is None or row["features"] != "sae" else ", ".join(map(str, row["latents"])),
                    _cell(row["auroc"]),
                    "–" if row["p_auroc"] is None else _cell(row["p_auroc"]),
                    _with_interval(row, "accuracy"),
                    _cell(row["null_accuracy"]),
                    _with_interval(row, "f1"),
                ]
                for row in probes.to_dicts()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(row: dict[str, Any], name: str) -> str:
    if row[f"{name}_low"] is None:
        return _cell(row[name])
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
