"""What AuxK does: dead latents and held-out FVU with and without it, where half of the latents begin dead.

    python tests/benchmarks/revival.py

4,096 latents for 2,048 planted directions; the encoder biases of the upper half start so low that none of them is among
the top k, as after a bad start or a drift. Prints a Markdown table, mean of three seeds.
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
from saeinterp.sae.kernels import Weights
from saeinterp.sae.rows import CacheSource

ROWS, HELDOUT, SEEDS = 60_000, 8192, (0, 1, 2)
LATENTS = 4096
DEAF = -3.0  # encoder bias, where activations have variance 1


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
    """One SAE: shares of latents silent on the held-out rows, of all and of those that began dead, and FVU."""
    config = TrainingConfig(
        num_latents=LATENTS, k=16, batch_rows=512, epochs=10, optimizer="adam", lr=0.003, seed=seed,
        aux_coefficient=coefficient, dead_after_rows=5_000, log_every=100,
    )  # fmt: skip
    source: Any = Given(x)
    run = Run(CacheSource(source, seed=seed), heldout, config)
    weights = Weights.split(run.state.params[None], num_latents=LATENTS, d_in=x.shape[1])
    weights.b_enc[0, LATENTS // 2 :] = DEAF
    trainer = Trainer([run], compute=torch.bfloat16)
    with torch.no_grad():
        while trainer.runs:
            for error in trainer.step().values():
                raise error
            trainer.take_finished()
        found = run.evaluate()
    silent = (~found.fired).float()
    return {"silent": float(silent.mean()), "deaf": float(silent[LATENTS // 2 :].mean()), "fvu": found.fvu}


def main() -> None:
    """Measure and print."""
    results: dict[float, list[dict[str, float]]] = {0.0: [], 1 / 32: []}
    for seed in SEEDS:
        x, heldout = (planted(count, dictionary=seed, draw=100 * seed + count) for count in (ROWS, HELDOUT))
        for coefficient, found in results.items():
            found.append(train(x, heldout, seed=seed, coefficient=coefficient))
    print("| AuxK coefficient | silent on held-out rows | of those that began dead | held-out FVU |")
    print("|---|---:|---:|---:|")
    for coefficient, found in results.items():
        silent, deaf, fvu = (statistics.fmean(item[name] for item in found) for name in ("silent", "deaf", "fvu"))
        print(f"| {coefficient:.4g} | {silent:.1%} | {deaf:.1%} | {fvu:.4f} |")


if __name__ == "__main__":
    main()
