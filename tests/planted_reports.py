"""Artifact folders as the pipeline leaves them, made up but consistent, for reports to be written from.

Verdicts are drawn, everything that can be computed from them is computed by the real code: health from
document sums, scores from verdicts, comparisons by the real steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import ComparisonConfig, GradingConfig
from saeinterp.health import grade_layers
from saeinterp.health.documents import COLUMNS, DocumentSums
from saeinterp.health.reconstruction import Reconstruction
from saeinterp.health.summary import health_checks, health_values
from saeinterp.stats import auroc, classification

HOOKPOINTS = ("layers.5", "layers.10", "layers.15")
NUM_LATENTS, K = 1152, 32
SUBJECT, CONTROL = "subject", "random weights"
THEMES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("years and dates", (" 1994", " 2008", " March", " Tuesday"), "Years and dates", "1994, 2008, March, Tuesday"),
    ("loops", (" for", " while", " range", " iterate"), "Loop statements and iteration", "for, while, range, iterate"),
    ("negation", (" not", " never", " no", " cannot"), "Words that negate a statement", "not, never, no, cannot"),
    ("places", (" Paris", " Oslo", " Lima", " Kyoto"), "Names of cities", "Paris, Oslo, Lima, Kyoto"),
    (
        "errors",
        (" raise", " error", " exception", " ValueError"),
        "Exceptions and error handling",
        "raise, error, exception",
    ),
    ("quantities", (" twelve", " dozen", " half", " 40"), "Amounts and quantities", "twelve, dozen, half, 40"),
    ("quotes", (" said", " asked", " replied", ' "'), "Reported speech", 'said, asked, replied, "'),
)
FILLER = (" the", " of", " a", " value", " is", " used", " when", " this", " object", " has", " been", " called")


@dataclass
class World:
    """A store with everything a report reads."""

    store: ArtifactStore
    hookpoints: Sequence[str] = HOOKPOINTS
    latents: int = 7
    themes: Sequence[tuple[str, tuple[str, ...], str, str]] = THEMES
    failing_explanations: bool = True
    probabilities: bool = True
    hostile_reply: str | None = None
    hostile_name: str | None = None
    health: dict[str, list[Artifact]] = field(default_factory=dict)
    saes: dict[str, list[Artifact]] = field(default_factory=dict)
    datasets: Sequence[str | None] = (None,)
    seeds: Sequence[int] = (0,)
    explainers: Artifact | None = None
    third: bool = False
    self_scored: bool = False
    second_scorer: bool = False
    pairs: Artifact | None = None
    agreement: Artifact | None = None
    models: Artifact | None = None
    grades: dict[str, Artifact] = field(default_factory=dict)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """The arguments of `write_report`."""
        return {
            "title": "SmolLM2 135M and top-tokens as explainers",
            "explainer_comparison": self.explainers,
            "explainer_pairs": self.pairs,
            "scorer_agreement": self.agreement,
            "model_comparison": self.models,
            "health": self.health,
            "saes": self.saes,
            "failures": (),
            "config": ComparisonConfig(),
            "grades": self.grades,
            "store": self.store,
            **changes,
        }


def put(
    store: ArtifactStore, step: str, name: str, write: Callable[[Workspace], None], *inputs: Ref, **config: Any
) -> Artifact:
    """Make an artifact of kind `step` whose payload `write` writes."""
    return store.build(Recipe(step, name, 1, config, inputs), write)


def build_world(
    store: ArtifactStore, *, compare: bool = True, control: bool = True, graded: bool = True, **options: Any
) -> World:
    """Everything up to the comparisons."""
    world = World(store, **options)
    subject = _subject(store, "pretrained")
    corpus = _corpus(store, subject)
    sides = {SUBJECT: subject} | ({CONTROL: _subject(store, "random")} if control else {})
    caches = {}
    for side, model in sides.items():
        caches[side] = put(store, "activations", model.name, _json("cache.json", {"hookpoints": {}}), model, corpus)
        points = [(name, seed) for name in world.hookpoints for seed in world.seeds]
        world.saes[side] = [_sae(store, caches[side], name, side, seed) for name, seed in points]
        world.health[side] = [
            _health(store, (model, corpus, caches[side], sae), name, side, dataset, seed)
            for dataset in world.datasets
            for (name, seed), sae in zip(points, world.saes[side])
        ]
        absorption = [_absorption(store, sae, name, side) for (name, _), sae in zip(points, world.saes[side])]
        if graded:
            world.grades[side] = grade_layers(world.health[side], absorption, config=GradingConfig(), store=store)
    if compare:
        world.explainers = _explainers(world, subject, corpus, caches[SUBJECT])
    if control:
        from saeinterp.compare.models import compare_models

        world.models = compare_models(
            world.health[SUBJECT],
            world.health[CONTROL],
            grades={"a": world.grades[SUBJECT], "b": world.grades[CONTROL]} if graded else {},
            config=ComparisonConfig(),
            names=(SUBJECT, CONTROL),
            store=store,
        )
    return world


def _json(name: str, value: Any) -> Callable[[Workspace], None]:
    return lambda space: write_json(space.out / name, value)


def _subject(store: ArtifactStore, weights: str) -> Artifact:
    title = "SmolLM2-135M-Instruct" + (" (random weights)" if weights == "random" else "")
    facts = {
        "model": "demo:smollm2-135m",
        "title": title,
        "revision": None,
        "weights": weights,
        "dtype": "bfloat16",
        "num_layers": 30,
        "d_model": 576,
        "vocab_size": 49152,
        "fingerprint": "0" * 16,
    }
    return put(
        store, "subject", f"smollm2-135m-{weights}", _json("subject.json", facts), model=facts["model"], weights=weights
    )


def _corpus(store: ArtifactStore, subject: Artifact) -> Artifact:
    data = {
        "special_ids": [0, 1, 2],
        "context_length": 128,
        "tokens": {"train": 84112, "health": 12031, "explain": 11870, "score": 12402},
        "documents": {"train": 402, "health": 57, "explain": 55, "score": 60},
        "fingerprint": "f" * 16,
        "sources": [{"name": "builtin:python-reference", "documents": 574}],
    }

    def write(space: Workspace) -> None:
        write_json(space.out / "corpus.json", data)
        space.counts = {"documents": 574, "contexts": 941, "tokens": 120415}

    return put(store, "corpus", "python-reference", write, subject, context_length=128)


def _sae(store: ArtifactStore, cache: Artifact, hookpoint: str, side: str, seed: int = 0) -> Artifact:
    depth = HOOKPOINTS.index(hookpoint) if hookpoint in HOOKPOINTS else 0
    floor = (0.16, 0.22, 0.27)[depth] if side == SUBJECT else 0.71
    steps = list(range(10, 331, 10))
    fvu = [floor + (0.9 - floor) * float(np.exp(-step / 70)) for step in steps]

    def write(space: Workspace) -> None:
        curves = {
            "step": steps,
            "rows_seen": [step * 1024 for step in steps],
            "fvu_train": fvu,
            "fvu_heldout": [value + 0.01 for value in fvu],
            "aux_loss": [0.0 for _ in steps],
            "l0": [float(K) for _ in steps],
            "dead": [max(0, 300 - 4 * step + 40 * depth) if step > 20 else 0 for step in steps],
            "revived": [0 for _ in steps],
            "lr": [1e-3 for _ in steps],
        }
        pl.DataFrame(curves).write_parquet(space.out / "curves.parquet")
        summary = {
            "hookpoint": hookpoint,
            "d_in": 576,
            "num_latents": NUM_LATENTS,
            "k": K,
            "activation": "topk",
            "optimizer": "adam",
            "steps": 330,
            "rows_seen": 330 * 1024,
            "rows": 84000,
            "rows_heldout": 4096,
            "fvu_heldout": fvu[-1] + 0.01,
            "dead": 40 * depth,
        }
        write_json(space.out / "training.json", summary)
        space.counts = {name: summary[name] for name in ("rows", "rows_seen", "steps", "num_latents", "dead")}

    return put(
        store,
        "sae",
        hookpoint,
        write,
        cache,
        hookpoint=hookpoint,
        training={"num_latents": NUM_LATENTS, "k": K, "seed": seed},
    )


def _absorption(store: ArtifactStore, sae: Artifact, hookpoint: str, side: str) -> Artifact:
    """As the absorption step leaves it: measured on the subject, not applicable to its control."""
    depth = HOOKPOINTS.index(hookpoint) if hookpoint in HOOKPOINTS else 0
    value = {"value": 0.11 + 0.13 * depth, "low": 0.08 + 0.13 * depth, "high": 0.14 + 0.13 * depth, "reason": None}
    missing = {"value": None, "low": None, "high": None, "reason": "only 3 letters have a probe with F1 above 0.6"}
    data = {
        **(value if side == SUBJECT else missing),
        "hookpoint": hookpoint,
        "random_control": {"value": 0.07, "reason": None} if side == SUBJECT else missing,
        "decoder_top_cosine": {
            "value": 0.31,
            "null_value": 0.146,
            "null_low": 0.144,
            "null_high": 0.149,
            "pairs": 50,
        },
    }
    return put(store, "absorption", hookpoint, _json("absorption.json", data), sae, hookpoint=hookpoint)


def _health(
    store: ArtifactStore,
    inputs: tuple[Artifact, ...],
    hookpoint: str,
    side: str,
    dataset: str | None = None,
    seed: int = 0,
) -> Artifact:
    depth = HOOKPOINTS.index(hookpoint) if hookpoint in HOOKPOINTS else 0
    rng = np.random.default_rng(
        [depth, side == SUBJECT, *([len(dataset)] if dataset else []), *([seed] if seed else [])]
    )
    tokens = rng.integers(120, 300, 57).astype(float)
    clean, spliced, zero, mean = (
        (3.4, 3.52 + 0.12 * depth, 10.8, 9.1) if side == SUBJECT else (10.91, 10.93, 10.80, 10.88)
    )
    error = (0.16, 0.23, 0.28)[depth] if side == SUBJECT else 0.72
    columns = dict(zip(COLUMNS, [tokens, tokens - 1], strict=False))

    def noisy(level: float) -> np.ndarray:
        return (tokens - 1) * (level + 0.06 * rng.standard_normal(len(tokens)))

    columns |= {"ce_clean": noisy(clean), "ce_zero": noisy(zero), "ce_mean": noisy(mean)}
    columns["ce_spliced"] = columns["ce_clean"] + (tokens - 1) * np.abs(rng.normal(spliced - clean, 0.02, len(tokens)))
    columns |= {"kl_spliced": noisy(max(0.05, spliced - clean)), "kl_zero": noisy(7.4 if side == SUBJECT else 0.2)}
    columns["squared_deviation"] = tokens * rng.normal(90, 8, len(tokens))
    columns["squared_error"] = columns["squared_deviation"] * rng.normal(error, 0.01, len(tokens))
    columns |= {"cosine": tokens * (0.93 - 0.02 * depth), "l0": tokens * K}
    sums = DocumentSums(np.arange(57, dtype=np.int32), np.stack([columns[name] for name in COLUMNS], axis=1))
    firings = np.floor(10 ** rng.normal(2.1, 0.7, NUM_LATENTS)).astype(np.int64)
    firings[: 60 * depth] = 0
    result = Reconstruction(
        hookpoint=hookpoint,
        documents=sums,
        firings=firings,
        l0_max=K,
        k=K,
        splice="all",
        masked={"position0": 94, "special": 12, "norm": 3},
        rows=int(tokens.sum()) + 109,
        usable=(),
        uniform_ce=None,
    )

    def write(space: Workspace) -> None:
        values = health_values(result, draws=200, seed=0)
        # The drawn firings do not add up to tokens × L0, so that one rule is left to the real thing.
        checks = health_checks({key: value for key, value in values.items() if key != "firings"})
        named = {"dataset": dataset} if dataset else {}
        write_json(space.out / "health.json", {**values, **named, "checks": [check._asdict() for check in checks]})
        sums.write(space.out / "documents.parquet")
        pl.DataFrame({"latent": np.arange(NUM_LATENTS, dtype=np.int32), "firings": firings}).write_parquet(
            space.out / "density.parquet"
        )
        space.counts = {key: values[key] for key in ("tokens", "documents", "num_latents", "dead")}

    options = {"hookpoint": hookpoint, "splice": "all", **({"dataset": dataset} if dataset else {})}
    return put(store, "health", f"{inputs[0].name}-{hookpoint}", write, *inputs, **options)


def _explainers(world: World, subject: Artifact, corpus: Artifact, cache: Artifact) -> Artifact:
    from saeinterp.compare import compare_explainers, compare_pairs, compare_scorers

    names = {"a": "SmolLM2 135M", "b": "top-tokens", "permuted": "permuted", "empty": "empty"}
    names |= {"c": "SmolLM2 360M"} if world.third else {}
    judges = ["", "judge-2"] if world.second_scorer else [""]
    scores: dict[tuple[str, str], list[Artifact]] = {(judge, side): [] for judge in judges for side in names}
    for hookpoint, sae in zip(world.hookpoints, world.saes[SUBJECT]):
        frame = _examples(world, hookpoint)
        latents = put(world.store, "latents", hookpoint, _json("latents.json", {}), cache, sae, hookpoint=hookpoint)
        examples = put(
            world.store, "examples", hookpoint, _write_examples(frame, world), latents, corpus, sae, window=24
        )
        for side, name in names.items():
            labels = _labels(world, side)
            explanations = put(
                world.store,
                "explanations",
                f"{name.lower().replace(' ', '-')}-{hookpoint}",
                _write_explanations(labels, world.hostile_name or name if side == "a" else name),
                examples,
                subject,
                sae,
                **_explainer_config(side, hookpoint),
            )
            for judge in judges:
                scores[judge, side].append(
                    put(
                        world.store,
                        "scores",
                        f"{name.lower().replace(' ', '-')}-{hookpoint}",
                        _write_scores(world, frame, labels, hookpoint, side, judge=judge),
                        explanations,
                        examples,
                        kind="detection",
                        threshold=0.5,
                        llm={"model": judge or _judge(world, side), "temperature": 0.0},
                    )
                )
    config = ComparisonConfig(bootstrap=200)
    together = list(combinations([side for side in names if len(side) == 1], 2))
    compared = [
        {
            f"{a}{b}": compare_explainers(
                scores[judge, a],
                scores[judge, b],
                {name: scores[judge, name] for name in ("permuted", "empty")},
                config=config,
                self_scored=world.self_scored and not judge,
                pairs=len(together),
                store=world.store,
            )
            for a, b in together
        }
        for judge in judges
    ]
    made = compared[0]
    if world.second_scorer:
        world.agreement = compare_scorers(made, compared[1], config=config, store=world.store)
    if world.third:
        world.pairs = compare_pairs(made, config=config, store=world.store)
    return made["ab"]


def _judge(world: World, side: str) -> str:
    return "judge-c" if world.self_scored and side == "c" else "demo:smollm2-135m"


def _explainer_config(side: str, hookpoint: str) -> dict[str, Any]:
    if side == "permuted":
        return {"kind": side, "seed": 0}
    if side == "empty":
        return {"kind": side}
    if side == "b":
        return {"kind": "top-tokens", "label": None, "hookpoint": hookpoint}
    model = "demo:smollm2-135m" if side == "a" else "judge-c"
    llm = {"provider": "in-process", "model": model, "temperature": 0.0, "max_tokens": 48}
    return {"kind": "llm", "label": None, "hookpoint": hookpoint, "llm": llm, "logit_lens": True}


def _examples(world: World, hookpoint: str) -> pl.DataFrame:
    """Twenty activating and fifteen silent windows for scoring, six for explaining, per latent."""
    rng = np.random.default_rng(crc32(hookpoint.encode()))
    rows: list[dict[str, Any]] = []
    for latent in range(world.latents):
        words = world.themes[latent % len(world.themes)][1]
        plan = [("explain", "activating", 1)] * 6
        plan += [("score", "activating", quantile) for quantile in range(10) for _ in range(2)]
        plan += [("score", kind, None) for kind in ("random", "similar", "near-miss") for _ in range(5)]
        for index, (role, kind, quantile) in enumerate(plan):
            tokens = [FILLER[rng.integers(len(FILLER))] for _ in range(24)]
            activations = [0.0] * 24
            if kind == "activating":
                for _ in range(rng.integers(1, 3)):
                    spot = int(rng.integers(2, 24))
                    tokens[spot] = str(rng.choice(words))
                    activations[spot] = float(np.float32(1.0 + (quantile or 0) + rng.random()))
            elif kind == "near-miss":
                tokens[int(rng.integers(2, 24))] = str(rng.choice(words))
            rows.append(
                {
                    "latent": latent_index(latent),
                    "example_id": index,
                    "role": role,
                    "kind": kind,
                    "quantile": quantile if kind == "activating" else None,
                    "doc_id": (0 if role == "explain" else 100) + int(rng.integers(0, 40)),
                    "context_id": index,
                    "start": 0,
                    "end": 24,
                    "text": "".join(tokens),
                    "token_ids": list(range(24)),
                    "tokens": tokens,
                    "activations": activations,
                }
            )
    schema = {"latent": pl.Int32, "example_id": pl.Int32, "quantile": pl.Int8, "doc_id": pl.Int32}
    return pl.DataFrame(rows, schema_overrides={**schema, "activations": pl.List(pl.Float32)})


def latent_index(latent: int) -> int:
    return 11 + 97 * latent


def _write_examples(frame: pl.DataFrame, world: World) -> Callable[[Workspace], None]:
    def write(space: Workspace) -> None:
        frame.write_parquet(space.out / "examples.parquet")
        tokens = [list(world.themes[place % len(world.themes)][1]) for place in range(world.latents)]
        table = pl.DataFrame({"latent": map(latent_index, range(world.latents)), "top_tokens": tokens})
        table.with_columns(pl.col("latent").cast(pl.Int32)).write_parquet(space.out / "latents.parquet")
        space.counts = {"latents": world.latents, "examples": len(frame)}

    return write


def _labels(world: World, side: str) -> list[tuple[int, str | None]]:
    labels: list[tuple[int, str | None]] = []
    for latent in range(world.latents):
        theme = world.themes[latent % len(world.themes)]
        text: str | None = {"a": theme[2], "b": theme[3], "c": theme[0], "empty": ""}.get(side)
        if side == "permuted":
            text = world.themes[(latent + 1) % len(world.themes)][2]
        if side == "a" and world.failing_explanations and latent == 3:
            text = None
        labels.append((latent_index(latent), text))
    return labels


def _write_explanations(labels: list[tuple[int, str | None]], name: str) -> Callable[[Workspace], None]:
    def write(space: Workspace) -> None:
        rows = [
            {
                "latent": latent,
                "status": "control" if name in ("permuted", "empty") else "ok" if text is not None else "failed",
                "explanation": text,
                "reply": text,
                "reason": None if text is not None else "the reply holds no explanation",
                "explainer": name,
            }
            for latent, text in labels
        ]
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(space.out / "explanations.parquet")
        space.counts = {"explanations": len(rows), "failed": sum(row["status"] == "failed" for row in rows)}

    return write


def _write_scores(
    world: World, frame: pl.DataFrame, labels: list[tuple[int, str | None]], hookpoint: str, side: str, *, judge: str
) -> Callable[[Workspace], None]:
    """Verdicts with a hit rate of the side and the latent; scores follow from them."""

    def write(space: Workspace) -> None:
        rng = np.random.default_rng(crc32(f"{hookpoint} {side}{judge}".encode()))
        # What makes a latent hard makes it hard for both sides.
        hard = np.random.default_rng(5).normal(0, 0.12, world.latents)
        skill = {"a": 0.72, "b": 0.66, "c": 0.93, "permuted": 0.52, "empty": 0.5}[side]
        verdicts, scores = [], []
        for place, (latent, text) in enumerate(labels):
            rare = place == world.latents - 1 and world.latents > 1
            status = "too_rare" if rare else "explanation_failed" if text is None else "scored"
            rows = [] if rare else _verdicts(world, frame, latent, min(0.97, skill + hard[place]), rng)
            verdicts += rows
            scores.append(_score(latent, hookpoint, status, text, rows, world))
        pl.DataFrame(verdicts, infer_schema_length=None).write_parquet(space.out / "verdicts.parquet")
        pl.DataFrame(scores, infer_schema_length=None).write_parquet(space.out / "scores.parquet")
        space.counts = {"requests": len(verdicts), "verdicts": len(verdicts), "latents": len(scores)}

    return write


def _verdicts(
    world: World, frame: pl.DataFrame, latent: int, skill: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for example in frame.filter((pl.col("latent") == latent) & (pl.col("role") == "score")).iter_rows(named=True):
        truth = example["kind"] == "activating"
        verdict = truth if rng.random() < skill else not truth
        usable = rng.random() > 0.01
        probability = float(
            np.clip(rng.normal(0.78 if verdict else 0.24, 0.12), 0.51 if verdict else 0.02, 0.98 if verdict else 0.49)
        )
        rows.append(
            {
                **{name: example[name] for name in ("latent", "example_id", "kind", "quantile", "doc_id")},
                "truth": truth,
                "verdict": verdict if usable else None,
                "probability": probability if usable and world.probabilities else None,
                "reply": world.hostile_reply
                or (("1" if verdict else "0") if usable else "I am not sure what you mean."),
                "status": "ok" if usable else "unusable",
            }
        )
    return rows


def _score(
    latent: int, hookpoint: str, status: str, text: str | None, rows: list[dict[str, Any]], world: World
) -> dict[str, Any]:
    rng = np.random.default_rng(latent)
    usable = [row for row in rows if row["status"] == "ok"]
    counts = [
        sum(row["truth"] is truth and row["verdict"] is verdict for row in usable)
        for truth, verdict in ((True, True), (False, True), (False, False), (True, False))
    ]
    base: dict[str, Any] = {
        "latent": latent,
        "hookpoint": hookpoint,
        "status": status,
        "explanation": text,
        "n": len(rows),
        "usable": len(usable),
        "firings": int(10 ** rng.uniform(1.5, 3.5)),
    }
    base["density"] = base["firings"] / 24272
    names = ("precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc")
    numbers = classification(*(np.array([count], dtype=float) for count in counts))._asdict() if usable else {}
    for name in names:
        base[name] = float(numbers[name][0]) if usable and np.isfinite(numbers[name][0]) else None
    for name, count in zip(("tp", "fp", "tn", "fn"), counts):
        base[name] = count if rows else None
    base["coverage"] = len(usable) / len(rows) if rows else None
    scored = [(row["truth"], row["probability"]) for row in usable if row["probability"] is not None]
    base["auroc"] = auroc([t for t, _ in scored], [p for _, p in scored]) if scored else None
    positives = sum(row["truth"] for row in usable)
    base["f1_always_yes"] = 2 * positives / (positives + len(usable)) if usable else None
    return base
