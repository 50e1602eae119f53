"""An OpenAI-compatible server that knows the planted classes, over real HTTP.

It names the class of the marked words, judges a text by whether it holds a word of the named class, and can
be told to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from planted import CLASSES, class_of

MODEL = "oracle"


class Answer(NamedTuple):
    """What the server sends back instead of its own answer."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = {}


Trouble = Callable[[int, dict[str, Any]], Answer | None]
"""Called with the number of the request (from 1) and its body; None lets the oracle answer."""


def explanation(prompt: str) -> str:
    """The planted class of the marked words of the last turn, or the words themselves where they share none."""
    words = [word for marked in re.findall(r"<<(.+?)>>", prompt.split("\n", 1)[1]) for word in marked.split()]
    (name, count), *_ = Counter(map(class_of, words)).most_common(1)
    if name is not None and count > 0.6 * len(words):
        return f"words of the class {name}"
    return "the words " + " ".join(sorted(set(words)))


def matches(description: str, text: str) -> bool:
    """Whether the text holds a word of the class, or one of the words, that the description names."""
    named = [name for name in CLASSES if name in description.split()]
    if named:
        return any(class_of(word) in named for word in text.split())
    wanted = set(re.findall(r"\w+", description)) - {"the", "words", "tokens", "token"}
    return bool(wanted & set(text.split()))


class Oracle:
    """A server in a thread of its own, used as a context manager.

    Attributes:
        requests: Completions asked for so far.
        bodies: What was sent.
        keys: Authorization headers seen.
        trouble: How to misbehave; None answers everything.
        delay: Seconds before each answer.
        most_at_once: The largest number of requests in work at the same time.
    """

    def __init__(self, *, trouble: Trouble | None = None, delay: float = 0.0) -> None:
        self.trouble = trouble
        self.delay = delay
        self.requests = 0
        self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self._at_once = 0
        self._lock = threading.Lock()
        oracle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(oracle._answer(self.path, body, self.headers.get("Authorization", "")))

            def do_GET(self) -> None:
                listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
                self._send(Answer(body=json.dumps(listed)))

            def _send(self, answer: Answer) -> None:
                data = answer.body.encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Oracle:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def stop_listening(self) -> None:
        """Close the port; connections that are open are answered to their end."""
        self._server.socket.close()

    def _answer(self, path: str, body: dict[str, Any], key: str) -> Answer:
        with self._lock:
            self.requests += 1
            number = self.requests
            self.bodies.append(body)
            self.keys.add(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay)
            if self.trouble and (answer := self.trouble(number, body)):
                return answer
            if body["model"] != MODEL or not path.endswith("/chat/completions"):
                return Answer(404, json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}}))
            return Answer(body=json.dumps(reply(body)))
        finally:
            with self._lock:
                self._at_once -= 1


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """The chat completion for a request."""
    prompt = body["messages"][-1]["content"]
    if not body.get("logprobs"):
        return completion(explanation(prompt))
    found = re.fullmatch(r"Description: (.*)\nText: (.*)", prompt, re.DOTALL)
    assert found, prompt
    yes = matches(found[1], found[2])
    return completion("Yes" if yes else "No", {"Yes": -0.1 if yes else -2.4, "No": -2.4 if yes else -0.1, "yes": -5.0})


def completion(text: str | None, logprobs: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A chat completion in the server's format."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": None,
    }
    if logprobs is not None:
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{**max(top, key=lambda item: item["logprob"]), "top_logprobs": top}]}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
