"""Numbers and intervals from planted document sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_health import planted_sums

from saeinterp.health import DocumentSums, Reconstruction, health_values
from saeinterp.health.summary import density_histogram


def reconstruction(documents: DocumentSums, *, firings: list[int] | None = None) -> Reconstruction:
    return Reconstruction(
        hookpoint="layers.5",
        documents=documents,
        firings=np.array(firings or [0, 10, 20], np.int64),
        l0_max=2,
        k=2,
        splice="all",
        masked={"position0": 0, "special": 0, "norm": 0},
        rows=int(documents.total("tokens")),
        usable=(),
        uniform_ce=None,
    )


def test_ratios_are_of_totals_not_means_of_ratios() -> None:
    documents = planted_sums(12, clean=3.0, spliced=4.0, zero=11.0, seed=0)
    found = health_values(reconstruction(documents), draws=200, seed=0)
    sums = dict(zip(("clean", "spliced", "zero"), (documents.total(f"ce_{n}") for n in ("clean", "spliced", "zero"))))
    expected = (sums["zero"] - sums["spliced"]) / (sums["zero"] - sums["clean"])
    assert found["loss_recovered"]["value"] == pytest.approx(expected)
    assert found["loss_recovered"]["low"] < expected < found["loss_recovered"]["high"]
    assert found["loss_recovered"]["n_documents"] == 12


def test_loss_recovered_is_not_clamped() -> None:
    better = planted_sums(12, clean=3.0, spliced=2.0, zero=11.0, seed=0)
    worse = planted_sums(12, clean=3.0, spliced=15.0, zero=11.0, seed=0)
    assert health_values(reconstruction(better), draws=200, seed=0)["loss_recovered"]["value"] > 1
    assert health_values(reconstruction(worse), draws=200, seed=0)["loss_recovered"]["value"] < 0


@pytest.mark.parametrize(("gap", "applies"), [(-0.1, False), (0.05, False), (0.3, True)])
def test_loss_recovered_needs_zeroing_to_cost_a_tenth_of_a_nat(gap: float, applies: bool) -> None:
    documents = planted_sums(20, clean=3.0, spliced=3.0, zero=3.0 + gap, noise=0.01, seed=1)
    found = health_values(reconstruction(documents), draws=200, seed=0)["loss_recovered"]
    assert (found["value"] is not None) is applies
    if not applies:
        assert "95% lower bound" in found["reason"]
        assert "must exceed 0.1" in found["reason"]
        assert found["low"] is None


def test_a_gap_whose_lower_bound_is_below_a_tenth_is_not_enough_even_if_its_mean_is_above() -> None:
    documents = planted_sums(8, clean=3.0, spliced=3.0, zero=3.2, noise=0.4, seed=2)
    found = health_values(reconstruction(documents), draws=500, seed=0)
    assert found["zero_gap"]["value"] > 0.1
    assert found["zero_gap"]["low"] <= 0.1
    assert found["loss_recovered"]["value"] is None


def test_too_few_documents_give_values_without_intervals_and_no_recovery() -> None:
    found = health_values(reconstruction(planted_sums(4, clean=3.0, spliced=4.0, zero=11.0, seed=0)), draws=200, seed=0)
    assert found["fvu"]["value"] is not None
    assert found["fvu"]["low"] is None
    assert "too few" in found["fvu"]["reason"]
    assert "documents" in found["fvu"]["reason"]
    assert found["loss_recovered"]["value"] is None


def test_intervals_depend_on_the_seed_alone() -> None:
    result = reconstruction(planted_sums(15, clean=3.0, spliced=4.0, zero=11.0, seed=0))
    first, again, other = (health_values(result, draws=300, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first["fvu"] != other["fvu"]


def test_dead_alive_and_always_on_are_counted() -> None:
    documents = planted_sums(12, clean=3.0, spliced=4.0, zero=11.0, seed=0)
    tokens = int(documents.total("tokens"))
    found = health_values(reconstruction(documents, firings=[0, 0, 1, tokens]), draws=200, seed=0)
    assert (found["dead"], found["alive"], found["dead_fraction"], found["always_on"]) == (2, 2, 0.5, 1)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(5000, 10**7))
def test_density_histogram_counts_every_alive_latent_in_its_bin(firings: list[int], tokens: int) -> None:
    histogram = density_histogram(firings, tokens=tokens)
    edges, counts = histogram["log10_edges"], histogram["counts"]
    assert len(edges) == len(counts) + 1
    assert edges[-1] == 0
    assert sum(counts) == sum(value > 0 for value in firings)
    for index, count in enumerate(counts):
        inside = [v for v in firings if v and edges[index] - 1e-9 <= np.log10(v / tokens) <= edges[index + 1] + 1e-9]
        assert count <= len(inside)


def test_layers_are_read_from_hookpoint_names() -> None:
    documents = planted_sums(12, clean=3.0, spliced=4.0, zero=11.0, seed=0)
    result = reconstruction(documents)
    assert health_values(result, draws=200, seed=0)["layer"] == 5
    named = Reconstruction(**{**result.__dict__, "hookpoint": "transformer.h.7.mlp"})
    assert health_values(named, draws=200, seed=0)["layer"] == 7
