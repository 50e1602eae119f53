"""`saeinterp artifacts`: what lies below the artifact folder, and removing it. No flow runs, Prefect is not loaded."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import typer

from flows.terminal import BAD_USAGE, Root, err, guard, out, size_text
from saeinterp.artifacts import TIMING, ArtifactStore, size_of
from saeinterp.errors import ConfigError
from saeinterp.holding import held
from saeinterp.inventory import Inventory, Stored, take_inventory
from saeinterp.keeping import Removal, Rules, plan_clean_up, plan_removal, remove, reports_of

app = typer.Typer(
    name="artifacts",
    help="See what lies below the artifact folder, how large it is and what needs it; remove what nothing needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_AGES = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}

Ids = Annotated[
    list[str], typer.Argument(help="Id such as sae/layers.9-1a2b3c4d, or the path of its folder.", metavar="ID...")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would go, and remove nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")]


@app.command("list")
def list_artifacts(
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only this kind, such as activations; may be repeated.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Only what was made longer ago, such as 12h or 30d.")
    ] = None,
    newer_than: Annotated[
        str | None, typer.Option("--newer-than", help="Only what was made since, such as 12h or 30d.")
    ] = None,
    larger_than: Annotated[str | None, typer.Option("--larger-than", help="Only what is larger, such as 10GB.")] = None,
    sort: Annotated[
        Literal["size", "age", "name"],
        typer.Option("--sort", help="Largest first, oldest first, or by name."),
    ] = "size",
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """List artifacts with size and age; only manifests are read, so that terabytes take no longer."""

    def work() -> None:
        store = ArtifactStore(root)
        inventory = take_inventory(store)
        shown = [item for item in inventory.artifacts.values() if not kind or item.artifact.kind in kind]
        if older_than is not None:
            shown = [item for item in shown if _age(item) > _duration(older_than, "--older-than")]
        if newer_than is not None:
            shown = [item for item in shown if _age(item) <= _duration(newer_than, "--newer-than")]
        if larger_than is not None:
            shown = [item for item in shown if item.bytes > size_of(larger_than, field="--larger-than")]
        order: dict[str, Callable[[Stored], Any]] = {
            "size": lambda item: (-item.bytes, item.id),
            "age": lambda item: (item.made, item.id),
            "name": lambda item: item.id,
        }
        shown.sort(key=order[sort])
        using = held(store.root)
        if as_json:
            typer.echo(json.dumps([_record(item, inventory, using) for item in shown], indent=1))
            return
        rows = [("kind", "name", "size", "age", "made into", "")]
        for item in shown:
            name = item.id.partition("/")[2]
            count = len(inventory.dependents(item.id))
            note = item.problem or ("in use" if item.id in using else "")
            rows.append((item.artifact.kind, name, size_text(item.bytes), _age_text(item), str(count or "–"), note))
        for line in _columns(rows, right=(2, 3, 4)):
            out.print(line, markup=False)
        out.print(f"{len(shown)} artifacts, {size_text(sum(item.bytes for item in shown))}, below {store.shown}")

    guard(work)


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(help="Id such as sae/layers.9-1a2b3c4d, or the path of its folder.", metavar="ID")
    ],
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """Show one artifact: how it was made, from what, what was made from it, its files."""

    def work() -> None:
        store = ArtifactStore(root)
        inventory = take_inventory(store)
        item = inventory.locate(name)
        using = held(store.root)
        manifest = item.artifact.manifest()
        if as_json:
            typer.echo(json.dumps({**_record(item, inventory, using), "manifest": manifest}, indent=1))
            return
        for label, text in _screen(item, manifest, inventory, using):
            out.print(f"{label:<11} {text}" if label else text, markup=False)

    guard(work)


@app.command("rm")
def rm(
    names: Ids,
    force: Annotated[
        bool, typer.Option("--force", help="Also what other artifacts were made from; those stay whole.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    root: Root = None,
) -> None:
    """Remove artifacts by name, unless another was made from them or a running process uses them."""

    def work() -> None:
        store = ArtifactStore(root)
        _remove(store, lambda: plan_removal(store, names, force=force), dry_run=dry_run, yes=yes)

    guard(work)


@app.command("gc")
def gc(
    keep_reports: Annotated[
        int | None,
        typer.Option("--keep-reports", min=0, help="Keep this many reports, the newest; default is all.", metavar="N"),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            help="Leave everything younger, and keep the reports that are; such as 12h or 30d. Default: all reports "
            "are kept, and what was made within a day is left for an interrupted run to go on with.",
            metavar="AGE",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", help="Also keep this artifact or kind, with all it was made from; may be repeated.", metavar="ID"
        ),
    ] = None,
    replies: Annotated[
        bool, typer.Option("--replies", help="Also remove stored replies of language models that nobody is writing.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    root: Root = None,
) -> None:
    """Remove what no kept report needs, and what killed runs left. Safe while runs are going on.

    With both --keep-reports and --older-than a report is kept if either keeps it.
    """

    def work() -> None:
        store = ArtifactStore(root)
        age = None if older_than is None else _duration(older_than, "--older-than")
        if keep:
            inventory = take_inventory(store)
            # A kind that nothing is of yet is kept all the same.
            kept = tuple(text if "/" not in text else inventory.locate(text).id for text in keep)
        else:
            kept = ()
        rules = Rules(keep_reports=keep_reports, older_than=age, keep=kept, replies=replies)
        _remove(store, lambda: plan_clean_up(store, rules), dry_run=dry_run, yes=yes)

    guard(work)


def _remove(store: ArtifactStore, plan: Callable[[], list[Removal]], *, dry_run: bool, yes: bool) -> None:
    planned = plan()
    for line in _columns([(size_text(item.bytes), item.what, item.why) for item in planned], right=(0,)):
        out.print(line, markup=False)
    total = _total(planned)
    if not planned or dry_run:
        out.print(f"{total} would go, below {store.shown}" if planned else f"Nothing to remove below {store.shown}")
        return
    if not yes:
        if not sys.stdin.isatty():
            err.print("Nothing was removed: there is no terminal to ask at. Give --yes, or look with --dry-run.")
            raise typer.Exit(BAD_USAGE)
        typer.confirm(f"Remove {total} for good?", abort=True)
    removed = remove(store, planned, plan)
    out.print(f"Removed {_total(removed)} below {store.shown}")
    if len(removed) < len(planned):
        out.print(f"Left {len(planned) - len(removed)}: a run has begun to use them, or they had gone already.")


def _total(items: Sequence[Removal]) -> str:
    count = sum(item.bytes for item in items)
    exact = f" ({count:,} bytes)" if count >= 1000 else ""
    return f"{len(items)} item{'s' if len(items) != 1 else ''}, {size_text(count)}{exact}"


def _record(item: Stored, inventory: Inventory, using: set[str]) -> dict[str, Any]:
    return {
        "id": item.id,
        "kind": item.artifact.kind,
        "path": item.artifact.location,
        "bytes": item.bytes,
        "made": item.made.isoformat(),
        "inputs": list(item.inputs),
        "made_into": inventory.dependents(item.id),
        "in_use": item.id in using,
        "problem": item.problem,
    }


def _screen(item: Stored, manifest: dict[str, Any], inventory: Inventory, using: set[str]) -> Iterator[tuple[str, str]]:
    made = manifest["made"]
    yield "", item.id
    yield "path", item.artifact.location
    yield "recipe", f"{manifest['recipe']}, version {manifest['version']}"
    yield "size", f"{size_text(item.bytes)} in {len(manifest['files'])} files"
    yield "made", f"{made['at']} on {made['host']} in {made['seconds']:,.1f} s"
    if item.id in using:
        yield "in use", "by a running process"
    for name, value in manifest["counts"].items():
        yield "count", f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
    for name, value in manifest["config"].items():
        yield "config", f"{name} {json.dumps(value, ensure_ascii=False)}"
    for name in item.inputs:
        yield "made from", name if name in inventory.artifacts else f"{name} (removed since)"
    for name in inventory.dependents(item.id):
        yield "made into", name
    for name in reports_of(inventory):
        if name != item.id and item.id in inventory.needed([name]):
            yield "needed by", name
    for name, file in manifest["files"].items():
        yield "file", f"{name} {size_text(file['bytes'])}"
    timing = item.artifact.place / TIMING
    if timing.exists():
        yield "file", f"{TIMING} {size_text(timing.stat().st_size)}, not in the checksums"


def _columns(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            text.rjust(width) if n in right else text.ljust(width) for n, (text, width) in enumerate(zip(row, widths))
        ]
        yield "  ".join(cells).rstrip()


def _age(item: Stored) -> timedelta:
    return datetime.now(UTC) - item.made


def _age_text(item: Stored) -> str:
    age = _age(item)
    for unit, size in (("d", _AGES["d"]), ("h", _AGES["h"]), ("min", _AGES["m"])):
        if age >= size:
            return f"{age // size} {unit}"
    return "now"


def _duration(text: str, option: str) -> timedelta:
    match = re.fullmatch(r"\s*(\d+)\s*([mhdw])\w*\s*", text)
    if not match:
        raise ConfigError("not an age", field=option, got=text, expected="30m, 12h, 30d or 4w")
    return int(match[1]) * _AGES[match[2]]
