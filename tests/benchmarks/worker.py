"""One training run in a process of its own: reads a request as JSON on stdin, answers with JSON on stdout.

Started by `training.py` with the interpreter of whoever is measured. Order matters for memory: packages, then rows,
then the baseline, then training; grading comes after the peak was read.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import Feed, forget_peak, grade, memory
from planted_rows import FEW, Case, read_rows


def answer(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    case, written = Case(*request["case"]), Case(*request["written"])
    if request["who"] == "ours":
        import ours

        train, packages = ours.train, ours.prepare()
    else:
        import peers

        getattr(peers, f"import_{request['who']}")()
        train = getattr(peers, f"train_{request['who']}")
        packages = {
            "sparsify": ("eai-sparsify", "torch"),
            "sae_lens": ("sae-lens", "torch"),
            "dictionary_learning": ("dictionary-learning", "torch"),
        }[request["who"]]
        packages = peers.versions(*packages)
    rows, heldout = read_rows(Path(request["rows"]), written, case)
    feed = Feed(rows, batch_rows=case.batch_rows, steps=case.steps)
    forget_peak()
    before, started = memory(), time.perf_counter()
    coders = train(case, feed, request["settings"], seed=request["seed"])
    seconds, after = time.perf_counter() - started, memory()
    quality = grade(coders[:FEW], heldout[:FEW])
    return {
        "saes": case.saes,
        "rows_per_second": feed.rows_per_second(),
        "seconds": seconds,
        "fvu": sum(quality.fvu) / len(quality.fvu),
        "dead": sum(quality.dead) / len(quality.dead),
        "peak_mb": after.peak - before.now,
        "total_mb": after.peak,
        "versions": packages,
    }


if __name__ == "__main__":
    found = answer(json.load(sys.stdin))
    sys.stdout.write(json.dumps(found) + "\n")
