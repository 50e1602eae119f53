"""Three or more explainers: the pairs' own numbers, Holm's adjustment over them, and words that follow from it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from planted_scores import Chain, verdict_rows

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import (
    ExplainerPairs,
    compare_explainers,
    compare_pairs,
    compare_pairs_recipe,
    read_explainer_comparison,
    read_explainer_pairs,
)
from saeinterp.compare.imported import import_scores
from saeinterp.config import ComparisonConfig
from saeinterp.errors import DataError
from saeinterp.stats import holm

FAST = ComparisonConfig(bootstrap=200)
HITS = {"a": 0.9, "b": 0.75, "c": 0.2}


def compared(store: ArtifactStore, *, latents: int = 10, failed: bool = False) -> dict[str, Artifact]:
    """Comparisons of three explainers with planted hit rates, and the permuted control of the first."""
    chain = Chain(store, latents=tuple(range(latents)))
    explanations = {
        "a": chain.explanations("big-7b"),
        "b": chain.explanations("small-1b"),
        "c": chain.explanations("top-tokens", kind="top-tokens"),
        "permuted": chain.explanations("big-7b", control="permuted"),
    }
    scores = {
        name: chain.scores(
            item,
            verdict_rows(chain.latents, HITS.get(name, 0.2), 0.2, seed=seed),
            status={0: "explanation_failed"} if failed and name == "b" else {},
        )
        for seed, (name, item) in enumerate(explanations.items())
    }
    return {
        x + y: compare_explainers(
            [scores[x]], [scores[y]], {"permuted": [scores["permuted"]]}, config=FAST, store=store, pairs=3
        )
        for x, y in combinations("abc", 2)
    }


def ranked(path: Path, columns: dict[str, list[float]], store: ArtifactStore) -> ExplainerPairs:
    pl.DataFrame({"latent": range(len(next(iter(columns.values()))))} | columns).write_csv(path)
    made = import_scores([path], metric="f1", config=FAST, store=store)
    assert made.pairs is not None
    return read_explainer_pairs(made.pairs)


def sentence(result: ExplainerPairs, name: str) -> str:
    return next(item.text for item in result.sentences if item.id == name)


def test_p_values_of_the_pairs_are_adjusted_by_holm_and_nothing_else_changes(store: ArtifactStore) -> None:
    comparisons = compared(store)
    alone = {pair: read_explainer_comparison(item) for pair, item in comparisons.items()}
    found = read_explainer_pairs(compare_pairs(comparisons, config=FAST, store=store))
    raw = [item.primary.p_value for item in alone.values()]
    assert [pair.paired.p_holm for pair in found.pairs] == holm(raw)
    equivalence = [item.primary.equivalence_p for item in alone.values()]
    assert [pair.equivalence_p_holm for pair in found.pairs] == holm(equivalence)
    for pair in found.pairs:
        stored = alone[pair.key_a + pair.key_b].primary
        assert pair.paired.model_copy(update={"p_holm": None, "family": "primary"}) == stored
        assert pair.comparison == comparisons[pair.key_a + pair.key_b].id


def test_the_ranking_has_the_planted_order_and_names_only_what_the_tests_support(store: ArtifactStore) -> None:
    found = read_explainer_pairs(compare_pairs(compared(store), config=FAST, store=store))
    assert [(item.rank, item.key, item.title, item.floor) for item in found.ranking] == [
        (1, "a", "big-7b", False),
        (2, "b", "small-1b", False),
        (3, "c", "top-tokens", True),
    ]
    assert "top-tokens" in found.ranking[0].higher_than
    assert found.ranking[2].higher_than == ()
    different = {(pair.title_a, pair.title_b) for pair in found.pairs if pair.verdict == "different"}
    assert {(item.title, low) for item in found.ranking for low in item.higher_than} == different
    assert "big-7b is higher than" in sentence(found, "ranking")


def test_six_latents_can_show_one_pair_but_not_three(store: ArtifactStore, tmp_path: Path) -> None:
    low = [0.10, 0.22, 0.31, 0.15, 0.27, 0.09]
    columns = {"A": low, "B": [x + 0.2 for x in low], "C": [x + 0.4 for x in low]}
    found = ranked(tmp_path / "six.csv", columns, store)
    # All six differ in one direction: p = 2 / 2^6, which Holm multiplies by three.
    assert [pair.paired.p_value for pair in found.pairs] == [0.03125] * 3
    assert [pair.paired.p_holm for pair in found.pairs] == [0.09375] * 3
    assert [pair.paired.verdict for pair in found.pairs] == ["different"] * 3
    assert [pair.verdict for pair in found.pairs] == ["inconclusive"] * 3
    assert all(item.higher_than == () for item in found.ranking)
    said = " ".join(item.text for item in found.sentences)
    assert "no explainer is higher than another" in said
    assert "A and B show no detectable difference" in said
    assert "is higher than A" not in said


def test_with_seven_latents_the_same_differences_stand(store: ArtifactStore, tmp_path: Path) -> None:
    low = [0.10, 0.22, 0.31, 0.15, 0.27, 0.09, 0.18]
    columns = {"A": low, "B": [x + 0.2 for x in low], "C": [x + 0.4 for x in low]}
    found = ranked(tmp_path / "seven.csv", columns, store)
    assert [pair.paired.p_holm for pair in found.pairs] == [3 * 2 / 2**7] * 3
    assert [item.title for item in found.ranking] == ["C", "B", "A"]
    assert [item.higher_than for item in found.ranking] == [("A", "B"), ("A",), ()]
    assert found.ranking[0].mean == pytest.approx(np.mean(low) + 0.4)


def test_equal_explainers_share_a_rank_and_are_equivalent(store: ArtifactStore, tmp_path: Path) -> None:
    low = [0.10, 0.22, 0.31, 0.15, 0.27, 0.09, 0.18, 0.21, 0.33]
    columns = {"A": low, "B": [x + 0.001 for x in low], "C": low}
    found = ranked(tmp_path / "equal.csv", columns, store)
    assert sorted((item.title, item.rank) for item in found.ranking) == [("A", 2), ("B", 1), ("C", 2)]
    assert {pair.verdict for pair in found.pairs if "B" not in (pair.title_a, pair.title_b)} == {"equivalent"}


def test_controls_are_shared_and_adjusted_over_all_explainers(store: ArtifactStore) -> None:
    comparisons = compared(store)
    found = read_explainer_pairs(compare_pairs(comparisons, config=FAST, store=store))
    assert sorted((test.title, test.control) for test in found.controls) == sorted(
        (title, control) for title in ("big-7b", "small-1b", "top-tokens") for control in ("always-yes", "permuted")
    )
    assert [test.paired.p_holm for test in found.controls] == holm([test.paired.p_value for test in found.controls])
    assert {family.name: family.tests for family in found.families}["controls"] == 6


def test_mcnemar_within_latents_is_adjusted_over_latents_and_pairs(store: ArtifactStore) -> None:
    comparisons = compared(store)
    made = compare_pairs(comparisons, config=FAST, store=store)
    found, table = read_explainer_pairs(made), pl.read_parquet(made.file("latents.parquet"))
    raw = [p for item in comparisons.values() for p in pl.read_parquet(item.file("latents.parquet"))["mcnemar_p"]]
    assert len(raw) == 30
    adjusted = [p for pair in ("ab", "ac", "bc") for p in table[f"mcnemar_p_holm_{pair}"]]
    assert adjusted == pytest.approx(holm(raw))
    assert [pair.mcnemar.significant for pair in found.pairs if pair.mcnemar] == [
        int((table[f"mcnemar_p_holm_{pair}"] < 0.05).sum()) for pair in ("ab", "ac", "bc")
    ]
    assert {family.name: family.tests for family in found.families}["latents"] == 30
    assert set(table.columns) >= {"f1_a", "f1_b", "f1_c", "explanation_a", "explanation_c", "status_b", "id"}


def test_failed_explanations_of_each_explainer_are_counted(store: ArtifactStore) -> None:
    found = read_explainer_pairs(compare_pairs(compared(store, failed=True), config=FAST, store=store))
    assert {item.title: item.failed for item in found.ranking} == {"big-7b": 0, "small-1b": 1, "top-tokens": 0}
    assert found.n_latents == 10
    assert "small-1b 300 of 300 (1 failed explanations" in sentence(found, "coverage")


def test_a_pair_says_that_it_is_not_adjusted(store: ArtifactStore) -> None:
    comparisons = compared(store)
    alone = read_explainer_comparison(comparisons["ab"])
    assert alone.pairs == 3
    assert alone.sentence.endswith("One of 3 pairs: p is before adjustment.")
    found = read_explainer_pairs(compare_pairs(comparisons, config=FAST, store=store))
    assert "Adjusted over 3 pairs: p " in sentence(found, "pair.ab")


def test_two_explainers_need_no_ranking(store: ArtifactStore) -> None:
    with pytest.raises(DataError, match="three or more explainers"):
        compare_pairs({"ab": compared(store)["ab"]}, config=FAST, store=store)


def test_the_recipe_follows_the_pairs_and_what_is_tested(store: ArtifactStore) -> None:
    comparisons = compared(store)
    recipe = compare_pairs_recipe(comparisons, config=FAST)
    assert compare_pairs_recipe(comparisons, config=ComparisonConfig(margin=0.1)).hash != recipe.hash
    assert compare_pairs_recipe(dict(list(comparisons.items())[:2]), config=FAST).hash != recipe.hash
