"""`make audit` against an advisory service that speaks OSV's protocol on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments.audit import KNOWN_BAD, PIP_AUDIT

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not PIP_AUDIT.exists(), reason="pip-audit is not here: make test-audit")


def advisory(name: str, *, fixed: str, **more: Any) -> dict[str, Any]:
    """One entry as OSV publishes it."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]
    package = {"name": name, "ecosystem": "PyPI"}
    return {"id": f"PLANTED-{name}", "summary": "planted", "affected": [{"package": package, "ranges": ranges}], **more}


class Service:
    """An advisory service; `known` holds entries by package, `answer` replaces every reply."""

    def __init__(self) -> None:
        self.known = {"jinja2": [advisory("jinja2", fixed="3.0")]}
        self.answer: tuple[int, bytes] | None = None
        self.asked: set[tuple[str, str]] = set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name, version = query["package"]["name"], query["version"]
                service.asked.add((name, version))
                old = name != "jinja2" or version == KNOWN_BAD.partition("==")[2]
                found = service.known.get(name, []) if old else []
                status, body = service.answer or (200, json.dumps({"vulns": found} if found else {}).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/query"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering, and refuse connections."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that knows the package which every service must know."""
    service = Service()
    yield service
    service.close()


def audit(service: Service, *args: str) -> subprocess.CompletedProcess[str]:
    """`make audit` with that service."""
    command = [sys.executable, "-m", "deployments.audit", *args]
    env = {**os.environ, "PIP_AUDIT_OSV_URL": service.url, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """A file of two pins."""
    file = tmp_path / "pins.txt"
    file.write_text("# planted\nnumpy==2.0.0\nRuamel.yaml==0.18.0  # a comment\n")
    return file


def test_every_pin_of_the_project_is_looked_up(service: Service) -> None:
    done = audit(service)
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"constraints.txt: {len(lines)} packages looked up, 0 advisories" in done.stdout
    assert len(service.asked - {("jinja2", "2.4.1")}) == len(lines)


def test_an_advisory_fails_with_its_name_and_the_version_that_mends_it(service: Service, pins: Path) -> None:
    service.known["numpy"] = [advisory("numpy", fixed="2.0.1")]
    done = audit(service, str(pins))
    assert done.returncode == 1
    assert "numpy 2.0.0: PLANTED-numpy, fixed in 2.0.1" in done.stdout
    assert audit(service, str(pins), "--ignore", "PLANTED-numpy").returncode == 0


def test_a_package_that_cannot_be_looked_up_fails(service: Service, pins: Path) -> None:
    pins.write_text(pins.read_text() + "planted @ file:///nowhere/planted-1.0.tar.gz\n")
    done = audit(service, str(pins))
    assert done.returncode == 2
    assert "1 of 3 packages were not audited" in done.stdout
    assert "planted: " in done.stdout


def test_a_pin_that_pip_audit_passes_over_in_silence_fails(service: Service, pins: Path) -> None:
    pins.write_text(pins.read_text() + "scipy==1.0.0; python_version < '3'\n")
    done = audit(service, str(pins))
    assert done.returncode == 2
    assert "scipy==1.0.0" in done.stdout


def test_an_advisory_that_cannot_be_read_fails(service: Service, pins: Path) -> None:
    service.known["numpy"] = [advisory("numpy", fixed="2.0.1", schema_version="2.0.0")]
    done = audit(service, str(pins))
    assert done.returncode == 2
    assert "could not be read" in done.stdout


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b"{}"), "its silence says nothing"),
        ((503, b"busy"), "gave no answer"),
        ((200, b"<html>please log in</html>"), "gave no answer"),
    ],
)
def test_a_service_that_does_not_do_its_work_fails(
    service: Service, pins: Path, answer: tuple[int, bytes], said: str
) -> None:
    service.answer = answer
    done = audit(service, str(pins))
    assert done.returncode == 2
    assert said in done.stdout
    assert "it has to before a release" in done.stdout


def test_a_service_that_is_not_there_fails(service: Service, pins: Path) -> None:
    service.close()
    done = audit(service, str(pins))
    assert done.returncode == 2
    assert "gave no answer" in done.stdout
    assert "Connection refused" in done.stdout
