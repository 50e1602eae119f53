"""A report folder over HTTP, for the browser of this machine alone.

The page works by double-click too; a server helps where the browser is on another side of a tunnel, or refuses to load
files beside a page. The surprising choice: a request must name this machine as its host, since a web page elsewhere can
point a name of its own at 127.0.0.1 and would otherwise read the report.
"""

from __future__ import annotations

import os
import shutil
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from saeinterp.errors import ConfigError, DataError

PAGE = "report.html"
LOOPBACK = "127.0.0.1"
_HOSTS = ("127.0.0.1", "localhost")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # The page brings its own policy for scripts; this adds what only a header can say.
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}


class ReportServer(ThreadingHTTPServer):
    """Serves the files of one folder on 127.0.0.1.

    Args:
        folder: Holds `report.html`.
        port: 0 takes a free one.

    Raises:
        DataError: The folder holds no page.
        ConfigError: The port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder.resolve()
        if not (self.folder / PAGE).is_file():
            raise DataError(
                f"no {PAGE}",
                field=str(folder),
                got=sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no such folder",
                expected="the folder of a report",
                next_step="make one of its artifacts: saeinterp report DIR",
            )
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen: {error.strerror}",
                field="--port",
                got=port,
                expected="a free port",
                next_step="leave --port out to take a free one",
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def file(self, path: str) -> Path | None:
        """The file that a URL path names; None for anything that is not a visible file of the folder."""
        parts = unquote(path).split("/")[1:]
        if any(part in ("", ".", "..") or part.startswith(".") or "\0" in part or "\\" in part for part in parts):
            return self.folder / PAGE if parts == [""] else None
        try:
            # Links are followed, and must end in the folder.
            found = self.folder.joinpath(*parts).resolve(strict=True)
        except OSError:
            return None
        return found if found.is_file() and found.is_relative_to(self.folder) else None


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version = "saeinterp"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = self.headers.get("Host", "")
        if host not in {name + port for name in _HOSTS for port in (f":{self.server.server_port}", "")}:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 and localhost only", body)
            return
        path = self.server.file(urlsplit(self.path).path)
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such file in this report", body)
            return
        try:
            handle = path.open("rb")
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND, "no such file in this report", body)
            return
        with handle:
            self._head(HTTPStatus.OK, _TYPES.get(path.suffix, "application/octet-stream"), path.stat().st_size)
            if body:
                shutil.copyfileobj(handle, self.wfile)

    def _refuse(self, status: HTTPStatus, text: str, body: bool) -> None:
        data = f"{text}\n".encode()
        self._head(status, "text/plain; charset=utf-8", len(data))
        if body:
            self.wfile.write(data)

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line per request would push the address off the screen."""
