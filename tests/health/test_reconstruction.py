"""Reconstruction metrics against brute force, closed forms and known limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from planted_health import HOOKPOINTS, Prepared, prepare, random_sae, signed_identity, silent_sae
from torch import Tensor
from transformers import PretrainedConfig

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import CorpusConfig, CorpusSource, SplitTokens, SubjectConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.health import Reconstruction, RowMask, Site, health_values, measure_reconstruction, measure_sites
from saeinterp.health.documents import COLUMNS
from saeinterp.sae import TopKSae
from saeinterp.subject import (
    ActivationCache,
    Context,
    Subject,
    build_corpus,
    capture,
    load_subject,
    prepare_subject,
    read_contexts,
    resolve,
)

D = 64
HOOKPOINT = "layers.1"
Splice = Literal["all", "unmasked"]


def measure(
    parts: Prepared,
    sae: TopKSae,
    *,
    hookpoint: str = HOOKPOINT,
    splice: Splice = "all",
    mask: RowMask | None = None,
    **options: Any,
) -> Reconstruction:
    cache = ActivationCache.open(parts.activations, HOOKPOINT)
    return measure_reconstruction(
        parts.subject,
        options.pop("contexts", parts.contexts),
        {hookpoint: sae},
        means={hookpoint: cache.mean},
        masks={hookpoint: mask or RowMask.of(cache)},
        splice=splice,
        **options,
    )[hookpoint]


def values(result: Reconstruction) -> dict[str, Any]:
    return health_values(result, draws=200, seed=0)


def cross_entropy(subject: Subject, context: Context, keep: np.ndarray) -> Tensor:
    """Per prediction at the kept positions that have a next token, by the textbook."""
    ids = torch.from_numpy(context.token_ids.astype(np.int64))
    with torch.inference_mode():
        logits = subject.model(input_ids=ids[None]).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    return loss[torch.from_numpy(keep[:-1])]


@contextmanager
def replaced(subject: Subject, hookpoint: str, new: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A plain hook, independent of the library's splice."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        return new(output) if isinstance(output, Tensor) else (new(output[0]), *output[1:])

    handle = resolve(subject.model, hookpoint).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_an_identity_sae_recovers_everything(planted: Prepared) -> None:
    found = values(measure(planted, signed_identity(D)))
    assert found["loss_recovered"]["value"] == 1.0
    assert found["loss_recovered_mean_ablation"]["value"] == 1.0
    assert found["kl_recovered"]["value"] == 1.0
    assert found["delta_ce"]["value"] == 0.0
    assert found["fvu"]["value"] == 0.0
    assert found["cosine"] == pytest.approx(1.0)


def test_a_silent_sae_recovers_nothing_and_every_latent_is_dead(planted: Prepared) -> None:
    found = values(measure(planted, silent_sae(D)))
    assert found["loss_recovered"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["kl_recovered"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert (found["dead"], found["alive"], found["dead_fraction"], found["l0_max"]) == (16, 0, 1.0, 0)


class _Logits(NamedTuple):
    logits: Tensor


class LinearModel(torch.nn.Module):
    """Token v is `a` along axis v, one block does nothing, the head reads the axes: no norm, so all is linear."""

    def __init__(self, size: int, a: float) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_hidden_layers=1)
        self.embedding = torch.nn.Embedding(size, size, _weight=a * torch.eye(size))
        self.layers = torch.nn.ModuleList([torch.nn.Identity()])

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> _Logits:
        return _Logits(self.layers[0](self.embedding(input_ids)))


@pytest.mark.parametrize("scale", [0.25, 0.8, 1.5])
def test_a_linear_subject_has_loss_recovered_and_explained_variance_in_closed_form(scale: float) -> None:
    # Texts repeat one token each, so with x = a e_v and x_hat = s x: CE(s) = ln(1 + (V - 1) exp(-s a)), clean is s = 1,
    # zeroed s = 0 (ln V), and KL(clean | s) follows from the same two probabilities. Every axis comes equally often:
    # E|x|^2 = a^2 and |E x|^2 = a^2 / V, so FVU = (1 - s)^2 V / (V - 1).
    size, a, length = 12, 2.0, 9
    subject = Subject(LinearModel(size, a), None, "linear", 1, size, size, "cpu", "float32")
    arrays = (np.zeros(length, np.int32),) * 2
    contexts = [
        Context(v, "health", np.full(length, v, np.int32), np.full(length, v, np.int32), *arrays) for v in range(size)
    ]
    result = measure_reconstruction(
        subject,
        contexts,
        {"layers.0": signed_identity(size, scale=scale)},
        means={"layers.0": torch.full((size,), a / size)},
        masks={"layers.0": RowMask()},
        batch_contexts=5,
    )["layers.0"]

    def ce(factor: float) -> float:
        return math.log1p((size - 1) * math.exp(-factor * a))

    def kl(factor: float) -> float:
        right = math.exp(-ce(1.0))
        wrong = (1 - right) / (size - 1)
        other = math.exp(-factor * a - ce(factor))
        return right * math.log(right / math.exp(-ce(factor))) + (size - 1) * wrong * math.log(wrong / other)

    recovered = (ce(0) - ce(scale)) / (ce(0) - ce(1))
    fvu = (1 - scale) ** 2 * size / (size - 1)
    found = {name: result.documents.value(name) for name in ("loss_recovered", "kl_recovered", "explained_variance")}
    assert found["loss_recovered"] == pytest.approx(recovered, abs=1e-5)
    assert found["kl_recovered"] == pytest.approx(1 - kl(scale) / kl(0), abs=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - fvu, abs=1e-6)
    assert result.documents.value("ce_mean") == pytest.approx(math.log(size), abs=1e-6)


def test_a_subject_zeroed_everywhere_predicts_uniformly(planted: Prepared) -> None:
    found = values(measure(planted, silent_sae(D)))
    assert found["ce_zero"] == pytest.approx(math.log(planted.subject.vocab_size), abs=1e-6)
    assert found["uniform_ce"] == pytest.approx(found["ce_zero"], abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 0.9, 2.0])
def test_explained_variance_of_a_shrunken_reconstruction_has_a_closed_form(planted: Prepared, scale: float) -> None:
    # x_hat = s x, so fvu = (1 - s)^2 E|x|^2 / (E|x|^2 - |E x|^2); beyond 1 it is not clamped.
    result = measure(planted, signed_identity(D, scale=scale))
    rows = []
    for context, keep in zip(planted.contexts, result.usable, strict=True):
        ids = torch.from_numpy(context.token_ids.astype(np.int64))[None]
        x = capture(planted.subject.model, ids, None, [HOOKPOINT])[HOOKPOINT][0].double().numpy()
        rows.append(x[keep])
    x = np.concatenate(rows)
    second = (x**2).sum(1).mean()
    expected = (1 - scale) ** 2 * second / (second - (x.mean(0) ** 2).sum())
    found = values(result)
    assert found["fvu"]["value"] == pytest.approx(expected, rel=1e-6)
    assert found["explained_variance"]["value"] == pytest.approx(1 - expected, rel=1e-6)
    assert found["tokens"] == len(x)


def assert_losses_equal_those_of_plain_hooks(parts: Prepared, *, splice: Splice) -> None:
    sae = random_sae(D)
    result = measure(parts, sae, splice=splice, mask=RowMask(), batch_contexts=5)
    mean = ActivationCache.open(parts.activations, HOOKPOINT).mean
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "ce_clean": lambda x: x,
        "ce_spliced": lambda x: sae.decode(sae.encode(x[0]))[None],
        "ce_zero": torch.zeros_like,
        "ce_mean": lambda x: mean.expand_as(x),
    }
    for name, run in runs.items():
        losses = []
        for context, keep in zip(parts.contexts, result.usable, strict=True):
            kept = torch.from_numpy(keep)[None, :, None]
            new = run if splice == "all" else lambda x, run=run, kept=kept: torch.where(kept, run(x), x)
            with replaced(parts.subject, HOOKPOINT, new):
                losses.append(cross_entropy(parts.subject, context, keep))
        assert values(result)[name] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5), name


@pytest.mark.parametrize("splice", ["all", "unmasked"])
def test_losses_equal_those_of_plain_hooks(control: Prepared, splice: Splice) -> None:
    assert_losses_equal_those_of_plain_hooks(control, splice=splice)


@pytest.mark.parametrize("splice", ["all", "unmasked"])
def test_losses_equal_those_of_plain_hooks_with_biases_and_learned_positions(control: Prepared, splice: Splice) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=control.subject.vocab_size,
        n_positions=64,
        n_embd=D,
        n_layer=3,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    parts = control._replace(subject=dataclasses.replace(control.subject, model=model))
    assert_losses_equal_those_of_plain_hooks(parts, splice=splice)
    assert measure(parts, random_sae(D), mask=RowMask()).uniform_ce is None


class ShiftedNorm(torch.nn.Module):
    """A norm with an offset that is not called a bias."""

    def __init__(self, size: int, shift: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.beta = torch.nn.Parameter(torch.full((size,), shift))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight + self.beta


def test_a_norm_that_adds_something_makes_no_claim_of_uniform_output(control: Prepared) -> None:
    shifted = load_subject(control.artifact)
    shifted.model.model.norm = ShiftedNorm(D, 5.0)
    result = measure(control._replace(subject=shifted), silent_sae(D), mask=RowMask())
    assert result.uniform_ce is None
    assert abs(values(result)["ce_zero"] - math.log(shifted.vocab_size)) > 0.01
    unshifted = load_subject(control.artifact)
    unshifted.model.model.norm = ShiftedNorm(D, 0.0)
    assert measure(control._replace(subject=unshifted), silent_sae(D)).uniform_ce is not None


def test_tied_embeddings_leave_zeros_uniform(control: Prepared) -> None:
    tied = load_subject(control.artifact)
    tied.model.lm_head.weight = tied.model.model.embed_tokens.weight
    found = values(measure(control._replace(subject=tied), silent_sae(D)))
    assert found["ce_zero"] == pytest.approx(found["uniform_ce"], abs=1e-6)
    assert found["uniform_ce"] == pytest.approx(math.log(tied.vocab_size))


def test_kl_equals_the_textbook(control: Prepared) -> None:
    sae = random_sae(D)
    result = measure(control, sae)
    divergences = []
    for context, keep in zip(control.contexts, result.usable, strict=True):
        ids = torch.from_numpy(context.token_ids.astype(np.int64))[None]
        with torch.inference_mode():
            clean = control.subject.model(input_ids=ids).logits[0].double().log_softmax(-1)
            with replaced(control.subject, HOOKPOINT, lambda x: sae.decode(sae.encode(x[0]))[None]):
                spliced = control.subject.model(input_ids=ids).logits[0].double().log_softmax(-1)
        divergences.append((clean.exp() * (clean - spliced)).sum(-1)[:-1][torch.from_numpy(keep[:-1])])
    assert values(result)["kl_spliced"] == pytest.approx(float(torch.cat(divergences).mean()), abs=1e-5)


def test_a_hookpoint_inside_a_block_is_measured_by_full_passes(control: Prepared) -> None:
    """Zeroing an MLP's output leaves the rest of the stream, so nothing is constant there."""
    hookpoint = "layers.1.mlp"
    result = measure(control, silent_sae(D), hookpoint=hookpoint)
    losses = []
    for context, keep in zip(control.contexts, result.usable, strict=True):
        with replaced(control.subject, hookpoint, torch.zeros_like):
            losses.append(cross_entropy(control.subject, context, keep))
    found = values(result)
    assert found["ce_zero"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert found["ce_spliced"] == pytest.approx(found["ce_zero"], abs=1e-6)
    assert found["uniform_ce"] is None


def test_position_0_special_tokens_and_large_norms_are_left_out(planted: Prepared) -> None:
    special = int(planted.contexts[0].token_ids[3])
    limit = ActivationCache.open(planted.activations, HOOKPOINT).median_norm
    mask = RowMask(special_ids=(special,), norm_limit=limit, dtype=torch.float32)
    result = measure(planted, random_sae(D), mask=mask)
    first = large = named = 0
    for context, keep in zip(planted.contexts, result.usable, strict=True):
        ids = torch.from_numpy(context.token_ids.astype(np.int64))[None]
        norms = capture(planted.subject.model, ids, None, [HOOKPOINT])[HOOKPOINT][0].norm(dim=1).numpy()
        position = np.arange(len(keep))
        expected = (position > 0) & (context.token_ids != special) & (norms <= limit)
        assert (keep == expected).all()
        first += 1
        named += int(((position > 0) & (context.token_ids == special)).sum())
        large += int(((position > 0) & (context.token_ids != special) & (norms > limit)).sum())
    assert named > 0
    assert large > 0
    assert result.masked == {"position0": first, "special": named, "norm": large}
    assert values(result)["tokens"] == result.rows - first - named - large


def test_position_0_counts_when_asked_for(planted: Prepared) -> None:
    result = measure(planted, random_sae(D), mask=RowMask(first=False))
    assert values(result)["tokens"] == result.rows == sum(len(context.token_ids) for context in planted.contexts)


def test_the_last_token_of_a_context_predicts_nothing(planted: Prepared) -> None:
    found = values(measure(planted, random_sae(D)))
    assert found["predictions"] == found["tokens"] - len(planted.contexts)


def test_l0_before_topk_counts_every_positive_latent(planted: Prepared) -> None:
    sae = random_sae(D, k=6)
    result = measure(planted, sae)
    counts = []
    for context, keep in zip(planted.contexts, result.usable, strict=True):
        ids = torch.from_numpy(context.token_ids.astype(np.int64))[None]
        x = capture(planted.subject.model, ids, None, [HOOKPOINT])[HOOKPOINT][0][torch.from_numpy(keep)]
        counts.append(((x @ sae.W_enc.T) > 0).sum(1))
    expected = float(torch.cat(counts).double().mean())
    assert values(result)["l0_preact"] == pytest.approx(expected, rel=1e-3)
    assert values(result)["l0_preact"] > 6
    signed = dataclasses.replace(sae, activation="abs_topk")
    assert values(measure(planted, signed))["l0_preact"] is None


def test_l0_counts_the_code_used_and_firings_add_up(planted: Prepared) -> None:
    result = measure(planted, random_sae(D, k=6))
    found = values(result)
    assert 0 < found["l0_mean"] <= found["l0_max"] <= 6
    assert result.firings.sum() == pytest.approx(found["tokens"] * found["l0_mean"])
    assert found["dead"] == int((result.firings == 0).sum())
    assert sum(found["density_histogram"]["counts"]) == found["alive"]


def test_batches_do_not_change_the_result(control: Prepared) -> None:
    one, many = (measure(control, random_sae(D), batch_contexts=size) for size in (1, 32))
    assert one.documents.sums == pytest.approx(many.documents.sums, rel=1e-5, abs=1e-4)
    assert (one.firings == many.firings).all()


def test_several_hookpoints_share_one_clean_pass(control: Prepared) -> None:
    cache = {name: ActivationCache.open(control.activations, name) for name in HOOKPOINTS}
    saes = {name: random_sae(D, seed=seed) for seed, name in enumerate(HOOKPOINTS)}
    contexts = control.contexts[:8]
    passes = 0

    def count(*args: Any) -> None:
        nonlocal passes
        passes += 1

    handle = control.subject.model.lm_head.register_forward_hook(count)
    try:
        together = measure_reconstruction(
            control.subject,
            contexts,
            saes,
            means={name: cache[name].mean for name in HOOKPOINTS},
            masks={name: RowMask.of(cache[name]) for name in HOOKPOINTS},
            batch_contexts=4,
        )
    finally:
        handle.remove()
    # Two batches: clean once, spliced at each hookpoint; zero and mean by two one-context probes each.
    assert passes == 2 * (1 + 2) + 2 * 2 * 2
    for name in HOOKPOINTS:
        alone = measure_reconstruction(
            control.subject,
            contexts,
            {name: saes[name]},
            means={name: cache[name].mean},
            masks={name: RowMask.of(cache[name])},
            batch_contexts=4,
        )[name]
        assert together[name].documents.sums == pytest.approx(alone.documents.sums, rel=1e-6)


def test_saes_of_one_hookpoint_share_its_ablated_passes(control: Prepared) -> None:
    cache = ActivationCache.open(control.activations, HOOKPOINT)
    mask = RowMask.of(cache)
    sites = {seed: Site(HOOKPOINT, random_sae(D, seed=seed), cache.mean, mask) for seed in range(3)}
    contexts = control.contexts[:8]
    found = measure_sites(control.subject, contexts, sites, splice="unmasked", batch_contexts=4)
    # Two batches, three SAEs; one pass each for zeros and means whatever the number of SAEs. layers.1 is the second of
    # three blocks, so all but the clean passes run a third of the model.
    assert (found.passes.clean, found.passes.spliced, found.passes.ablated, found.passes.probes) == (2, 6, 4, 0)
    assert found.passes.full == pytest.approx(2 + 10 / 3)
    for seed, site in sites.items():
        alone = measure_sites(control.subject, contexts, {0: site}, splice="unmasked", batch_contexts=4).results[0]
        assert (found.results[seed].documents.sums == alone.documents.sums).all()


def test_an_sae_that_fails_leaves_the_others_as_they_are(control: Prepared) -> None:
    cache = ActivationCache.open(control.activations, HOOKPOINT)
    mask = RowMask.of(cache)
    broken = dataclasses.replace(random_sae(D), b_dec=torch.full((D,), float("inf")))
    sites = {
        "good": Site(HOOKPOINT, random_sae(D), cache.mean, mask),
        "broken": Site(HOOKPOINT, broken, cache.mean, mask),
        "nowhere": Site("layers.9", random_sae(D), cache.mean, mask),
    }
    found = measure_sites(control.subject, control.contexts, sites, dataset="held-out")
    assert set(found.results) == {"good"}
    assert "layers.2" in str(found.failures["nowhere"])
    assert "first in context" in str(found.failures["broken"])
    assert "of held-out" in str(found.failures["broken"])
    alone = measure(control, random_sae(D), mask=mask)
    assert (found.results["good"].documents.sums == alone.documents.sums).all()


def test_packed_contexts_give_every_document_its_own_tokens(
    planted_folder: Path, documents: Path, shared_store: ArtifactStore
) -> None:
    parts = prepare(shared_store, planted_folder, documents, packing=True)
    result = measure(parts, random_sae(D))
    assert any(len(set(context.doc_ids.tolist())) > 1 for context in parts.contexts)
    losses: dict[int, list[float]] = {}
    for context, keep in zip(parts.contexts, result.usable, strict=True):
        found = iter(cross_entropy(parts.subject, context, keep).tolist())
        for position in np.flatnonzero(keep[:-1]):
            losses.setdefault(int(context.doc_ids[position]), []).append(next(found))
    assert result.documents.doc_ids.tolist() == sorted(losses)
    clean = result.documents.sums[:, COLUMNS.index("ce_clean")]
    assert clean == pytest.approx([sum(losses[doc]) for doc in sorted(losses)], abs=1e-3)


def test_random_weights_have_no_loss_to_recover_and_say_so(control: Prepared) -> None:
    found = values(measure(control, random_sae(D)))
    assert found["loss_recovered"]["value"] is None
    assert "not applicable" in found["loss_recovered"]["reason"]
    assert "CE zeroed" in found["loss_recovered"]["reason"]
    assert found["delta_ce"]["value"] is not None
    assert found["fvu"]["low"] < found["fvu"]["value"] < found["fvu"]["high"]


def test_nan_weights_stop_with_run_hookpoint_and_context(planted: Prepared) -> None:
    broken = load_subject(planted.artifact)
    broken.model.lm_head.weight[5] = float("nan")
    with pytest.raises(
        DataError, match=r"layers\.1: the logits of the clean run are NaN or infinite, first in context \d+"
    ):
        measure(planted._replace(subject=broken), random_sae(D))


def test_infinite_reconstructions_name_the_spliced_run(planted: Prepared) -> None:
    sae = dataclasses.replace(random_sae(D), b_dec=torch.full((D,), float("inf")))
    with pytest.raises(DataError, match=r"the spliced run are NaN or infinite, first in context \d+"):
        measure(planted, sae)


def test_nan_activations_name_the_clean_run(planted: Prepared) -> None:
    broken = load_subject(planted.artifact)
    broken.model.model.embed_tokens.weight[:] = float("nan")
    with pytest.raises(DataError, match=r"layers\.1: the activations of the clean run are NaN"):
        measure(planted._replace(subject=broken), random_sae(D))


def test_a_hookpoint_that_names_no_module_is_refused_with_the_nearest(planted: Prepared) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'model\.layers\.1\.mlp'"):
        measure(planted, random_sae(D), hookpoint="layers.1.mpl")


def test_no_contexts_is_an_error_with_a_next_step(planted: Prepared) -> None:
    with pytest.raises(DataError, match=r"no contexts.*corpus\.fractions\.health"):
        measure(planted, random_sae(D), contexts=[])


def test_masking_every_row_is_an_error(planted: Prepared) -> None:
    with pytest.raises(DataError, match=r"every token of the health split is masked.*norm_multiple"):
        measure(planted, random_sae(D), mask=RowMask(norm_limit=0.0))


def test_progress_counts_tokens(planted: Prepared) -> None:
    seen: list[tuple[int, int, str]] = []
    measure(planted, random_sae(D), progress=lambda *call: seen.append(call))
    total = sum(len(context.token_ids) for context in planted.contexts)
    assert seen[-1] == (total, total, "tokens")


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_smollm2_zeroed_is_uniform_over_49152_tokens(
    smollm2: Path, store: ArtifactStore, weights: Literal["pretrained", "random"]
) -> None:
    corpus_config = CorpusConfig(
        sources=(CorpusSource(name="builtin:python-reference"),),
        context_length=16,
        max_tokens=SplitTokens(train=100, health=4000, explain=100, score=100),
    )
    artifact = prepare_subject(SubjectConfig(model=str(smollm2), weights=weights, dtype="bfloat16"), store=store)
    contexts = read_contexts(build_corpus(artifact, config=corpus_config, store=store), splits="health")
    one_each = {int(context.doc_ids[0]): context for context in contexts}
    name, d = "layers.20", 576
    saes = {"identity": signed_identity(d), "silent": silent_sae(d)}
    result = measure_sites(
        load_subject(artifact),
        [*one_each.values()][:8],
        {kind: Site(name, sae, torch.zeros(d), RowMask()) for kind, sae in saes.items()},
    ).results
    found = {kind: values(item) for kind, item in result.items()}
    # Zeros stay zeros through a bias-free RMSNorm model, also in bfloat16; float32 log-softmax rounds to 1e-6.
    assert found["identity"]["ce_zero"] == pytest.approx(10.80267, abs=1e-5)
    assert found["identity"]["uniform_ce"] == pytest.approx(10.80267, abs=1e-5)
    if weights == "pretrained":
        assert found["identity"]["ce_clean"] < 7
        assert found["identity"]["loss_recovered"]["value"] == 1.0
        assert found["silent"]["loss_recovered"]["value"] == pytest.approx(0.0, abs=1e-6)
    else:
        # No better than uniform, so there is nothing to recover.
        assert found["identity"]["ce_clean"] > 10.7
        assert found["identity"]["loss_recovered"]["value"] is None
        assert "must exceed 0.1" in found["identity"]["loss_recovered"]["reason"]
