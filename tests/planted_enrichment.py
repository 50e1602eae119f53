"""Enrichments of planted latents: what lies behind them is made up by hand, tests, labels, nulls and rates are real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import recipe_of
from saeinterp.config.enrichment import ConceptsConfig, EnrichmentConfig, ProblemsConfig
from saeinterp.enrichment.correlating import correlate_latents

TOKENS = ("2", "3", "4", "5", "8", "10", "12", "20", "25", "50", "*", "+")
SAMPLES = 160
SLOTS = ("reasoning 1/2", "reasoning 2/2")
PRESETS = ("robust", "seed-gsm8k-chi2")
SEMANTICS = "the output of the module, for a block before the final norm"
DRAWS = 40
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 2, "vocab_size": 64}


def planted_side(
    store: ArtifactStore,
    name: str,
    *,
    blocks: int = 4,
    width: int = 16,
    layers: Sequence[int] = (1, 3),
    latents: int = 32,
    k: int = 8,
    bound: float = 0.5,
    second: float = 0.0,
    weights: str = "pretrained",
    seed: int = 0,
    rows: int = 800,
    ids: Sequence[str] | None = None,
    texts: str = "problem",
    select: str = "even:2@cot",
    grammar: str = "canonical",
    tokens: Sequence[str] = TOKENS,
    presets: Sequence[str] = PRESETS,
    draws: int = DRAWS,
) -> Artifact:
    """One model's enrichment with everything behind it.

    Args:
        bound: Share of latents that fire with a token of their own.
        second: Share of those that fire with another token too.
        tokens: Texts of the twelve tokens.
        seed: SAE training seed.
        draws: Permutations of each null, and half-samples.
    """
    names = list(ids) if ids is not None else [f"train_{index}" for index in range(SAMPLES)]
    subject = _subject(store, name, blocks, width, weights)
    problems = _problems(store, subject, names, texts, rows)
    present = np.random.default_rng(5).random((len(names), len(TOKENS))) < np.linspace(0.35, 0.08, len(TOKENS))
    concepts = _concepts(store, problems, subject, present, names, grammar, tokens)
    hookpoints = [f"layers.{layer}" for layer in layers]
    cache = _put(
        store,
        "activations",
        name,
        _json("cache.json", {"semantics": SEMANTICS, "positions": {"select": select, "titles": SLOTS}}),
        subject,
        problems,
        hookpoints=hookpoints,
        dtype="auto",
        positions={"select": select},
    )
    activities = []
    for hookpoint in hookpoints:
        sites = [f"{hookpoint}@{slot}" for slot in range(len(SLOTS))]
        saes = [_sae(store, cache, site, latents, k, seed, rows) for site in sites]
        drawn = [crc32(f"{name} {weights} {site} {seed}".encode()) for site in sites]
        active = [_active(present, latents, bound, second, number) for number in drawn]
        activities.append(_activity(store, cache, saes, sites, hookpoint, active, k))
    config = EnrichmentConfig.model_validate({"presets": presets, "permutations": draws, "half_samples": draws})
    return correlate_latents(activities, concepts, config=config, store=store)


def _put(
    store: ArtifactStore, kind: str, name: str, write: Callable[[Workspace], None], *inputs: Ref, **config: Any
) -> Artifact:
    return store.build(Recipe(kind, name, 1, config, inputs), write)


def _json(name: str, value: Any) -> Callable[[Workspace], None]:
    return lambda space: write_json(space.out / name, value)


def _subject(store: ArtifactStore, name: str, blocks: int, width: int, weights: str) -> Artifact:
    facts = {"num_layers": blocks, "d_model": width, "vocab_size": 64}
    shape = {"num_hidden_layers": blocks, "hidden_size": width, "intermediate_size": 4 * width}

    def write(space: Workspace) -> None:
        title = name + (" (random weights)" if weights == "random" else "")
        origin = {"model": name, "revision": None, "source": "self", "path": None, "trust_remote_code": False}
        rest = {"weights": weights, "dtype": "float32", "fingerprint": "0" * 16}
        write_json(space.out / "subject.json", {**origin, **rest, "title": title, **facts})
        (space.out / "model").mkdir()
        write_json(space.out / "model" / "config.json", {**LLAMA, **shape})
        space.counts = dict(facts)

    return _put(store, "subject", f"{name}-{weights}".replace(" ", "-"), write, weights=weights, title=name)


def _problems(store: ArtifactStore, subject: Artifact, names: Sequence[str], texts: str, rows: int) -> Artifact:
    def write(space: Workspace) -> None:
        frame = pl.DataFrame(
            {
                "sample": np.arange(len(names), dtype=np.int32),
                "id": list(names),
                "split": ["health"] * len(names),
                "question": [f"{texts} {name}" for name in names],
                "reasoning": [f"<<{index}+1={index + 1}>>" for index in range(len(names))],
            }
        )
        frame.write_parquet(space.out / "problems.parquet")
        counts = {"health": len(names), "train": rows}
        left = {"duplicates": 0, "too_long": {"train": 2, "health": 0}}
        write_json(space.out / "problems.json", {"source": "planted", "problems": counts, "left_out": left})

    settings = recipe_of(ProblemsConfig(samples=len(names), training=rows))
    return _put(
        store, "problems", "planted", write, subject, **settings, ids=crc32(repr(list(names)).encode()), texts=texts
    )


def _concepts(
    store: ArtifactStore,
    problems: Artifact,
    subject: Artifact,
    present: np.ndarray,
    names: Sequence[str],
    grammar: str,
    tokens: Sequence[str],
) -> Artifact:
    def write(space: Workspace) -> None:
        texts = [f"{token}.0" if grammar == "seed" else token for token in tokens]
        categories = ["operator" if token in "*+" else "number" for token in tokens]
        numbers = np.arange(len(tokens), dtype=np.int32)
        vocabulary = {"token": numbers, "text": texts, "category": categories, "samples": present.sum(0)}
        pl.DataFrame(vocabulary).write_parquet(space.out / "vocabulary.parquet")
        sample, token = (item.astype(np.int32) for item in np.nonzero(present))
        pl.DataFrame({"sample": sample, "token": token}).write_parquet(space.out / "present.parquet")
        samples = {"sample": np.arange(len(names), dtype=np.int32), "id": list(names)}
        counted = pl.Series(present.sum(1).astype(np.int32))
        pl.DataFrame(samples).with_columns(count=counted).write_parquet(space.out / "samples.parquet")
        facts = {"grammar": grammar, "counted": "annotations", "samples": len(names), "unique_tokens": len(tokens)}
        means = {"tokens_per_problem": 3.5, "distinct_per_problem": float(present.sum(1).mean())}
        write_json(space.out / "concepts.json", {**facts, **means, "vocabulary": len(tokens), "without_tokens": 0})

    return _put(
        store,
        "concepts",
        "planted",
        write,
        problems,
        subject,
        words=list(tokens),
        **recipe_of(ConceptsConfig(grammar=grammar)),
    )


def _sae(store: ArtifactStore, cache: Artifact, site: str, latents: int, k: int, seed: int, rows: int) -> Artifact:
    facts = {"hookpoint": site, "num_latents": latents, "k": k, "rows": rows, "activation": "abs_topk"}
    training = {"num_latents": latents, "k": k, "seed": seed, "activation": "abs_topk", "epochs": 4}
    write = _json("training.json", facts)
    return _put(store, "sae", site, write, cache, hookpoint=site, training=training)


def _activity(
    store: ArtifactStore,
    cache: Artifact,
    saes: Sequence[Artifact],
    sites: Sequence[str],
    hookpoint: str,
    active: Sequence[np.ndarray],
    k: int,
) -> Artifact:
    def write(space: Workspace) -> None:
        facts, entries, there = [], [], []
        for slot, (site, matrix) in enumerate(zip(sites, active)):
            sample, latent = (item.astype(np.int32) for item in np.nonzero(matrix))
            number = np.full(len(sample), slot, np.int32)
            entries.append(pl.DataFrame({"site": number, "latent": latent, "sample": sample}))
            rows = np.arange(len(matrix), dtype=np.int32)
            there.append(pl.DataFrame({"site": np.full(len(rows), slot, np.int32), "sample": rows}))
            named = {"site": site, "hookpoint": hookpoint, "slot": slot, "title": SLOTS[slot]}
            facts.append(
                {**named, "latents": matrix.shape[1], "k": k, "rows": len(rows), "active_share": matrix.mean()}
            )
        pl.concat(entries).sort("site", "latent", "sample").write_parquet(space.out / "active.parquet")
        pl.concat(there).write_parquet(space.out / "samples.parquet")
        write_json(space.out / "activity.json", {"sites": facts})

    return _put(store, "activity", hookpoint, write, cache, *saes, sites=list(sites))


def _active(present: np.ndarray, latents: int, bound: float, second: float, seed: int) -> np.ndarray:
    """Latents that fire with a token and a little noise; the others fire at random; one is silent."""
    rng = np.random.default_rng(seed)
    active = rng.random((len(present), latents)) < rng.uniform(0.15, 0.4, latents)
    own = rng.random(latents) < bound
    tokens = rng.integers(0, present.shape[1], latents)
    noise = rng.random((len(present), latents)) < 0.03
    both = np.random.default_rng(seed + 1).random(latents) < second
    held = present[:, tokens] | (present[:, (tokens + 5) % present.shape[1]] & both)
    active = np.where(own, held ^ noise, active)
    active[:, -1] = False
    return active
