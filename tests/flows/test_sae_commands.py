"""`saeinterp sae`: a screen about an SAE, curves for other tools, errors with exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted_saes import HOOKPOINTS, train_planted_saes

from saeinterp.artifacts import Artifact
from saeinterp.hardware import describe, hardware
from saeinterp.sae import TopKSae

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saes(planted_folder: Path, planted_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Two trained SAEs, in an artifact folder of their own."""
    return train_planted_saes(tmp_path_factory.mktemp("commands"), subject=planted_folder, corpus=planted_corpus)


@pytest.fixture(scope="module")
def root(saes: dict[str, Artifact]) -> Path:
    return saes["layers.1"].path.parent.parent


def sae_command(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `saeinterp sae ARGS`; it needs no Prefect server."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "sae", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_help_names_each_command_and_its_choices() -> None:
    assert "export-curves" in sae_command("--help").stdout
    text = sae_command("export-curves", "--help").stdout
    assert "tensorboard|wandb" in text
    assert "WANDB_API_KEY" in text


def test_show_says_what_the_files_say(saes: dict[str, Artifact], root: Path) -> None:
    sae = saes["layers.1"]
    by_id = sae_command("show", sae.id, "--root", root)
    assert by_id.returncode == 0, by_id.stderr
    assert sae_command("show", sae.path).stdout == by_id.stdout
    assert sae_command("show", sae.path.name, SAEINTERP_ROOT=str(root)).stdout == by_id.stdout
    shown = dict(line.split(maxsplit=1) for line in by_id.stdout.splitlines()[1:])
    summary = json.loads(sae.file("training.json").read_text())
    assert shown["path"] == str(sae.path)
    assert shown["shape"] == "20 latents × 64, k = 1, topk"
    assert shown["FVU"].startswith(f"{summary['fvu_heldout']:.4f} ")
    assert shown["dead"].startswith(f"{summary['dead']} of 20 latents")
    assert f"{summary['revived']} revived" in shown["dead"]
    assert shown["training"].startswith(f"{summary['steps']} steps, {summary['rows_seen']:,} rows")
    assert shown["precision"].startswith(f"{summary['compute']} products")
    assert "rows/s" in shown["speed"]
    assert shown["hardware"] == describe(hardware()._asdict())
    assert all(file in shown["files"] for file in ("cfg.json", "sae.safetensors", "curves.parquet"))
    assert len(by_id.stdout.splitlines()) < 24


def test_show_reads_a_folder_of_another_tool_as_far_as_it_goes(saes: dict[str, Artifact], tmp_path: Path) -> None:
    TopKSae.load(saes["layers.1"].path).save(tmp_path / "elsewhere")
    done = sae_command("show", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert "20 latents × 64, k = 1, topk" in done.stdout
    assert "unknown" in done.stdout


def test_show_refuses_what_is_no_sae(saes: dict[str, Artifact], root: Path, tmp_path: Path) -> None:
    done = sae_command("show", "layers.9", "--root", root)
    assert done.returncode == 2
    assert saes["layers.1"].id in done.stderr
    done = sae_command("show", "layers.9", "--root", tmp_path)
    assert done.returncode == 2
    assert "Next:" in done.stderr
    done = sae_command("show", next((root / "corpus").iterdir()))
    assert done.returncode == 1
    assert "not an SAE" in done.stderr
    assert "Traceback" not in done.stderr


def test_curves_go_to_tensorboard_and_the_command_that_shows_them_is_told(
    saes: dict[str, Artifact], root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    ids = [saes[name].id for name in HOOKPOINTS]
    done = sae_command("export-curves", *ids, "--to", "tensorboard", "--out", tmp_path / "curves", "--root", root)
    assert done.returncode == 0, done.stderr
    written = sorted((tmp_path / "curves").rglob("*tfevents*"))
    assert [path.parent.name for path in written] == sorted(sae.path.name for sae in saes.values())
    assert all(str(path) in done.stdout for path in written)
    assert "tensorboard --logdir" in done.stdout


def test_curves_go_to_wandb_offline_without_the_key(saes: dict[str, Artifact], root: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    key = "abcdef0123456789abcdef0123456789abcdef01"
    done = sae_command(
        *("export-curves", saes["layers.1"].id, "--to", "wandb", "--out", tmp_path, "--root", root),
        WANDB_API_KEY=key,
        WANDB_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "wandb").glob("offline-run-*"))
    assert str(run) in done.stdout
    assert list(run.glob("*.wandb"))
    assert key not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_wrong_usage_of_export_is_refused(saes: dict[str, Artifact], root: Path, tmp_path: Path) -> None:
    target = ("--out", tmp_path / "out", "--root", root)
    done = sae_command("export-curves", saes["layers.1"].id, "--to", "tensorboard", "--online", *target)
    assert done.returncode == 2
    assert "W&B" in done.stderr
    assert sae_command("export-curves", saes["layers.1"].id, "--to", "mlflow", *target).returncode == 2
    copy = shutil.copytree(saes["layers.1"].path, tmp_path / "copy")
    (copy / "timing.parquet").unlink()
    done = sae_command("export-curves", copy, "--to", "tensorboard", *target)
    assert done.returncode == 1
    assert "lacks timing.parquet" in done.stderr
    assert not (tmp_path / "out").exists()


def test_converted_to_saelens_and_back_an_sae_is_the_same(
    saes: dict[str, Artifact], root: Path, tmp_path: Path
) -> None:
    there, back = tmp_path / "lens", tmp_path / "back"
    done = sae_command("convert", saes["layers.2"].id, there, "--to", "sae-lens", "--root", root)
    assert done.returncode == 0, done.stderr
    assert "20 latents × 64" in done.stdout
    assert json.loads((there / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert sae_command("convert", there, back, "--to", "sparsify").returncode == 0
    weights = "sae.safetensors"
    assert (back / weights).read_bytes() == saes["layers.2"].file(weights).read_bytes()


def test_convert_never_writes_over_files(saes: dict[str, Artifact], root: Path) -> None:
    done = sae_command("convert", saes["layers.1"].id, saes["layers.2"].path, "--to", "sae-lens", "--root", root)
    assert done.returncode == 2
    assert "new or empty" in done.stderr
    done = sae_command("convert", saes["layers.1"].id, root / "new", "--to", "sparsify", "--model", "m", "--root", root)
    assert done.returncode == 2
    assert not (root / "new").exists()
