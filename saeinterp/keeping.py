"""Removing artifacts: by name, and all that no kept report needs.

The surprising choice: nothing is deleted where it lies. What goes is renamed into `<root>/.trash` first, at once or
not at all, so that a kill in the middle of deleting terabytes leaves no half of an artifact where a run would look;
the next clean-up deletes the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from saeinterp.artifacts import OUTBOX, ArtifactStore, process_alive
from saeinterp.artifacts.clearing import clear, remains
from saeinterp.artifacts.manifests import is_folder
from saeinterp.artifacts.room import FETCHED, PARTIAL
from saeinterp.errors import ArtifactError
from saeinterp.holding import held, locked, removing
from saeinterp.inventory import Inventory, take_inventory

REPORT_KINDS = ("report", "sparse-probing")
"""What a flow ends in: everything else is there for the sake of these."""
GRACE = timedelta(days=1)
"""How long what nothing needs yet is left for an interrupted run to go on with."""
_TRASH = ".trash"
_PRIVATE = re.compile(r"-[0-9a-f]{8}-(\d+)-[0-9a-f]{8}$")  # a work folder of a second run of one recipe
_REPLIES = re.compile(r"(.+)-(\d+)-[0-9a-f]+")  # host, process, a name of its own; other files there are the user's


class Removal(NamedTuple):
    """Something that goes."""

    path: Path
    what: str
    """An artifact's id, else the path below the root."""
    bytes: int
    why: str


class Rules(NamedTuple):
    """What a clean-up keeps."""

    keep_reports: int | None = None
    """The newest so many reports; None keeps all, unless `older_than` is given."""
    older_than: timedelta | None = None
    """Nothing younger is touched, reports included; None: `GRACE`, and no report goes by age."""
    keep: tuple[str, ...] = ()
    """Ids and kinds that are kept as if a report needed them."""
    replies: bool = False
    """Also stored replies of language models that nobody is writing."""


def dependents_of(named: Collection[str], inventory: Inventory) -> dict[str, list[str]]:
    """What would lose something it was made from, by what it would lose; artifacts that go too do not count."""
    found = {name: [item for item in inventory.dependents(name) if item not in named] for name in named}
    return {name: items for name, items in found.items() if items}


def reports_of(inventory: Inventory) -> list[str]:
    """Ids of the reports, newest first."""
    reports = [item for item in inventory.artifacts.values() if item.artifact.kind in REPORT_KINDS]
    return [item.id for item in sorted(reports, key=lambda item: (item.made, item.id), reverse=True)]


def plan_removal(store: ArtifactStore, names: Iterable[str], *, force: bool = False) -> list[Removal]:
    """What goes when these artifacts are removed.

    Args:
        names: Ids, or paths of their folders.
        force: Also what other artifacts were made from. They stay whole; making one again makes its inputs first.

    Raises:
        ConfigError: There is no such artifact.
        ArtifactError: A running process uses one, or, without `force`, another artifact was made from it.
    """
    inventory = take_inventory(store)
    named = {item.id: item for item in map(inventory.locate, names)}
    if used := sorted(held(store.root) & named.keys()):
        raise ArtifactError(
            "a running process uses it", field=used[0], next_step="wait until it has ended, or stop it, then try again"
        )
    if not force:
        for name, items in dependents_of(named, inventory).items():
            behind = [report for report in reports_of(inventory) if name in inventory.needed([report])]
            raise ArtifactError(
                f"{len(items)} other{'s were' if len(items) > 1 else ' was'} made from it: {_listing(items)}"
                + (f"; it stands behind {_listing(behind)}" if behind else ""),
                field=name,
                next_step="remove those first, or give --force: they stay whole, and it is made again where needed",
            )
    return [Removal(item.artifact.place, item.id, item.bytes, "named") for item in named.values()]


def plan_clean_up(store: ArtifactStore, rules: Rules) -> list[Removal]:
    """What goes by these rules: artifacts that no kept report needs, and what dead processes left.

    Whatever a running process uses stays, with all that it was made from.

    Raises:
        ArtifactError: The manifest of something that is needed cannot be read.
    """
    return [*_unneeded(store, rules), *_left_over(store, rules)]


def remove(store: ArtifactStore, agreed: Iterable[Removal], plan: Callable[[], list[Removal]]) -> list[Removal]:
    """Remove what was agreed on as far as `plan`, asked again while no process may begin to use anything, has it too.

    Raises:
        ArtifactError: Something cannot be moved; what went before it is gone.
    """
    wanted = {item.path for item in agreed}
    moved = []
    mirror = store.mirror
    if mirror is not None:
        mirror.sync()  # now, since it waits for who fetches, and they for `removing`
    still = contextlib.nullcontext() if mirror is None else mirror.still()
    with _told(store.root), removing(store.root), still:
        trash = store.root / _TRASH
        trash.mkdir(mode=0o700, exist_ok=True)
        for item in plan():
            if item.path in wanted:
                if mirror is not None and not item.what.startswith("."):
                    if is_folder(item.what):
                        mirror.retract(item.what)
                    moved.append(item)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    os.rename(item.path, trash / f"{item.what.replace('/', '_')}-{uuid.uuid4().hex[:8]}")
                    moved.append(item)
    if mirror is not None:
        for item in moved:
            if not item.what.startswith("."):
                clear(mirror, item.what)
    with _told(store.root):
        for path in trash.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another clean-up is at it too
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return moved


def kept_reports(inventory: Inventory, rules: Rules) -> list[str]:
    """Ids of the reports that stay, newest first."""
    reports = reports_of(inventory)
    if rules.keep_reports is None and rules.older_than is None:
        return reports
    newest, grace = reports[: rules.keep_reports or 0], rules.older_than or timedelta(0)
    return [item for item in reports if item in newest or _age(inventory.artifacts[item].made) < grace]


def _unneeded(store: ArtifactStore, rules: Rules) -> Iterator[Removal]:
    inventory = take_inventory(store)
    grace = GRACE if rules.older_than is None else rules.older_than
    wanted = {*kept_reports(inventory, rules), *held(store.root)}
    for item in inventory.artifacts.values():
        # A report is kept by the rules for reports alone.
        if _age(item.made) < grace and item.artifact.kind not in REPORT_KINDS:
            wanted.add(item.id)
        if item.id in rules.keep or item.artifact.kind in rules.keep:
            wanted.add(item.id)
    needed = inventory.needed(wanted)
    for name in sorted(needed & inventory.artifacts.keys()):
        if problem := inventory.artifacts[name].problem:
            raise ArtifactError(
                f"{problem}, so that nobody knows what it was made from, and it is needed",
                field=name,
                next_step="run its flow again, which makes it anew, or remove it with `saeinterp artifacts rm --force`",
            )
    for item in inventory.artifacts.values():
        if item.id not in needed:
            report = item.artifact.kind in REPORT_KINDS
            why = item.problem or ("not among the reports kept" if report else "no kept report needs it")
            size = _tree(item.artifact.place)[0] if item.problem else item.bytes
            yield Removal(item.artifact.place, item.id, size, why)


def _left_over(store: ArtifactStore, rules: Rules) -> Iterator[Removal]:
    """What killed processes left, damaged artifacts that were set aside, and replies where asked for."""
    grace = GRACE if rules.older_than is None else rules.older_than

    def old(path: Path, why: str) -> Iterator[Removal]:
        size, newest = _tree(path)
        if _age(newest) >= grace:
            yield Removal(path, path.relative_to(store.root).as_posix(), size, why)

    for path in sorted((store.root / ".scratch").glob("*")):
        host, _, tail = path.name.rpartition(f"-{socket.gethostname()}-")
        if not host:
            yield from old(path, "half-written on another host")
        elif not process_alive(int(tail.split("-")[0])):
            yield Removal(path, path.relative_to(store.root).as_posix(), _tree(path)[0], "half-written")
    using = held(store.root)  # by tasks that have not begun, too: they wait for a card or for their turn
    for path in sorted((store.root / ".work").glob("*/*")):
        if path.is_dir() and path.relative_to(store.root / ".work").as_posix() not in using:
            private = _PRIVATE.search(path.name)
            running = process_alive(int(private[1])) if private else locked(path.with_name(f"{path.name}.lock"))
            yield from () if running else old(path, "of an interrupted step that nobody went on with")
    for path in sorted((store.root / OUTBOX).glob("*/*")):
        if path.is_dir() and not locked(path.with_name(f"{path.name}.lock")):
            yield from old(path, "made here, and never sent to the bucket")
    for path in sorted((store.root / PARTIAL).glob("*/*")):
        if not locked(store.root / FETCHED / f"{path.relative_to(store.root / PARTIAL).as_posix()}.lock"):
            yield from old(path, "fetched in part")
    for left in remains(store.mirror) if store.mirror is not None else ():
        if _age(left.newest) >= grace:
            yield Removal(store.root / left.prefix, left.prefix, left.bytes, "sent by a run that came to nothing")
    for path in sorted((store.root / _TRASH).glob("*")):
        yield Removal(path, path.relative_to(store.root).as_posix(), _tree(path)[0], "its removal was interrupted")
    for path in sorted((store.root / ".damaged").glob("*")):
        yield from old(path, "damaged, was made again")
    if rules.replies:
        for path in sorted((store.root / "llm-cache").glob("*.jsonl")):
            match = _REPLIES.fullmatch(path.stem)
            if match and (match[1] != socket.gethostname() or not process_alive(int(match[2]))):
                yield from old(path, "stored replies")


def _tree(path: Path) -> tuple[int, datetime]:
    """Bytes of the files at and below a path, and when the newest was written."""
    size, newest = 0, path.stat().st_mtime
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                stat = os.lstat(os.path.join(folder, name))
                size, newest = size + stat.st_size, max(newest, stat.st_mtime)
    if path.is_file():
        size = path.stat().st_size
    return size, datetime.fromtimestamp(newest, tz=UTC)


def _age(made: datetime) -> timedelta:
    return datetime.now(UTC) - made


def _listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"cannot remove: {error.strerror}",
            got=error.filename or str(root),
            next_step="fix its permissions; what was moved to .trash is deleted by the next `saeinterp artifacts gc`",
        ) from error
