"""First-letter absorption: how much of a letter's direction other latents carry where its own latents fall silent.

"A is for Absorption" (Chanin et al. 2024) as SAEBench measures it, on the activations of `letter_probes`. The
surprising choice: the same is measured on a random SAE of the same shape, which may well score better, because an SAE
without first-letter latents has nothing to absorb; a score is therefore only given where such latents exist.

Payload: `absorption.json` and `letters.parquet`, one row per letter.

Shapes: N words, k active latents a row, M latents, d width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import AbsorptionConfig, Placement
from saeinterp.errors import DataError
from saeinterp.health.decoder_cosine import top_cosine
from saeinterp.health.evaluation import refuse_misfit
from saeinterp.health.letters.probes import LetterProbes, read_letter_probes
from saeinterp.health.letters.sparse_latents import SparseProbes, probe_code
from saeinterp.health.letters.words import LETTERS
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKCode, TopKSae
from saeinterp.stats import OfTotals, bootstrap_intervals
from saeinterp.subject.placement import main_device, placed

VERSION = 1
KIND = "absorption"
_SETTINGS = (
    "epochs",
    "lr",
    "lr_end",
    "sparse_batch",
    "sparse_l1",
    "sparse_weight_decay",
    "max_k",
    "f1_gain",
    "min_probe_f1",
    "min_letters",
    "min_sparse_f1",
    "bootstrap",
    "seed",
)

ABSORBERS = 3
"""Most latents that share in absorbing a word."""
MIN_COSINE = 0.1
"""Cosine with the probe from which a latent may absorb."""
MIN_SHARE = 0.4
"""Share of the probe's projection that the absorbing latents must carry."""
MIN_FULL_COSINE = 0.025
"""Cosine with the probe that the top latent needs for full absorption."""
SILENT = 1e-8
"""Activations below this do not count as firing."""


class WordAbsorption(NamedTuple):
    """Absorption of N words of one letter."""

    fraction: np.ndarray
    """`[N]` in 0 to 1."""
    full: np.ndarray
    """`[N]` bool: the main latents are silent and one other latent carries the letter."""


def absorbed(x: Tensor, code: TopKCode, *, direction: Tensor, decoder: Tensor, main: list[int]) -> WordAbsorption:
    """How far words are absorbed, from their activations (Chanin et al. 2024; SAEBench).

    Per word, with w the unit probe: p = x · w; latent j's projection is z_j (W_dec[j] · w), its cosine c_j that of
    W_dec[j] and w. M sums the main latents' projections, A the three largest positive ones among other latents with
    c ≥ 0.1. The fraction is 0 where M ≥ p or A < 0.4 p, else 1 where M ≤ 0, else A' / (A' + M), A' = min(A, p − M).
    A word is fully absorbed where all main latents are silent and the latent with the largest projection has
    c ≥ 0.025 and carries at least 0.4 p. Where p ≤ 0 there is nothing to absorb.

    Args:
        x: `[N, d]` activations of words that begin with the letter.
        code: Their code.
        direction: `[d]` the letter's probe, of any length.
        decoder: `[M, d]`.
        main: The letter's main latents.
    """
    w = direction.double() / torch.linalg.vector_norm(direction.double())
    p = (x.double() @ w).numpy()
    along = decoder.double() @ w
    cosine = (along / torch.linalg.vector_norm(decoder.double(), dim=1).clamp(min=1e-30)).numpy()
    z, latents = code.values.double().numpy(), code.indices.numpy()
    projection, c = z * along.numpy()[latents], cosine[latents]
    is_main = np.isin(latents, main)
    m = np.where(is_main, projection, 0.0).sum(1)
    candidate = ~is_main & (c >= MIN_COSINE) & (projection > 0)
    a = -np.sort(-np.where(candidate, projection, 0.0), axis=1)[:, :ABSORBERS].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.minimum(a, p - m)
        fraction = np.where(m <= 0, 1.0, part / (part + m))
    fraction = np.where((p <= 0) | (m >= p) | (a < MIN_SHARE * p), 0.0, fraction)
    top = projection.argmax(1)[:, None]
    top_projection, top_cosine = (np.take_along_axis(values, top, axis=1)[:, 0] for values in (projection, c))
    quiet = ~(is_main & (np.abs(z) >= SILENT)).any(1)
    full = quiet & (p > 0) & (top_cosine >= MIN_FULL_COSINE) & (top_projection >= MIN_SHARE * p)
    return WordAbsorption(fraction, full)


def measure_absorption_recipe(probes: Ref, sae: Ref, *, hookpoint: str, config: AbsorptionConfig) -> Recipe:
    """The recipe of one SAE's absorption."""
    values = config.model_dump(mode="json")
    settings = {"hookpoint": hookpoint, **{name: values[name] for name in _SETTINGS}}
    return Recipe(kind=KIND, name=hookpoint, version=VERSION, config=settings, inputs=(probes, sae))


def measure_absorption(
    probes: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    config: AbsorptionConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Measure one SAE's first-letter absorption, that of a random SAE beside it, and `decoder_top_cosine`.

    Args:
        probes: Of the same hookpoint (`letter_probes`).
        device: Where activations are encoded; a spread subject's SAE runs on its main device.

    Raises:
        DataError: The SAE, or the hookpoint's name, does not fit the probes.
    """
    recipe = measure_absorption_recipe(probes, sae, hookpoint=hookpoint, config=config)
    report = progress or silent

    def write(space: Workspace) -> None:
        found = read_letter_probes(probes)
        coder = TopKSae.load(sae.path, device=main_device(placed(device)))
        values: dict[str, Any] = {"hookpoint": hookpoint, "num_latents": coder.num_latents, "k": coder.k}
        values["decoder_top_cosine"] = top_cosine(coder.W_dec, seed=config.seed)._asdict()
        if isinstance(found, str):
            result, control = _nothing(found), _nothing(found)
        else:
            _check(found, coder, hookpoint)
            report(0, 2, "SAEs")
            result = _measure(found, coder, config)
            report(1, 2, "SAEs")
            control = _measure(found, random_sae_like(coder, seed=config.seed), config)
        report(2, 2, "SAEs")
        values |= {**result.values, "random_control": control.values}
        write_json(space.out / "absorption.json", values)
        result.letters.write_parquet(space.out / "letters.parquet")
        control.letters.write_parquet(space.out / "random_letters.parquet")
        space.counts = {name: values[name] for name in ("letters", "words", "num_latents")}

    return store.build(recipe, write)


def read_absorption(artifact: Artifact) -> dict[str, Any]:
    """The content of `absorption.json`."""
    values: dict[str, Any] = read_json(artifact.file("absorption.json"))
    return values


def random_sae_like(sae: TopKSae, *, seed: int) -> TopKSae:
    """Random unit directions as encoder and decoder, in the shape of an SAE, with its k and its `b_dec`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(sae.num_latents, sae.d_in, generator=generator), dim=1)
    rows = rows.to(sae.W_dec)
    return dataclasses.replace(sae, W_enc=rows, W_dec=rows.clone(), b_enc=torch.zeros_like(sae.b_enc))


class _Result(NamedTuple):
    values: dict[str, Any]
    letters: pl.DataFrame


_LETTER_SCHEMA: dict[str, Any] = {
    "letter": pl.String,
    "used": pl.Boolean,
    "probe_f1": pl.Float64,
    "sparse_f1": pl.List(pl.Float64),
    "ranked_latents": pl.List(pl.Int64),
    "main_latents": pl.List(pl.Int64),
    "words": pl.Int64,
    "fraction": pl.Float64,
    "full_absorption": pl.Float64,
}


def _measure(probes: LetterProbes, sae: TopKSae, config: AbsorptionConfig) -> _Result:
    """Absorption of one SAE on the words of the probes."""
    device = sae.W_enc.device
    train, test, fresh = (_on_cpu(sae.encode(x.to(device))) for x in (probes.train, probes.test, probes.fresh))
    labels = probes.labels("test")
    sparse = probe_code(train, probes.labels("train"), test, labels, num_latents=sae.num_latents, config=config)
    said = (probes.probe.scores(probes.test) > 0).numpy()
    decoder = sae.W_dec.float().cpu()
    rows = []
    for letter in range(len(LETTERS)):
        rows.append(_letter(letter, probes, sparse, said, labels, fresh, decoder, config))
    table = pl.DataFrame(rows, schema=_LETTER_SCHEMA)
    return _Result(_summary(table, config), table)


def _letter(
    letter: int,
    probes: LetterProbes,
    sparse: SparseProbes,
    said: np.ndarray,
    labels: np.ndarray,
    fresh: TopKCode,
    decoder: Tensor,
    config: AbsorptionConfig,
) -> dict[str, Any]:
    """One row of `letters.parquet`."""
    f1 = probes.f1[letter]
    words = torch.from_numpy(np.flatnonzero(said[:, letter] & (labels == letter)))
    main = sparse.main_latents(letter, gain=config.f1_gain)
    result = None
    if len(words):
        code = TopKCode(fresh.values[words], fresh.indices[words])
        direction = probes.probe.weight[letter]
        result = absorbed(probes.fresh[words].float(), code, direction=direction, decoder=decoder, main=main)
    return {
        "letter": LETTERS[letter],
        "used": f1 is not None and f1 > config.min_probe_f1,
        "probe_f1": f1,
        "sparse_f1": [float(value) if np.isfinite(value) else None for value in sparse.f1[letter]],
        "ranked_latents": sparse.ranked[letter].tolist(),
        "main_latents": main,
        "words": len(words),
        "fraction": None if result is None else float(result.fraction.mean()),
        "full_absorption": None if result is None else float(result.full.mean()),
    }


def _summary(letters: pl.DataFrame, config: AbsorptionConfig) -> dict[str, Any]:
    """The numbers of one SAE; `value` only where the score means something."""
    used = letters.filter(pl.col("used") & (pl.col("words") > 0) & pl.col("sparse_f1").list.first().is_not_null())
    count = used.height
    values: dict[str, Any] = _blank()
    values["letters"], values["letters_used"] = count, "".join(used["letter"])
    values["words"] = int(used["words"].sum())
    if count:
        fraction = used["fraction"].to_numpy()
        # A letter is the unit: its words share one probe and the same main latents.
        statistic = OfTotals(
            np.column_stack([fraction, np.ones(count)]), lambda totals: totals[..., :1] / totals[..., 1:]
        )
        (interval,) = bootstrap_intervals(
            statistic, count, bounds=[(0.0, 1.0)], draws=config.bootstrap, seed=config.seed, unit="letters"
        )
        values |= {
            "mean_fraction": float(fraction.mean()),
            "full_absorption": _mean(used["full_absorption"]),
            "probe_f1": _mean(used["probe_f1"]),
            "sparse_f1": _mean(used["sparse_f1"].list.first()),
            "main_latents": _mean(used["main_latents"].list.len()),
            "interval": {"level": 0.95, "method": interval.method, "n": interval.n, "reason": interval.reason},
        }
        low, high = interval.low, interval.high
    values["reason"] = _why_not(values, config)
    if values["reason"] is None:
        values |= {"value": values["mean_fraction"], "low": low, "high": high}
    return values


def _mean(column: pl.Series) -> float:
    return float(column.to_numpy().mean())


def _why_not(values: dict[str, Any], config: AbsorptionConfig) -> str | None:
    count, sparse = values["letters"], values["sparse_f1"]
    if count < config.min_letters:
        return (
            f"not applicable: {count} of 26 letters have a probe with F1 above {config.min_probe_f1:g}, "
            f"{config.min_letters} are needed"
        )
    if sparse < config.min_sparse_f1:
        return (
            f"not applicable: the best single latents of {count} letters have a mean F1 of {sparse:.3f}, below "
            f"{config.min_sparse_f1:g}: no first-letter latents that others could absorb"
        )
    return None


def _blank() -> dict[str, Any]:
    names = (
        "value",
        "low",
        "high",
        "reason",
        "mean_fraction",
        "full_absorption",
        "probe_f1",
        "sparse_f1",
        "main_latents",
        "interval",
    )
    return {**dict.fromkeys(names), "letters": 0, "letters_used": "", "words": 0}


def _nothing(reason: str) -> _Result:
    return _Result({**_blank(), "reason": reason}, pl.DataFrame(schema=_LETTER_SCHEMA))


def _on_cpu(code: TopKCode) -> TopKCode:
    return TopKCode(code.values.float().cpu(), code.indices.cpu())


def _check(probes: LetterProbes, sae: TopKSae, hookpoint: str) -> None:
    if probes.hookpoint != hookpoint:
        raise DataError(
            "the letter probes are of another hookpoint", field="hookpoint", got=probes.hookpoint, expected=hookpoint
        )
    refuse_misfit(sae, d_in=probes.train.shape[1], hookpoint=hookpoint)
