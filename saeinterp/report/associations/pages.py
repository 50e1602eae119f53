"""What a report of associations lets one open: each latent with all its tokens, and each token with all its latents.

Made from the tables of a report alone. The surprising choice: a latent is one page however many sets of rules label it,
so that what they disagree on stands side by side; its address names the model only where two models have its id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from saeinterp.report.associations.results import EnrichmentSection
from saeinterp.report.associations.tables import Columns, grid_payload, odds_text
from saeinterp.report.associations.tokens import token_parts
from saeinterp.report.format import number, plural, visible
from saeinterp.report.pages.details import Detail, Places, in_batches
from saeinterp.report.pages.shards import as_json, packed
from saeinterp.report.tables import read_table

INFINITE = "∞"
NOTE = (
    "Counts are problems. By chance: how many would have both if latent and token had nothing to do with each other. "
    "Enrichment is infinite where no problem has the token alone. Each half: odds ratio and p of one half of the "
    "problems, with its four counts; replicated is what passes in one half and has p at most 0.05 in the other. "
    "Share: what the first token holds of all that the latent says about tokens. Within strata: among problems of like "
    "length."
)
Key = tuple[str, str]
"""Model and id."""


class Explorer:
    """The table of latents and tokens with what can be opened from it.

    Args:
        section: The report's.
        tables: The folder of its tables.
        limit: Latents that get a page, those of the largest odds ratios first.

    Attributes:
        columns: `tables/associated.parquet`.
        marks: `tables/volcano.parquet`; None where the report was written without.
        pages: Model and id of every latent to the number of its page, in the order of the table.
    """

    def __init__(self, section: EnrichmentSection, tables: Path, *, limit: int, grid_rows: int) -> None:
        self._section, self._tables = section, tables
        self.columns: Columns = read_table(tables, "associated") or {"id": []}
        self.marks = read_table(tables, "volcano")
        self.listed = min(len(self.columns["id"]), grid_rows)
        self.pages: dict[Key, int] = {}
        if self.marks is not None:
            rows = [(self.columns["side"][index], self.columns["id"][index]) for index in range(self.listed)]
            marked = zip(self.marks["side"], self.marks["id"], strict=True)
            self.pages = {key: place for place, key in enumerate(dict.fromkeys([*rows, *marked]))}
        self._places = Places.ranked(range(len(self.pages)), limit=limit)

    @property
    def note(self) -> str | None:
        """What is said of latents without a page."""
        left = self._places.left_out
        if not left:
            return None
        return (
            f"The tokens of {plural(len(self.pages) - left, 'latent')} can be opened here, the largest odds ratios "
            f"first; those of the other {number(left, 'count')} are in tables/pairs.parquet (report.latents sets how "
            "many)."
        )

    @property
    def beside(self) -> bool:
        """Whether pages lie in files beside the report."""
        return bool(self._places.shards)

    def payload(self) -> dict[str, Any]:
        """What the script is given from the start."""
        data = grid_payload(self.columns, self.listed)
        if self.pages:
            keys = list(self.pages)
            where = self._where()
            data["columns"]["page"] = [
                self.pages[self.columns["side"][index], self.columns["id"][index]] for index in range(self.listed)
            ]
            data["latents"] = {
                "id": [latent for _, latent in keys],
                "link": links(keys, [side.title for side in self._section.sides]),
                "side": [visible(side) for side, _ in keys],
                "site": [where[key] for key in keys],
                "note": NOTE,
                **self._places.payload(self.note),
            }
        return data

    def parts(self) -> dict[str, str]:
        """The packed parts of the page: pages of latents, and latents by token."""
        if not self.pages:
            return {}
        made = in_batches(self._places.chunks, self._make)
        found = {f"pairs-{place}": packed(as_json(chunk)) for place, chunk in enumerate(made)}
        keys = pl.DataFrame({name: self.columns[name][: self.listed] for name in ("side", "preset", "id")})
        found["tokens"] = packed(as_json(token_parts(pl.scan_parquet(self._tables / "pairs.parquet"), keys)))
        return found

    def shards(self) -> Iterator[tuple[int, dict[int, Detail]]]:
        """The pages for which the report has no room, by the number of their file."""
        made = in_batches([rows for _, rows in self._places.shards], self._make)
        yield from zip((place for place, _ in self._places.shards), made, strict=True)

    def _where(self) -> dict[Key, str]:
        scan = pl.scan_parquet(self._tables / "pairs.parquet")
        sites = scan.select("side", "id", "layer", "place").unique().collect()
        return {(side, latent): visible(f"{layer}, {place}") for side, latent, layer, place in sites.iter_rows()}

    def _make(self, numbers: Sequence[int]) -> dict[int, Detail]:
        keys = list(self.pages)
        wanted = pl.DataFrame(
            [keys[place] for place in numbers], schema={"side": pl.String, "id": pl.String}, orient="row"
        )
        pairs, labels = (self._of(name, wanted) for name in ("pairs", "associated"))
        chance = self._chance()
        return {place: self._page(keys[place], pairs, labels, chance) for place in numbers}

    def _of(self, table: str, wanted: pl.DataFrame) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
        """The rows of a table that are of some latents, by model, set of rules and id."""
        scan = pl.scan_parquet(self._tables / f"{table}.parquet")
        frame = scan.join(wanted.lazy(), on=["side", "id"], how="semi", maintain_order="left").collect()
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in frame.iter_rows(named=True):
            found.setdefault((row["side"], row["preset"], row["id"]), []).append(row)
        return found

    def _chance(self) -> dict[tuple[str, str, str, int | None], str]:
        """Per model, set of rules, layer and position what chance gives for the rate of interpretable latents there."""
        path = self._tables / "rates.parquet"
        rates = pl.scan_parquet(path).filter((pl.col("scope") == "site") & (pl.col("rate") == "interpretable"))
        return {
            (row["side"], row["preset"], row["hookpoint"], row["position"]): _chance_text(row)
            for row in rates.collect().iter_rows(named=True)
        }

    def _page(
        self,
        key: Key,
        pairs: Mapping[tuple[str, str, str], list[dict[str, Any]]],
        labels: Mapping[tuple[str, str, str], list[dict[str, Any]]],
        chance: Mapping[tuple[str, str, str, int | None], str],
    ) -> Detail:
        side, latent = key
        presets = {preset.preset: preset.title for preset in self._section.presets}
        # Whatever pair it is of, what is about the latent alone is the same.
        some = next(row for preset in presets for row in pairs.get((side, preset, latent), ()))
        rules = []
        for preset, title in presets.items():
            mine = pairs.get((side, preset, latent), [])
            label = next(iter(labels.get((side, preset, latent), [])), None)
            rules.append(
                {
                    "title": title,
                    "name": preset,
                    "chance": chance.get((side, preset, some["layer"], some["position"]), ""),
                    "pairs": [_pair(row) for row in mine],
                    **_label(label, mine),
                }
            )
        firing, total = some["a"] + some["b"], sum(some[name] for name in "abcd")
        share = number(firing / total, "share")
        return {
            "active": f"Active in {number(firing, 'count')} of {plural(total, 'problem')} ({share})",
            "rules": rules,
        }


def links(keys: Sequence[Key], titles: Sequence[str]) -> list[str]:
    """The address of each latent: its id, and after an `@` the model where several have it."""
    owners: dict[str, set[str]] = {}
    for side, latent in keys:
        owners.setdefault(latent, set()).add(side)
    names: dict[str, str] = {}
    for place, title in enumerate(titles, start=1):
        short = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
        names[title] = short if short and short not in names.values() else f"model-{place}"
    return [latent if len(owners[latent]) == 1 else f"{latent}@{names[side]}" for side, latent in keys]


def _label(row: Mapping[str, Any] | None, pairs: Sequence[Mapping[str, Any]]) -> Detail:
    kept = sum(pair["kept"] for pair in pairs)
    facts = [["Kept tokens", number(kept, "count")]]
    if row is None:
        return {"label": None, "kind": None, "why": "none of its pairs is kept by these rules", "facts": facts}
    first = [
        ("First token", visible(row["token"])),
        ("Odds ratio", odds_text({name: [row[name]] for name in row}, 0)),
        ("q", number(row["q_value"], "p")),
        ("MCC", number(row["mcc"], "score")),
        ("Share", None if row["share"] is None else number(row["share"], "share")),
        ("p within strata", None if row["cmh_p"] is None else number(row["cmh_p"], "p")),
    ]
    return {
        "label": visible(row["label"]),
        "kind": row["kind"],
        "why": None if row["reason"] is None else visible(row["reason"]),
        "facts": [*([title, text] for title, text in first if text is not None), *facts],
    }


def _pair(row: Mapping[str, Any]) -> Detail:
    second = {name: None if row[f"{name}_first"] is None else row[name] - row[f"{name}_first"] for name in "abcd"}
    first = {name: row[f"{name}_first"] for name in "abcd"}
    return {
        "token": visible(row["token"]),
        "category": visible(row["category"]),
        "kept": row["kept"],
        "counts": [number(row[name], "count") for name in "abcd"],
        "expected": number(row["expected"], "plain"),
        "enrichment": INFINITE if row["c"] == 0 else number(row["enrichment"], "plain"),
        "odds": odds_text({name: [row[name]] for name in row}, 0),
        "p": number(row["p_value"], "p"),
        "q": number(row["q_value"], "p"),
        "mcc": number(row["mcc"], "score"),
        "halves": [
            [
                number(row[f"odds_ratio_{half}"], "plain"),
                number(row[f"p_{half}"], "p"),
                " / ".join(number(counts[name], "count") for name in "abcd"),
            ]
            for half, counts in (("first", first), ("second", second))
        ],
        "replicated": "yes" if row["replicated"] else "no",
    }


def _chance_text(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return ""
    head = (
        f"In its SAE {number(row['count'], 'count')} of {number(row['of'], 'count')} latents are interpretable "
        f"({number(row['value'], 'share')})"
    )
    if row.get("strata_mean") is None:
        return f"{head}; no null was computed."
    spread = "" if row["strata_sd"] is None else f" ± {number(row['strata_sd'], 'share')}"
    p = "" if row["strata_p"] is None else f" (p\u00a0{number(row['strata_p'], 'p')})"
    return f"{head}; chance within strata gives {number(row['strata_mean'], 'share')}{spread}{p}."
