"""`saeinterp import`: bring in numbers that were made elsewhere. No flow runs and Prefect is not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.terminal import Root, guard, out
from saeinterp.artifacts import ArtifactStore
from saeinterp.config import PROFILES, WORST_CASE, ComparisonConfig, GradingConfig, parse_config
from saeinterp.errors import ConfigError

if TYPE_CHECKING:
    from saeinterp.compare.imported import ImportedComparison
    from saeinterp.compare.imported.records import ScoreReview
    from saeinterp.health.imported import ImportedHealth

app = typer.Typer(
    name="import",
    help="Bring in tables that were made elsewhere: the same grading, checks and report as for our own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("health")
def health(
    file: Annotated[Path, typer.Argument(help="CSV, JSON or Markdown with a table of layers.", metavar="FILE")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Name of the model; repeat it, in the file's order, where there are several."),
    ] = None,
    latents: Annotated[int | None, typer.Option("--latents", min=1, help="Dictionary size of every SAE.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Latents active per token, of every SAE.")] = None,
    profile: Annotated[
        str, typer.Option("--profile", help=f"Thresholds: {', '.join(PROFILES)}.", metavar="NAME")
    ] = "seed-lenient",
    dataset: Annotated[
        str, typer.Option("--dataset", help=f"The dataset that decides grades, or {WORST_CASE}.", metavar="NAME")
    ] = WORST_CASE,
    as_json: Annotated[bool, typer.Option("--json", help="Print grades and failed checks as JSON.")] = False,
    root: Root = None,
) -> None:
    """Grade an outside table of layer health, check its numbers and claims, and write a report."""

    def work() -> None:
        if profile not in PROFILES:
            raise ConfigError("no such profile", field="--profile", got=profile, expected=", ".join(PROFILES))
        from saeinterp.health.imported import import_health, summary_of
        from saeinterp.report import write_report
        from saeinterp.report.format import visible

        store = ArtifactStore(root)
        config = GradingConfig(profile=profile, dataset=dataset)
        imported = import_health(file, models=model or (), num_latents=latents, k=k, config=config, store=store)
        report = write_report(
            title=f"Layer health from {file.name}",
            explainer_comparison=None,
            model_comparison=None,
            health={},
            saes={},
            failures=(),
            config=config,
            grades=imported.grades,
            review=imported.review,
            store=store,
        )
        if as_json:
            # Escaped to ASCII: names come from the file, and a terminal may obey what stands in them.
            typer.echo(json.dumps({**summary_of(imported), "report": str(report.path)}, indent=1))
            return
        for line in _lines(imported):
            out.print(visible(line), markup=False, emoji=False)
        out.print(f"Report: {report.path / 'report.html'}", markup=False, emoji=False)

    guard(work)


@app.command("scores")
def scores(
    files: Annotated[
        list[Path],
        typer.Argument(help="CSV, TSV, Parquet, JSON or Markdown with scores per latent.", metavar="FILE..."),
    ],
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="What the values are, whatever the file calls them.", metavar="NAME"),
    ] = None,
    explainers: Annotated[
        list[str] | None,
        typer.Option("--explainer", help="Name of an explainer; repeat it, in the files' order, for each."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="Heading of a column of values; repeat it where they are not found by themselves."
        ),
    ] = None,
    hookpoint: Annotated[
        str | None, typer.Option("--hookpoint", help="Where the latents live, such as layers.4.", metavar="NAME")
    ] = None,
    positives: Annotated[
        int | None, typer.Option("--positives", min=1, help="Examples of a latent in which it fires.")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option("--negatives", min=0, help="Examples of a latent in which it is silent.")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Equivalence margin.")] = ComparisonConfig().margin,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="Compare the shared latents of files with different ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print comparisons and failed checks as JSON.")] = False,
    root: Root = None,
) -> None:
    """Compare outside scores of explainers by our tests, check the numbers and claims, and write a report."""

    def work() -> None:
        from saeinterp.compare.imported import import_scores, read_score_review, summary_of
        from saeinterp.report import write_report
        from saeinterp.report.format import listing, visible

        store = ArtifactStore(root)
        values = {"margin": margin, "allow_unmatched": allow_unmatched}
        config = parse_config(ComparisonConfig, values, source="options")
        imported = import_scores(
            files,
            metric=metric,
            explainers=explainers or (),
            columns=columns or (),
            hookpoint=hookpoint,
            positives=positives,
            negatives=negatives,
            config=config,
            store=store,
        )
        report = write_report(
            title=f"Scores from {listing([file.name for file in files])}",
            explainer_comparison=imported.comparisons["ab"],
            explainer_pairs=imported.pairs,
            model_comparison=None,
            health={},
            saes={},
            failures=(),
            config=config,
            review=imported.review,
            store=store,
        )
        if as_json:
            typer.echo(json.dumps({**summary_of(imported), "report": str(report.path)}, indent=1))
            return
        for line in _score_lines(imported, read_score_review(imported.review)):
            out.print(visible(line), markup=False, emoji=False)
        out.print(f"Report: {report.path / 'report.html'}", markup=False, emoji=False)

    guard(work)


def _score_lines(imported: ImportedComparison, review: ScoreReview) -> Iterator[str]:
    """Findings, failed checks and how the table was read, as lines for the terminal."""
    from saeinterp.compare import read_explainer_comparison, read_explainer_pairs
    from saeinterp.compare.imported import read_scores_table

    if imported.pairs is not None:
        yield from (item.text for item in read_explainer_pairs(imported.pairs).sentences)
    else:
        yield from (item.text for item in read_explainer_comparison(imported.comparisons["ab"]).sentences)
    table = read_scores_table(imported.table)
    yield f"{len(review.checks)} checks of the table, {len(review.problems)} failed"
    for check in review.problems:
        about = f", {check.model}" if check.model else ""
        yield f"  {table.files[0].unit} {check.line}{about}: {check.name}: {check.detail}"
    yield from (f"  note: {line}" for line in (*table.notes, *review.notes))


def _lines(imported: ImportedHealth) -> Iterator[str]:
    """Grades, comparison and failed checks, as lines for the terminal."""
    from saeinterp.health.grading.step import read_grades
    from saeinterp.health.imported import read_review, read_table

    review, unit = read_review(imported.review), read_table(imported.table).unit
    for title, artifact in imported.grades.items():
        grades = read_grades(artifact)
        yield title
        for sae in grades.saes:
            why = f": {'; '.join(sae.reasons)}" if sae.reasons else ""
            yield f"  {sae.title:<12} {sae.passed}/{sae.applicable} {sae.label}{why}"
        yield from (f"  {line}" for line in grades.sentences)
    for pair in review.pairs:
        yield from pair.comparison.sentences
    yield f"{len(review.checks)} checks of the table, {len(review.problems)} failed"
    for check in review.problems:
        where = ", ".join(part for part in (check.model, check.hookpoint) if part)
        yield f"  {unit} {check.line}, {where}: {check.name}: {check.detail}"
