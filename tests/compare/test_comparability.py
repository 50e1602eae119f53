"""What must be equal on both sides is read from the artifacts, named when it differs, and refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from planted_scores import Chain, verdict_rows

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import (
    ComparabilityRow,
    check_comparability,
    comparability_row,
    compare_explainers,
    fold_rows,
    read_explainer_comparison,
    require_comparable,
)
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError


def scored(chain: Chain, explainer: str, *, seed: int = 1, **options: Any) -> Artifact:
    return chain.scores(chain.explanations(explainer, **options), verdict_rows(chain.latents, 0.6, 0.2, seed=seed))


def broken(rows: list[ComparabilityRow], severity: str = "hard") -> list[str]:
    return [row.field for row in rows if not row.ok and row.severity == severity]


def test_two_explainers_under_one_scorer_are_comparable(store: ArtifactStore) -> None:
    chain = Chain(store)
    rows = check_comparability(scored(chain, "big-7b"), scored(chain, "small-1b", seed=2))
    assert broken(rows) == []
    assert broken(rows, "soft") == []
    assert {"SAE", "example set", "latents", "scorer", "corpus", "model under study"} <= {row.field for row in rows}
    assert require_comparable(rows, allow_unmatched=False)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"sae_seed": 1}, {"SAE", "examples shown to the explainer"}),
        ({"num_latents": 400}, {"SAE", "SAE latents and k"}),
        ({"corpus_tokens": 2000}, {"corpus", "SAE"}),
        ({"examples_seed": 1}, {"example set", "examples shown to the explainer"}),
        ({"latents": tuple(range(1, 9))}, {"latents", "example set"}),
        ({"scorer": {"kind": "detection", "llm": {"model": "other"}, "threshold": 0.5}}, {"scorer llm.model"}),
        ({"scorer_prompt": "bbbb"}, {"scorer prompt_hash"}),
    ],
)
def test_each_planted_mismatch_is_named(store: ArtifactStore, change: dict[str, object], fields: set[str]) -> None:
    rows = check_comparability(scored(Chain(store), "big-7b"), scored(Chain(store, **change), "small-1b"))  # type: ignore[arg-type]
    assert fields <= set(broken(rows))
    with pytest.raises(ComparabilityError) as error:
        require_comparable(rows, allow_unmatched=False)
    assert all(field in str(error.value) for field in fields)
    assert "allow_unmatched" in str(error.value)
    assert require_comparable(rows, allow_unmatched=True) is False


def test_explainers_of_one_kind_must_share_their_prompt_and_others_need_not(store: ArtifactStore) -> None:
    chain = Chain(store)
    a = scored(chain, "big-7b")
    changed = broken(check_comparability(a, scored(chain, "small-1b", prompt="qqqq")))
    assert changed == ["explainer prompts.explain"]
    assert broken(check_comparability(a, scored(chain, "top-tokens", kind="top-tokens", prompt=""))) == []


def test_reasoning_may_be_what_is_compared(store: ArtifactStore) -> None:
    chain = Chain(store)
    without, reasoned = scored(chain, "big-7b"), scored(chain, "big-7b", reasoned=True, prompt="qqqq")
    assert broken(check_comparability(without, reasoned)) == []
    other = scored(chain, "small-1b", reasoned=True, prompt="rrrr")
    assert broken(check_comparability(reasoned, other)) == ["explainer prompts.explain-reasoning"]


@pytest.mark.parametrize("kind", ["llm", "contrastive"])
def test_an_explainer_that_scores_itself_is_flagged_softly(store: ArtifactStore, kind: str) -> None:
    chain = Chain(store)
    rows = check_comparability(scored(chain, "judge-1b", kind=kind), scored(chain, "small-1b", kind=kind))
    assert broken(rows) == []
    assert broken(rows, "soft") == ["scorer independent of explainer judge-1b"]
    flagged = next(row for row in rows if not row.ok)
    assert "two things change at once" in flagged.note


def test_an_input_that_was_deleted_still_compares_by_its_recipe(store: ArtifactStore) -> None:
    chain = Chain(store)
    a, b = scored(chain, "big-7b"), scored(chain, "small-1b")
    shutil.rmtree(chain.corpus().path)
    rows = {row.field: row for row in check_comparability(a, b)}
    assert rows["corpus"].ok
    assert rows["model under study"].ok


def test_rows_of_hookpoints_that_agree_fold_into_one_and_others_keep_their_name() -> None:
    same = comparability_row("scorer", "x", "x", severity="hard")
    other = comparability_row("SAE", "s1", "s2", severity="hard")
    fine = comparability_row("SAE", "t1", "t1", severity="hard")
    folded = fold_rows({"layers.5": [same, other], "layers.10": [same, fine]})
    assert [(row.field, row.ok) for row in folded] == [("scorer", True), ("layers.5: SAE", False)]


def test_a_refused_comparison_leaves_no_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    a, b = scored(Chain(store), "big-7b"), scored(Chain(store, examples_seed=1), "small-1b")
    with pytest.raises(ComparabilityError, match="example set"):
        compare_explainers([a], [b], {}, config=ComparisonConfig(), store=store)
    assert not list((store.root / "explainer-comparison").glob("*/manifest.json"))


def test_missing_hookpoints_on_one_side_are_a_mismatch(store: ArtifactStore) -> None:
    five, ten = Chain(store), Chain(store, hookpoint="layers.10")
    a = [scored(five, "big-7b"), scored(ten, "big-7b")]
    with pytest.raises(ComparabilityError, match=r"hookpoints: layers.5, layers.10 on one side, layers.5 on the other"):
        compare_explainers(a, [scored(five, "small-1b")], {}, config=ComparisonConfig(), store=store)


def test_a_control_on_other_examples_is_a_mismatch(store: ArtifactStore) -> None:
    chain, other = Chain(store), Chain(store, examples_seed=1)
    control = other.scores(other.explanations("big-7b", control="permuted"), verdict_rows(range(8), 0.2, 0.2, seed=3))
    with pytest.raises(ComparabilityError, match="control permuted: example set"):
        compare_explainers(
            [scored(chain, "big-7b")],
            [scored(chain, "small-1b")],
            {"permuted": [control]},
            config=ComparisonConfig(),
            store=store,
        )


def test_explainers_that_judge_themselves_differ_softly_in_their_judge_and_nothing_else(store: ArtifactStore) -> None:
    chain, other = Chain(store), Chain(store)
    chain.scorer = {"kind": "detection", "llm": {"model": "big-7b"}, "threshold": 0.5}
    other.scorer = {"kind": "detection", "llm": {"model": "small-1b"}, "threshold": 0.5}
    a, b = scored(chain, "big-7b"), scored(other, "small-1b", seed=2)
    assert broken(check_comparability(a, b)) == ["scorer llm.model"]
    rows = check_comparability(a, b, self_scored=True)
    assert broken(rows) == []
    assert "scorer model" in broken(rows, "soft")
    other.scorer = {"kind": "detection", "llm": {"model": "small-1b"}, "threshold": 0.7}
    stricter = scored(other, "small-1b", seed=2)
    assert broken(check_comparability(a, stricter, self_scored=True)) == ["scorer threshold"]


def test_a_self_scored_comparison_remembers_it(store: ArtifactStore) -> None:
    chain, other = Chain(store), Chain(store)
    chain.scorer = {"kind": "detection", "llm": {"model": "big-7b"}, "threshold": 0.5}
    other.scorer = {"kind": "detection", "llm": {"model": "small-1b"}, "threshold": 0.5}
    a, b = scored(chain, "big-7b"), scored(other, "small-1b", seed=2)
    config = ComparisonConfig(bootstrap=200)
    with pytest.raises(ComparabilityError, match=r"scorer llm\.model"):
        compare_explainers([a], [b], {}, config=config, store=store)
    made = compare_explainers([a], [b], {}, config=config, self_scored=True, store=store)
    assert made.manifest()["config"]["self_scored"] is True
    found = read_explainer_comparison(made)
    assert found.matched
    assert found.self_scored
    assert found.sentences[0].text.startswith("Two things changed at once: each explainer was judged by its own model")
