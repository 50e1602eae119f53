"""What can be opened of associations, equal to the tables: pages of latents, latents by token, the volcano plot."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from planted_enrichment import planted_side
from scipy.stats import fisher_exact

from saeinterp.artifacts import ArtifactStore
from saeinterp.report import render
from saeinterp.report.associations.pages import links
from saeinterp.report.format import number
from saeinterp.report.pages.dashboard import render_dashboard

from .test_enrichment import DEEPER, LARGE, SMALL, Written, write
from .test_writing import Page, unpacked

ROBUST, PUBLISHED = "robust", "seed-gsm8k-chi2"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Written:
    store = ArtifactStore(tmp_path_factory.mktemp("opened"))
    sides = {SMALL: planted_side(store, SMALL, second=0.5), LARGE: planted_side(store, LARGE, bound=0.25, **DEEPER)}
    return write(store, sides)


def table(report: Written, name: str) -> pl.DataFrame:
    return pl.read_parquet(report.artifact.path / "tables" / f"{name}.parquet")


def payload(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unpacked(html, "payload"))
    return found


def pages_of(report: Written) -> dict[tuple[str, str], dict[str, Any]]:
    """Every page in the report's own file, by model and id."""
    data = payload(report.html)["associated"]["latents"]
    found = {}
    for chunk in range(len(data["chunks"])):
        for place, page in json.loads(unpacked(report.html, f"pairs-{chunk}")).items():
            found[data["side"][int(place)], data["id"][int(place)]] = page
    return found


def test_a_page_holds_every_kept_token_with_the_numbers_of_its_row(pair: Written) -> None:
    pages = pages_of(pair)
    stored = table(pair, "pairs").filter("kept")
    assert stored.height > 150
    shown = 0
    for (side, latent), page in pages.items():
        for rule in page["rules"]:
            key = (pl.col("side") == side) & (pl.col("preset") == rule["name"]) & (pl.col("id") == latent)
            rows = stored.filter(key).rows(named=True)
            kept = [item for item in rule["pairs"] if item["kept"]]
            assert [item["token"] for item in kept] == [row["token"] for row in rows]
            for item, row in zip(kept, rows, strict=True):
                assert item["counts"] == [number(row[name], "count") for name in "abcd"]
                a, b, c, d = (row[name] for name in "abcd")
                assert float(item["expected"]) == pytest.approx((a + b) * (a + c) / (a + b + c + d), rel=1e-3)
                assert item["odds"].split(" [")[0] == number(row["odds_ratio"], "plain")
                assert (item["enrichment"] == "∞") == (c == 0)
                assert item["q"] == number(row["q_value"], "p")
                assert item["mcc"] == number(row["mcc"], "score")
                assert item["replicated"] == ("yes" if row["replicated"] else "no")
            shown += len(rows)
            firing = {row["a"] + row["b"] for row in rows}
            assert len(firing) <= 1
            assert all(page["active"].startswith(f"Active in {count} of 160 problems") for count in firing)
    assert shown == stored.height


def test_the_pairs_are_those_of_the_association_and_each_half_is_tested_by_itself(pair: Written) -> None:
    step = next(item for item in pair.results.provenance.steps if item.kind == "enrichment")
    folder = pair.artifact.path.parent.parent / step.id
    stored = pl.read_parquet(folder / f"pairs-{ROBUST}.parquet").filter("kept")
    mine = table(pair, "pairs").filter((pl.col("side") == SMALL) & (pl.col("preset") == ROBUST) & pl.col("kept"))
    keys = ["id", "token", "odds_ratio", "q_value", "a_first", "d_first"]
    assert sorted(mine.select(keys).rows()) == sorted(
        stored.drop("token").rename({"text": "token"}).select(keys).rows()
    )
    for row in mine.head(20).iter_rows(named=True):
        first = [row[f"{name}_first"] for name in "abcd"]
        second = [row[name] - part for name, part in zip("abcd", first)]
        assert sum(first) == sum(second) == 80
        for half, (a, b, c, d) in (("first", first), ("second", second)):
            assert row[f"p_{half}"] == pytest.approx(fisher_exact([[a, b], [c, d]], alternative="greater").pvalue)
            odds = (a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5))
            assert row[f"odds_ratio_{half}"] == pytest.approx(odds)


def test_a_page_has_the_label_of_each_set_of_rules_and_says_where_there_is_none(pair: Written) -> None:
    labels = {(row["side"], row["preset"], row["id"]): row for row in table(pair, "associated").iter_rows(named=True)}
    named = unnamed = 0
    for (side, latent), page in pages_of(pair).items():
        assert [rule["name"] for rule in page["rules"]] == [ROBUST, PUBLISHED]
        for rule in page["rules"]:
            row = labels.get((side, rule["name"], latent))
            assert rule["label"] == (row["label"] if row else None)
            if row is None:
                assert rule["why"] == "none of its pairs is kept by these rules"
                unnamed += 1
            else:
                assert ["First token", row["token"]] in rule["facts"]
                named += 1
            assert "chance within strata gives" in rule["chance"]
    assert named == len(labels)
    assert unnamed > 10


def test_an_address_names_the_model_where_two_have_the_id(pair: Written) -> None:
    data = payload(pair.html)["associated"]["latents"]
    owners = {latent: {side for side, name in zip(data["side"], data["id"]) if name == latent} for latent in data["id"]}
    assert {len(some) for some in owners.values()} == {1, 2}
    for side, latent, link in zip(data["side"], data["id"], data["link"]):
        assert link == (latent if len(owners[latent]) == 1 else f"{latent}@{side.lower()}")
    assert len(set(data["link"])) == len(data["link"])
    keys = [(title, "L1_F0") for title in ("模型", "A b", "a-B", "<script>")]
    made = links(keys, [title for title, _ in keys])
    assert made == ["L1_F0@model-1", "L1_F0@a-b", "L1_F0@model-3", "L1_F0@script"]


def test_a_token_leads_to_every_latent_that_goes_with_it_not_only_first_ones(pair: Written) -> None:
    data, rows = json.loads(unpacked(pair.html, "tokens")), payload(pair.html)["associated"]["columns"]
    stored = table(pair, "pairs").filter("kept")
    first = table(pair, "associated")
    others = 0
    assert sorted(data["tokens"]) == sorted(set(stored["token"]))
    for token, steps, numbers, count in zip(data["tokens"], data["rows"], data["numbers"], data["counts"]):
        mine = stored.filter(pl.col("token") == token)
        assert count == f"{mine.select('side', 'id').n_unique()} latents"
        places = [sum(steps[: end + 1]) for end in range(len(steps))]
        found = {(rows["side"][row], rows["preset"][row], rows["id"][row]): at for row, at in zip(places, numbers)}
        assert len(found) == mine.height
        for row in mine.iter_rows(named=True):
            at = found[row["side"], row["preset"], row["id"]]
            assert data["columns"]["odds_ratio"][at] == row["odds_ratio"]
            assert data["columns"]["mcc_text"][at] == number(row["mcc"], "score")
        others += sum(first["token"][row] != token for row in places)
    assert others > 5


def test_the_volcano_plot_marks_pairs_with_the_numbers_of_their_rows(pair: Written) -> None:
    plots = {item["id"]: item for item in payload(pair.html)["figures"]}
    marks, latents = table(pair, "volcano"), payload(pair.html)["associated"]["latents"]
    assert [name for name in plots if name.startswith("volcano")] == [
        f"volcano-{preset}-{side}" for preset in (ROBUST, PUBLISHED) for side in (0, 1)
    ]
    for preset in (ROBUST, PUBLISHED):
        for order, side in enumerate((SMALL, LARGE)):
            mine = marks.filter((pl.col("side") == side) & (pl.col("preset") == preset))
            for trace, kept in zip(plots[f"volcano-{preset}-{order}"]["data"], (False, True), strict=True):
                some = mine.filter(pl.col("kept") == kept)
                assert trace["y"] == (-some["log10_p"]).to_list()
                assert trace["x"] == pytest.approx([math.log2(value) for value in some["odds_ratio"]])
                assert [latents["id"][page] for page in trace["customdata"]] == some["id"].to_list()
                assert {latents["side"][page] for page in trace["customdata"]} <= {side}
    looks = [trace["marker"] for trace in plots["volcano-robust-0"]["data"]]
    assert looks[0]["symbol"] != looks[1]["symbol"]
    assert looks[0]["color"] != looks[1]["color"]


def test_the_lines_of_the_volcano_plot_are_an_odds_ratio_of_one_and_the_level(pair: Written) -> None:
    plots = {item["id"]: item for item in payload(pair.html)["figures"]}
    step = next(item for item in pair.results.provenance.steps if item.kind == "enrichment")
    stored = pl.read_parquet(pair.artifact.path.parent.parent / step.id / f"pairs-{ROBUST}.parquet")
    upright, level = plots["volcano-robust-0"]["layout"]["shapes"]
    assert (upright["x0"], upright["x1"], upright["label"]["text"]) == (0, 0, "odds ratio 1")
    last = stored.filter(pl.col("q_value") <= 0.05)["p_value"].max()
    assert level["y0"] == level["y1"] == pytest.approx(-math.log10(last))
    assert level["label"]["text"] == "q = 0.05"
    published = plots[f"volcano-{PUBLISHED}-0"]["layout"]["shapes"][1]
    assert (published["y0"], published["label"]["text"]) == (2, "p = 0.01")


def test_marks_are_bounded_the_same_every_time_and_counted_in_the_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeinterp.report.associations.volcano.STRONGEST", 10)
    monkeypatch.setattr("saeinterp.report.associations.volcano.SAMPLED", 15)
    made = []
    for name in ("one", "two"):
        store = ArtifactStore(tmp_path / name)
        made.append(write(store, {SMALL: planted_side(store, SMALL, draws=0, presets=(ROBUST,))}))
    marks = table(made[0], "volcano")
    assert marks.equals(table(made[1], "volcano"))
    step = next(item for item in made[0].results.provenance.steps if item.kind == "enrichment")
    stored = pl.read_parquet(made[0].artifact.path.parent.parent / step.id / f"pairs-{ROBUST}.parquet")
    ranked = stored.sort("log10_p", maintain_order=True).with_row_index("rank")
    assert marks["log10_p"].head(10).to_list() == ranked["log10_p"].head(10).to_list()
    sampled = marks.slice(10)["log10_p"].to_list()
    assert len(sampled) == 15
    assert sampled[-1] == ranked["log10_p"][-1]
    ranks = [ranked.filter(pl.col("log10_p") == value)["rank"] for value in sampled]
    even = [10 + step * (stored.height - 11) / 14 for step in range(15)]
    assert all(rank.min() - 1 <= place <= rank.max() + 1 for rank, place in zip(ranks, even))
    text = f"25 of {stored.height} pairs with p at most 0.05: the 10 of smallest p, and an even sample of the others"
    assert text in made[0].html


def test_every_mark_has_a_page_and_a_button_in_the_table_behind_the_plot(pair: Written) -> None:
    pages, marks = pages_of(pair), table(pair, "volcano")
    assert set(zip(marks["side"], marks["id"])) <= set(pages)
    data = payload(pair.html)["associated"]["latents"]
    buttons = [
        (int(attrs["data-associated"] or ""), text)
        for attrs, text in Page(pair.html).by("button")
        if "data-associated" in attrs
    ]
    assert len(buttons) > 300
    assert all(data["id"][page] == text for page, text in buttons)
    labelled = set(table(pair, "associated").select("side", "id").iter_rows())
    bare = [page for key, page in pages.items() if key not in labelled]
    assert len(bare) > 5
    assert all(
        rule["label"] is None and not any(item["kept"] for item in rule["pairs"])
        for page in bare
        for rule in page["rules"]
    )


def test_pages_without_room_lie_beside_the_report_and_those_without_a_page_are_named(
    pair: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("INSIDE", 6), ("CHUNK", 4), ("SHARD", 5)):
        monkeypatch.setattr(f"saeinterp.report.pages.details.{name}", value)
    folder = tmp_path / "report"
    shutil.copytree(pair.artifact.path, folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps({**results, "detail_latents": 20}), encoding="utf-8")
    render(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    data = payload(html)["associated"]["latents"]
    found = {place for chunk in range(2) for place in json.loads(unpacked(html, f"pairs-{chunk}"))}
    assert len(found) == 6
    for shard in data["shards"]:
        text = (folder / "latents" / f"pairs-{shard:05d}.js").read_text(encoding="ascii")
        call = re.fullmatch(r'saeinterpShard\((\d+),"([A-Za-z0-9+/=]+)"\);\n', text)
        assert call is not None
        assert int(call[1]) == shard
        pages = json.loads(gzip.decompress(base64.b64decode(call[2])))
        assert all(int(place) // 5 == shard for place in pages)
        found |= set(pages)
    assert found == {str(place) for place in range(20)}
    left = len(data["id"]) - 20
    note = (
        "The tokens of 20 latents can be opened here, the largest odds ratios first; those of the other "
        f"{left} are in tables/pairs.parquet"
    )
    assert note in html
    assert data["left_out"].startswith(note)


def test_a_report_is_made_again_from_its_own_folder(pair: Written, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "report"
    shutil.copytree(pair.artifact.path, folder)
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == pair.html


def test_a_report_written_before_pairs_were_kept_has_its_table_still(pair: Written, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    shutil.copytree(pair.artifact.path / "tables", tables)
    for name in ("pairs", "volcano"):
        (tables / f"{name}.parquet").unlink()
    html = render_dashboard(pair.results, tables)
    data = payload(html)
    assert "latents" not in data["associated"]
    assert len(data["associated"]["columns"]["id"]) == pair.section.latents
    assert not any(figure["id"].startswith("volcano") for figure in data["figures"])
    assert "data-associated" not in html.split("<script>")[0]
