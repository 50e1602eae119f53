"""How fast a page of 50,000 latents is in headless Chromium: size, ready, sort, filter, opening a latent, memory.

`make bench-dashboard` prints markdown; each figure is the median of several loads, with the smallest and the largest.
Ready is from the start of the navigation until the table answers, all plots being drawn later, when they scroll in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

_READY = """
new MutationObserver((_changes, self) => {
  if (document.documentElement?.dataset.ready) { window.readyAt = performance.now(); self.disconnect(); }
}).observe(document, { attributes: true, subtree: true });
"""
_ACTIONS = """
async () => {
  const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const until = async (check) => { do await painted(); while (!check()); };
  const taken = async (act, check = () => true) => {
    const start = performance.now();
    act();
    await until(check);
    return performance.now() - start;
  };
  const count = document.getElementById("latent-count");
  const before = count.textContent;
  const field = document.querySelector('.tabulator-col[tabulator-field="label_a"] input');
  const figures = { ready: window.readyAt };
  figures.sort = await taken(() => document.querySelector('.tabulator-col[tabulator-field="value_b"] .tabulator-col-title').click());
  figures.filter = await taken(() => {
    field.value = "cities";
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true, key: "s" }));
  }, () => count.textContent !== before);
  const page = document.getElementById("latent-page");
  figures.open = await taken(() => document.querySelector(".tabulator-row button").click(), () => page.dataset.shown);
  figures.memory = performance.memory.usedJSHeapSize / 1e6;
  return figures;
}
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    from browser.visiting import CHROMIUM, api

    with tempfile.TemporaryDirectory() as scratch, api.sync_playwright() as playwright:
        folder = _planted(Path(scratch), latents=options.latents)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        rounds = [_visit(browser, folder) for _ in range(options.rounds)]
        size = (folder / "report.html").stat().st_size
        version = browser.version
        browser.close()
    print(f"{options.latents:,} latents, page of {size / 1e6:.1f} MB, Chromium {version}, {options.rounds} loads\n")
    print("| | median | smallest | largest |\n|---|---:|---:|---:|")
    titles = {
        "ready": "ready, ms",
        "sort": "sort by B, ms",
        "filter": "filter by a word, ms",
        "open": "open a latent, ms",
        "memory": "JavaScript heap, MB",
    }
    for name, title in titles.items():
        values = [figures[name] for figures in rounds]
        print(f"| {title} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} |")


def _planted(scratch: Path, *, latents: int) -> Path:
    from planted_dashboard import stretch
    from planted_profiles import plant_profiles
    from planted_reports import build_world

    from saeinterp.artifacts import ArtifactStore
    from saeinterp.report import write_report

    world = build_world(ArtifactStore(scratch / "runs"))
    report = write_report(**world.arguments(profiles=plant_profiles(world)))
    return stretch(report, scratch / "report", latents=latents, detail=600)


def _visit(browser: Any, folder: Path) -> Mapping[str, float]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(_READY)
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    figures: Mapping[str, float] = page.evaluate(_ACTIONS)
    context.close()
    return figures


if __name__ == "__main__":
    main()
