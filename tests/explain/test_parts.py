"""Requests in parts: nothing that is asked, answered or written depends on where they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from explain.conftest import Road
from explain.oracle import Oracle
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.explain import Message, Request
from saeinterp.explain import parts as module
from saeinterp.explain.in_process import batches
from saeinterp.explain.parts import parts

SMALL = 7


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", SMALL)


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(artifact.path.iterdir()) if path.name != "manifest.json"}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_parts_end_between_groups_and_leave_nothing_out(sizes: list[int]) -> None:
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", SMALL)
        cut = parts(groups)
    assert [place for part in cut for place in range(len(groups))[part]] == list(range(len(groups)))
    assert all(groups[left.stop - 1] != groups[left.stop] for left, _ in pairwise(cut))
    # No part is larger than its share by more than a group, so none at the end is a small remainder.
    assert all(part.stop - part.start <= SMALL + max(sizes) for part in cut)


def test_what_fits_is_one_part_and_nothing_is_one_too() -> None:
    assert parts([0] * 5 + [1] * 5) == [slice(0, 10)]
    assert parts([]) == [slice(0, 0)]


@pytest.mark.usefixtures("small_parts")
def test_batches_of_a_model_in_this_process_stay_the_same() -> None:
    def asked(text: str, latent: int | None) -> Request:
        group = "" if latent is None else str(latent)
        return Request((Message("user", text),), max_tokens=1, choices=("Yes", "No"), group=group)

    latents = [latent for latent in range(9) for _ in range(5)]
    judging = [asked(f"{latent} {place}", latent) for place, latent in enumerate(latents)]
    in_parts = [batch for part in parts(latents) for batch in batches(judging[part], size=3)]
    assert len(parts(latents)) > 3
    assert in_parts == list(batches(judging, size=3))
    explaining = [asked(str(latent), None) for latent in range(23)]
    cut = parts([place // 3 for place in range(23)])
    assert len(cut) > 2
    assert [batch for part in cut for batch in batches(explaining[part], size=3)] == list(batches(explaining, size=3))


@pytest.mark.parametrize("kind", ["detection", "simulation"])
@pytest.mark.parametrize("options", [{}, {"samples": 2}])
def test_the_same_is_asked_and_written(
    road: Road, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict
) -> None:
    made = []
    for size in (module.PART, SMALL):
        monkeypatch.setattr(module, "PART", size)
        store = ArtifactStore(tmp_path_factory.mktemp("parts"))
        with Oracle() as oracle:
            explanations = road.explain(oracle, store, options=options, temperature=0.5)
            scores = road.score(explanations, oracle, store, kind=kind)
        made.append((oracle.requests, explanations.counts(), scores.counts(), bytes_of(explanations), bytes_of(scores)))
    assert made[0] == made[1]
