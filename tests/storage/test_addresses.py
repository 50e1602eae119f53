"""Addresses and surroundings that cannot work: each is told of by its own error, and no secret is repeated."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from lab import free_port
from s3 import TestBucket

from saeinterp.artifacts import ArtifactStore, Recipe, Workspace
from saeinterp.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(kind="thing", name="demo", version=1, config={})


def write(space: Workspace) -> None:
    (space.out / "data.txt").write_text("hello")


@pytest.mark.parametrize("address", ["gs://bucket/x", "http://bucket/x", "memory://x"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"SAEINTERP_ROOT: unsupported address .*Expected a folder, or s3://"):
        ArtifactStore(address)


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hushhush@bucket/x",
        "s3://AKIA:hush/hushhush@bucket/x",
        "s3:AKIA:hushhush@bucket/x",
        "s3://AKIA_hushhush!/../x",
        "s3://bucket/x?secret=hushhush",
        "gs://a:hushhush@b",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ArtifactStore(address)
    assert "hushhush" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://AKIA:hushhush@127.0.0.1:1", "AKIA:hushhush@127.0.0.1:1"])
def test_credentials_in_the_address_of_a_server_are_refused_and_not_repeated(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as caught:
        ArtifactStore().find(RECIPE)
    told = "".join(traceback.format_exception(caught.value))
    assert "hushhush" not in told
    assert "AKIA" not in told


@pytest.mark.parametrize("command", [["artifacts", "rm", "x", "--yes"], ["doctor"], ["plan", "train-saes"], ["demo"]])
def test_a_command_refuses_an_address_with_one_line(command: list[str], tmp_path: Path) -> None:
    address = "s3://AKIA:hush/hushhush@bucket/x"
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command, "--root", address],
        cwd=ROOT, env={**os.environ, "PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("Error: SAEINTERP_ROOT: an address with credentials")
    assert "hushhush" not in done.stdout + done.stderr


def test_a_prefix_with_a_quote_in_it_is_found_again_by_its_mirror(bucket: TestBucket) -> None:
    store = ArtifactStore(f'{bucket.url}/a"b')
    store.build(RECIPE, write)
    assert ArtifactStore(store.root).url == store.url


def test_one_name_on_two_servers_has_two_mirrors(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ArtifactStore().root
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert ArtifactStore().root != here


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://bucket/../x"])
def test_an_address_without_a_bucket_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="SAEINTERP_ROOT"):
        ArtifactStore(address)


def test_a_file_address_is_a_folder_and_a_path_object_may_name_a_bucket(tmp_path: Path) -> None:
    assert ArtifactStore(f"file://{tmp_path}/runs").root == tmp_path / "runs"
    assert ArtifactStore(Path("s3://bucket/some/runs/")).url == "s3://bucket/some/runs"
    assert ArtifactStore("s3://bucket").root != ArtifactStore("s3://bucket/some").root


def test_a_bucket_that_does_not_exist_is_named(bucket: TestBucket) -> None:
    with pytest.raises(ArtifactError, match="no such bucket: planted-none"):
        ArtifactStore("s3://planted-none/runs").find(RECIPE)


def test_a_server_that_does_not_answer_is_named(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(ArtifactError, match="does not answer") as caught:
        ArtifactStore().build(RECIPE, write)
    assert caught.value.got == address


def test_missing_credentials_are_told_of(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ArtifactError, match=r"no usable credentials.*AWS_PROFILE"):
        ArtifactStore().build(RECIPE, write)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ArtifactError, match=r"no usable credentials.*nobody"):
        ArtifactStore("s3://planted-other/runs").build(RECIPE, write)


def test_without_s3fs_the_command_that_installs_it_is_named(bucket: TestBucket) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from flows.cli import app; app()"
    command = [sys.executable, "-c", code, "artifacts", "list"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "pip install 'saeinterp[s3]'" in " ".join(done.stderr.split())


def test_a_limit_that_is_no_size_is_refused(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEINTERP_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="SAEINTERP_CACHE_LIMIT: not a size"):
        ArtifactStore().build(RECIPE, write)


def test_a_mirror_that_cannot_be_written_is_named(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAEINTERP_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"SAEINTERP_CACHE: cannot write"):
        ArtifactStore().build(RECIPE, write)
