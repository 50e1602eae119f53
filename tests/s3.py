"""A real S3 server on loopback, a bucket of a test's own, and a proxy in front that records, refuses and delays."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from lab import free_port

KEYS = {
    "AWS_ACCESS_KEY_ID": "planted-key",
    "AWS_SECRET_ACCESS_KEY": "planted-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message><RequestId>1</RequestId></Error>"
)


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **KEYS})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                httpx.get(url, timeout=2)
                break
            except httpx.HTTPError:
                time.sleep(0.25)
            assert server.poll() is None, log.read_text()
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


class TestBucket:
    """An empty bucket, as its owner sees it."""

    __test__ = False

    def __init__(self, server: str, name: str) -> None:
        import boto3

        self.server, self.name, self.url = server, name, f"s3://{name}/runs"
        self.client = boto3.client("s3", endpoint_url=server)
        self.client.create_bucket(Bucket=name)

    def listed(self) -> list[str]:
        """Keys below the prefix, without what a store writes to try the bucket."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix="runs/").get("Contents", [])
        keys = [item["Key"].removeprefix("runs/") for item in found]
        return sorted(key for key in keys if key != "saeinterp.json")

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=f"runs/{key}")["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"runs/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"runs/{key}")


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]

    @property
    def key(self) -> str:
        """The key below the prefix."""
        return urlsplit(self.path).path.partition("/runs/")[2]


Rule = Callable[[Request], "tuple[int, bytes] | None"]


class Proxy:
    """Forwards to a server unless `rule` answers itself; `seen` has every request in order."""

    def __init__(self, target: str) -> None:
        self.rule: Rule = lambda request: None
        self.seen: list[Request] = []
        proxy, address = self, urlsplit(target)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                answer = proxy.rule(request)
                proxy.seen.append(request)
                headers: list[tuple[str, str]] = []
                if answer is None:
                    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
                    connection.request(self.command, self.path, body=body, headers=kept)
                    reply = connection.getresponse()
                    status, data = reply.status, reply.read()
                    headers = [item for item in reply.getheaders() if item[0].lower() not in _HOP]
                    if self.command == "HEAD":
                        headers.append(("Content-Length", reply.getheader("Content-Length") or "0"))
                    connection.close()
                else:
                    status, data = answer
                    headers = [("Content-Type", "application/xml")]
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD" or answer is not None:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def puts(self) -> list[str]:
        """Keys that were sent, in order."""
        return [request.key for request in self.seen if request.method == "PUT" and request.key != "saeinterp.json"]


_HOP = {"content-length", "transfer-encoding", "connection", "date", "server"}


def denying_writes(request: Request) -> tuple[int, bytes] | None:
    """A rule: whoever writes is refused, as a bucket's policy does."""
    return (403, DENIED) if request.method in ("PUT", "POST", "DELETE") else None
