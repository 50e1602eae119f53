"""A real S3 server, a bucket of each test's own, and machines that share nothing but it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3 import KEYS, Proxy, TestBucket, s3_server

from saeinterp.artifacts import ArtifactStore

pytest.importorskip("moto", reason="moto is not installed: make install")

Machine = Callable[[str], ArtifactStore]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TestBucket:
    """An empty bucket; the environment has keys for it, and `SAEINTERP_ROOT` names a prefix in it."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, "SAEINTERP_CACHE": str(tmp_path / "here")}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "SAEINTERP_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    made = TestBucket(server, f"planted-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("SAEINTERP_ROOT", made.url)
    return made


@pytest.fixture
def machine(bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine("b")` is the store as machine b sees it: nothing but the bucket is shared."""

    def of(name: str) -> ArtifactStore:
        monkeypatch.setenv("SAEINTERP_CACHE", str(tmp_path / name))
        return ArtifactStore(bucket.url)

    return of


@pytest.fixture
def proxy(bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands between this process, and those it starts, and the server."""
    with Proxy(bucket.server) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between
