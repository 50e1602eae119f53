"""The page of one latent: both labels with their scores, every example with its verdicts, and its profile.

Pages are made in chunks, because there can be more than fit into memory, or into one file. The surprising choice: the
latents on which two sides differ most lie in the report itself, and the rest in the order of the table, so that going
on to the next one seldom reads another file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saeinterp.report.explainer_results import ExplainerSection, PairsSection
from saeinterp.report.format import Style, number, plural, visible
from saeinterp.report.pages.payload import Columns, joined
from saeinterp.report.pages.profiles import profile_page, spaced
from saeinterp.report.results import ProfileFacts
from saeinterp.report.tables import MEASURES, rows_of_latents

if TYPE_CHECKING:
    pass

INSIDE = 512
"""Latents whose pages lie in `report.html`."""
CHUNK = 64
"""Latents of one packed part of `report.html`."""
SHARD = 128
"""Consecutive rows of the table whose pages lie in one file beside it."""
_AT_ONCE = 16 * SHARD  # rows of the table whose examples are read together

Detail = dict[str, Any]


class Places(NamedTuple):
    """Where each latent's page lies."""

    chunks: tuple[tuple[int, ...], ...]
    """Rows of the table in each packed part of the page, those that differ most first."""
    shards: tuple[tuple[int, tuple[int, ...]], ...]
    """Number of each file beside the page, and the rows in it."""
    left_out: int
    """Latents without a page of their own."""

    @classmethod
    def of(cls, latents: Columns, *, limit: int) -> Places:
        """Places for the first `limit` latents by the size of their difference; scored ones before others."""
        deltas = latents["delta"]
        ranked = sorted(range(len(deltas)), key=lambda index: (deltas[index] is None, -abs(deltas[index] or 0), index))
        return cls.ranked(ranked, limit=limit)

    @classmethod
    def ranked(cls, ranked: Sequence[int], *, limit: int) -> Places:
        """Places for the first `limit` of some rows."""
        inside, beside = ranked[: min(INSIDE, limit)], sorted(ranked[INSIDE:limit])
        shards: dict[int, list[int]] = {}
        for index in beside:
            shards.setdefault(index // SHARD, []).append(index)
        return cls(
            tuple(tuple(inside[start : start + CHUNK]) for start in range(0, len(inside), CHUNK)),
            tuple((number, tuple(rows)) for number, rows in shards.items()),
            max(0, len(ranked) - limit),
        )

    def payload(self, note: str | None) -> dict[str, Any]:
        """What the script needs to find a page; `note` is said of one that has none."""
        return {
            "chunks": self.chunks,
            "shard": SHARD,
            "shards": [number for number, _ in self.shards],
            "left_out": note,
        }

    def note(self, latents: Columns) -> str | None:
        """What is said of latents without a page."""
        if not self.left_out:
            return None
        kept = len(latents["id"]) - self.left_out
        return (
            f"Examples and verdicts of the {plural(kept, 'latent')} that differ most can be opened here; those of the "
            f"other {number(self.left_out, 'count')} are in tables/examples.parquet (report.latents sets how many)."
        )


def in_batches(
    groups: Sequence[Sequence[int]], make: Callable[[Sequence[int]], Mapping[int, Detail]]
) -> Iterator[dict[int, Detail]]:
    """The pages of each group of rows, a few groups made at a time."""
    start = 0
    while start < len(groups):
        stop, count = start, 0
        while stop < len(groups) and (stop == start or count + len(groups[stop]) <= _AT_ONCE):
            count += len(groups[stop])
            stop += 1
        made = make([index for group in groups[start:stop] for index in group])
        for group in groups[start:stop]:
            yield {index: made[index] for index in group}
        start = stop


class Pages:
    """Makes the pages of latents from the tables of a report.

    Args:
        section: The comparison.
        pairs: The others of several explainers, whose labels are shown too.
        facts: What the profiles were made from.
        latents: Columns of `tables/latents.parquet`.
        tables: The folder of all tables.
    """

    def __init__(
        self,
        section: ExplainerSection,
        pairs: PairsSection | None,
        facts: Sequence[ProfileFacts],
        latents: Columns,
        tables: Path,
    ) -> None:
        self._section, self._pairs, self._latents, self._tables = section, pairs, latents, tables
        self._facts = {item.hookpoint: item for item in facts}
        self._measures = [item for item in MEASURES if f"{item[0]}_a" in latents and f"{item[0]}_b" in latents]

    def chunks(self, groups: Sequence[Sequence[int]]) -> Iterator[dict[int, Detail]]:
        """The pages of each group of rows, read a few groups at a time."""
        return in_batches(groups, self._make)

    def _make(self, indices: Sequence[int]) -> dict[int, Detail]:
        examples = rows_of_latents(self._tables, "examples", self._latents, indices)
        profiles = rows_of_latents(self._tables, "profiles", self._latents, indices)
        others = rows_of_latents(self._tables, "explainers", self._latents, indices) if self._pairs is not None else {}
        made = {}
        for index in indices:
            key = (self._latents["hookpoint"][index], self._latents["latent"][index])
            made[index] = self._page(index) | _examples(examples.get(key, []))
            if (rows := profiles.get(key)) and key[0] in self._facts:
                made[index]["profile"] = profile_page(rows[0], self._latents["id"][index], self._facts[key[0]])
            if rows := others.get(key):
                made[index]["others"] = self._others(rows[0])
        return made

    def _page(self, index: int) -> Detail:
        def at(column: str) -> Any:
            return self._latents[column][index]

        def text(column: str, style: Style) -> str:
            low, high = (
                at(f"{column}_{end}") if f"{column}_{end}" in self._latents else None for end in ("low", "high")
            )
            return joined(at(column), low, high, style=style)

        sides = []
        for side in ("a", "b"):
            reason = at(f"reason_{side}")
            sides.append(
                {
                    "reason": None if reason is None else visible(reason),
                    "measures": [[title, text(f"{name}_{side}", style)] for name, title, style in self._measures],
                    "counts": self._counts(index, side),
                }
            )
        tokens = at("top_tokens")
        return {
            "status": at("status").replace("_", " "),
            "firings": text("firings", "count"),
            "top": None if tokens is None else [spaced(token) for token in tokens],
            "sides": sides,
        }

    def _counts(self, index: int, side: str) -> str:
        """The confusion counts as one line."""
        names = [name for name in ("tp", "fp", "tn", "fn") if f"{name}_{side}" in self._latents]
        if not names:
            return "not counted"
        counts = [number(self._latents[f"{name}_{side}"][index], "count") for name in names]
        return " · ".join(f"{name.upper()} {count}" for name, count in zip(names, counts))

    def _others(self, row: Mapping[str, Any]) -> list[Detail]:
        """Labels and values of the explainers that are neither A nor B."""
        assert self._pairs is not None
        shown = {side.title for side in self._section.sides}
        return [
            {
                "key": item.key,
                "title": visible(item.title),
                "label": None if (label := row[f"explanation_{item.key}"]) is None else visible(label),
                "value": number(row[f"{self._pairs.metric}_{item.key}"], "score"),
            }
            for item in self._pairs.explainers
            if item.title not in shown
        ]


def _examples(rows: Sequence[Mapping[str, Any]]) -> Detail:
    """Scored examples with both verdicts, and those shown to the explainers."""
    found: Detail = {"score": [], "explain": []}
    top = max((abs(value) for row in rows for value in row["activations"]), default=0.0)
    for row in rows:
        found[row["role"]].append(_example(row, top))
    found["legend"] = f"Marked tokens: the stronger the activation, the darker, up to {number(top, 'plain')}."
    return found


def _example(row: Mapping[str, Any], top: float) -> Detail:
    activations = row["activations"]
    example: Detail = {
        "tokens": [visible(token) for token in row["tokens"]],
        # Ten steps up to the latent's strongest, as the explainer was shown them.
        "levels": [max(1, round(10 * abs(value) / top)) if value else 0 for value in activations],
        "shown": [number(value, "plain") if value else "" for value in activations],
        "fires": any(activations),
        "place": f"document {number(row['doc_id'], 'count')}",
    }
    if row["role"] == "score":
        example |= {"truth": row["truth"], "band": row["band"], "a": _verdict(row, "a"), "b": _verdict(row, "b")}
    return example


def _verdict(row: Mapping[str, Any], side: str) -> Detail | None:
    if row[f"status_{side}"] is None:
        return None
    reply = row[f"reply_{side}"]
    return {
        "verdict": row[f"verdict_{side}"],
        "status": row[f"status_{side}"],
        "p": None if row[f"probability_{side}"] is None else number(row[f"probability_{side}"], "score"),
        "reply": None if reply is None else visible(reply),
    }
