"""A TCP wire to a local port that can be cut, held and mended: the network between a client and its server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Literal

State = Literal["open", "cut", "held"]


class Wire:
    """Forwards connections to a port, used as a context manager.

    Attributes:
        state: `open` forwards; `cut` breaks every connection and refuses new ones at once; `held` swallows what is sent
            in either direction and says nothing, as a network does that has gone.
    """

    def __init__(self, target: int) -> None:
        self.state: State = "open"
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: dict[socket.socket, socket.socket] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join()
        self._listener.close()

    def _forward(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in ready.select(timeout=0.02):
                    if key.fileobj is self._listener:
                        self._accept(ready)
                    elif key.fileobj in self._ends:
                        self._pass_on(key.fileobj, ready)  # type: ignore[arg-type]
                if self.state == "cut":
                    for end in [*self._ends]:
                        self._close(end, ready)
            for end in [*self._ends]:
                self._close(end, ready)

    def _accept(self, ready: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        try:
            if self.state == "cut":
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        self._ends |= {client: server, server: client}
        for end in (client, server):
            ready.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket, ready: selectors.BaseSelector) -> None:
        try:
            data = end.recv(65536)
            if not data:
                raise ConnectionResetError
            if self.state == "open":
                self._ends[end].sendall(data)
        except OSError:
            self._close(end, ready)

    def _close(self, end: socket.socket, ready: selectors.BaseSelector) -> None:
        for one in (end, self._ends.pop(end, None)):
            if one is None:
                continue
            self._ends.pop(one, None)
            with contextlib.suppress(KeyError, ValueError):
                ready.unregister(one)
            one.close()
