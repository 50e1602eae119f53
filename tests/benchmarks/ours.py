"""saeinterp's trainer on rows in memory: SAEs in batches of `TOGETHER`, as in a process with `launch.together`.

No checkpoints and no curves while the clock runs, since the peers write none either.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from measure import Coder, Feed
from planted_rows import D_IN, Case
from torch import Tensor

from saeinterp.config import TrainingConfig
from saeinterp.sae.run import Run
from saeinterp.sae.sources import Cursor
from saeinterp.sae.topk import TopKSae
from saeinterp.sae.trainer import Trainer
from saeinterp.subject import resolve_dtype

TOGETHER = 4  # on two cores more were no faster, and what they hold grows with them


def prepare() -> dict[str, str]:
    """Versions; the kernels are compiled or loaded here, so that neither counts."""
    from saeinterp.sae import native

    native.available()
    return {name: version(name) for name in ("saeinterp", "torch")}


class InOrder:
    """The feed's batches of one SAE as a `Source`."""

    d_in = D_IN
    collective = False
    masked: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, feed: Feed, sae: int) -> None:
        self.hookpoint = f"layers.{sae}"
        self._feed = feed
        self._sae = sae
        self._given = 0

    @property
    def rows(self) -> int:
        """Distinct rows."""
        return self._feed.rows.shape[1]

    @property
    def cursor(self) -> Cursor:
        """Batches given out."""
        return {"batches": self._given}

    def seek(self, cursor: Cursor) -> None:
        """Go to a cursor."""
        self._given = cursor["batches"]

    def first(self, count: int) -> Tensor:
        """The first rows `[count, d]`."""
        return self._feed.rows[self._sae, :count]

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        """The next batch."""
        self._given += 1
        return self._feed.batch(self._given - 1, self._sae)

    def where(self, count: int) -> str:
        """The next batch in words."""
        return f"batch {self._given}"


def train(case: Case, feed: Feed, settings: dict[str, Any], *, seed: int) -> list[Coder]:
    """Settings: fields of `TrainingConfig`; what is not given has its default."""
    config = TrainingConfig(
        num_latents=case.num_latents,
        k=case.k,
        batch_rows=case.batch_rows,
        epochs=case.steps // case.batches,
        log_every=case.steps,
        **settings,
    )
    saes: list[TopKSae] = []
    for start in range(0, case.saes, TOGETHER):
        saes += _train_together(range(start, min(start + TOGETHER, case.saes)), feed, config, seed=seed)

    def coder_of(sae: TopKSae) -> Coder:
        def code(x: Tensor) -> tuple[Tensor, Tensor]:
            found = sae.encode(x)
            fired = torch.zeros(case.num_latents, dtype=torch.bool)
            fired[found.indices[found.values != 0]] = True
            return sae.decode(found), fired

        return code

    return [coder_of(sae) for sae in saes]


def _train_together(saes: range, feed: Feed, config: TrainingConfig, *, seed: int) -> list[TopKSae]:
    # The last step writes a row of the curves: two held-out rows make it free.
    runs = [
        Run(InOrder(feed, s), feed.rows[s, :2], config.model_copy(update={"seed": seed + s}))  # type: ignore[arg-type]
        for s in saes
    ]
    trainer = Trainer(runs, compute=getattr(torch, resolve_dtype(config.precision, "cpu")))
    for _ in feed.together(saes):
        for name, error in trainer.step().items():
            raise RuntimeError(f"{name}: {error}")
    return [run.sae() for run in trainer.take_finished()]
