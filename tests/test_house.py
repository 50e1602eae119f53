"""Promises about the project as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_importing_every_library_module_leaves_prefect_out() -> None:
    code = (
        "import importlib, pkgutil, sys, saeinterp\n"
        "names = [m.name for m in pkgutil.walk_packages(saeinterp.__path__, 'saeinterp.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names), sorted(m for m in sys.modules if m.split('.')[0] in ('prefect', 'flows', 'tasks')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, found = done.stdout.split(maxsplit=1)
    assert int(count) > 30
    assert found.strip() == "[]"


def test_no_lock_or_config_file_holds_a_registry_address() -> None:
    files = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")]
    assert not [path.name for path in files if "https://" in path.read_text() or "http://" in path.read_text()]


@pytest.mark.parametrize("name", ["configuration.md", "python.md"])
def test_the_reference_is_what_the_code_says(name: str) -> None:
    page = ROOT / "docs" / "reference" / name
    code = f"import runpy; print(runpy.run_path('docs/generate.py')['PAGES']['{name}'](), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert page.read_text(encoding="utf-8") == done.stdout, "run: python docs/generate.py"


def test_every_relative_link_in_the_docs_leads_to_a_file() -> None:
    import re

    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_make_target_that_the_guides_name_exists() -> None:
    import re

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    call = re.compile(r"(?:^|`)make ((?:[a-z-]+ ?)+)(?=`|$|  |[A-Z])", re.MULTILINE)
    lines = [line for page in pages for line in call.findall(page.read_text(encoding="utf-8"))]
    named = {target for line in lines for target in line.split()}
    assert {"audit", "dist", "test-slow"} <= named
    assert named - targets == set()
