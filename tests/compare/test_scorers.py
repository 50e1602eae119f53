"""Two scorers on the same explanations: what is set side by side, what is adjusted, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import polars as pl
import pytest
from planted_scores import Chain, verdict_rows
from scipy import stats

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import (
    ScorerAgreement,
    compare_explainers,
    compare_scorers,
    compare_scorers_recipe,
    read_explainer_comparison,
    read_scorer_agreement,
)
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError, DataError
from saeinterp.stats import holm

FAST = ComparisonConfig(bootstrap=200)
TITLES = {"a": "big-7b", "b": "small-1b", "c": "mid-3b"}


def judged(
    chain: Chain, model: str, hits: Mapping[str, float], *, seed: int, config: ComparisonConfig = FAST
) -> dict[str, Artifact]:
    """Every pair of explainers as one scorer judged them, at planted hit rates."""
    judge = replace(chain, scorer={**chain.scorer, "llm": {"model": model}})
    scores = {
        key: judge.scores(judge.explanations(TITLES[key]), verdict_rows(chain.latents, hit, 0.2, seed=seed + number))
        for number, (key, hit) in enumerate(hits.items())
    }
    pairs = list(combinations(hits, 2))
    return {
        f"{a}{b}": compare_explainers([scores[a]], [scores[b]], {}, config=config, pairs=len(pairs), store=chain.store)
        for a, b in pairs
    }


def agreement(first: dict[str, Artifact], second: dict[str, Artifact], store: ArtifactStore) -> ScorerAgreement:
    return read_scorer_agreement(compare_scorers(first, second, config=FAST, store=store))


def sentence(result: ScorerAgreement, name: str) -> str:
    return next(item.text for item in result.sentences if item.id == name)


def test_scorers_that_say_the_same_agree_in_everything(store: ArtifactStore) -> None:
    chain = Chain(store)
    first, second = (judged(chain, model, {"a": 0.9, "b": 0.4}, seed=1) for model in ("judge-1b", "judge-2b"))
    found = agreement(first, second, store)
    (pair,) = found.pairs
    assert (found.scorer, found.second_scorer) == ("judge-1b (detection)", "judge-2b (detection)")
    assert pair.first.paired == pair.second.paired == read_explainer_comparison(first["ab"]).primary
    assert (pair.same_sign, pair.same_verdict, pair.n) == (True, True, 8)
    assert pair.pearson_r == pytest.approx(1)
    assert pair.spearman_r == pytest.approx(1)
    assert found.matched
    assert sentence(found, "second.ab").startswith("Judged by judge-2b (detection): big-7b is higher than small-1b: ")
    assert 'have the same sign; both say "different"; over 8 latents they correlate with r = 1.000' in sentence(
        found, "agreement.ab"
    )


def test_a_scorer_that_says_the_opposite_is_said_to_disagree_and_changes_nothing(store: ArtifactStore) -> None:
    chain = Chain(store)
    first = judged(chain, "judge-1b", {"a": 0.9, "b": 0.4}, seed=1)
    before = first["ab"].file("comparison.json").read_bytes()
    second = judged(chain, "judge-2b", {"a": 0.5, "b": 0.6}, seed=7)
    made = compare_scorers(first, second, config=FAST, store=store)
    found = read_scorer_agreement(made)
    (pair,) = found.pairs
    assert pair.first.paired.difference < 0 < pair.second.paired.difference
    assert (pair.same_sign, pair.same_verdict) == (False, False)
    assert pair.second.verdict == "inconclusive"
    text = sentence(found, "agreement.ab")
    assert 'different signs; judge-1b (detection) says "different" and judge-2b (detection) says "no detect' in text
    latents = pl.read_parquet(made.file("latents.parquet"))
    x, y = latents["difference"].to_numpy(), latents["difference_second"].to_numpy()
    assert pair.pearson_r == pytest.approx(stats.pearsonr(x, y).statistic)
    assert pair.spearman_r == pytest.approx(stats.spearmanr(x, y).statistic)
    assert x.mean() == pytest.approx(pair.first.paired.difference)
    assert first["ab"].file("comparison.json").read_bytes() == before


def test_several_pairs_are_adjusted_within_each_scorer(store: ArtifactStore) -> None:
    chain = Chain(store)
    hits = {"a": 0.9, "b": 0.55, "c": 0.5}
    first, second = (judged(chain, model, hits, seed=seed) for model, seed in (("judge-1b", 1), ("judge-2b", 30)))
    found = agreement(first, second, store)
    assert [pair.key_a + pair.key_b for pair in found.pairs] == ["ab", "ac", "bc"]
    for which in ("first", "second"):
        tests = [getattr(pair, which).paired for pair in found.pairs]
        assert [test.p_holm for test in tests] == pytest.approx(holm([test.p_value for test in tests]))
        for pair, test in zip(found.pairs, tests, strict=True):
            assert (getattr(pair, which).verdict == "different") == (test.p_holm < 0.05)


def test_scorers_of_other_examples_or_explanations_are_refused(store: ArtifactStore) -> None:
    hits = {"a": 0.9, "b": 0.4}
    first = judged(Chain(store), "judge-1b", hits, seed=1)
    with pytest.raises(ComparabilityError, match="example set"):
        compare_scorers(
            first, judged(Chain(store, examples_seed=1), "judge-2b", hits, seed=1), config=FAST, store=store
        )
    allowed = ComparisonConfig(bootstrap=200, allow_unmatched=True)
    other = judged(Chain(store, examples_seed=1), "judge-2b", hits, seed=1, config=allowed)
    found = read_scorer_agreement(compare_scorers(first, other, config=allowed, store=store))
    assert not found.matched


def test_the_second_scorers_own_flags_are_carried_along(store: ArtifactStore) -> None:
    chain = Chain(store)
    hits = {"a": 0.9, "b": 0.4}
    found = agreement(judged(chain, "judge-1b", hits, seed=1), judged(chain, "small-1b", hits, seed=1), store)
    flagged = [row.field for row in found.comparability if not row.ok]
    assert flagged == ["second scorer: scorer independent of explainer small-1b"]


def test_a_scorer_that_judged_other_pairs_is_refused(store: ArtifactStore) -> None:
    chain = Chain(store)
    first = judged(chain, "judge-1b", {"a": 0.9, "b": 0.4}, seed=1)
    second = judged(chain, "judge-2b", {"a": 0.9, "c": 0.4}, seed=1)
    with pytest.raises(DataError, match="other pairs"):
        compare_scorers(first, second, config=FAST, store=store)
    assert (
        compare_scorers_recipe(first, first, config=FAST).hash
        != compare_scorers_recipe(first, judged(chain, "judge-2b", {"a": 0.9, "b": 0.4}, seed=1), config=FAST).hash
    )
