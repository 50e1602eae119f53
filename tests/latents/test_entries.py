"""Windows, sorted entries and neighbours: what example sets are made from, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_latents import PlantedLatents, plant_latents

from saeinterp.artifacts import ArtifactStore
from saeinterp.latents.cache import LatentCache
from saeinterp.latents.entries import sort_entries
from saeinterp.latents.neighbours import Neighbours, nearest_by_chance
from saeinterp.latents.windows import TokenIndex, Windows, cut_windows
from saeinterp.progress import silent
from saeinterp.sae import TopKSae
from saeinterp.subject import read_contexts
from saeinterp.subject.contexts import CONTEXTS_SCHEMA, Contexts


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedLatents:
    return plant_latents(ArtifactStore(tmp_path_factory.mktemp("planted-latents")), tokens=24_000)


def contexts_of(runs: list[list[int]]) -> Contexts:
    """One context per list, of documents with so many tokens each; the first half is explain."""
    rows, document = [], 0
    for number, lengths in enumerate(runs):
        doc_ids = np.repeat(np.arange(document, document + len(lengths)), lengths)
        document += len(lengths)
        split = "explain" if number < len(runs) / 2 else "score"
        rows.append((number, split, *[doc_ids] * 4))
    return Contexts(pa.table([list(column) for column in zip(*rows, strict=True)], schema=CONTEXTS_SCHEMA))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(4, 16))
def test_windows_tile_every_document_and_never_cross_one(runs: list[list[int]], size: int) -> None:
    expected, row = [], 0
    for number, lengths in enumerate(runs):
        inner = 0
        for length in lengths:
            for start in range(inner, inner + length, size):
                end = min(start + size, inner + length)
                if 2 * (end - start) >= size:
                    expected.append((number, start, end, row + start))
            inner += length
        row += inner
    windows = cut_windows(contexts_of(runs), size=size)
    found = list(
        zip(*(column.tolist() for column in (windows.context, windows.start, windows.end, windows.row)), strict=True)
    )
    assert found == expected
    assert windows.explain == sum(number < len(runs) / 2 for number, *_ in expected)
    owner = np.full(row, -1)
    for index, (_, start, end, first) in enumerate(expected):
        owner[first : first + end - start] = index
    assert windows.of_rows(row).tolist() == owner.tolist()


def test_a_token_is_found_in_every_window_that_holds_it_and_in_no_other() -> None:
    tokens = np.array([3, 1, 3, 0, 2, 3, 3])
    index = TokenIndex(tokens, np.array([0, 0, 1, 1, 1, -1, 2]))
    assert [sorted(set(index.windows(token).tolist())) for token in range(4)] == [[1], [0], [1], [0, 1, 2]]


@pytest.mark.parametrize("budget", [1, 200_000, 2**28])
def test_entries_of_a_latent_are_those_of_the_cache_in_row_order(
    planted: PlantedLatents, tmp_path: Path, budget: int
) -> None:
    cache = LatentCache.open(planted.latents)
    windows = cut_windows(read_contexts(planted.corpus, splits=("explain", "score")), size=25)
    inside = windows.of_rows(cache.rows) >= 0
    dense = np.zeros((cache.rows, cache.num_latents), np.float32)
    for chunk in cache.firings():
        dense[chunk.rows, chunk.latents] = chunk.values
    dense[~inside] = 0
    with sort_entries(cache, inside, scratch=tmp_path, report=silent, budget=budget) as entries:
        for latent in range(cache.num_latents):
            rows = np.flatnonzero(dense[:, latent])
            found = entries.of(latent)
            np.testing.assert_array_equal(found.rows, rows)
            np.testing.assert_array_equal(found.values, dense[rows, latent])
            assert entries.first_rows[latent] == (rows[0] if len(rows) else cache.rows)
    assert not inside.all()
    assert not dense.any(axis=0).all()  # some latents are dead


def sae_of(directions: torch.Tensor) -> TopKSae:
    count, width = directions.shape
    return TopKSae(directions.clone(), torch.zeros(count), directions, torch.zeros(width), k=1)


def test_neighbours_have_the_largest_cosines_whatever_else_is_asked_for() -> None:
    directions = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 300)[:, None]
    unit = directions.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    expected = np.argsort(-cosines, axis=1)[:, :5].tolist()
    neighbours = Neighbours(sae_of(directions))
    assert [[near.latent for near in found] for found in neighbours.nearest(range(300))] == expected
    assert [[near.latent for near in neighbours.nearest([latent])[0]] for latent in range(300)] == expected
    first = neighbours.nearest([7])[0][0]
    assert first.cosine == pytest.approx(cosines[7].max(), abs=1e-6)


def test_the_nearest_direction_by_chance_is_that_of_random_dictionaries() -> None:
    limit = nearest_by_chance(200, 16)
    rng = np.random.default_rng(3)
    below = 0
    for _ in range(40):
        unit = rng.standard_normal((200, 16))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines = unit @ unit.T - 2 * np.eye(200)
        below += int((cosines.max(axis=1) < limit).sum())
    assert below / 8000 == pytest.approx(0.95, abs=0.01)
    assert nearest_by_chance(1, 16) is None
    assert nearest_by_chance(200, 1) is None


def test_equal_directions_are_taken_by_index() -> None:
    neighbours = Neighbours(sae_of(torch.eye(4).repeat(3, 1)))
    found = [[near.latent for near in some] for some in neighbours.nearest([0, 5, 11])]
    assert [some[:2] for some in found] == [[4, 8], [1, 9], [3, 7]]
    assert found[0] == [4, 8, 1, 2, 3]


def test_a_dictionary_of_one_latent_has_no_neighbours() -> None:
    assert Neighbours(sae_of(torch.ones(1, 3))).nearest([0]) == [[]]


def test_no_text_has_no_windows() -> None:
    empty = Contexts(CONTEXTS_SCHEMA.empty_table())
    assert cut_windows(empty, size=8).totals.tolist() == [0, 0]
    assert isinstance(cut_windows(empty, size=8), Windows)
