"""`saeinterp artifacts`: lists, a screen about one artifact, removal that asks first, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import sys
from saeinterp.artifacts import ArtifactStore, Recipe
store = ArtifactStore(sys.argv[1])
def make(kind, name, size, *inputs):
    def write(space):
        (space.out / "data.bin").write_bytes(b"x" * size)
        space.counts = {"rows": size}
    return store.build(Recipe(kind, name, 1, {"name": name}, inputs), write)
wide = make("activations", "wide", 5000)
sae = make("sae", "layers.1", 300, wide)
make("report", "Layer health", 40, sae)
make("sae", "layers.2", 2000, wide)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four artifacts: a report, what it was made from, and an SAE that nothing was made from."""
    folder = tmp_path / "runs"
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, cwd=ROOT)
    return folder


def artifacts(*args: str | Path, root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `saeinterp artifacts ARGS --root ROOT` without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "artifacts", *map(str, args), "--root", str(root)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def listed(root: Path, *args: str) -> list[dict[str, object]]:
    done = artifacts("list", "--json", *args, root=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_list_has_the_largest_first_and_a_total(root: Path) -> None:
    done = artifacts("list", root=root)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["activations", "sae"]
    assert re.search(r"activations +wide-\w{8} +\d\.\d kB +now +2$", lines[1])
    assert lines[-1].startswith("4 artifacts, ")


def test_a_list_can_be_narrowed_and_read_by_programs(root: Path) -> None:
    everything = listed(root)
    assert {item["kind"] for item in everything} == {"activations", "sae", "report"}
    sae = next(item for item in everything if str(item["id"]).startswith("sae/layers.1"))
    assert [str(name).split("-")[0] for name in sae["inputs"]] == ["activations/wide"]  # type: ignore[attr-defined]
    assert [str(name).split("-")[0] for name in sae["made_into"]] == ["report/Layer health"]  # type: ignore[attr-defined]
    files = Path(str(sae["path"])).iterdir()
    assert sae["bytes"] == sum(path.stat().st_size for path in files)
    assert len(listed(root, "--kind", "sae")) == 2
    assert len(listed(root, "--larger-than", "5kB")) == 1
    assert listed(root, "--older-than", "1h") == []
    assert len(listed(root, "--newer-than", "1h")) == 4
    assert artifacts("list", "--older-than", "soon", root=root).returncode == 2


def test_a_screen_says_what_it_was_made_from_and_what_needs_it(root: Path) -> None:
    (sae,) = (str(item["id"]) for item in listed(root) if str(item["id"]).startswith("sae/layers.1"))
    done = artifacts("show", sae, root=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == sae
    assert re.search(r"^made from +activations/wide-\w{8}$", done.stdout, re.M)
    assert re.search(r"^needed by +report/Layer health-\w{8}$", done.stdout, re.M)
    assert re.search(r"^count +rows 300$", done.stdout, re.M)
    missing = artifacts("show", "sae/layers.1", root=root)
    assert missing.returncode == 2
    assert sae in missing.stderr


def test_a_dry_run_prints_exactly_what_then_goes(root: Path) -> None:
    planned = artifacts("gc", "--older-than", "0d", "--keep-reports", "1", "--dry-run", root=root)
    assert planned.returncode == 0, planned.stderr
    assert len(listed(root)) == 4
    assert planned.stdout.splitlines()[0].endswith("no kept report needs it")
    before = sum(int(str(item["bytes"])) for item in listed(root))
    done = artifacts("gc", "--older-than", "0d", "--keep-reports", "1", "--yes", root=root)
    assert done.returncode == 0, done.stderr
    assert {str(item["id"]).split("-")[0] for item in listed(root)} == {
        "activations/wide",
        "sae/layers.1",
        "report/Layer health",
    }
    freed = before - sum(int(str(item["bytes"])) for item in listed(root))
    assert f"({freed:,} bytes) would go" in planned.stdout
    assert f"Removed 1 item, {freed / 1000:.1f} kB ({freed:,} bytes)" in done.stdout
    assert "Nothing to remove" in artifacts("gc", "--older-than", "0d", "--keep-reports", "1", root=root).stdout


def test_nothing_goes_unasked(root: Path) -> None:
    (sae,) = (str(item["id"]) for item in listed(root) if str(item["id"]).startswith("sae/layers.2"))
    done = artifacts("rm", sae, root=root)
    assert done.returncode == 2
    assert "Give --yes" in done.stderr
    assert len(listed(root)) == 4
    assert artifacts("rm", sae, "--yes", root=root).returncode == 0
    assert len(listed(root)) == 3


def test_removing_what_a_report_needs_takes_force(root: Path) -> None:
    (wide,) = (str(item["id"]) for item in listed(root, "--kind", "activations"))
    refused = artifacts("rm", wide, "--yes", root=root)
    assert refused.returncode == 1
    assert "report/Layer health" in refused.stderr
    assert "--force" in refused.stderr
    assert artifacts("rm", wide, "--force", "--yes", root=root).returncode == 0
    (sae,) = (str(item["id"]) for item in listed(root) if str(item["id"]).startswith("sae/layers.1"))
    assert f"{wide} (removed since)" in artifacts("show", sae, root=root).stdout
