"""`saeinterp report`, `view` and `export` as a user calls them; the server is asked over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from planted_reports import build_world

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.report import write_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A report in a store with everything it was made from."""
    world = build_world(ArtifactStore(tmp_path_factory.mktemp("commands")), hookpoints=("layers.5",), control=False)
    return write_report(**world.arguments(title="One layer"))


@pytest.fixture(scope="module")
def root(report: Artifact) -> Path:
    return report.path.parent.parent


def command(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@contextlib.contextmanager
def viewing(*args: str | Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`saeinterp view ARGS` while it runs, with the address it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "view", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.stderr else ""
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def ask(
    address: str, path: str = "/", *, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request with the path as it is given, and any Host."""
    port = urlsplit(address).port
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_report_is_made_again_by_its_id(report: Artifact, root: Path, tmp_path: Path) -> None:
    done = command("report", report.id, "--root", root)
    assert done.returncode == 0, done.stderr
    assert "made that report already" in done.stdout
    assert str(report.path / "report.html") in done.stdout
    done = command("report", report.path, "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "report.html").read_bytes() == report.file("report.html").read_bytes()


def test_a_new_report_of_several_artifacts_is_published(root: Path) -> None:
    health = next((root / "health").iterdir())
    grades = next((root / "grades").iterdir())
    done = command("report", health, grades, "--title", "Made by hand")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[0].split(maxsplit=4)[-1])
    assert page.is_relative_to(root / "report")
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert "# Made by hand" in text
    assert "### Layer grades" in text


def test_what_cannot_be_reported_on_is_told_with_a_next_step(root: Path, tmp_path: Path) -> None:
    done = command("report", tmp_path)
    assert done.returncode == 1
    assert "not a finished artifact" in done.stderr
    done = command("report", "report/one-lyer", "--root", root)
    assert done.returncode == 2
    assert "report/one-layer" in done.stderr
    done = command("report", next((root / "corpus").iterdir()))
    assert done.returncode == 2
    assert "no report is made of this" in done.stderr


def test_a_view_serves_the_folder_with_safe_headers(report: Artifact) -> None:
    (report.path / "latents").mkdir(exist_ok=True)  # as the files beside a large page
    (report.path / "latents" / "0.js").write_text("void 0;")
    with viewing(report.path, "--no-open") as (_, address):
        status, headers, body = ask(address)
        assert (status, body) == (200, report.file("report.html").read_bytes())
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "python" not in headers["server"].lower()
        for name, kind in {
            "/results.json": "application/json",
            "/report.md": "text/markdown; charset=utf-8",
            "/latents/0.js": "text/javascript; charset=utf-8",
            "/tables/latents.parquet": "application/vnd.apache.parquet",
        }.items():
            status, headers, body = ask(address, name)
            assert (status, headers["content-type"]) == (200, kind)
            assert body == (report.path / name[1:]).read_bytes()
        status, headers, body = ask(address, "/report.html", method="HEAD")
        assert (status, body) == (200, b"")
        assert headers["content-length"] == str(report.file("report.html").stat().st_size)


def test_a_view_gives_nothing_outside_of_the_folder(report: Artifact, root: Path) -> None:
    secret = root / "secret.txt"
    secret.write_text("secret")
    link = report.path / "tables" / "link.txt"
    link.symlink_to(secret)
    hidden = report.path / ".hidden"
    hidden.write_text("secret")
    try:
        with viewing(report.path, "--no-open") as (_, address):
            for path in (
                "/../../secret.txt",
                "/..%2f..%2fsecret.txt",
                "/%2e%2e/%2e%2e/secret.txt",
                "/tables/../../../secret.txt",
                "//secret.txt",
                f"/{secret}",
                f"//{secret}",
                "/..\\..\\secret.txt",
                "/tables/link.txt",
                "/.hidden",
                "/tables/",
                "/tables",
                "/results.json%00.html",
                "/missing",
            ):
                status, _, body = ask(address, path)
                assert status == 404, path
                assert b"secret" not in body, path
            assert ask(address, "/results.json?x=1")[0] == 200
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert ask(address, "/report.html", method=method)[0] == 501
    finally:
        link.unlink()
        hidden.unlink()


def test_a_view_refuses_other_hosts(report: Artifact) -> None:
    with viewing(report.path, "--no-open") as (_, address):
        port = urlsplit(address).port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
            assert ask(address, host=host)[0] == 200, host
        for host in ("attacker.example", f"attacker.example:{port}", "127.0.0.1:1", "127.0.0.1.attacker.example", ""):
            status, _, body = ask(address, "/results.json", host=host)
            assert status == 421, host
            assert b"format" not in body
        others = [
            item.address
            for items in psutil.net_if_addrs().values()
            for item in items
            if item.family == socket.AF_INET and not item.address.startswith("127.")
        ]
        for other in others:  # only loopback is listened on
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((other, port)) != 0, other


def test_a_view_opens_the_browser_and_ends_with_ctrl_c(report: Artifact, root: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    with viewing(report.id, "--root", root, BROWSER=str(browser)) as (process, address):
        assert ask(address)[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert (tmp_path / "opened").read_text() == address
    assert "Stopped." in said
    assert "Traceback" not in said


def test_a_taken_port_and_a_folder_without_a_page_are_told(report: Artifact, root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command("view", report.path, "--no-open", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "leave --port out" in done.stderr
    done = command("view", next((root / "health").iterdir()), "--no-open")
    assert done.returncode == 1
    assert "no report.html" in done.stderr


def test_exports_write_what_they_name(report: Artifact, root: Path, tmp_path: Path) -> None:
    done = command("export", report.path, "--format", "csv", "--out", tmp_path / "csv")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(str(path) for path in (tmp_path / "csv").iterdir())
    done = command("export", report.id, "--format", "json", "--out", tmp_path / "json", "--root", root)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "json").iterdir()} == {"results.json", "results.schema.json"}
    done = command(
        *("export", report.path, "--format", "neuronpedia", "--out", tmp_path / "np"),
        *("--model-id", "m", "--source-set", "res", "--explainer", "a"),
    )
    assert done.returncode == 0, done.stderr
    assert "7 features, 6 explanations" in done.stdout
    assert "authorId" in done.stdout
    assert "scores, embeddings" in done.stdout
    done = command("export", report.path, "--format", "model-card", "--out", tmp_path / "card")
    assert done.returncode == 0, done.stderr
    assert "states no licence" in done.stdout
    assert "sae/layers.5" in (tmp_path / "card" / "README.md").read_text(encoding="utf-8")


def test_options_of_another_format_are_refused(report: Artifact, tmp_path: Path) -> None:
    done = command("export", report.path, "--format", "csv", "--out", tmp_path, "--license", "mit")
    assert done.returncode == 2
    assert "--license" in done.stderr
    done = command("export", report.path, "--format", "neuronpedia", "--out", tmp_path)
    assert done.returncode == 2
    assert "--model-id" in done.stderr
