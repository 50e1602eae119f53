"""Training in this process: what is learnt, what is logged, what stops it."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import CLASSES, WORDS_PER_CLASS
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.config import TrainingConfig
from saeinterp.errors import DataError, TrainingError
from saeinterp.sae import TopKSae, Trainer, evaluate
from saeinterp.sae.optimizers import default_lr, lr_factor
from saeinterp.sae.rows import Rows
from saeinterp.subject import ActivationCache


class Given:
    """Rows that are simply there."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.cache = SimpleNamespace(d_in=x.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(indices)]

    def require(self, count: int, **words: str) -> None:
        assert len(self.x) >= count


def dictionary_rows(count: int, *, d_in: int = 32, features: int = 96, seed: int = 1) -> Tensor:
    """Sparse mixtures of a planted dictionary; frequencies fall like 1 / rank."""
    directions = torch.nn.functional.normalize(
        torch.randn(features, d_in, generator=torch.Generator().manual_seed(0)), dim=1
    )
    source = torch.Generator().manual_seed(seed)
    chance = 1 / (torch.arange(features) + 5.0)
    on = torch.rand(count, features, generator=source) < (4 * chance / chance.sum()).clamp_max(0.9)
    return (on * (0.5 + torch.rand(count, features, generator=source))) @ directions


def trainer_on(x: Tensor, **settings: object) -> Trainer:
    config = TrainingConfig.model_validate(
        {"num_latents": 64, "k": 4, "batch_rows": 128, "epochs": 2, "dead_after_rows": 1000, **settings}
    )
    heldout = dictionary_rows(500, d_in=x.shape[1], seed=2).to(x.dtype)
    return Trainer(Given(x), heldout, config=config, hookpoint="layers.3")  # type: ignore[arg-type]


def train(trainer: Trainer, steps: int | None = None) -> Trainer:
    with torch.no_grad():
        while not trainer.finished and (steps is None or trainer.state.step < steps):
            trainer.step()
    return trainer


def test_every_planted_direction_is_found(activations: Artifact, planted_folder: object) -> None:
    from safetensors.torch import load_file

    cache = ActivationCache.open(activations, "layers.1")
    rows, heldout = Rows(cache, "train", memory_bytes=1e9), Rows(cache, "health", memory_bytes=0)
    # One feature a token; with more latents a token, directions are shared among words instead.
    config = TrainingConfig(num_latents=32, k=1, epochs=8, batch_rows=256, dead_after_rows=2000)
    trainer = train(Trainer(rows, heldout.spread(1000), config=config, hookpoint="layers.1"))
    embedding = load_file(f"{planted_folder}/model.safetensors")["model.embed_tokens.weight"]
    sae = trainer.sae()
    for index, name in enumerate(CLASSES):
        first = 3 + index * WORDS_PER_CLASS  # after the special tokens
        direction = embedding[first : first + WORDS_PER_CLASS].mean(0)
        cosine = sae.W_dec @ (direction / direction.norm())
        assert cosine.max() > 0.9, name
    assert trainer.evaluate().fvu < 0.35
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)


def test_fvu_falls_and_curves_hold_a_row_every_log_every_steps() -> None:
    trainer = train(trainer_on(dictionary_rows(4000), epochs=3, log_every=20))
    curves = trainer.state.curves
    assert [row.step for row in curves] == [20, 40, 60, 80, 93]
    assert curves[-1].rows_seen == 93 * 128
    assert all(b.fvu_heldout < a.fvu_heldout for a, b in itertools.pairwise(curves))
    assert curves[-1].fvu_heldout < 0.42 < curves[0].fvu_heldout < 1
    assert all(0 < row.l0 <= 4 for row in curves)
    assert curves[-1].fvu_train == pytest.approx(curves[-1].fvu_heldout, abs=0.05)


def test_fvu_is_the_fvu_of_layer_health() -> None:
    x = dictionary_rows(5000)
    sae = train(trainer_on(x)).sae()
    found = evaluate(sae, x)
    rebuilt = sae.decode(sae.encode(x)).double()
    expected = (x.double() - rebuilt).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert found.fvu == pytest.approx(float(expected), rel=1e-9)


def test_steps_follow_a_plain_autograd_trainer() -> None:
    x = dictionary_rows(2000)
    trainer = trainer_on(x, aux_coefficient=0, epochs=4)
    scale, start = trainer.state.scale, trainer.sae()
    leaves = [torch.nn.Parameter(t) for t in (start.W_enc, start.b_enc / scale, start.W_dec, start.b_dec / scale)]
    W_enc, b_enc, W_dec, b_dec = leaves
    adam = torch.optim.Adam(leaves)
    peak = default_lr(64, d_in=32, batch_rows=128, optimizer="adam")
    for step in range(25):
        batch = x[torch.from_numpy(trainer.shuffle.draw(step * 128, (step + 1) * 128))] / scale
        values, indices = ((batch - b_dec) @ W_enc.T + b_enc).relu().topk(4)
        z = torch.zeros(128, 64).scatter(1, indices, values)
        loss = (batch - z @ W_dec - b_dec).square().sum() / (batch - batch.mean(0)).square().sum()
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            adam.param_groups[0]["lr"] = peak * lr_factor(
                step, steps=trainer.steps, warmup_fraction=0.05, decay_fraction=0.2
            )
            adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
    train(trainer, 25)
    for ours, theirs in zip(trainer.weights, leaves):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_every_kind_of_sae_learns_with_every_optimizer(activation: str, optimizer: str) -> None:
    trainer = train(trainer_on(dictionary_rows(4000), epochs=4, activation=activation, optimizer=optimizer))
    assert trainer.evaluate().fvu < 0.42
    assert trainer.sae().activation == activation


def test_bfloat16_products_learn_as_well_as_float32_ones() -> None:
    x = dictionary_rows(4000)
    exact = train(trainer_on(x, epochs=4))
    fast = trainer_on(x, epochs=4)
    fast.method = fast.method._replace(compute=torch.bfloat16)
    assert train(fast).evaluate().fvu == pytest.approx(exact.evaluate().fvu, abs=0.01)


def test_the_units_of_the_activations_do_not_matter() -> None:
    x = dictionary_rows(3000)
    small, large = trainer_on(x), trainer_on(x * 1024)
    large.heldout = small.heldout * 1024
    assert train(small).evaluate().fvu == train(large).evaluate().fvu
    assert torch.equal(small.sae().W_dec, large.sae().W_dec)
    assert torch.equal(small.sae().b_dec * 1024, large.sae().b_dec)


def test_auxk_leaves_fewer_latents_dead() -> None:
    x = dictionary_rows(6000)

    def silent(coefficient: float) -> tuple[int, int]:
        trainer = trainer_on(x, num_latents=96, k=4, epochs=5, aux_coefficient=coefficient, dead_after_rows=600)
        with torch.no_grad():
            # Half of the latents start too faint to be among the top k.
            trainer.weights.W_enc[::2] *= 0.05
        train(trainer)
        return int((~trainer.evaluate().fired).sum()), sum(row.revived for row in trainer.state.curves)

    (without, _), (with_aux, revived) = silent(0.0), silent(1 / 32)
    assert with_aux < without / 2
    assert revived > 0


def test_a_restored_trainer_goes_on_bit_by_bit() -> None:
    x = dictionary_rows(3000)
    whole = train(trainer_on(x, log_every=7))
    for stop in (1, 13, 30):
        first = train(trainer_on(x, log_every=7), stop)
        second = trainer_on(x, log_every=7)
        second.restore(first.snapshot())
        train(second)
        assert torch.equal(second.state.params, whole.state.params)
        assert torch.equal(second.state.since_fired, whole.state.since_fired)
        assert second.state.curves == whole.state.curves


def test_a_checkpoint_of_other_data_is_refused() -> None:
    snapshot = train(trainer_on(dictionary_rows(3000)), 3).snapshot()
    with pytest.raises(TrainingError, match=r"layers.3: the checkpoint belongs to.*remove"):
        trainer_on(dictionary_rows(3000, d_in=16)).restore(snapshot)
    with pytest.raises(TrainingError, match="another configuration"):
        trainer_on(dictionary_rows(3000), seed=1).restore(snapshot)


def test_divergence_names_layer_step_and_batch_and_leaves_the_weights() -> None:
    trainer = trainer_on(dictionary_rows(3000), lr=1e4)
    with pytest.raises(TrainingError, match=r"layers.3: training diverged at step \d+ on batch rows \d+-\d+ of the"):
        train(trainer)
    step = trainer.state.step
    assert 0 < step < trainer.steps
    assert torch.isfinite(trainer.state.params).all()


def test_a_row_that_is_not_finite_stops_training_where_it_is_met() -> None:
    x = dictionary_rows(3000)
    trainer = trainer_on(x)
    bad = int(trainer.shuffle.draw(0, 3000)[5 * 128 + 17])
    x[bad, 3] = math.nan
    with pytest.raises(TrainingError, match=r"at step 5 on batch rows 640-767 of the shuffle of epoch 0.*nan"):
        train(trainer)
    assert torch.isfinite(trainer.state.params).all()


def test_weights_that_are_not_finite_never_become_a_checkpoint() -> None:
    trainer = train(trainer_on(dictionary_rows(3000)), 2)
    trainer.weights.W_enc[3, 1] = math.inf
    with pytest.raises(TrainingError, match="NaN or infinite by step 2"):
        trainer.snapshot()


def test_rows_without_variance_are_an_error() -> None:
    with pytest.raises(DataError, match="no variance"):
        trainer_on(torch.ones(1000, 8))


def test_the_batch_is_never_silently_smaller_than_asked(activations: Artifact) -> None:
    cache = ActivationCache.open(activations, "layers.1")
    rows = Rows(cache, "train", memory_bytes=0)
    config = TrainingConfig(num_latents=8, k=2, batch_rows=len(rows) + 1)
    with pytest.raises(DataError, match=r"one training batch.*lower training.batch_rows"):
        Trainer(rows, rows.spread(10), config=config, hookpoint="layers.1")


def test_one_step_with_k_equal_to_the_dictionary_trains_too() -> None:
    trainer = train(trainer_on(dictionary_rows(128), num_latents=4, k=4, epochs=1))
    assert trainer.state.step == trainer.steps == 1
    assert isinstance(trainer.sae(), TopKSae)
    assert len(trainer.state.curves) == 1
