"""The documentation as a site: it builds without a warning, links lead somewhere, nothing comes from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from documented import ROOT


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" or "src" in given:
            self.loaded.append(given.get("src") or given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def read(site: Path) -> dict[str, _Page]:
    found = {}
    for path in site.rglob("*.html"):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        found[path.relative_to(site).as_posix()] = page
    return found


def test_every_page_of_the_folder_is_in_the_navigation() -> None:
    def listed(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        inner = item.values() if isinstance(item, dict) else item
        return [page for part in inner for page in listed(part)]  # type: ignore[attr-defined]

    docs = ROOT / "docs"
    there = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    assert sorted(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == there


def test_every_link_leads_to_a_page_and_an_anchor(read: dict[str, _Page], site: Path) -> None:
    broken = []
    for name, page in read.items():
        if name == "404.html":  # served from anywhere: its links are absolute
            continue
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            parts = urlsplit(urljoin(f"/{name}", link))
            target = unquote(parts.path).lstrip("/") or "index.html"
            if target not in read:
                broken += [] if (site / target).is_file() else [f"{name}: {link}"]
            elif parts.fragment and unquote(parts.fragment) not in read[target].anchors:
                broken.append(f"{name}: {link}")
    assert len(read) > 25
    assert broken == []


def test_nothing_is_loaded_from_another_host(read: dict[str, _Page], site: Path) -> None:
    outside = [
        f"{name}: {item}" for name, page in read.items() for item in page.loaded if re.match(r"(https?:)?//", item)
    ]
    for path in (*site.rglob("*.css"), *site.rglob("*.js")):
        text = path.read_text(encoding="utf-8", errors="replace")
        outside += [
            f"{path.name}: {item}" for item in re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)'\"]+", text)
        ]
    assert outside == []


def test_what_is_loaded_is_in_the_site(read: dict[str, _Page], site: Path) -> None:
    for name, page in read.items():
        if name == "404.html":
            continue
        for item in page.loaded:
            target = urlsplit(urljoin(f"/{name}", item)).path
            assert (site / unquote(target).lstrip("/")).is_file(), f"{name}: {item}"
