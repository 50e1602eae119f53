"""The page of one latent: labels, examples, profile; found by its address, from a file beside the report too."""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser.visiting import Visit, expect
from planted_dashboard import stretch
from planted_profiles import plant_profiles
from planted_reports import World, build_world

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.report import write_report
from saeinterp.report.format import number

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(ArtifactStore(tmp_path_factory.mktemp("world")), third=True)


@pytest.fixture(scope="module")
def report(world: World) -> Artifact:
    return write_report(**world.arguments(profiles=plant_profiles(world, dead=2)))


@pytest.fixture(scope="module")
def large(report: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 latents: 512 in the page, 288 beside it, 100 in neither."""
    return stretch(report, tmp_path_factory.mktemp("large") / "report", latents=900, detail=800, pages=800)


def shown(visit: Visit, latent: str) -> Any:
    """The page of a latent, once it is there."""
    page = visit.page.locator(f'dialog[open][data-shown="{latent}"]')
    expect(page).to_be_visible()
    return page


def test_a_latent_is_described_without_its_explanations_too(browser: Any, report: Artifact) -> None:
    visit = Visit(browser, report.path, at="#L10_F108")
    page = shown(visit, "L10_F108")
    row = (
        pl.read_parquet(report.path / "tables" / "profiles.parquet")
        .filter(pl.col("hookpoint") == "layers.10", pl.col("latent") == 108)
        .to_dicts()[0]
    )
    for title in ("Activation density", "Tokens it goes with", "Logits", "Nearest by decoder direction"):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    raised = page.locator(".logits").nth(1).locator("li")
    expect(raised).to_have_count(10)
    assert raised.first.locator("span").inner_text() == number(row["promoted"][0]["logit"], "plain")
    density = page.get_by_role("img", name="Histogram of activations")
    assert density.locator("rect").count() == len(row["histogram"])
    counts = [text.rpartition(": ")[2] for text in density.locator("title").all_text_contents()]
    assert counts == [number(count, "count") for count in row["histogram"]]
    tokens = page.locator(".panel", has_text="Tokens it goes with").locator("tbody tr")
    first = row["tokens"][0]
    expect(tokens.first).to_contain_text(f"{first['fired']} of {first['seen']} in {first['documents']} documents")
    expect(page.get_by_role("heading", name="Other explainers")).to_be_visible()
    assert visit.problems == []
    visit.page.context.close()


def test_a_neighbour_opens_and_back_closes_the_page(browser: Any, report: Artifact) -> None:
    visit = Visit(browser, report.path)
    visit.open_first_row()
    page = shown(visit, "L5_F11")
    expect(visit.page).to_have_url(re.compile("#L5_F11$"))
    page.locator(".panel", has_text="Nearest by decoder direction").locator("button").first.click()
    shown(visit, "L5_F108")
    expect(visit.page).to_have_url(re.compile("#L5_F108$"))
    visit.page.go_back()
    expect(visit.page.locator("dialog[open]")).to_have_count(0)
    expect(visit.page).not_to_have_url(re.compile("#L5"))
    visit.page.evaluate("location.hash = '#L15_F11'")
    shown(visit, "L15_F11")
    visit.page.context.close()


def test_a_dead_latent_says_so(browser: Any, report: Artifact) -> None:
    visit = Visit(browser, report.path, at="#L5_F205")
    expect(shown(visit, "L5_F205")).to_contain_text("Dead on this text: it fires on none of 24,272 tokens.")
    visit.page.context.close()


def test_from_the_headline_to_a_raw_reply_by_keyboard_alone(browser: Any, report: Artifact) -> None:
    visit = Visit(browser, report.path)
    page = visit.page
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#latent-grid .tabulator-row') !== null"):
            break
    page.keyboard.press("Enter")
    opened = shown(visit, "L5_F11")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Raw replies":
            break
    page.keyboard.press("Enter")
    expect(opened.locator("details.raw[open] code").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator(".tabulator-row:focus")).to_have_count(1)
    page.context.close()


def ids_beside(folder: Path) -> tuple[list[str], list[str]]:
    """Ids of latents whose page lies beside the report, and of those without one."""
    table = pl.read_parquet(folder / "tables" / "latents.parquet").with_row_index("row")
    ranked = table.sort(pl.col("delta").abs(), "row", descending=[True, False])["id"].to_list()
    return ranked[512:800], ranked[800:]


def test_latents_beyond_the_first_are_read_from_files_beside_the_report(browser: Any, large: Path) -> None:
    beside, without = ids_beside(large)
    visit = Visit(browser, large)
    visit.page.evaluate(f"location.hash = '#{beside[0]}'")
    expect(shown(visit, beside[0]).locator(".examples").first).to_be_visible()
    loaded = [Path(url).name for url in visit.requests]
    assert len(loaded) == 1
    assert re.fullmatch(r"shard-\d{5}\.js", loaded[0])
    visit.page.evaluate(f"location.hash = '#{without[0]}'")
    expect(shown(visit, without[0])).to_contain_text("those of the other 100 are in tables/examples.parquet")
    expect(visit.page.locator("#latents")).to_contain_text("those of the other 100 are in tables/examples.parquet")
    assert visit.problems == []
    visit.page.context.close()


def test_over_http_the_same_files_are_read_and_nothing_else(browser: Any, large: Path) -> None:
    beside, _ = ids_beside(large)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(large)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/report.html#{beside[1]}")
    expect(page.locator(f'dialog[open][data-shown="{beside[1]}"] .examples').first).to_be_visible()
    page.close()
    server.shutdown()
    assert {path for path in asked if not path.startswith("/latents/shard-")} <= {"/report.html", "/favicon.ico"}
    assert sum(path.startswith("/latents/shard-") for path in asked) == 1


def test_a_report_without_its_files_says_which_one_is_missing(browser: Any, large: Path, tmp_path: Path) -> None:
    for name in ("report.html", "results.json"):
        shutil.copy(large / name, tmp_path / name)
    beside, _ = ids_beside(large)
    visit = Visit(browser, tmp_path, at=f"#{beside[0]}")
    page = shown(visit, beside[0])
    expect(page).to_contain_text(re.compile(r"latents/shard-\d{5}\.js, which is not beside this page"))
    expect(page.locator(".pair .what").first).to_be_visible()  # labels and values need no file
    visit.page.context.close()


@pytest.fixture
def fresh(browser: Any, report: Artifact) -> Iterator[Visit]:
    visit = Visit(browser, report.path)
    yield visit
    visit.page.context.close()


def test_the_table_shows_the_rows_of_the_parquet_file(fresh: Visit, report: Artifact) -> None:
    table = pl.read_parquet(report.path / "tables" / "latents.parquet")
    cells: dict[str, dict[str, str]] = {}
    for end in (0, 100_000):  # rows out of sight are not in the page
        fresh.page.locator(".tabulator-tableholder").evaluate("(holder, end) => { holder.scrollTop = end; }", end)
        fresh.page.wait_for_function("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found = fresh.page.eval_on_selector_all(
            ".tabulator-row",
            """rows => rows.map(row => Object.fromEntries([...row.querySelectorAll('.tabulator-cell')]
                 .map(cell => [cell.getAttribute('tabulator-field'), cell.textContent])))""",
        )
        cells |= {cell["id"]: cell for cell in found}
    assert len(cells) == len(table) == 21
    for row in table.iter_rows(named=True):
        cell = cells[row["id"]]
        assert cell["hookpoint"] == row["hookpoint"]
        for side in ("a", "b"):
            assert cell[f"label_{side}"] == (row[f"explanation_{side}"] or "—")
            bounds = [row[f"value_{side}_{end}"] for end in ("low", "high")]
            interval = "" if None in bounds else f"[{number(bounds[0], 'score')}, {number(bounds[1], 'score')}]"
            assert cell[f"value_{side}"] == number(row[f"value_{side}"], "score") + interval
        assert cell["delta"] == number(row["delta"], "difference")
        assert cell["density"] == number(row["density"], "rate")
        assert cell["status"] == row["status"].replace("_", " ")


def test_verdicts_on_the_page_are_those_of_the_parquet_file(fresh: Visit, report: Artifact) -> None:
    fresh.open_first_row()
    page = shown(fresh, "L5_F11")
    rows = pl.read_parquet(report.path / "tables" / "examples.parquet").filter(
        pl.col("hookpoint") == "layers.5", pl.col("latent") == 11, pl.col("role") == "score"
    )
    found = page.locator(".examples").first.locator("tbody tr:not(.band-row)")
    assert found.count() == len(rows)
    for place, row in enumerate(rows.iter_rows(named=True)):
        cells = found.nth(place).locator("td").all_text_contents()
        assert cells[0] == ("fires" if row["truth"] else "silent")
        for cell, side in zip(cells[1:3], "ab", strict=True):
            if row[f"status_{side}"] != "ok":
                assert cell == f"{side.upper()}– {row[f'status_{side}']}"
                continue
            right = row[f"verdict_{side}"] == row["truth"]
            assert cell.startswith(f"{side.upper()}{'✓' if right else '✗'} {'yes' if row[f'verdict_{side}'] else 'no'}")
            assert cell.endswith(f"P(yes) {number(row[f'probability_{side}'], 'score')}")
        assert "".join(row["tokens"]) in cells[3]
