"""An opened report: the page, and what it did that it should not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH: apt-get install chromium", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = api.expect


class Visit:
    """An open report and what it did: requests beyond its own file, console messages, errors."""

    def __init__(self, browser: Any, folder: Path, *, width: int = 1440, dark: bool = False, at: str = "") -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        self.page: Any = context.new_page()
        self.results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        self.requests: list[str] = []
        self.problems: list[str] = []
        url = (folder / "report.html").as_uri()
        self.page.on("request", lambda request: self.requests.append(request.url) if request.url != url + at else None)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(url + at)
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)

    def scroll_through(self) -> None:
        """Go to the end step by step, so that every plot is drawn."""
        for figure in self.page.query_selector_all("#plots figure"):
            figure.scroll_into_view_if_needed()
        expect(self.page.locator(".plot .loading")).to_have_count(0, timeout=60_000)
        expect(self.page.locator(".plot .main-svg").first).to_be_visible()

    def open_first_row(self) -> Any:
        """Click the first row's button and give back the drawer, once it is open."""
        self.page.locator(".tabulator-row button").first.click()
        drawer = self.page.locator("dialog[open]")
        expect(drawer).to_be_visible()
        return drawer

    def shown(self) -> list[str]:
        """Ids of the rows that the table shows, in order."""
        found: list[str] = self.page.eval_on_selector_all(
            ".tabulator-row", "rows => rows.map(row => row.querySelector('button').textContent)"
        )
        return found
