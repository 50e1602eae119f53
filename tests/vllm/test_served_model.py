"""What is asked of a real vLLM: structured output, log-probabilities, prefix caching, cancellation."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from processes import family, survivors

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig
from saeinterp.explain import parse_verdicts
from saeinterp.explain.llm import Message, Reply, Request, open_llm
from saeinterp.explain.serving import Server
from saeinterp.explain.simulation import SLOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

WORDS = ("harbour", "engine", "violin", "glacier", "market", "planet", "kitchen", "letter", "garden", "winter")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "verdicts": {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": 5, "maxItems": 5}
        },
        "required": ["verdicts"],
        "additionalProperties": False,
    }
)


def ask(config: LLMConfig, requests: list[Request], folder: Path) -> list[Reply]:
    """Replies with nothing known from before."""
    replies = open_llm(config, store=ArtifactStore(folder)).complete(requests).replies
    assert [reply.error for reply in replies] == [None] * len(requests)
    return replies


def user(content: str, **options: object) -> Request:
    return Request(messages=(Message("user", content),), **{"max_tokens": 8, **options})  # type: ignore[arg-type]


def metric(server: Server, name: str) -> float:
    """One number of the server's own."""
    url = str(server.config.base_url).removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(url, timeout=30) as reply:
        text = reply.read().decode()
    found = re.search(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
    assert found, f"no metric {name}"
    return float(found[1])


def test_verdicts_of_several_examples_parse_and_have_probabilities(server: Server, tmp_path: Path) -> None:
    requests = [
        user(
            f"Which of these five texts is about a {word}? Answer with 1 or 0 for each.\n"
            + "\n".join(f"{number}. The {other} is old." for number, other in enumerate(WORDS[:5], 1)),
            max_tokens=32,
            verdicts=5,
            schema=SCHEMA,
        )
        for word in WORDS
    ]
    for reply in ask(server.config, requests, tmp_path):
        verdicts = parse_verdicts(reply.text, num_examples=5)
        assert None not in verdicts, reply.text
        assert reply.verdict_logprobs is not None
        for verdict, pair in zip(verdicts, reply.verdict_logprobs, strict=True):
            assert pair is not None
            zero, one = pair
            assert 0.2 < math.exp(zero) + math.exp(one) < 1.001
            assert verdict == (one > zero)  # greedy


def test_choices_have_the_probabilities_of_the_same_model_in_this_process(server: Server, tmp_path: Path) -> None:
    requests = [
        user(f"Is a {word} something you can eat? Answer Yes or No.", max_tokens=1, choices=("Yes", "No"))
        for word in ("loaf of bread", "steel bridge", "ripe apple", "thunderstorm")
    ]
    apart = [
        [pair[0] - pair[1] for reply in ask(config, requests, folder) if (pair := reply.choice_logprobs)]
        for config, folder in ((server.config, tmp_path / "served"), (LLMConfig(), Path(server.log).parents[1]))
    ]
    assert len(apart[0]) == len(requests)
    assert apart[0] == pytest.approx(apart[1], abs=0.3)  # both in bfloat16


def test_slots_of_a_prompt_have_the_probabilities_of_digits(server: Server, tmp_path: Path) -> None:
    lines = "".join(f"{word}\t{number}\n" for number, word in enumerate(("one", "two", "three", "four"), 1))
    (reply,) = ask(server.config, [user(f"{lines}five\t{SLOT}\nsix\t{SLOT}", max_tokens=1, slot=SLOT)], tmp_path)
    assert reply.slot_logprobs is not None
    assert [len(digits) for digits in reply.slot_logprobs] == [10, 10]
    assert all(sum(map(math.exp, digits)) < 1.001 for digits in reply.slot_logprobs)
    assert max(range(10), key=reply.slot_logprobs[0].__getitem__) == 5


def test_a_shared_beginning_is_computed_once(server: Server, tmp_path: Path) -> None:
    shared = " ".join(f"The {word} stands beside the {other}." for word in WORDS for other in WORDS[:6])
    first = ask(server.config, [user(f"{shared} Which comes first?")], tmp_path)[0]
    assert first.usage is not None
    assert first.usage.prompt > 400
    (second,) = ask(server.config, [user(f"{shared} Which comes last?")], tmp_path)
    assert second.usage is not None
    assert second.usage.cached >= 256
    assert first.usage.cached < 128


def test_a_client_that_is_interrupted_leaves_the_server_nothing_to_do(server: Server, tmp_path: Path) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it
        "from saeinterp.artifacts import ArtifactStore\n"
        "from saeinterp.config import LLMConfig\n"
        "from saeinterp.explain.llm import Message, Request, open_llm\n"
        "ask = lambda n: Request((Message('user', f'Tell me a very long story about {n} ships.'),), max_tokens=1500)\n"
        "config = LLMConfig.model_validate_json(sys.argv[1])\n"
        "open_llm(config, store=ArtifactStore(sys.argv[2])).complete([ask(n) for n in range(16)])\n"
    )
    before = metric(server, "generation_tokens_total")
    command = [sys.executable, "-c", code, server.config.model_dump_json(), str(tmp_path)]
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while metric(server, "num_requests_running") < 8:
            assert time.monotonic() < deadline
            assert client.poll() is None
            time.sleep(0.2)
        client.send_signal(signal.SIGINT)
        assert client.wait(timeout=60) != 0
    finally:
        client.kill()
        client.wait()
    deadline = time.monotonic() + 30
    while metric(server, "num_requests_running") + metric(server, "num_requests_waiting"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert metric(server, "generation_tokens_total") - before < 16 * 1500 / 2


def test_a_server_that_is_killed_takes_all_of_its_processes_along(server: Server) -> None:
    """The last test of the module: nothing answers afterwards."""
    supervisor = next(item for item in family(os.getpid()) if "saeinterp.supervisor" in " ".join(item.cmdline()))
    _, api, *workers = family(supervisor.pid)
    assert any("EngineCore" in " ".join(item.cmdline()) for item in workers)
    api.kill()
    assert survivors([api, *workers, supervisor], within=60) == []
    failure = server.failure(patience=30)
    assert failure is not None
    assert "SIGKILL" in failure.problem
    assert str(server.log) in failure.problem
