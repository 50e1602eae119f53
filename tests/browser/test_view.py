"""`saeinterp view` in a real browser: the page and the files beside it, under the headers that the server adds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser.visiting import expect
from planted_dashboard import stretch
from planted_reports import build_world

from flows.viewing import ReportServer
from saeinterp.artifacts import ArtifactStore
from saeinterp.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 latents, 88 of them in files beside the page."""
    world = build_world(ArtifactStore(tmp_path_factory.mktemp("world")), control=False, hookpoints=("layers.5",))
    report = write_report(**world.arguments())
    return stretch(report, tmp_path_factory.mktemp("large") / "report", latents=600, detail=600, pages=600)


def test_a_viewed_report_works_and_asks_its_own_server_alone(browser: Any, large: Path) -> None:
    table = pl.read_parquet(large / "tables" / "latents.parquet").with_row_index("row")
    beside = table.sort(pl.col("delta").abs(), "row", descending=[True, False])["id"].to_list()[550]
    with ReportServer(large) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context()
        page = context.new_page()
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{server.url}#{beside}")
        expect(page.locator(f'dialog[open][data-shown="{beside}"] .examples').first).to_be_visible(timeout=60_000)
        context.close()
        server.shutdown()
    assert all(url.startswith(server.url) for url in asked)
    assert sum("/latents/shard-" in url for url in asked) == 1
    assert [text for text in problems if "favicon" not in text] == []
