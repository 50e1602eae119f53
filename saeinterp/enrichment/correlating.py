"""The step that associates a model's latents with the tokens of its samples: pairs, labels, and what chance would give.

The surprising choice: all layers and positions go into one step, because q is adjusted over the whole model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import AssociationPreset, EnrichmentConfig, recipe_of
from saeinterp.enrichment.activity import Activity, read_activity
from saeinterp.enrichment.association import associate_to
from saeinterp.enrichment.concept_tables import Concepts, read_concepts
from saeinterp.enrichment.contingency import Incidence
from saeinterp.enrichment.draws import draw_rates
from saeinterp.enrichment.labels import published_labels
from saeinterp.enrichment.monosemantic import label_latents
from saeinterp.enrichment.rates import summarise_rates
from saeinterp.enrichment.strata import strata_of
from saeinterp.errors import DataError
from saeinterp.progress import Progress, silent

VERSION = 2
KIND = "enrichment"
FEWEST = 20
"""Samples below which nothing is associated."""


def correlate_latents_recipe(
    activities: Sequence[Ref], concepts: Ref, *, config: EnrichmentConfig, matched: Sequence[Ref] = ()
) -> Recipe:
    """The recipe of one model's associations; see `correlate_latents` for the arguments."""
    # What samples are matched with changes the result, but is no ancestor: a model's lineage holds that model alone.
    settings = {**recipe_of(config), "matched": [[ref.kind, ref.hash] for ref in matched]}
    return Recipe(KIND, concepts.name, VERSION, settings, (*activities, concepts))


def correlate_latents(
    activities: Sequence[Artifact],
    concepts: Artifact,
    *,
    config: EnrichmentConfig,
    store: ArtifactStore,
    matched: Sequence[Artifact] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Test every latent of a model against every token, label the latents, and draw both nulls.

    Payload, per preset: `pairs-<preset>.parquet` (the columns of `associate`, with `id`, `text` and `category`),
    `labels-<preset>.parquet` (`id`, `layer`, `position`, then the columns of the preset's labels) and
    `draws-<preset>.parquet` (counts per SAE: observed, in permutations, in half-samples). Of all: `rates.json`, and
    `samples.parquet` (`id`, `count`) of the samples used.

    Args:
        activities: Of `measure_activity`, one per layer.
        concepts: Of `build_concepts`.
        matched: Concepts and activities of other models: only samples that all of them have are used.

    Raises:
        DataError: Too few samples have every position (and are there in all of `matched`), or no token is held by some
            samples and not by others.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        activity, tokens = read_activity(activities), read_concepts(concepts)
        ids = _ids(activity, tokens)
        kept = _matched(ids, matched)
        _check(kept, ids, tokens)
        place = np.flatnonzero(np.isin(tokens.samples, activity.samples[kept]))
        active, present = activity.active[np.flatnonzero(kept)], tokens.present[place]
        samples = pl.DataFrame({"id": [tokens.ids[index] for index in place], "count": tokens.counts[place]})
        samples.write_parquet(space.out / "samples.parquet", compression="zstd")
        strata = strata_of(tokens.counts[place], at_most=config.strata)
        sites = [(site.hookpoint, site.slot) for site in activity.sites]
        drawn = draw_rates(
            active,
            present,
            presets=config.presets,
            sites=activity.site_of,
            categories=tokens.categories,
            sample_ids=samples["id"].to_list(),
            strata=strata,
            permutations=config.permutations,
            half_samples=config.half_samples,
            seed=config.seed,
            any_dependence=config.adjustment == "by",
            progress=report,
        )
        rates: list[dict[str, Any]] = []
        families = {}
        incidence = Incidence.of(active, present, seed=config.seed)
        for preset in config.presets:
            pairs = space.out / f"pairs-{preset}.parquet"
            families[preset] = _write_pairs(pairs, active, present, activity, tokens, preset=preset, config=config)
            _write_labels(space.out, pairs, incidence, activity, tokens, preset=preset, strata=strata, config=config)
            draws = drawn[preset]
            draws.counts.write_parquet(space.out / f"draws-{preset}.parquet", compression="zstd")
            rates += summarise_rates(draws.counts, preset=preset, sites=sites, vocabulary=draws.vocabulary)
        facts = {
            "rates": rates,
            "samples": len(samples),
            "left_out": {"without_position": len(tokens.samples) - len(ids), "unmatched": int((~kept).sum())},
            "latents": activity.active.shape[1],
            "tokens": tokens.present.shape[1],
            "vocabulary": _vocabulary(present, tokens),
            "families": families,
            "strata": np.bincount(strata).tolist(),
        }
        write_json(space.out / "rates.json", facts)
        space.counts = {"samples": len(samples), "latents": activity.active.shape[1], "sites": len(sites)}

    recipe = correlate_latents_recipe(activities, concepts, config=config, matched=matched)
    return store.build(recipe, write)


def _vocabulary(present: sparse.csr_array, tokens: Concepts) -> dict[str, Any]:
    """How many tokens the samples used hold, and which, as a hash: other samples may hold more."""
    held = np.unique(present.indices)
    texts = sorted(tokens.vocabulary[index] for index in held.tolist())
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"held": len(held), "sha256": digest[:16]}


def _ids(activity: Activity, tokens: Concepts) -> list[str]:
    """The id of every sample of an activity."""
    names = dict(zip(tokens.samples.tolist(), tokens.ids, strict=True))
    unknown = [sample for sample in activity.samples.tolist() if sample not in names]
    if unknown:
        raise DataError(
            "activity and concepts are not of the same problems",
            field="concepts",
            got=f"no tokens of sample {unknown[0]} and {len(unknown) - 1} others",
            expected="one problems artifact behind both",
        )
    return [names[sample] for sample in activity.samples.tolist()]


def _matched(ids: Sequence[str], matched: Sequence[Artifact]) -> npt.NDArray[np.bool_]:
    """Which samples are there in all of `matched` too."""
    shared = set(ids)
    names: dict[int, str] = {}
    # A model's concepts come before its activities, and name its samples.
    for artifact in matched:
        if artifact.kind == "concepts":
            found = read_concepts(artifact)
            names = dict(zip(found.samples.tolist(), found.ids, strict=True))
            shared &= set(found.ids)
        else:
            shared &= {names[sample] for sample in read_activity([artifact]).samples.tolist()}
    return np.array([name in shared for name in ids], np.bool_)


def _check(kept: npt.NDArray[np.bool_], ids: Sequence[str], tokens: Concepts) -> None:
    if int(kept.sum()) < FEWEST:
        some = f"{int(kept.sum())} of {len(ids)} samples"
        raise DataError(
            "too few samples have every position" + ("" if kept.all() else " and are shared by the models compared"),
            field="corpus.samples",
            got=some,
            expected=f"at least {FEWEST}",
            next_step="take more problems or fewer positions; check that both sides read the same problems (their ids "
            "decide), or set match_problems: false",
        )
    if not tokens.present.shape[1]:
        raise DataError(
            "no sample holds a token",
            field="concepts.grammar",
            got=f"{len(ids)} samples",
            expected="annotations such as <<48/2=24>>, or another grammar",
            next_step="set concepts.grammar: words, tokens, regex or column",
        )


def _write_pairs(
    path: Path,
    active: sparse.csr_array,
    present: sparse.csr_array,
    activity: Activity,
    tokens: Concepts,
    *,
    preset: AssociationPreset,
    config: EnrichmentConfig,
) -> int:
    """Write the pairs with their names; gives the size of the family."""
    raw = path.with_suffix(".raw")
    family = associate_to(
        raw, active, present, preset=preset, seed=config.seed, any_dependence=config.adjustment == "by"
    )
    latents = pl.LazyFrame({"id": activity.latent_ids()}).with_row_index("latent").cast({"latent": pl.Int32})
    words = pl.LazyFrame({"text": tokens.vocabulary, "category": tokens.categories}).with_row_index("token")
    named = (
        pl.scan_parquet(raw)
        .join(latents, on="latent", how="left", maintain_order="left")
        .join(words.cast({"token": pl.Int32}), on="token", how="left", maintain_order="left")
    )
    named.select("id", "text", "category", pl.exclude("id", "text", "category")).sink_parquet(path, compression="zstd")
    raw.unlink()
    return family


def _write_labels(
    folder: Path,
    pairs: Path,
    incidence: Incidence,
    activity: Activity,
    tokens: Concepts,
    *,
    preset: AssociationPreset,
    strata: npt.NDArray[np.int64],
    config: EnrichmentConfig,
) -> None:
    kept = pl.scan_parquet(pairs).filter("kept").collect()
    if preset == "robust":
        labels = label_latents(
            kept,
            incidence,
            strata=strata,
            vocabulary=tokens.vocabulary,
            categories=tokens.categories,
            seed=config.seed,
        )
    else:
        category_of: Callable[[str], str] = dict(zip(tokens.vocabulary, tokens.categories, strict=True)).__getitem__
        labels = published_labels(kept, tokens.vocabulary, category_of=category_of)
    number = activity.site_of[labels["latent"].to_numpy()]
    sites = [activity.sites[index] for index in number.tolist()]
    column = zip(labels["latent"].to_list(), sites, strict=True)
    named = labels.with_columns(
        id=pl.Series([site.latent_id(latent - site.first) for latent, site in column], dtype=pl.String),
        layer=pl.Series([site.hookpoint for site in sites], dtype=pl.String),
        position=pl.Series([site.slot for site in sites], dtype=pl.Int32),
    )
    named = named.select("id", "layer", "position", pl.exclude("id", "layer", "position"))
    named.write_parquet(folder / f"labels-{preset}.parquet", compression="zstd")
