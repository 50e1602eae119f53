"""An OpenAI-compatible server that knows the planted classes, over real HTTP.

It names the class of the marked words, judges texts by whether they hold (or mark) words of the named class, alone or
as a list, knows on which tokens the latent of a class fires, and can be told to misbehave. As a module it is a process
of its own: `python -m explain.oracle --requests FILE` prints its port, and writes each request to the file first.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
        context: Longest prompt and reply in tokens, said with the models; None says nothing.
        tokenized: Prompts whose tokens were asked for so far; None where it does not count tokens.
    """

    def __init__(
        self,
        *,
        trouble: Trouble | None = None,
        delay: float = 0.0,
        context: int | None = None,
        tokenizes: bool = False,
        port: int = 0,
    ) -> None:
        self.trouble = trouble
        self.delay = delay
        self.context = context
        self.tokenized = 0 if tokenizes else None
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
                limit = {} if oracle.context is None else {"max_model_len": oracle.context}
                listed = {"object": "list", "data": [{"id": MODEL, "object": "model", **limit}]}
                self._send(Answer(body=json.dumps(listed)))

            def _send(self, answer: Answer) -> None:
                data = answer.body.encode()
                self.send_response(answer.status)
                usual = {"Content-Type": "application/json", "Content-Length": str(len(data))}
                for name, value in {**usual, **answer.headers}.items():
                    self.send_header(name, value)
                self.close_connection = answer.headers.get("Connection") == "close"
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Server(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

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
        if path == "/tokenize":
            if self.tokenized is None:
                return Answer(404, "{}")
            self.tokenized += 1
            return Answer(body=json.dumps({"count": num_tokens(body["messages"])}))
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
            return Answer(body=json.dumps({"usage": usage(body), **reply(body)}))
        finally:
            with self._lock:
                self._at_once -= 1


def num_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """A tokenizer with a token per word and four per turn."""
    return sum(len(message["content"].split()) + 4 for message in messages)


def usage(body: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a request; every reply has one, and the first three of a prompt were known before."""
    prompt = num_tokens(body["messages"])
    cached = {"cached_tokens": 3}
    return {"prompt_tokens": prompt, "completion_tokens": 1, "prompt_tokens_details": cached}


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """The chat completion for a request."""
    prompt = body["messages"][-1]["content"]
    if body.get("prompt_logprobs"):
        return simulation(prompt)
    if not body.get("logprobs"):
        text = explanation(prompt)
        wanted = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("required")
        return completion(json.dumps(dict.fromkeys(wanted, text)) if wanted else text)
    description, texts = judged(prompt)
    judge = fits if prompt.startswith(("Does the description fit", "In which texts")) else matches
    said = [judge(description, text) for text in texts]
    if re.search(r"^Answer for \d+ texts:$", prompt, re.MULTILINE):
        return listed([0.95 if yes else 0.05 for yes in said])
    (yes,) = said
    return completion("Yes" if yes else "No", {"Yes": -0.1 if yes else -2.4, "No": -2.4 if yes else -0.1, "yes": -5.0})


def judged(prompt: str) -> tuple[str, list[str]]:
    """The description and the texts that a scorer's prompt asks about."""
    found = re.search(r"^Description: (.*)$", prompt, re.MULTILINE)
    texts = re.findall(r"^Text(?: \d+)?: (.*)$", prompt, re.MULTILINE)
    assert found is not None, prompt
    assert texts, prompt
    return found[1], texts


def fits(description: str, text: str) -> bool:
    """Whether most of the marked words are of the class, or among the words, that the description names."""
    words = [word for marked in re.findall(r"<<(.+?)>>", text) for word in marked.split()]
    return 2 * sum(matches(description, word) for word in words) > len(words)


def listed(probabilities: Sequence[float], *, text: str | None = None) -> dict[str, Any]:
    """A reply that lists verdicts, with the probabilities of 1 at every entry; `text` is what is written instead."""
    digits = [int(p >= 0.5) for p in probabilities]
    tokens = [('{"verdicts', {}), ('":[', {})]
    for index, (digit, p) in enumerate(zip(digits, probabilities, strict=True)):
        tokens += [(",", {})] if index else []
        tokens.append((str(digit), {"1": math.log(p), "0": math.log(1 - p)}))
    tokens.append(("]}", {}))
    found = completion("".join(token for token, _ in tokens) if text is None else text)
    content = []
    for token, top in tokens if text is None else ():
        likely = [{"token": key, "logprob": value, "bytes": None} for key, value in (top or {token: 0.0}).items()]
        content.append({"token": token, "logprob": (top or {token: 0.0})[token], "top_logprobs": likely})
    found["choices"][0]["logprobs"] = {"content": content} if content else None
    return found


def simulation(prompt: str, *, digit: Callable[[str, str], int] | None = None) -> dict[str, Any]:
    """vLLM's log-probabilities of a prompt: at each slot that of the digit for (description, token) is highest."""
    description = re.findall(r"^Description: (.*)$", prompt, re.MULTILINE)[-1]
    known = digit or (lambda text, token: 9 if matches(text, token) else 0)
    pieces: list[dict[str, Any] | None] = [None]
    *before, rest = prompt.split("<?>")
    for text in before:
        pieces.append({"7": {"logprob": -1.0, "rank": 1, "decoded_token": text}})
        value = known(description, text.rsplit("\n", 1)[-1].strip())
        slot = {"8": {"logprob": -20.0, "rank": 99, "decoded_token": "<?>"}}
        tops = {
            str(100 + d): {"logprob": 0.0 if d == value else -20.0, "rank": 1, "decoded_token": str(d)}
            for d in range(10)
        }
        pieces.append({**slot, **tops})
    pieces.append({"7": {"logprob": -1.0, "rank": 1, "decoded_token": rest or "."}})
    return {**completion("0"), "prompt_logprobs": pieces}


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


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    with options.requests.open("a") as file, Oracle(delay=options.delay, port=options.port) as oracle:
        lock = threading.Lock()

        def write(number: int, body: dict[str, Any]) -> None:
            with lock:
                file.write(json.dumps(body) + "\n")
                file.flush()

        oracle.trouble = write
        sys.stdout.write(f"{oracle.port}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
