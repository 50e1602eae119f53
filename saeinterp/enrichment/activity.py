"""Which latents are active in which samples, at every layer and position of one model.

The surprising choice: samples enter only where every position exists, so that all latents are counted over the same
samples; a problem too short for the sixth of six positions is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.errors import DataError
from saeinterp.ids import LatentId, layer_of, parse_site
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.subject import ActivationCache

VERSION = 1
KIND = "activity"
_CHUNK = 4096  # rows encoded at once


class Site(NamedTuple):
    """One SAE: a hookpoint and a position slot.

    Attributes:
        name: As in `layers.9@1`.
        hookpoint: As in `layers.9`.
        slot: Position slot; None where latents are pooled over a problem.
        title: Of the slot, as in `reasoning 2/6`.
        first: Column of its first latent.
        latents: Dictionary size.
    """

    name: str
    hookpoint: str
    slot: int | None
    title: str
    first: int
    latents: int

    def latent_id(self, index: int) -> str:
        """The id of its latent `index`, as in `L9_P1_F355`."""
        return str(LatentId(layer_of(self.hookpoint), self.slot, index))


class Activity(NamedTuple):
    """The latents of one model in its samples.

    Attributes:
        samples: `[n]` int32, ascending: those that have every position.
        active: `[n, latents]`, the SAEs side by side in the order of `sites`.
        sites: The SAEs.
    """

    samples: npt.NDArray[np.int32]
    active: sparse.csr_array
    sites: tuple[Site, ...]

    @property
    def site_of(self) -> npt.NDArray[np.int32]:
        """`[latents]`: each latent's number among the sites."""
        return np.repeat(np.arange(len(self.sites), dtype=np.int32), [site.latents for site in self.sites])

    def latent_ids(self) -> list[str]:
        """The id of every column."""
        return [site.latent_id(index) for site in self.sites for index in range(site.latents)]


def measure_activity_recipe(activations: Ref, saes: Mapping[str, Ref]) -> Recipe:
    """The recipe of one hookpoint's activity; `saes` by site."""
    hookpoint, _ = parse_site(next(iter(saes)))
    return Recipe(KIND, hookpoint, VERSION, {"sites": list(saes)}, (activations, *saes.values()))


def measure_activity(
    activations: Artifact, saes: Mapping[str, Artifact], *, store: ArtifactStore, progress: Progress | None = None
) -> Artifact:
    """Encode the samples at every position of one hookpoint.

    Payload: `active.parquet` (`site`, `latent`, `sample` int32, sorted), `samples.parquet` (`site`, `sample`: those
    that have the position), `activity.json` (per site its name, hookpoint, slot, title, latents, k, rows, and the share
    of latents active per sample).

    Args:
        activations: Of `collect_positions`.
        saes: By site, all of one hookpoint.

    Raises:
        DataError: An SAE has another width than the activations.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        titles = read_json(activations.file("cache.json"))["sites"]
        facts, entries, there = [], [], []
        for number, (site, sae) in enumerate(saes.items()):
            report(number, len(saes), "positions")
            cache = ActivationCache.open(activations, site)
            coder = TopKSae.load(sae.path)
            if coder.d_in != cache.d_in:
                raise DataError(
                    "SAE and activations differ in width",
                    field=site,
                    got=coder.d_in,
                    expected=f"d_in {cache.d_in}",
                    next_step="use the SAE that was trained at this layer and position",
                )
            samples, active = _encode(cache, coder)
            entries.append(active.with_columns(site=pl.lit(number, pl.Int32)))
            there.append(pl.DataFrame({"sample": samples}).with_columns(site=pl.lit(number, pl.Int32)))
            facts.append(
                {
                    "site": site,
                    "hookpoint": titles[site]["hookpoint"],
                    "slot": titles[site]["slot"],
                    "title": titles[site]["title"],
                    "latents": coder.num_latents,
                    "k": coder.k,
                    "rows": len(samples),
                    "active_share": active.height / max(len(samples) * coder.num_latents, 1),
                }
            )
        frame = pl.concat(entries).select("site", "latent", "sample").sort("site", "latent", "sample")
        frame.write_parquet(space.out / "active.parquet", compression="zstd")
        pl.concat(there).select("site", "sample").write_parquet(space.out / "samples.parquet", compression="zstd")
        write_json(space.out / "activity.json", {"sites": facts})
        space.counts = {"sites": len(facts), "latents": sum(item["latents"] for item in facts), "active": frame.height}
        report(len(saes), len(saes), "positions")

    return store.build(measure_activity_recipe(activations, saes), write)


def _encode(cache: ActivationCache, coder: TopKSae) -> tuple[npt.NDArray[np.int32], pl.DataFrame]:
    """Samples that have the position, ascending, and (latent, sample) of what is active; several rows are pooled."""
    usable = cache.mask()
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    held = cache.split_rows("health")
    for rows, x in cache.batches(held, size=_CHUNK):
        code = coder.encode(x.float())
        on = (code.values.float().numpy() != 0) & usable[rows.start : rows.stop, None]
        documents = cache.doc_ids[rows.start : rows.stop]
        row, _ = np.nonzero(on)
        parts.append((code.indices.numpy()[on], documents[row]))
    samples = np.unique(cache.doc_ids[held.start : held.stop][usable[held.start : held.stop]])
    latents, owners = (np.concatenate([np.zeros(0, np.int64), *(part[index] for part in parts)]) for index in (0, 1))
    frame = pl.DataFrame({"latent": latents.astype(np.int32), "sample": owners.astype(np.int32)})
    return samples.astype(np.int32), frame.unique()


def read_activity(artifacts: Sequence[Artifact]) -> Activity:
    """The activity of one model, from that of its hookpoints.

    Raises:
        DataError: No sample has every position.
    """
    sites: list[Site] = []
    columns, rows = [], []
    common: npt.NDArray[np.int32] | None = None
    for artifact in artifacts:
        facts = read_json(artifact.file("activity.json"))["sites"]
        entries = pl.read_parquet(artifact.file("active.parquet"))
        there = pl.read_parquet(artifact.file("samples.parquet"))
        firsts = []
        for number, item in enumerate(facts):
            first = sites[-1].first + sites[-1].latents if sites else 0
            firsts.append(first)
            sites.append(
                Site(item["site"], item["hookpoint"], item["slot"], item["title"], first, int(item["latents"]))
            )
            samples = there.filter(pl.col("site") == number)["sample"].to_numpy()
            common = samples if common is None else np.intersect1d(common, samples)
        columns.append(np.array(firsts, np.int64)[entries["site"].to_numpy()] + entries["latent"].to_numpy())
        rows.append(entries["sample"].to_numpy())
    if common is None or not len(common):
        raise DataError(
            "no sample has every position",
            field="positions.select",
            got=", ".join(site.name for site in sites) or "no position",
            expected="samples long enough for all positions",
            next_step="take fewer positions, or longer problems",
        )
    row, column = np.concatenate(rows), np.concatenate(columns)
    kept = np.isin(row, common)
    shape = (len(common), sites[-1].first + sites[-1].latents)
    place = np.searchsorted(common, row[kept])
    active = sparse.csr_array((np.ones(int(kept.sum()), np.bool_), (place, column[kept])), shape=shape)
    return Activity(common.astype(np.int32), active, tuple(sites))
