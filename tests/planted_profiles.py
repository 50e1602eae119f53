"""Profiles of a made-up world's latents: drawn, in the schema of the real step."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from planted_reports import NUM_LATENTS, SUBJECT, World, latent_index, put

from saeinterp.artifacts import Artifact, Workspace, write_json
from saeinterp.explain.profiles.step import SCHEMA

TOKENS = {"explain": 12_000, "score": 12_272}


def plant_profiles(world: World, *, dead: int | None = None) -> list[Artifact]:
    """One artifact per hookpoint; the latent in place `dead` never fires."""
    return [
        put(world.store, "profiles", hookpoint, _write(world, hookpoint, dead), sae, hookpoint=hookpoint)
        for hookpoint, sae in zip(world.hookpoints, world.saes[SUBJECT])
    ]


def _write(world: World, hookpoint: str, dead: int | None) -> Callable[[Workspace], None]:
    def write(space: Workspace) -> None:
        rng = np.random.default_rng(crc32(f"profiles {hookpoint}".encode()))
        rows = [_row(world, place, rng, silent=place == dead) for place in range(world.latents)]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), space.out / "profiles.parquet")
        facts = {
            "hookpoint": hookpoint,
            "latents": len(rows),
            "num_latents": NUM_LATENTS,
            "d_in": 576,
            "tokens": TOKENS,
            "nearest_by_chance": 0.1621,
        }
        write_json(space.out / "profiles.json", facts)
        space.counts = {"latents": len(rows)}

    return write


def _row(world: World, place: int, rng: np.random.Generator, *, silent: bool) -> dict[str, object]:
    words = world.themes[place % len(world.themes)][1]
    firings = 0 if silent else int(rng.integers(60, 900))
    values = rng.gamma(1.5, 2.0, firings)
    logits = np.sort(rng.normal(0, 0.4, 10))
    seen = [int(rng.integers(4, 60)) for _ in words]
    fired = [int(rng.integers(0, count + 1)) for count in seen]
    tokens = [
        {
            "token": word,
            "seen": count,
            "fired": hits,
            "documents": min(count, 9),
            "low": max(0.0, hits / count - 0.2),
            "high": min(1.0, hits / count + 0.2),
            "share": hits / firings if firings else None,
        }
        for word, count, hits in zip(words, seen, fired)
    ]
    return {
        "latent": latent_index(place),
        "firings": firings,
        "density": firings / sum(TOKENS.values()),
        "peak": float(values.max()) if firings else 0.0,
        "histogram": np.histogram(values, bins=20, range=(0, values.max()))[0].tolist() if firings else [],
        "promoted": [{"token": words[i % len(words)], "logit": float(logits[-1 - i])} for i in range(10)],
        "suppressed": [{"token": f" word{i}", "logit": float(logits[i])} for i in range(10)],
        "logit_low": -1.5,
        "logit_high": 1.6,
        "logit_histogram": np.histogram(rng.normal(0, 0.4, 49_152), bins=30, range=(-1.5, 1.6))[0].tolist(),
        "neighbours": [
            {"latent": latent_index((place + step) % world.latents) if step < 3 else step, "cosine": 0.5 / step}
            for step in range(1, 11)
        ],
        "tokens": [] if silent else tokens,
        "density_score": firings / sum(TOKENS.values()),
    }
