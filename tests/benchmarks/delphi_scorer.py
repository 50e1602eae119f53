"""delphi's detection scorer over HTTP; runs in vLLM's environment, with delphi beside it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# delphi imports vLLM's in-process engine wherever it starts; nothing here uses it.
for name in ("delphi.clients.offline",):
    module = ModuleType(name)
    module.Offline = object  # type: ignore[attr-defined]
    sys.modules[name] = module


async def score(job: dict[str, Any]) -> dict[str, float]:
    from delphi.clients import OpenRouter
    from delphi.latents import ActivatingExample, Latent, LatentRecord, NonActivatingExample
    from delphi.pipeline import Pipeline
    from delphi.scorers import DetectionScorer

    def example(kind: Any, words: list[str], **extra: Any) -> Any:
        tokens = [f" {word}" for word in words]
        size = len(tokens)
        return kind(tokens=torch.arange(size), activations=torch.ones(size), str_tokens=tokens, **extra)

    records = [
        LatentRecord(
            latent=Latent("layer", index),
            explanation=item["explanation"],
            test=[
                example(ActivatingExample, words, normalized_activations=torch.ones(len(words)))
                for words in item["true"]
            ],
            not_active=[example(NonActivatingExample, words) for words in item["false"]],
        )
        for index, item in enumerate(job["latents"])
    ]
    client = OpenRouter(job["model"], base_url=f"{job['url']}/chat/completions", max_tokens=job["max_tokens"])
    scorer = DetectionScorer(client, n_examples_shown=job["together"])
    said = []

    async def work(record: Any) -> None:
        said.extend((await scorer(record)).score)

    started = time.perf_counter()
    # What its command line sets for servers: one latent after the other.
    await Pipeline(lambda: iter(records), work).run(1)
    seconds = time.perf_counter() - started
    usable = sum(item.prediction is not None for item in said)
    return {"usable": usable, "examples": len(said), "seconds": seconds}


if __name__ == "__main__":
    path = Path(sys.argv[1])
    found = asyncio.run(score(json.loads(path.read_text())))
    path.with_suffix(".out").write_text(json.dumps(found))
