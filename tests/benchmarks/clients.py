"""Our client beside vLLM's own bench client, and our scorer beside delphi's, on one vLLM.

`make bench-clients` (BENCH="--requests 100 --latents 10"). Every client is asked once a round, in rotated order, with
prompts that nobody has sent before: the server's prefix cache remembers what it has seen. vLLM's client and ours send
prompts of one kind for one token, so the server does the same work. delphi scores as many latents and examples with
prompts of its own, over HTTP as it comes, but for the length of replies, which is limited to ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ScorerConfig, ServingConfig
from saeinterp.explain import Message, Request, open_llm
from saeinterp.explain.judging import judgements, list_tokens, questions
from saeinterp.explain.serving import find_vllm, vllm_server

HERE = Path(__file__).parent
WINDOW = 32
"""Words of one example."""
EXAMPLES = 30
"""Of one latent, half of them true."""
TOGETHER = 5
"""Examples judged by one request."""
_VLLM = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Request rates on one vLLM: ours, vLLM's bench client, delphi.")
    parser.add_argument("--requests", type=int, default=120, help="prompts a round")
    parser.add_argument("--latents", type=int, default=8, help="latents scored a round, 30 examples each")
    parser.add_argument("--only", choices=["asking", "scoring"], help="leave the other comparison out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    serving = ServingConfig(max_model_len=2048, cpu_cache_gib=2)
    python = str(find_vllm(serving).python)
    config = LLMConfig(provider="vllm", serving=serving, concurrency=options.concurrency)
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        with vllm_server(config, store=store) as server:
            llm = server.config
            asking = {"ours": _ours, "vLLM's bench client": _bench}
            scoring = {"ours, scoring": _scored, "delphi, scoring": _delphi}
            wanted = [asking] if options.only == "asking" else [scoring] if options.only else [asking, scoring]
            _ours(_prompts(40, salt="warm"), llm, store, python)
            for round_ in range(options.rounds):
                for names in wanted:
                    turn = list(names) if round_ % 2 == 0 else list(names)[::-1]
                    for name in turn:
                        salt = f"{name} {round_}"
                        material = (
                            _prompts(options.requests, salt=salt)
                            if names is asking
                            else _latents(options.latents, salt=salt)
                        )
                        rate = names[name](material, llm, store, python)
                        figures.setdefault(name, []).append(rate)
                        print(f"round {round_ + 1}: {name}: {rate:.2f} a second", flush=True)
    for first, second in (("ours", "vLLM's bench client"), ("ours, scoring", "delphi, scoring")):
        if first not in figures:
            continue
        ratios = [a / b for a, b in zip(figures[first], figures[second], strict=True)]
        print(
            f"{first} / {second}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} "
            f"({statistics.median(figures[first]):.2f} against {statistics.median(figures[second]):.2f} a second)"
        )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))


def _prompts(count: int, *, salt: str) -> list[str]:
    """Prompts of about 290 tokens without a common beginning."""
    rng = random.Random(salt)
    words = " ".join(topics.values()).split()
    return [
        f"{rng.randrange(10**9)} " + " ".join(words[start : start + 150])
        for start in (rng.randrange(len(words) - 150) for _ in range(count))
    ]


def _latents(count: int, *, salt: str) -> list[dict[str, Any]]:
    """Explanations that name a word, each with texts that hold it and texts that do not."""
    rng = random.Random(salt)
    words = " ".join(topics.values()).split()
    windows = [words[start : start + WINDOW] for start in range(rng.randrange(WINDOW), len(words) - WINDOW, WINDOW)]
    common = [word for word in {word for window in windows for word in window} if word.isalpha() and len(word) > 3]
    chosen = rng.sample(sorted(word for word in common if sum(word in window for window in windows) >= EXAMPLES), count)
    found = []
    for word in chosen:
        true = rng.sample([window for window in windows if word in window], EXAMPLES // 2)
        false = rng.sample([window for window in windows if word not in window], EXAMPLES // 2)
        found.append({"explanation": f'the word "{word}"', "true": true, "false": false})
    return found


def _ours(prompts: list[str], llm: LLMConfig, store: ArtifactStore, python: str) -> float:
    requests = [Request(messages=(Message("user", text),), max_tokens=1) for text in prompts]
    started = time.perf_counter()
    completions = open_llm(llm, store=store).complete(requests)
    seconds = time.perf_counter() - started
    assert completions.sent == len(prompts)
    assert all(reply.status == "ok" for reply in completions.replies)
    return len(prompts) / seconds


def _bench(prompts: list[str], llm: LLMConfig, store: ArtifactStore, python: str) -> float:
    folder = store.root / "bench"
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    url = str(llm.base_url).removesuffix("/v1")
    command = [python, "-c", _VLLM, "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
    command += ["--base-url", url, "--model", llm.model, "--tokenizer", str(_tokenizer(store))]
    command += ["--dataset-name", "custom", "--dataset-path", str(folder / "prompts.jsonl"), "--skip-chat-template"]
    command += ["--custom-output-len", "1", "--num-prompts", str(len(prompts)), "--disable-shuffle", "--no-stream"]
    command += ["--max-concurrency", str(llm.concurrency), "--temperature", "0"]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "result.json"]
    _run(command, PYTHONPATH=str(_packages(python)))
    result = json.loads((folder / "result.json").read_text())
    assert result["completed"] == len(prompts), result
    return float(result["request_throughput"])


def _scored(latents: list[dict[str, Any]], llm: LLMConfig, store: ArtifactStore, python: str) -> float:
    """Verdicts a second."""
    scorer = ScorerConfig(llm=llm, examples_per_prompt=TOGETHER)
    texts = [(index, " ".join(text)) for index, item in enumerate(latents) for text in (*item["true"], *item["false"])]
    started = time.perf_counter()
    asked = questions(
        [index for index, _ in texts],
        [text for _, text in texts],
        {index: item["explanation"] for index, item in enumerate(latents)},
        config=scorer,
    )
    replies = open_llm(llm, store=store).complete([item.request for item in asked]).replies
    said = [
        verdict
        for item, reply in zip(asked, replies, strict=True)
        for verdict in judgements(reply, num_examples=len(item.rows), config=scorer)
    ]
    usable = sum(item.verdict is not None for item in said)
    seconds = time.perf_counter() - started
    print(f"  usable verdicts: {usable} of {len(texts)}, {len(asked)} requests, {seconds:.1f} s", flush=True)
    return usable / seconds


def _delphi(latents: list[dict[str, Any]], llm: LLMConfig, store: ArtifactStore, python: str) -> float:
    job = store.root / "delphi.json"
    limits = {"together": TOGETHER, "max_tokens": max(llm.max_tokens, list_tokens(TOGETHER))}
    job.write_text(json.dumps({"url": llm.base_url, "model": llm.model, "latents": latents, **limits}))
    _run([python, str(HERE / "delphi_scorer.py"), str(job)], PYTHONPATH=str(_packages(python)))
    result = json.loads(job.with_suffix(".out").read_text())
    print(f"  usable verdicts: {result['usable']} of {result['examples']}, {result['seconds']:.1f} s", flush=True)
    return float(result["usable"] / result["seconds"])


def _packages(python: str) -> Path:
    """What the Makefile put beside vLLM's own packages."""
    return Path(python).parent.parent / "delphi"


def _tokenizer(store: ArtifactStore) -> Path:
    return next(path.parent for path in store.root.rglob("tokenizer.json"))


def _run(command: list[str], **extra: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **extra}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{command[:3]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
