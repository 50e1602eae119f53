"""SAEs that were trained elsewhere, in the flows: measured as the SAEs they are, and made twice by nobody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
import yaml
from planted_health import random_sae

from saeinterp.sae.formats import convert

pytestmark = pytest.mark.slow
Cli = Callable[..., "CompletedProcess[str]"]


class Story(NamedTuple):
    """A run that trained two layers, and the folders into which its SAEs were taken out."""

    config: dict[str, Any]
    trained: Path
    """Artifact folder of the run that trained."""
    elsewhere: Path
    """`layers.1` as sparsify writes it, `layers.2` as SAELens does."""


@pytest.fixture(scope="module")
def story(planted_folder: Path, planted_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("own-saes")
    config = {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
        "capture": {"hookpoints": ["layers.1", "layers.2"]},
        "training": {"num_latents": 20, "k": 1, "epochs": 4, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1, "together": 2},
        "health": {"bootstrap": 200},
        "absorption": {"words": 50},
    }
    return Story(config, folder / "runs", folder / "elsewhere")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def make(config: dict[str, Any], **changes: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**config, **changes}))
        return str(path)

    return make


@pytest.fixture
def exported(cli: Cli, story: Story, write: Callable[..., str]) -> Story:
    """The story with its SAEs trained and taken out; whoever asks first trains them."""
    if not story.elsewhere.exists():
        done = cli("run", "train-saes", "--config", write(story.config), "--root", str(story.trained))
        assert done.returncode == 0, done.stderr
        for layer, layout in (("layers.1", "sparsify"), ("layers.2", "sae-lens")):
            (sae,) = story.trained.glob(f"sae/{layer}-*")
            convert(sae, story.elsewhere / layer, layout, hookpoint=layer)  # type: ignore[arg-type]
    return story


def adopting(story: Story) -> str:
    """The setting as it is given on the command line."""
    return "training.saes={" + ", ".join(f"{name}: {story.elsewhere / name}" for name in ("layers.1", "layers.2")) + "}"


def health(root: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in root.glob("health/*/health.json")]
    return {values["hookpoint"]: values for values in found}


def test_adopted_saes_measure_as_the_saes_they_are(cli: Cli, exported: Story, write: Callable[..., str]) -> None:
    path, root = write(exported.config), exported.elsewhere.parent / "adopted"
    options = ("train-saes", "--config", path, "--root", str(root), "--set", adopting(exported))
    plan = cli("plan", *options)
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.count("adopted: trained elsewhere") == 2, plan.stdout
    done = cli("run", *options)
    assert done.returncode == 0, done.stderr

    before, after = health(exported.trained), health(root)
    assert before.keys() == after.keys() == {"layers.1", "layers.2"}
    for name in before:
        overlap = after[name].pop("training_overlap")
        assert overlap == {**before[name].pop("training_overlap"), "shared": None}
        assert after[name] == before[name]
    absorption = [
        sorted(p.read_text() for p in r.glob("absorption/*/absorption.json")) for r in (exported.trained, root)
    ]
    assert absorption[0] == absorption[1]
    assert len(absorption[0]) == 2

    text = next(root.glob("report/*/report.md")).read_text()
    assert "trained elsewhere (sha256 " in text
    assert "whether it did cannot be checked" in text
    stored = [path.read_text() for path in (*root.glob("*/*/manifest.json"), *root.glob("report/*/results.json"))]
    assert not any(str(exported.elsewhere) in each for each in stored)

    again = cli("plan", *options)
    assert "0 of " in again.stdout, again.stdout
    (sae,) = root.glob("sae/layers.2-*")
    shown = cli("sae", "show", str(sae))
    assert "training   unknown: trained elsewhere, taken over from a folder of sae-lens's layout" in shown.stdout
    curves = cli("sae", "export-curves", str(sae), "--to", "tensorboard", "--out", str(root / "curves"))
    assert curves.returncode != 0
    assert "an SAE that was trained elsewhere has no curves" in " ".join(curves.stderr.split())


def test_one_layer_is_adopted_and_the_other_trained(cli: Cli, exported: Story, write: Callable[..., str]) -> None:
    folder = exported.elsewhere / "layers.1"
    config = write(exported.config, absorption={"enabled": False})
    root = str(exported.trained)
    options = ("--config", config, "--root", root, "--set", f"training.saes={{layers.1: {folder}}}")
    there = {path.name for path in exported.trained.glob("sae/*")}
    plan = cli("plan", "train-saes", *options).stdout
    assert plan.count("adopted") == 1
    done = cli("run", "train-saes", *options)
    assert done.returncode == 0, done.stderr
    # The layer that is trained was there: only the other's artifact is new.
    (new,) = {path.name for path in exported.trained.glob("sae/*")} - there
    assert new.startswith("layers.1-")


def test_sides_of_one_model_may_have_saes_from_other_places(
    cli: Cli, exported: Story, write: Callable[..., str], tmp_path: Path
) -> None:
    subject = exported.config["subject"]
    config = {key: value for key, value in exported.config.items() if key != "subject"}
    random_sae(64, num_latents=20, k=1).save(tmp_path / "random" / "layers.1")
    path = write(
        config,
        subject_a=subject,
        subject_b=subject,
        # With nothing to train, only the held-out rows are captured.
        capture={"hookpoints": ["layers.1"], "source": "stream"},
        absorption={"enabled": False},
        training={"saes": {"layers.1": str(exported.elsewhere / "layers.1")}},
        training_b={"saes": {"layers.1": str(tmp_path / "random" / "layers.1")}},
        comparison={"bootstrap": 200},
        random_weights_control=False,
    )
    root = tmp_path / "runs"
    done = cli("run", "compare-models", "--config", path, "--root", str(root))
    assert done.returncode == 0, done.stderr
    comparison = json.loads(next(root.glob("model-comparison/*/comparison.json")).read_text())
    (row,) = [row for row in comparison["comparability"] if row["field"] == "SAE training"]
    assert all(row[side].startswith("trained elsewhere, sha256 ") for side in ("a", "b"))
    assert (row["ok"], row["severity"]) == (False, "soft")
    assert not list(root.glob("sae/*/curves.parquet"))
    text = next(root.glob("report/*/report.md")).read_text()
    assert "saes=others" in text
    assert str(tmp_path) not in text


def test_a_folder_that_fits_no_layer_ends_the_run_before_anything_is_computed(
    cli: Cli, exported: Story, write: Callable[..., str], tmp_path: Path
) -> None:
    path, root = write(exported.config), tmp_path / "runs"
    shutil.copytree(exported.elsewhere / "layers.1", tmp_path / "pickled")
    (tmp_path / "pickled" / "sae.safetensors").rename(tmp_path / "pickled" / "sae.pt")
    for value, words in (
        ("{layers.1: /nowhere/layers.1}", "training.saes, layers.1: /nowhere/layers.1: not an SAE that can be loaded"),
        (f"{{layers.1: {tmp_path / 'pickled'}}}", "pickled weights are not read"),
    ):
        options = ("train-saes", "--config", path, "--root", str(root), "--set", f"training.saes={value}")
        assert words in " ".join(cli("plan", *options).stdout.split())
        done = cli("run", *options)
        assert done.returncode != 0
        assert words in " ".join(done.stderr.split())
    assert not list(root.glob("*/*/manifest.json"))


def test_another_width_is_refused_before_the_pass_over_the_text(
    cli: Cli, exported: Story, write: Callable[..., str], tmp_path: Path
) -> None:
    random_sae(24).save(tmp_path / "narrow")
    options = ("--config", write(exported.config), "--root", str(tmp_path / "runs"))
    done = cli("run", "train-saes", *options, "--set", f"training.saes={{layers.1: {tmp_path / 'narrow'}}}")
    assert done.returncode != 0
    assert "another width than the model under study (got 'd_in = 24')" in " ".join(done.stderr.split())
    assert not list((tmp_path / "runs").glob("activations/*/manifest.json"))
