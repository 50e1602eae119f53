"""`saeinterp probe`: from a labelled table to a report, as a user runs it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import polars as pl
import pytest
import yaml

pytestmark = pytest.mark.slow
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def config(planted_folder: Path, planted_corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "probe.yaml"
    content = {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
        "capture": {"hookpoints": ["layers.1", "layers.2"]},
        "training": {"num_latents": 20, "k": 1, "epochs": 4, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1, "together": 2},
        "probing": {"file": "named-on-the-command-line.jsonl", "ks": [1, 2]},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    source = random.Random(0)
    rows = []
    for index in range(60):
        kind = ("metal", "fruit")[index % 2]
        words = [f"w{source.randrange(80)}" for _ in range(8)] + [f"{kind}{source.randrange(6)}" for _ in range(3)]
        rows.append({"text": " ".join(words), "label": kind})
    path = tmp_path / "kinds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_is_probed_on_trained_saes_and_a_second_run_does_nothing(
    cli: Cli, config: Path, table: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    done = cli("probe", str(table), "--config", str(config), "--root", str(root))
    assert done.returncode == 0, done.stderr
    (folder,) = root.glob("sparse-probing/*")
    assert "report.md" in done.stdout
    assert "report.html" not in done.stdout
    probes = pl.read_parquet(folder / "tables" / "probes.parquet")
    trained = probes.filter((pl.col("features") == "sae") & (pl.col("k") == 2))
    assert trained.height == 4
    assert trained["auroc"].min() > 0.95
    assert "## Classes" in (folder / "report.md").read_text()
    plan = cli("plan", "probe-latents", "--config", str(config), "--set", f"probing.file={table}", "--root", str(root))
    assert "0 of " in plan.stdout, plan.stdout + plan.stderr


def test_an_unusable_table_is_refused_before_anything_is_trained(cli: Cli, config: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "w1 w2", "label": "metal"}\n' * 20)
    root = tmp_path / "runs"
    done = cli("probe", str(bad), "--config", str(config), "--root", str(root))
    assert done.returncode != 0
    assert "1 class in column 'label'" in " ".join(done.stderr.split())
    assert not list(root.glob("sae/*"))
