"""What AuxK does: dead latents and held-out FVU with and without it, on planted rows where many latents die.

    python tests/benchmarks/revival.py

A dictionary of 4,096 latents for 2,048 planted directions, small batches and a rate above the default's, so that many
latents fall silent. Prints a Markdown table, mean of three seeds.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from planted_rows import planted
from torch import Tensor

from saeinterp.config import TrainingConfig
from saeinterp.sae import Run, Trainer
from saeinterp.sae.rows import CacheSource

ROWS, HELDOUT, SEEDS = 100_000, 8192, (0, 1, 2)


class Given:
    """Rows in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.cache = SimpleNamespace(d_in=x.shape[1], hookpoint="planted")
        self.masked: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(indices)]


def train(x: Tensor, heldout: Tensor, *, seed: int, coefficient: float) -> dict[str, float]:
    """One SAE: its share of latents silent on the held-out rows, FVU, and how many it revived."""
    config = TrainingConfig(
        num_latents=4096, k=16, batch_rows=512, epochs=2, lr=0.01, seed=seed, aux_coefficient=coefficient,
        dead_after_rows=10_000, log_every=100,
    )  # fmt: skip
    source: Any = Given(x)
    run = Run(CacheSource(source, seed=seed), heldout, config)
    trainer = Trainer([run], compute=torch.bfloat16)
    with torch.no_grad():
        while trainer.runs:
            for error in trainer.step().values():
                raise error
            trainer.take_finished()
        found = run.evaluate()
    silent = float((~found.fired).float().mean())
    return {"silent": silent, "fvu": found.fvu, "revived": sum(row.revived for row in run.curves)}


def main() -> None:
    """Measure and print."""
    results: dict[float, list[dict[str, float]]] = {0.0: [], 1 / 32: []}
    for seed in SEEDS:
        x, heldout = (planted(count, dictionary=seed, draw=100 * seed + count) for count in (ROWS, HELDOUT))
        for coefficient, found in results.items():
            found.append(train(x, heldout, seed=seed, coefficient=coefficient))
    print("| AuxK coefficient | silent on held-out rows | held-out FVU | dead latents that fired again |")
    print("|---|---:|---:|---:|")
    for coefficient, found in results.items():
        silent, fvu, revived = (statistics.fmean(item[name] for item in found) for name in ("silent", "fvu", "revived"))
        print(f"| {coefficient:.4g} | {silent:.1%} | {fvu:.4f} | {revived:,.0f} |")


if __name__ == "__main__":
    main()
