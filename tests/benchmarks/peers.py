"""sparsify, SAELens and dictionary_learning, each trained by its own loop as its users call it.

Each function takes a case, a feed, settings and a seed, and gives a coder for each SAE. Runs in .venv-peers. The
surprising choice: sparsify's trainer wants a language model, so it gets one whose layers are the rows.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Coder, Feed
from planted_rows import D_IN, Case
from torch import Tensor, nn

_TOKENS = 64  # rows that pose as one sequence


def import_sparsify() -> None:
    import sparsify.trainer  # noqa: F401


def import_sae_lens() -> None:
    import sae_lens
    import sae_lens.training.multi_sae_trainer
    import sae_lens.training.sae_trainer  # noqa: F401


def import_dictionary_learning() -> None:
    import dictionary_learning.trainers.top_k
    import dictionary_learning.training  # noqa: F401


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, by package."""
    from importlib.metadata import version

    return {name: version(name) for name in packages}


class _Layer(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows


class _RowsModel(nn.Module):
    """Looks like a language model to sparsify; layer s outputs the next batch of SAE s."""

    def __init__(self, saes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(saes))
        self.device = torch.device("cpu")
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.batch: Tensor | None = None

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> None:
        for s, layer in enumerate(self.layers):
            # Without a batch: sparsify asks for the widths.
            layer(torch.zeros(1, 1, D_IN) if self.batch is None else self.batch[s].view(*input_ids.shape, D_IN))


class _Steps(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Sequences of token ids that mean nothing; hands the model its rows at the first sequence of each batch."""

    def __init__(self, feed: Feed, model: _RowsModel) -> None:
        self.feed, self.model = feed, model
        self.sequences = feed.batch_rows // _TOKENS

    def __len__(self) -> int:
        return self.feed.steps * self.sequences

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        ids = {"input_ids": torch.zeros(_TOKENS, dtype=torch.int64)}
        for batch in self.feed.together():
            self.model.batch = batch
            for _ in range(self.sequences):
                yield ids


def train_sparsify(case: Case, feed: Feed, settings: dict[str, Any], *, seed: int) -> list[Coder]:
    """`sparsify.Trainer.fit`, all SAEs as hookpoints of one model. Settings: `optimizer`, `lr`, `auxk`, `warmup`."""
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig
    from sparsify.trainer import Trainer

    model = _RowsModel(case.saes)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        config = TrainConfig(
            SparseCoderConfig(num_latents=case.num_latents, k=case.k),
            batch_size=feed.batch_rows // _TOKENS,
            hookpoints=["layers.*"],
            optimizer=settings["optimizer"],
            lr=settings["lr"],
            lr_warmup_steps=round(settings.get("warmup", 0.1) * case.steps),
            auxk_alpha=settings.get("auxk", 0.0),
            dead_feature_threshold=case.steps * case.batch_rows // 5,
            init_seeds=[seed],
            save_every=10**9,
            log_to_wandb=False,
            save_dir=folder,
            run_name="run",
        )
        trainer = Trainer(config, _Steps(feed, model), model)
        trainer.fit()
        # As a user gets it: only what is saved has the averaged weights of the schedule-free optimizer.
        saved = [SparseCoder.load_from_disk(Path(folder, "run", name)) for name in trainer.saes]

    def coder_of(sae: SparseCoder) -> Coder:
        def code(x: Tensor) -> tuple[Tensor, Tensor]:
            found = sae.encode(x)
            fired = torch.zeros(case.num_latents, dtype=torch.bool)
            fired[found.top_indices[found.top_acts > 0]] = True
            return sae.decode(found.top_acts, found.top_indices), fired

        return code

    return [coder_of(sae) for sae in saved]


def train_sae_lens(case: Case, feed: Feed, settings: dict[str, Any], *, seed: int) -> list[Coder]:
    """`SAETrainer.fit`, or `MultiSAETrainer.fit` for several.

    Settings: `lr`, `autocast`, `init_norm` (of decoder rows), `decay` (share of the steps), `normalize` (activations),
    `dead_window` (share of the steps after which AuxK takes a latent for dead; None for SAELens' 1,000 steps).
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    normalize = "expected_average_only_in" if settings.get("normalize") else "none"
    shape = {"d_in": D_IN, "d_sae": case.num_latents, "k": case.k}
    init_norm = settings.get("init_norm", 0.1)
    saes = {
        f"layers.{s}": TopKTrainingSAE(
            TopKTrainingSAEConfig(**shape, normalize_activations=normalize, decoder_init_norm=init_norm)
        )
        for s in range(case.saes)
    }
    window = settings.get("dead_window")
    config = SAETrainerConfig(
        total_training_samples=case.steps * case.batch_rows,
        train_batch_size_samples=case.batch_rows,
        lr=settings["lr"],
        lr_end=settings["lr"],
        lr_decay_steps=round(settings.get("decay", 0) * case.steps),
        autocast=settings["autocast"],
        **({} if window is None else {"dead_feature_window": max(1, round(window * case.steps))}),
    )
    with _quiet():
        if len(saes) == 1:
            name = next(iter(saes))
            trainers = {name: SAETrainer(config, saes[name], feed.alone(0))}
            whole = trainers[name]
        else:
            batches = (dict(zip(saes, batch, strict=True)) for batch in feed.together())
            whole = MultiSAETrainer(config, saes, {name: name for name in saes}, batches)
            trainers = whole.trainers
        if settings.get("normalize"):
            # What fit() would estimate from batches of its own.
            for s, trainer in enumerate(trainers.values()):
                first = iter([feed.batch(step, s) for step in range(5)])
                trainer.activation_scaler.estimate_scaling_factor(D_IN, first, 5)
        whole.fit()
    feed.stop()

    def coder_of(sae: TopKTrainingSAE) -> Coder:
        def code(x: Tensor) -> tuple[Tensor, Tensor]:
            z = sae.encode(x)
            return sae.decode(z), (z > 0).any(0)

        return code

    return [coder_of(sae) for sae in saes.values()]


def train_dictionary_learning(case: Case, feed: Feed, settings: dict[str, Any], *, seed: int) -> list[Coder]:
    """`trainSAE` with `TopKTrainer`, one SAE after another. Settings: `lr`, `warmup`, `decay` (shares of the steps)."""
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    def coder_of(sae: AutoEncoderTopK) -> Coder:
        def code(x: Tensor) -> tuple[Tensor, Tensor]:
            z = sae.encode(x)
            return sae.decode(z), (z > 0).any(0)

        return code

    coders = []
    for s in range(case.saes):
        config = {
            "trainer": TopKTrainer,
            "steps": case.steps,
            "activation_dim": D_IN,
            "dict_size": case.num_latents,
            "k": case.k,
            "layer": s,
            "lm_name": "rows",
            "lr": settings["lr"],
            "warmup_steps": round(settings.get("warmup", 0.1) * case.steps),
            "decay_start": round((1 - settings["decay"]) * case.steps) if settings.get("decay") else None,
            "seed": seed + s,
            "device": "cpu",
        }
        with tempfile.TemporaryDirectory() as folder, _quiet():
            trainSAE(feed.alone(s), [config], case.steps, save_dir=folder, device="cpu")
            coders.append(coder_of(AutoEncoderTopK.from_pretrained(f"{folder}/trainer_0/ae.pt")))
    return coders


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and notices of the packages go nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
    sys.stdout.flush()
