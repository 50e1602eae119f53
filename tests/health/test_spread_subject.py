"""Layer health of a subject whose blocks are read from disk equals that of one in memory."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
from planted_health import HOOKPOINTS, Prepared, signed_identity

from saeinterp.config import Placement
from saeinterp.health import RowMask, measure_reconstruction
from saeinterp.subject import ActivationCache, load_subject

HALF_ON_DISK = Placement(device_map={"": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"})


@pytest.mark.parametrize("splice", ["all", "unmasked"])
def test_a_spread_subject_is_measured_like_a_single_one(control: Prepared, splice: Literal["all", "unmasked"]) -> None:
    caches = {name: ActivationCache.open(control.activations, name) for name in HOOKPOINTS}
    results = []
    for placement in (Placement(device="cpu"), HALF_ON_DISK):
        results.append(
            measure_reconstruction(
                load_subject(control.artifact, device=placement),
                control.contexts,
                {name: signed_identity(64, scale=0.9) for name in HOOKPOINTS},
                means={name: cache.mean for name, cache in caches.items()},
                masks={name: RowMask.of(cache) for name, cache in caches.items()},
                splice=splice,
            )
        )
    for name in HOOKPOINTS:
        single, spread = (result[name] for result in results)
        assert single.rows > 100
        for field in dataclasses.fields(single.documents):
            ours, theirs = (getattr(result.documents, field.name) for result in (single, spread))
            assert np.array_equal(ours, theirs), field.name
        assert np.array_equal(single.firings, spread.firings)
