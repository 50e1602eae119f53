"""`saeinterp report`, `view` and `export`: what can be done with a report that is there. No flow runs."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.locating import locate
from flows.terminal import Root, err, guard, out
from saeinterp.artifacts import Artifact, ArtifactStore, open_artifact, verify_artifact
from saeinterp.errors import ConfigError

KINDS = (
    *("report", "explainer-comparison", "explainer-pairs", "model-comparison", "interpretability-comparison"),
    *("scorer-agreement", "score-review", "table-review", "health", "grades", "sae", "enrichment", "profiles"),
)
"""Kinds of artifacts that an id may leave out."""
_DIR = "Folder of a report, or its id below the artifact folder, such as report/layer-health-1a2b3c4d."


class Format(StrEnum):
    """What `export` writes."""

    CSV = "csv"
    JSON = "json"
    NEURONPEDIA = "neuronpedia"
    MODEL_CARD = "model-card"


def report(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            help="A report, or comparisons, health, grades, SAEs and associations: folders, or ids below the artifact "
            "folder.",
            metavar="DIR...",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="New folder to write the pages to; default publishes an artifact.", metavar="FOLDER"
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Heading of a new report.", metavar="TEXT")] = None,
    root: Root = None,
) -> None:
    """Make a report again, or a new one from artifacts; nothing is computed but the report.

    A report folder never changes. This version's report is published beside it; with --out its pages are rendered again
    from the results stored in it, for which nothing else need be there.
    """

    def work() -> None:
        from saeinterp.report import rebuild

        store = ArtifactStore(root)
        found = [open_artifact(_found(item, store)) for item in artifacts]
        made = rebuild(found, title=title, out=folder)
        if not made.made:
            out.print("This version has made that report already; --out FOLDER renders its pages again.")
        for what, name in (("open in a browser", "report.html"), ("read or paste", "report.md")):
            out.print(f"{what:<18} {made.folder / name}", markup=False)

    guard(work)


def view(
    folder: Annotated[str, typer.Argument(help=_DIR, metavar="DIR")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    root: Root = None,
) -> None:
    """Serve a report on this machine alone (127.0.0.1) and open it in the browser; Ctrl-C ends it."""

    def work() -> None:
        from flows.viewing import ReportServer

        with ReportServer(_found(folder, ArtifactStore(root)), port=port) as server:
            typer.echo(server.url)  # at once, and unwrapped: other programs read it
            if browser and not webbrowser.open(server.url):
                err.print("No browser was found here: open that address yourself.")
            err.print("Ctrl-C ends it.")
            try:
                server.serve_forever(poll_interval=0.1)
            except KeyboardInterrupt:
                err.print("Stopped.")

    guard(work)


def export(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            help="A report; for a model card SAEs, with health, grades or a comparison of models.", metavar="DIR..."
        ),
    ],
    to: Annotated[Format, typer.Option("--format", help="What to write.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder to write to; made where it is missing.", metavar="FOLDER")
    ],
    model_id: Annotated[
        str | None, typer.Option("--model-id", help="neuronpedia: its id of the model.", metavar="ID")
    ] = None,
    source_set: Annotated[
        str | None,
        typer.Option(
            "--source-set", help="neuronpedia: set of sources, such as res-mine for 6-res-mine.", metavar="ID"
        ),
    ] = None,
    author_id: Annotated[
        str | None, typer.Option("--author-id", help="neuronpedia: the user who imports.", metavar="ID")
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option("--type-name", help="neuronpedia: explainer type that the instance knows.", metavar="NAME"),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option("--explainer-model", help="neuronpedia: explainer model that the instance knows.", metavar="NAME"),
    ] = None,
    explainers: Annotated[
        list[str] | None,
        typer.Option("--explainer", help="neuronpedia: a or b; repeat for both, which is the default."),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="model-card: licence of the SAEs, such as apache-2.0.", metavar="ID"),
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", help="model-card: id of the release on the hub.", metavar="OWNER/NAME")
    ] = None,
    root: Root = None,
) -> None:
    """Write a report's tables as CSV, its results as JSON with their schema, its latents for Neuronpedia, or a model
    card of an SAE release for the Hugging Face hub."""
    options: dict[Format, dict[str, object]] = {
        Format.NEURONPEDIA: {
            "--model-id": model_id,
            "--source-set": source_set,
            "--author-id": author_id,
            "--type-name": type_name,
            "--explainer-model": model_name,
            "--explainer": explainers,
        },
        Format.MODEL_CARD: {"--license": licence, "--repo": repository},
    }

    def work() -> None:
        store = ArtifactStore(root)
        for form, given in options.items():
            if form != to and (wrong := [name for name, value in given.items() if value]):
                raise ConfigError(f"is for {form.value} only", field=wrong[0], got=to.value, expected=form.value)
        places = [_found(item, store) for item in artifacts]
        if to is Format.MODEL_CARD:
            for line in _model_card(places, folder, licence=licence, repository=repository):
                out.print(line, markup=False)
            return
        if len(places) > 1:
            raise ConfigError("is one report", field="DIR", got=[str(item) for item in places], expected="one folder")
        target = folder.expanduser().absolute()
        if to is Format.NEURONPEDIA:
            lines = _neuronpedia(
                places[0],
                target,
                {"model_id": model_id, "source_set": source_set, "author_id": author_id},
                {"type_name": type_name, "model_name": model_name},
                explainers or ["a", "b"],
            )
        else:
            lines = _tables(places[0], target) if to is Format.CSV else _json(places[0], target)
        for line in lines:
            out.print(line, markup=False)

    guard(work)


def _found(text: str, store: ArtifactStore) -> Path:
    return locate(text, store, kinds=KINDS, what="artifact")


def _checked(folder: Path) -> Path:
    """A report folder whose data match their checksums; one without a manifest (`report --out`) has none."""
    from saeinterp.report.stored import is_data

    if (folder / "manifest.json").exists():
        verify_artifact(open_artifact(folder), only=is_data)
    return folder


def _tables(folder: Path, target: Path) -> Iterator[str]:
    from saeinterp.report import write_csv

    yield from (str(path) for path in write_csv(_checked(folder), target))


def _json(folder: Path, target: Path) -> Iterator[str]:
    from saeinterp.report.exports.schema import write_results

    yield from (str(path) for path in write_results(_checked(folder), target))


def _neuronpedia(
    folder: Path, target: Path, place: dict[str, str | None], names: dict[str, str | None], explainers: list[str]
) -> Iterator[str]:
    from saeinterp.report import Target, write_neuronpedia

    for name in ("model_id", "source_set"):
        if place[name] is None:
            raise ConfigError(
                "is missing", field=f"--{name.replace('_', '-')}", expected="the name that the instance has for it"
            )
    if unknown := [name for name in explainers if name not in ("a", "b")]:
        raise ConfigError("no such explainer", field="--explainer", got=unknown[0], expected="a or b")
    aim = Target(str(place["model_id"]), str(place["source_set"]), place["author_id"], **names)
    done = write_neuronpedia(_checked(folder), target, target=aim, sides=list(dict.fromkeys(explainers)))
    yield from (str(path) for path in done.files)
    yield (
        f"{done.features:,} features, {done.explanations:,} explanations, {done.activations:,} activations of "
        f"{', '.join(done.sources)}"
    )
    if aim.author_id is None:
        yield "Without --author-id the files lack authorId and creatorId, and Neuronpedia's importer needs both."
    yield "Not written (not in the report, measured otherwise here, or read by no importer): scores, embeddings,"
    yield "logits, histograms."


def _model_card(places: list[Path], folder: Path, *, licence: str | None, repository: str | None) -> Iterator[str]:
    from saeinterp.report import write_model_card

    found: list[Artifact] = []
    for place in places:
        artifact = open_artifact(place)
        found += _of_report(artifact) if artifact.kind == "report" else [artifact]
    roots = {item.place.parent.parent for item in found}
    store = ArtifactStore(roots.pop())
    if roots:
        raise ConfigError("the artifacts lie below different folders", field="DIR", expected="artifacts of one folder")
    target = folder.expanduser().absolute()
    yield str(write_model_card(found, target, store=store, licence=licence, repository=repository))
    if licence is None:
        yield "The card states no licence: give --license, or write it into the card."


def _of_report(artifact: Artifact) -> list[Artifact]:
    """The SAEs, health and grades that a report was made from."""
    from saeinterp.report.rebuilding import stored_arguments

    arguments = stored_arguments(artifact, ArtifactStore(artifact.place.parent.parent))
    parts = [arguments[name] for name in ("health", "saes")]
    return [*(item for part in parts for items in part.values() for item in items), *arguments["grades"].values()]
