"""Training in this process: what is learnt, what is logged, what stops it."""

from __future__ import annotations

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import CLASSES, WORDS_PER_CLASS
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.config import TrainingConfig
from saeinterp.errors import ConfigError, DataError, TrainingError
from saeinterp.sae import Run, TopKSae, Trainer, evaluate
from saeinterp.sae.optimizers import default_lr, lr_factor
from saeinterp.sae.rows import CacheSource, Rows
from saeinterp.subject import ActivationCache


class Given:
    """Rows that are simply there."""

    def __init__(self, x: Tensor, hookpoint: str = "layers.3") -> None:
        self.x = x
        self.cache = SimpleNamespace(d_in=x.shape[1], hookpoint=hookpoint)
        self.masked: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(indices)]


def dictionary_rows(count: int, *, d_in: int = 32, features: int = 96, seed: int = 1) -> Tensor:
    """Sparse mixtures of a planted dictionary; frequencies fall like 1 / rank."""
    directions = torch.nn.functional.normalize(
        torch.randn(features, d_in, generator=torch.Generator().manual_seed(0)), dim=1
    )
    source = torch.Generator().manual_seed(seed)
    chance = 1 / (torch.arange(features) + 5.0)
    on = torch.rand(count, features, generator=source) < (4 * chance / chance.sum()).clamp_max(0.9)
    return (on * (0.5 + torch.rand(count, features, generator=source))) @ directions


def config_of(**settings: object) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"num_latents": 64, "k": 4, "batch_rows": 128, "epochs": 2, "dead_after_rows": 1000, **settings}
    )


def run_on(x: Tensor, hookpoint: str = "layers.3", **settings: object) -> Run:
    config = config_of(**settings)
    heldout = dictionary_rows(500, d_in=x.shape[1], seed=2).to(x.dtype)
    source = CacheSource(Given(x, hookpoint), seed=config.seed)  # type: ignore[arg-type]
    return Run(source, heldout, config)


def train(run: Run, steps: int | None = None) -> Run:
    """Train one SAE alone."""
    train_all([run], steps)
    return run


def train_all(runs: list[Run], steps: int | None = None, *, compute: torch.dtype = torch.float32) -> Trainer:
    """Train SAEs as one batch; an error of any is raised."""
    trainer = Trainer(runs, compute=compute)
    with torch.no_grad():
        while trainer.runs and (steps is None or trainer.runs[0].step < steps):
            for error in trainer.step().values():
                raise error
            trainer.take_finished()
    return trainer


def test_every_planted_direction_is_found(activations: Artifact, planted_folder: object) -> None:
    from safetensors.torch import load_file

    cache = ActivationCache.open(activations, "layers.1")
    rows, heldout = Rows(cache, "train", memory_bytes=1e9), Rows(cache, "health", memory_bytes=0)
    source = CacheSource(rows, seed=0)
    # One feature a token; with more latents a token, directions are shared among words instead.
    config = TrainingConfig(num_latents=32, k=1, epochs=8, batch_rows=256, dead_after_rows=2000)
    run = train(Run(source, heldout.spread(1000), config))
    embedding = load_file(f"{planted_folder}/model.safetensors")["model.embed_tokens.weight"]
    sae = run.sae()
    for index, name in enumerate(CLASSES):
        first = 3 + index * WORDS_PER_CLASS  # after the special tokens
        direction = embedding[first : first + WORDS_PER_CLASS].mean(0)
        cosine = sae.W_dec @ (direction / direction.norm())
        assert cosine.max() > 0.9, name
    assert run.evaluate().fvu < 0.35
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)


def test_fvu_falls_and_curves_hold_a_row_every_log_every_steps() -> None:
    run = train(run_on(dictionary_rows(4000), epochs=3, log_every=20))
    curves = run.curves
    assert [row.step for row in curves] == [20, 40, 60, 80, 93]
    assert curves[-1].rows_seen == 93 * 128
    assert all(b.fvu_heldout < a.fvu_heldout for a, b in itertools.pairwise(curves))
    assert curves[-1].fvu_heldout < 0.42 < curves[0].fvu_heldout < 1
    assert all(0 < row.l0 <= 4 for row in curves)
    assert curves[-1].fvu_train == pytest.approx(curves[-1].fvu_heldout, abs=0.05)


def test_fvu_is_the_fvu_of_layer_health() -> None:
    x = dictionary_rows(5000)
    sae = train(run_on(x)).sae()
    found = evaluate(sae, x)
    rebuilt = sae.decode(sae.encode(x)).double()
    expected = (x.double() - rebuilt).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert found.fvu == pytest.approx(float(expected), rel=1e-9)


def test_steps_follow_a_plain_autograd_trainer() -> None:
    x = dictionary_rows(2000)
    run = run_on(x, aux_coefficient=0, epochs=4)
    scale, start = run.scale, run.sae()
    leaves = [torch.nn.Parameter(t) for t in (start.W_enc, start.b_enc / scale, start.W_dec, start.b_dec / scale)]
    W_enc, b_enc, W_dec, b_dec = leaves
    adam = torch.optim.Adam(leaves)
    peak = default_lr(64, d_in=32, batch_rows=128, optimizer="adam")
    for step in range(25):
        batch = x[torch.from_numpy(run.source.draw(step * 128, (step + 1) * 128))] / scale
        values, indices = ((batch - b_dec) @ W_enc.T + b_enc).relu().topk(4)
        z = torch.zeros(128, 64).scatter(1, indices, values)
        loss = (batch - z @ W_dec - b_dec).square().sum() / (batch - batch.mean(0)).square().sum()
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            adam.param_groups[0]["lr"] = peak * lr_factor(
                step, steps=run.steps, warmup_fraction=0.05, decay_fraction=0.2
            )
            adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
    train(run, 25)
    for ours, theirs in zip(run.weights(), leaves):
        torch.testing.assert_close(ours[0], theirs.detach(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_every_kind_of_sae_learns_with_every_optimizer(activation: str, optimizer: str) -> None:
    run = train(run_on(dictionary_rows(4000), epochs=4, activation=activation, optimizer=optimizer))
    assert run.evaluate().fvu < 0.42
    assert run.sae().activation == activation


def test_bfloat16_products_learn_as_well_as_float32_ones() -> None:
    x = dictionary_rows(4000)
    exact = train(run_on(x, epochs=4))
    fast = run_on(x, epochs=4)
    train_all([fast], compute=torch.bfloat16)
    assert fast.evaluate().fvu == pytest.approx(exact.evaluate().fvu, abs=0.01)


def test_the_units_of_the_activations_do_not_matter() -> None:
    x = dictionary_rows(3000)
    small, large = run_on(x), run_on(x * 1024)
    large.heldout = small.heldout * 1024
    assert train(small).evaluate().fvu == train(large).evaluate().fvu
    assert torch.equal(small.sae().W_dec, large.sae().W_dec)
    assert torch.equal(small.sae().b_dec * 1024, large.sae().b_dec)


def test_auxk_leaves_fewer_latents_dead() -> None:
    x = dictionary_rows(6000)

    def silent(coefficient: float) -> tuple[int, int]:
        run = run_on(x, num_latents=96, k=4, epochs=5, aux_coefficient=coefficient, dead_after_rows=600)
        with torch.no_grad():
            # Half of the latents start too faint to be among the top k.
            run.weights().W_enc[0, ::2] *= 0.05
        train(run)
        return int((~run.evaluate().fired).sum()), sum(row.revived for row in run.curves)

    (without, _), (with_aux, revived) = silent(0.0), silent(1 / 32)
    assert with_aux < without / 2
    assert revived > 0


def test_a_restored_trainer_goes_on_bit_by_bit() -> None:
    x = dictionary_rows(3000)
    whole = train(run_on(x, log_every=7))
    for stop in (1, 13, 30):
        first = train(run_on(x, log_every=7), stop)
        second = run_on(x, log_every=7)
        second.restore(first.snapshot())
        train(second)
        assert torch.equal(second.state.params, whole.state.params)
        assert torch.equal(second.state.since_fired, whole.state.since_fired)
        assert second.curves == whole.curves


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"lr": 0.5}, r"layers.3: .* made with another training.lr \(got 0.01\).*0.5.*Next: set training.lr"),
        ({"epochs": 3}, "another training.epochs"),
        ({"num_latents": 32}, "another training.num_latents"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_the_field(other: dict[str, object], words: str) -> None:
    snapshot = train(run_on(dictionary_rows(3000), lr=0.01), 3).snapshot()
    with pytest.raises(TrainingError, match=words):
        run_on(dictionary_rows(3000), **{"lr": 0.01, **other}).restore(snapshot)


def test_a_checkpoint_of_other_data_or_processes_is_refused() -> None:
    x = dictionary_rows(3000)
    snapshot = train(run_on(x), 3).snapshot()
    with pytest.raises(TrainingError, match=r"another d_in \(got 32\). Expected 16.*remove"):
        run_on(dictionary_rows(3000, d_in=16)).restore(snapshot)
    with pytest.raises(TrainingError, match=r"another number of usable rows \(got 3000\). Expected 2990"):
        run_on(x[:2990]).restore(snapshot)
    run = run_on(x)
    run.processes = 2
    with pytest.raises(TrainingError, match=r"another launch.processes \(got 1\). Expected 2"):
        run.restore(snapshot)


def test_divergence_names_layer_step_and_batch_and_leaves_the_weights() -> None:
    run = run_on(dictionary_rows(3000), lr=1e4)
    with pytest.raises(TrainingError, match=r"layers.3: training diverged at step \d+ on batch rows \d+-\d+ of the"):
        train(run)
    step = run.step
    assert 0 < step < run.steps
    assert torch.isfinite(run.state.params).all()


def test_a_row_that_is_not_finite_stops_training_where_it_is_met() -> None:
    x = dictionary_rows(3000)
    run = run_on(x)
    bad = int(run.source.draw(0, 3000)[5 * 128 + 17])
    x[bad, 3] = math.nan
    with pytest.raises(DataError, match=r"layers.3: .*step 5: batch rows 640-767 of the shuffle of epoch 0 holds NaN"):
        train(run)
    assert torch.isfinite(run.state.params).all()


def test_weights_that_are_not_finite_never_become_a_checkpoint() -> None:
    run = train(run_on(dictionary_rows(3000)), 2)
    run.weights().W_enc[0, 3, 1] = math.inf
    with pytest.raises(TrainingError, match="NaN or infinite by step 2"):
        run.snapshot()


def test_rows_without_variance_are_an_error() -> None:
    with pytest.raises(DataError, match="no variance"):
        run_on(torch.ones(1000, 8))


def test_the_batch_is_never_silently_smaller_than_asked(activations: Artifact) -> None:
    rows = Rows(ActivationCache.open(activations, "layers.1"), "train", memory_bytes=0)
    config = TrainingConfig(num_latents=8, k=2, batch_rows=len(rows) + 1)
    words = r"layers.1, split train: too few usable rows.*position0.*lower training.batch_rows"
    with pytest.raises(DataError, match=words):
        Run(CacheSource(rows, seed=0), rows.spread(10), config)


def test_one_step_with_k_equal_to_the_dictionary_trains_too() -> None:
    run = train(run_on(dictionary_rows(128), num_latents=4, k=4, epochs=1))
    assert run.step == run.steps == 1
    assert isinstance(run.sae(), TopKSae)
    assert len(run.curves) == 1


def test_saes_trained_together_are_the_saes_trained_alone() -> None:
    """Different data, seeds, rates and lengths: on a CPU the bits are equal, whoever shares the batch."""

    def runs() -> list[Run]:
        return [
            run_on(dictionary_rows(3000, seed=5), "layers.1", seed=1),
            run_on(dictionary_rows(2000, seed=6), "layers.2", seed=2, lr=0.01),
            run_on(dictionary_rows(2500, seed=7), "layers.3", seed=3, epochs=3, dead_after_rows=300),
        ]

    together, alone = runs(), [train(run) for run in runs()]
    train_all(together)
    assert len({run.steps for run in together}) == 3
    for ours, theirs in zip(together, alone):
        assert ours.finished
        assert torch.equal(ours.state.params, theirs.state.params)
        assert ours.curves == theirs.curves


def test_an_sae_that_diverges_leaves_the_others_alone() -> None:
    good, bad = run_on(dictionary_rows(3000), "layers.1"), run_on(dictionary_rows(3000), "layers.2", lr=1e4)
    trainer = Trainer([bad, good])
    errors = {}
    with torch.no_grad():
        while trainer.runs:
            errors.update(trainer.step())
            trainer.take_finished()
    assert list(errors) == ["layers.2"]
    assert "layers.2: training diverged at step" in str(errors["layers.2"])
    assert torch.isfinite(bad.state.params).all()
    assert torch.equal(good.state.params, train(run_on(dictionary_rows(3000), "layers.1")).state.params)


def test_a_batch_resumed_from_checkpoints_of_different_steps_ends_the_same() -> None:
    """A kill between two writes leaves one SAE a checkpoint behind the other."""
    whole = [run_on(dictionary_rows(3000), "layers.1"), run_on(dictionary_rows(3000, seed=4), "layers.2")]
    train_all(whole)
    first = train(run_on(dictionary_rows(3000), "layers.1"), 11).snapshot()
    second = train(run_on(dictionary_rows(3000, seed=4), "layers.2"), 30).snapshot()
    again = [run_on(dictionary_rows(3000), "layers.1"), run_on(dictionary_rows(3000, seed=4), "layers.2")]
    again[0].restore(first)
    again[1].restore(second)
    train_all(again)
    for ours, theirs in zip(again, whole):
        assert torch.equal(ours.state.params, theirs.state.params)
        assert ours.curves == theirs.curves


def test_saes_of_different_shapes_are_not_one_batch() -> None:
    runs = [run_on(dictionary_rows(3000), "layers.1"), run_on(dictionary_rows(3000), "layers.2", k=5)]
    with pytest.raises(ConfigError, match=r"training.k: SAEs of one batch must agree in k: layers.1 has 4, layers.2"):
        Trainer(runs)


def test_errors_that_are_looked_for_now_and_then_still_name_their_step() -> None:
    """As on a GPU, where every look waits for the device."""
    good, bad = run_on(dictionary_rows(3000), "layers.1"), run_on(dictionary_rows(3000), "layers.2", lr=1e4)
    trainer = Trainer([good, bad])
    trainer._look_every = 16
    errors = {}
    with torch.no_grad():
        while trainer.runs:
            found = trainer.step()
            assert trainer.looked or not found
            errors.update(found)
            trainer.take_finished()
    words = r"layers.2: training diverged at step \d on the batch 1\d before that of rows 1920-2047 of the shuffle"
    assert list(errors) == ["layers.2"]
    assert re.match(words, str(errors["layers.2"]))
    assert good.finished
    alone = train(run_on(dictionary_rows(3000), "layers.1")).evaluate().fvu
    assert good.evaluate().fvu == pytest.approx(alone, abs=0.005)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("k", [4, 60], ids=["sparse", "dense"])
def test_a_gpu_trains_what_a_cpu_trains(k: int) -> None:
    def runs() -> list[Run]:
        return [run_on(dictionary_rows(3000, seed=seed), f"layers.{seed}", k=k, lr=1e-3) for seed in (5, 6, 7)]

    ours, theirs = runs(), runs()
    train_all(theirs, 20)
    trainer = Trainer(ours, device="cuda")
    with torch.no_grad():
        for _ in range(20):
            assert not trainer.step()
    for gpu, cpu in zip(ours, theirs):
        torch.testing.assert_close(gpu.state.params.cpu(), cpu.state.params, rtol=0, atol=1e-4)
        assert len(gpu.curves) == len(cpu.curves)
