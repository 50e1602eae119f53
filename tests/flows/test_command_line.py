"""The command line: help that helps, errors with exit codes, plans that run nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Cli = Callable[..., "CompletedProcess[str]"]


def test_help_lists_every_command_and_each_has_its_own(cli: Cli) -> None:
    text = cli("--help").stdout
    for name in ("demo", "run", "submit", "plan", "doctor", "presets", "report", "view", "export", "ops"):
        assert name in text
    assert "preset:NAME" in cli("run", "--help").stdout


def test_unknown_names_are_refused_with_the_valid_ones(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "compare-explainer")
    assert done.returncode == 2
    assert "compare-explainers" in done.stderr
    done = cli("run", "train-saes", "--config", "preset:nope")
    assert done.returncode == 2
    assert "demo" in done.stderr
    done = cli("run", "train-saes", "--set", "trainign.k=3")
    assert done.returncode == 2
    assert "did you mean 'training'?" in done.stderr


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("subject.model=no/such-model", "no/such-model"),
        ("capture.hookpoints=[layers.7]", "layers.2"),
        ("capture.disk_budget_gb=0.000001", "disk_budget_gb"),
        ("corpus.context_length=4096", "at most 256 tokens"),
    ],
)
def test_bad_input_ends_with_its_own_error_and_exit_code(
    cli: Cli, planted_config: Path, tmp_path: Path, override: str, expected: str
) -> None:
    done = cli("run", "train-saes", "--root", str(tmp_path), *_train_only(planted_config), "--set", override)
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert "Next:" in done.stderr


def test_an_output_folder_that_cannot_be_written_is_named(cli: Cli, planted_config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("run", "train-saes", *_train_only(planted_config), "--root", str(tmp_path / "file" / "runs"))
    assert done.returncode == 1
    assert "SAEINTERP_ROOT" in done.stderr


def test_doctor_reports_each_thing_with_a_remedy(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "--root", str(tmp_path), "--endpoint", "http://127.0.0.1:9/v1")
    assert done.returncode == 1
    assert "problem  LLM endpoint: http://127.0.0.1:9/v1" in done.stdout
    assert "remedy:" in done.stdout
    assert "ok       Prefect server" in done.stdout
    assert "warning  Prefect access" in done.stdout


def _train_only(config: Path) -> list[str]:
    """The planted subject and corpus as overrides of `train-saes`."""
    import yaml

    whole = yaml.safe_load(config.read_text())
    arguments = []
    for section in ("subject", "corpus", "capture", "training", "launch"):
        for key, value in whole[section].items():
            arguments += [
                "--set",
                f"{section}.{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}",
            ]
    return arguments
