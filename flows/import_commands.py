"""`saeinterp import`: bring in numbers that were made elsewhere. No flow runs and Prefect is not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import Root, guard, out
from saeinterp.artifacts import ArtifactStore
from saeinterp.config import PROFILES, WORST_CASE, GradingConfig
from saeinterp.errors import ConfigError
from saeinterp.health.grading.step import read_grades
from saeinterp.health.imported import ImportedHealth, import_health, read_review, read_table, summary_of
from saeinterp.report.format import visible

app = typer.Typer(
    name="import",
    help="Bring in tables that were made elsewhere: the same grading, checks and report as for our own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Keeps `health` a subcommand while it is the only one."""


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
        from saeinterp.report import write_report

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


def _lines(imported: ImportedHealth) -> Iterator[str]:
    """Grades, comparison and failed checks, as lines for the terminal."""
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
