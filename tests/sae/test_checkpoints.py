"""Checkpoints are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from saeinterp.sae.checkpoints import load_checkpoint, save_checkpoint


def save(folder: Path, step: int) -> bool:
    return save_checkpoint(folder, step=step, tensors={"a": torch.full((3,), step)}, scalars={"x": 0.1 + 0.2})


def test_the_newest_is_loaded_exactly_and_two_are_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 11, 1000):
        assert save(tmp_path, step)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors["a"].tolist() == [1000] * 3
    assert checkpoint.scalars == {"x": 0.1 + 0.2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000000011.safetensors",
        "step-000000001000.safetensors",
    ]


@pytest.mark.parametrize("keep", [0, 7, 40], ids=["empty", "torn-header", "torn-data"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "step-000000000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:keep])
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors["a"].tolist() == [1] * 3


def test_what_a_kill_left_half_written_is_not_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-000000000002.safetensors.tmp").write_bytes(b"half")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors["a"].tolist() == [1] * 3


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert not save(tmp_path, 2)
    assert "disk is full" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.safetensors"]


def test_safetensors_own_error_for_a_full_disk_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"  # as on a full tmpfs

    def full(*args: object, **options: object) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("saeinterp.sae.checkpoints.save_file", full)
    assert not save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="folder"):
        save(tmp_path / "folder", 1)

    def broken(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: something else")

    monkeypatch.setattr("saeinterp.sae.checkpoints.save_file", broken)
    with pytest.raises(SafetensorError, match="something else"):
        save(tmp_path, 1)
