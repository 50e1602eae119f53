"""Reports at their edges: one latent, nothing explained, sides that do not match, 96 SAEs, texts of every script."""

from __future__ import annotations

from typing import Any

import planted_reports as planted
from planted_enrichment import planted_side
from planted_reports import THEMES, World, build_world, put

from saeinterp.artifacts import Artifact, ArtifactStore, Workspace, read_json, write_json
from saeinterp.compare import compare_explainers, compare_interpretability
from saeinterp.config import ComparisonConfig
from saeinterp.report import Failure
from saeinterp.report.lineage import Lineage

POINT = "layers.5"
SCRIPTS = (
    ("hebrew", (" שלום", " עולם", "‏כן", " לא"), "מילים בעברית", "שלום, עולם"),
    ("arabic", (" مرحبا", " العالم", " نعم", " لا"), "كلمات بالعربية", "مرحبا، العالم"),
    ("emoji", (" 👩‍👩‍👧‍👦", " 🏳️‍🌈", " 🇺🇳", "🙂"), "family and flag emoji 👩‍👩‍👧‍👦", "🏳️‍🌈, 🇺🇳"),
    ("combining", (" e\u0301", " n\u0303o", " ก็", " नमस्ते"), "marks above letters: é", "é, ñ, ก็"),
    ("han", (" 世界", " 你好", " 日本語", " 한국어"), "汉字 and 한글", "世界, 你好"),
)


def one_latent(store: ArtifactStore) -> dict[str, Any]:
    """A single latent, explained on both sides."""
    return build_world(store, control=False, hookpoints=(POINT,), latents=1, failing_explanations=False).arguments(
        title="One latent"
    )


def nothing_explained(store: ArtifactStore) -> dict[str, Any]:
    """Every explanation failed, on both sides."""
    themes: Any = tuple((name, tokens, None, None) for name, tokens, _, _ in THEMES)
    world = build_world(store, control=False, hookpoints=(POINT,), themes=themes)
    return world.arguments(title="Nothing explained")


def one_side_failed(store: ArtifactStore) -> dict[str, Any]:
    """Every explanation of A failed, none of B."""
    themes: Any = tuple((name, tokens, None, b) for name, tokens, _, b in THEMES)
    world = build_world(store, control=False, hookpoints=(POINT,), themes=themes)
    return world.arguments(title="Only B explained")


def one_side_missing(store: ArtifactStore) -> dict[str, Any]:
    """A model whose layers all failed, beside one that has its health."""
    world = build_world(store, compare=False, control=False, hookpoints=(POINT,))
    side = planted.SUBJECT
    return world.arguments(
        title="Layer health of two models",
        health={side: world.health[side], "other": []},
        saes={side: world.saes[side], "other": []},
        failures=[Failure(stage="training", hookpoint=POINT, side="other", error="out of memory")],
    )


def unmatched(store: ArtifactStore) -> dict[str, Any]:
    """B was scored by another scorer on another example set, and the comparison was asked for all the same."""
    world = build_world(store, control=False, hookpoints=(POINT,))
    assert world.explainers is not None
    lineage = Lineage(store)
    a, b = lineage.inputs(world.explainers, "scores")[:2]
    explanations = lineage.inputs(b, "explanations")[0]
    examples = lineage.inputs(b, "examples")[0]
    frame, labels = planted._examples(world, POINT), planted._labels(world, "b")
    others = put(store, "examples", POINT, planted._write_examples(frame, world), *lineage.inputs(examples), window=32)
    again = put(
        store,
        "explanations",
        "top-tokens-elsewhere",
        planted._write_explanations(labels, "top-tokens"),
        *[others if item.kind == "examples" else item for item in lineage.inputs(explanations)],
        **planted._explainer_config("b", POINT),
    )
    scores = put(
        store,
        "scores",
        "top-tokens-elsewhere",
        planted._write_scores(world, frame, labels, POINT, "b", judge=""),
        again,
        others,
        kind="detection",
        threshold=0.5,
        llm={"model": "another-judge", "temperature": 0.0},
    )
    config = ComparisonConfig(bootstrap=200, allow_unmatched=True)
    made = compare_explainers([a], [scores], {}, config=config, store=store)
    return world.arguments(title="Unmatched", explainer_comparison=made, config=config)


def missing_metrics(store: ArtifactStore) -> dict[str, Any]:
    """Scores without probabilities, and health without some of its numbers."""
    world = build_world(store, control=False, hookpoints=(POINT,), probabilities=False, graded=False)
    full = world.health[planted.SUBJECT][0]
    data = read_json(full.file("health.json"))
    left = {key: value for key, value in data.items() if key not in ("kl_recovered", "cosine", "l0_mean", "always_on")}

    def write(space: Workspace) -> None:
        write_json(space.out / "health.json", left)

    lineage = Lineage(store)
    thin: Artifact = put(store, "health", "thin-" + POINT, write, *lineage.inputs(full), thin=True)
    return world.arguments(title="Missing metrics", health={planted.SUBJECT: [thin]})


def many_saes(store: ArtifactStore) -> dict[str, Any]:
    """96 SAEs, sixteen layers at six positions, with health, grades, training and curves."""
    points = tuple(f"layers.{layer}@{position}" for layer in range(16) for position in range(6))
    world = build_world(store, compare=False, control=False, hookpoints=points)
    return world.arguments(title="Sixteen layers at six positions")


def scripts(store: ArtifactStore) -> dict[str, Any]:
    """Labels and tokens from right to left, of joined emoji, of combining marks."""
    world = build_world(store, control=False, hookpoints=(POINT,), themes=SCRIPTS, failing_explanations=False)
    return world.arguments(title="כל הכתבים 🙂")


def three_explainers(store: ArtifactStore) -> dict[str, Any]:
    """A ranking of three explainers, judged twice."""
    world = build_world(store, third=True, second_scorer=True, control=False, hookpoints=(POINT,))
    return world.arguments(title="Three explainers, two scorers")


def several_seeds(store: ArtifactStore) -> dict[str, Any]:
    """A model and its control on two datasets, with two SAE trainings per layer."""
    world = build_world(store, compare=False, hookpoints=(POINT,), datasets=("held-out", "squad"), seeds=(0, 1))
    return world.arguments(title="Two datasets, two seeds")


def tokens_of_two_models(store: ArtifactStore) -> dict[str, Any]:
    """Latents and tokens of two models, compared."""
    sides = {"Small": planted_side(store, "Small"), "Other": planted_side(store, "Other", bound=0.25)}
    made = compare_interpretability(
        [sides["Small"]],
        [sides["Other"]],
        controls={},
        config=ComparisonConfig(),
        names=("Small", "Other"),
        store=store,
    )
    arguments = World(store).arguments(title="Latents and tokens of two models")
    return {**arguments, "enrichment": sides, "interpretability": made}


EDGES = {
    build.__name__: build
    for build in (
        one_latent,
        nothing_explained,
        one_side_failed,
        one_side_missing,
        unmatched,
        missing_metrics,
        many_saes,
        scripts,
        three_explainers,
        several_seeds,
        tokens_of_two_models,
    )
}
