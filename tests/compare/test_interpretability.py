"""Two models by the latents that go with tokens: planted gaps, chance, pairing, sizes, seeds and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from planted_enrichment import SAMPLES, planted_side
from scipy import stats

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.compare import InterpretabilityComparison, compare_interpretability, read_interpretability
from saeinterp.compare.interpretability_draws import difference_chance, upper_chance
from saeinterp.compare.interpretability_results import RateDifference
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError, ConfigError
from saeinterp.subject.sizes import parameter_count

NAMES = ("Small", "Large")
DEEPER: dict[str, Any] = {"blocks": 8, "width": 32, "layers": (3, 7), "latents": 64, "k": 16}
"""Twice as deep and wide, with dictionaries to match, at the same relative depths."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("enrichment") / "runs")


@pytest.fixture(scope="module")
def small(shared: ArtifactStore) -> Artifact:
    return planted_side(shared, "Small")


@pytest.fixture(scope="module")
def large(shared: ArtifactStore) -> Artifact:
    return planted_side(shared, "Large", bound=0.25, **DEEPER)


@pytest.fixture(scope="module")
def control(shared: ArtifactStore) -> Artifact:
    return planted_side(shared, "Small", weights="random", bound=0.0)


@pytest.fixture(scope="module")
def found(shared: ArtifactStore, small: Artifact, large: Artifact, control: Artifact) -> InterpretabilityComparison:
    return compare(shared, [small], [large], controls={"a": [control]})


def compare(
    store: ArtifactStore,
    a: list[Artifact],
    b: list[Artifact],
    *,
    names: tuple[str, str] = NAMES,
    controls: Any = None,
    **config: Any,
) -> InterpretabilityComparison:
    settings = ComparisonConfig(**config)
    made = compare_interpretability(a, b, controls=controls or {}, config=settings, names=names, store=store)
    return read_interpretability(made)


def rate(
    found: InterpretabilityComparison, name: str, preset: str = "robust", scope: str = "model", place: Any = None
) -> RateDifference:
    return next(
        row
        for row in found.rates
        if (row.rate, row.preset, row.scope) == (name, preset, scope) and place in (None, row.position, *row.hookpoints)
    )


def answer(found: InterpretabilityComparison, name: str, preset: str = "robust") -> Any:
    return next(item for item in found.answers if (item.id, item.preset) == (name, preset))


def halves(artifact: Artifact, top: str, bottom: str, preset: str = "robust") -> np.ndarray:
    draws = pl.read_parquet(artifact.file(f"draws-{preset}.parquet")).filter(pl.col("draw") == "half")
    summed = draws.group_by("number").agg(pl.col(top).sum(), pl.col(bottom).sum()).sort("number")
    return (summed[top] / summed[bottom]).to_numpy()


def test_a_planted_gap_is_found_and_said_of_this_pair_of_saes_only(found: InterpretabilityComparison) -> None:
    row = rate(found, "monosemantic")
    assert row.verdict == "different"
    assert row.higher == "a"
    assert row.high is not None
    assert row.high < 0
    assert found.matched
    assert found.sentence.startswith("This pair of SAEs only: one SAE training each.")
    assert "higher for Small" in found.sentence
    assert answer(found, "monosemantic").rate == row


def test_values_and_nulls_are_those_of_the_enrichments(
    found: InterpretabilityComparison, small: Artifact, large: Artifact
) -> None:
    seen = 0
    for side, artifact in (("a", small), ("b", large)):
        rows = read_json(artifact.file("rates.json"))["rates"]
        stored = {(row["preset"], row["scope"], row["hookpoint"], row["position"], row["rate"]): row for row in rows}
        for item in found.rates:
            hookpoint = item.hookpoints["ab".index(side)]
            row = stored[item.preset, item.scope, hookpoint, item.position, item.rate]
            value = getattr(item, side)
            assert (value.value, value.low, value.high, value.of) == (row["value"], row["low"], row["high"], row["of"])
            for kind, null in row["nulls"].items():
                assert value.nulls[kind].mean == pytest.approx(null["mean"]), (item.where, item.rate)
                assert value.nulls[kind].p == null["p"]
                seen += null["mean"] is not None
    assert seen > 40


def test_the_interval_pairs_half_samples_of_the_same_problems(
    found: InterpretabilityComparison, small: Artifact, large: Artifact
) -> None:
    row = rate(found, "interpretable")
    drawn = [halves(item, "interpretable", "alive") for item in (small, large)]
    spread = np.std(drawn[1] - drawn[0], ddof=1)
    assert row.difference is not None
    assert row.low == pytest.approx(row.difference - stats.norm.ppf(0.975) * spread)
    assert row.high == pytest.approx(row.difference + stats.norm.ppf(0.975) * spread)
    assert "the same on both sides" in row.method


def test_other_problems_are_refused_and_where_allowed_compared_unpaired(
    shared: ArtifactStore, small: Artifact, large: Artifact
) -> None:
    other = planted_side(shared, "Large", bound=0.25, ids=[f"train_{index + 40}" for index in range(SAMPLES)], **DEEPER)
    with pytest.raises(ComparabilityError, match="problems analysed"):
        compare(shared, [small], [other])
    loose = compare(shared, [small], [other], allow_unmatched=True)
    assert not loose.matched
    check = next(row for row in loose.comparability if row.field == "problems analysed")
    assert check.note == "120 problems are on both sides"
    row = rate(loose, "interpretable")
    drawn = [halves(item, "interpretable", "alive") for item in (small, other)]
    spread = np.sqrt(np.var(drawn[0], ddof=1) + np.var(drawn[1], ddof=1))
    assert row.low is not None
    assert row.high is not None
    assert row.high - row.low == pytest.approx(2 * stats.norm.ppf(0.975) * spread)
    assert "not the same" in row.method


def test_latents_that_have_nothing_to_do_with_tokens_say_nothing_of_the_models(shared: ArtifactStore) -> None:
    sides = [planted_side(shared, name, bound=0.0, presets=("robust",)) for name in ("Idle", "Idler")]
    found = compare(shared, [sides[0]], [sides[1]], names=("Idle", "Idler"))
    row = rate(found, "interpretable")
    assert row.verdict == "chance"
    assert row.higher is None
    assert "neither rate is distinguishable from chance" in row.sentence
    assert "nothing about the models follows" in row.sentence


def test_a_difference_is_held_against_the_differences_that_chance_gives() -> None:
    a = np.linspace(0.70, 0.72, 39)
    b = a + np.tile([0.01, 0.02, 0.03], 13)  # chance: b is higher by 0.02 on average
    null = difference_chance(0.05, a, b)
    assert null.mean == pytest.approx(0.02)
    assert null.p == 1 / 40
    assert difference_chance(0.02, a, b).p == 1.0
    assert difference_chance(0.03, a, b).p == (1 + 26) / 40  # 26 draws lie at least as far from 0.02
    assert upper_chance(0.715, a).p == (1 + 10) / 40
    assert upper_chance(0.715, np.where(a > 0.715, np.inf, a)).p == (1 + 10) / 40


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("k / latents", {"k": 12}),
        ("latents / width", {"latents": 96, "k": 24}),
        ("rows of SAE training", {"rows": 5978}),
        ("relative depth", {"layers": (1, 7)}),
        ("vocabulary", {"grammar": "seed"}),
        ("positions positions.select", {"select": "last:2@cot"}),
        ("text of the shared problems", {"texts": "riddle"}),
    ],
)
def test_sides_that_differ_in_what_should_be_equal_are_refused_by_name(
    shared: ArtifactStore, small: Artifact, field: str, change: dict[str, Any]
) -> None:
    other = planted_side(shared, "Large", **{**DEEPER, "presets": ("robust",), "draws": 0, **change})
    with pytest.raises(ComparabilityError, match=field):
        compare(shared, [small], [other])
    loose = compare(shared, [small], [other], allow_unmatched=True)
    assert field in [row.field for row in loose.comparability if row.severity == "hard" and not row.ok]


def test_layers_meet_at_the_same_relative_depth_and_positions_at_the_same_slot(
    found: InterpretabilityComparison,
) -> None:
    layers = {row.hookpoints for row in found.rates if row.scope == "layer"}
    assert layers == {("layers.1", "layers.3"), ("layers.3", "layers.7")}
    slots = {(row.position, row.where) for row in found.rates if row.scope == "position"}
    assert slots == {(0, "reasoning 1/2"), (1, "reasoning 2/2")}
    layer = rate(found, "interpretable", scope="layer", place="layers.7")
    assert (layer.a.of, layer.b.of) == (62, 126)  # two SAEs each, one latent of each silent


def test_parameters_are_those_of_the_model_and_tell_which_is_larger(
    found: InterpretabilityComparison, small: Artifact
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    subjects = [item for item in (small.path.parent.parent / "subject").iterdir() if item.name.startswith("Small-p")]
    values = read_json(subjects[0] / "model" / "config.json")
    real = LlamaForCausalLM(LlamaConfig(**values))
    assert found.sizes.a == real.num_parameters()
    assert found.sizes.larger == "b"
    artifact = Artifact(kind="subject", name="Small-pretrained", hash="0" * 16, path=subjects[0])
    assert parameter_count(artifact) == found.sizes.a


def test_parameters_of_a_checkpoint_that_has_gone_are_not_known(tmp_path: Any) -> None:
    (tmp_path / "subject.json").write_text('{"source": "folder", "path": "/nowhere", "model": "m"}', encoding="utf-8")
    assert parameter_count(Artifact(kind="subject", name="s", hash="0" * 16, path=tmp_path)) is None


def test_two_models_do_not_answer_whether_size_matters(found: InterpretabilityComparison, control: Artifact) -> None:
    item = answer(found, "size")
    assert item.verdict == "not answerable with two models"
    assert f"Large ({found.sizes.b:,} parameters)" in item.sentence
    assert "lower for the larger model" in item.sentence
    against = found.controls[0]
    assert against.title == "random-weights control of Small"
    row = next(row for row in against.rates if (row.rate, row.preset) == ("monosemantic", "robust"))
    assert row.higher == "a"


def test_models_of_one_size_are_not_asked_about_size(shared: ArtifactStore, small: Artifact, control: Artifact) -> None:
    item = answer(compare(shared, [small], [control]), "size")
    assert item.verdict == "not asked"
    assert "nothing here is about size" in item.sentence


def test_the_largest_enrichment_comes_with_its_pair_and_what_chance_gives(
    found: InterpretabilityComparison, small: Artifact
) -> None:
    item = answer(found, "maximum", "seed-gsm8k-chi2").maximum
    pairs = pl.read_parquet(small.file("pairs-seed-gsm8k-chi2.parquet")).filter("kept")
    top = pairs.sort("enrichment", descending=True).row(0, named=True)
    assert item.a.value == top["enrichment"]
    a, b, c, d = (top[name] for name in "abcd")
    assert item.a.value == pytest.approx((a / (a + b)) / (c / (c + d)))
    assert (item.a.pair.id, item.a.pair.token, item.a.pair.c) == (top["id"], top["text"], c)
    ratio = stats.contingency.relative_risk(a, a + b, c, c + d).confidence_interval(0.95)
    assert (item.a.pair.low, item.a.pair.high) == pytest.approx((ratio.low, ratio.high))
    ten = pairs.sort("enrichment", descending=True).head(10)
    assert item.a.pair.one_sample == (ten["c"] == 1).sum()
    draws = pl.read_parquet(small.file("draws-seed-gsm8k-chi2.parquet")).filter(pl.col("draw") == "free")
    largest = draws.group_by("number").agg(pl.col("max_enrichment").max())["max_enrichment"].drop_nulls()
    assert item.a.nulls["free"].p == (1 + (largest >= item.a.value).sum()) / (1 + len(largest))


def test_an_infinite_enrichment_is_no_number_to_compare(found: InterpretabilityComparison) -> None:
    item = answer(found, "maximum", "robust")
    assert item.maximum.a.value is None
    assert "(c = 0)" in item.sentence
    assert item.verdict == "not tested"


def test_three_trainings_a_side_speak_of_models_and_two_of_saes(shared: ArtifactStore) -> None:
    options: dict[str, Any] = {"presets": ("robust",), "draws": 24, "latents": 16, "k": 4}
    a = [planted_side(shared, "Small", seed=seed, **options) for seed in (0, 1, 2)]
    twice = {**DEEPER, **options, "latents": 32, "k": 8}
    b = [planted_side(shared, "Large", bound=0.25, seed=seed, **twice) for seed in (0, 1, 2)]
    two = compare(shared, a[:2], b[:2])
    assert rate(two, "interpretable").models is None
    assert two.sentence.startswith("These SAEs only: SAE trainings 2 of Small and 2 of Large")

    three = compare(shared, a, b)
    assert three.sentence.startswith("SAE training seeds included: SAE trainings 3 of Small and 3 of Large.")
    row = rate(three, "interpretable")
    assert row.difference == pytest.approx(np.mean(row.b.values) - np.mean(row.a.values))
    drawn = [np.mean([halves(item, "interpretable", "alive") for item in side], axis=0) for side in (a, b)]
    parts = [np.var(row.a.values, ddof=1) / 3, np.var(row.b.values, ddof=1) / 3, np.var(drawn[1] - drawn[0], ddof=1)]
    freedom = sum(parts) ** 2 / sum(part**2 / df for part, df in zip(parts, (2, 2, 23)))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    assert row.models is not None
    assert (row.models.low, row.models.high) == pytest.approx((row.difference - half, row.difference + half))
    assert row.a.sd == pytest.approx(np.std(row.a.values, ddof=1))
    assert "with SAE training seeds included" in row.sentence


def test_without_draws_values_stand_and_nothing_is_tested(shared: ArtifactStore) -> None:
    options: dict[str, Any] = {"presets": ("robust",), "draws": 0}
    sides = [planted_side(shared, "Small", **options), planted_side(shared, "Large", **DEEPER, **options)]
    found = compare(shared, [sides[0]], [sides[1]])
    row = rate(found, "interpretable")
    assert row.difference is not None
    assert row.low is None
    assert row.verdict is None
    assert "no null was computed" in row.sentence
    assert "not tested" in row.sentence


def test_wrong_sides_are_named(shared: ArtifactStore, small: Artifact, large: Artifact, control: Artifact) -> None:
    with pytest.raises(ConfigError, match="of several models"):
        compare(shared, [small, large], [large])
    with pytest.raises(ConfigError, match="comes twice"):
        compare(shared, [small, planted_side(shared, "Small", draws=30)], [large])
    with pytest.raises(ConfigError, match="weights of its own"):
        compare(shared, [small], [large], controls={"b": [large]})
    with pytest.raises(ConfigError, match="no enrichment"):
        compare(shared, [], [large])
    one = planted_side(shared, "Small", presets=("robust",), draws=0)
    other = planted_side(shared, "Large", presets=("seed-gsm8k-chi2",), draws=0, **DEEPER)
    with pytest.raises(ComparabilityError, match="share no preset"):
        compare(shared, [one], [other])
    early = planted_side(shared, "Large", presets=("robust",), draws=0, **{**DEEPER, "layers": (0, 1)})
    with pytest.raises(ComparabilityError, match="relative depth"):
        compare(shared, [one], [early])
