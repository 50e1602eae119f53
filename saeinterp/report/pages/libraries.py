"""The two third-party scripts a page embeds, read from installed packages and never imported.

The surprising choice: pytabulator's Python code is not run (it pulls in shiny and pandas); only the
minified Tabulator that it ships is read. Without it a page still works, with a plain table.
"""

from __future__ import annotations

import importlib.util
import logging
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from saeinterp.errors import MissingDependencyError

log = logging.getLogger(__name__)

TABULATOR_INSTALL = "pip install --no-deps pytabulator==0.2.5"
_ASSETS = Path(__file__).parent / "assets"


class Library(NamedTuple):
    """A script to embed.

    Attributes:
        name: As the About section names it.
        script: Its JavaScript.
        style: Its CSS; may be empty.
        licence: Full text of its licence.
    """

    name: str
    script: str
    style: str
    licence: str


def plotly_library() -> Library:
    """plotly.js from the installed plotly package.

    Raises:
        MissingDependencyError: plotly is not installed or lacks its script.
    """
    folder = _package("plotly")
    script = folder / "package_data" / "plotly.min.js" if folder else None
    if script is None or not script.is_file():
        raise MissingDependencyError("plotly.js is not installed", got=str(script), next_step="pip install plotly")
    text = script.read_text(encoding="utf-8")
    return Library(_banner(text, "plotly.js"), text, "", _licence("plotly"))


def tabulator_library() -> Library | None:
    """Tabulator from pytabulator's data files; None, with a warning, when that is not installed."""
    folder = _package("pytabulator")
    script = folder / "srcjs" / "tabulator.min.js" if folder else None
    style = folder / "srcjs" / "tabulator.min.css" if folder else None
    if script is None or style is None or not script.is_file() or not style.is_file():
        log.warning("Tabulator is not installed, so the report gets a plain table. Next: %s", TABULATOR_INSTALL)
        return None
    text = script.read_text(encoding="utf-8")
    css = style.read_text(encoding="utf-8").partition("/*# sourceMappingURL")[0]
    text = text.partition("//# sourceMappingURL")[0]
    return Library(_banner(text, "Tabulator"), text, css, (_ASSETS / "tabulator-licence.txt").read_text("utf-8"))


def _package(name: str) -> Path | None:
    # A top-level name is located without running the package.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _banner(script: str, name: str) -> str:
    for line in script[:400].splitlines():
        words = line.strip("/*! ").split()
        if len(words) > 1 and words[0].lower() == name.lower():
            return f"{name} {words[1]}"
    return name


def _licence(package: str) -> str:
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if "dist-info" in str(file) and file.name.upper().startswith("LICENSE"):
            return Path(str(file.locate())).read_text(encoding="utf-8")
    return f"MIT licence; its text comes with the {package} package."
