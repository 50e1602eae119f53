"""From problems to labelled latents on the planted subject: what goes with what, which samples count, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from planted import CLASSES
from planted_problems import write_planted_problems

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.config import (
    CaptureConfig,
    ConceptsConfig,
    CorpusSource,
    EnrichmentConfig,
    LaunchConfig,
    PositionsConfig,
    ProblemsConfig,
    SubjectConfig,
    TrainingConfig,
)
from saeinterp.enrichment import (
    build_concepts,
    correlate_latents,
    correlate_latents_recipe,
    measure_activity,
    read_activity,
)
from saeinterp.errors import DataError
from saeinterp.sae import TopKSae, train_saes
from saeinterp.subject import (
    ActivationCache,
    build_problems,
    collect_positions,
    prepare_subject,
    site_names,
)

HOOKPOINT = "layers.1"
TRAINING = TrainingConfig(num_latents=16, k=1, epochs=60, batch_rows=64, dead_after_rows=2000, eval_rows=300)
QUICK = EnrichmentConfig(permutations=0, half_samples=0)


class Road(NamedTuple):
    """Everything before the association."""

    problems: Artifact
    concepts: Artifact
    activations: Artifact
    saes: dict[str, Artifact]
    activity: Artifact


Make = Callable[..., Road]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture(scope="module")
def make(planted_folder: Path, kept: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The road for a number of problems and a choice of positions; equal ones are made once."""

    def road(
        *, select: str = "even:2@cot", short: int = 0, count: int = 900, samples: int = 300, **problem: Any
    ) -> Road:
        path = write_planted_problems(tmp_path_factory.mktemp("problems") / "p-train.jsonl", count=count, short=short)
        subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=kept)
        config = ProblemsConfig(
            source=CorpusSource(name=str(path)),
            id_column="id",
            tags_column="tags",
            samples=samples,
            max_tokens=128,
            **problem,
        )
        problems = build_problems(subject, config=config, store=kept)
        concepts = build_concepts(problems, subject, config=ConceptsConfig(grammar="column"), store=kept)
        positions = PositionsConfig(select=select, pool="any" if select.startswith("all") else "none")
        activations = collect_positions(
            subject, problems, capture=CaptureConfig(hookpoints=(HOOKPOINT,)), positions=positions, store=kept
        )
        sites = site_names((HOOKPOINT,), select)
        trained = train_saes(
            activations,
            hookpoints=sites,
            config=TRAINING,
            launch=LaunchConfig(threads=1, together=len(sites)),
            store=kept,
        )
        assert not trained.failures
        activity = measure_activity(activations, trained.saes, store=kept)
        return Road(problems, concepts, activations, trained.saes, activity)

    return road


def associated(road: Road, kept: ArtifactStore, config: EnrichmentConfig = QUICK, **options: Any) -> Artifact:
    return correlate_latents([road.activity], road.concepts, config=config, store=kept, **options)


def test_latents_of_each_place_go_with_the_token_there(make: Make, kept: ArtifactStore) -> None:
    found = associated(make(), kept)
    labels = pl.read_parquet(found.file("labels-robust.parquet")).filter("monosemantic")
    pairs = pl.read_parquet(found.file("pairs-robust.parquet"))
    named = labels.join(pairs.select("id", "token", "text"), on=["id", "token"])
    for slot, prefix in enumerate(("first-", "second-")):
        said = named.filter(pl.col("position") == slot)["text"].to_list()
        assert {text for text in said if not text.startswith(prefix)} == set()
        assert len(set(said)) >= 6
    assert set(labels["id"]) <= {f"L1_P{slot}_F{index}" for slot in (0, 1) for index in range(16)}


def test_what_is_active_is_what_the_sae_says(make: Make) -> None:
    road = make()
    activity = read_activity([road.activity])
    site = activity.sites[1]
    assert (site.name, site.title) == ("layers.1@1", "reasoning 2/2")
    cache = ActivationCache.open(road.activations, site.name)
    held = cache.split_rows("health")
    code = TopKSae.load(road.saes[site.name].path).encode(cache.read(held.start, held.stop).float())
    expected = {
        (int(cache.doc_ids[held.start + row]), int(latent))
        for row, (values, indices) in enumerate(zip(code.values, code.indices, strict=True))
        for value, latent in zip(values, indices, strict=True)
        if value != 0
    }
    row, column = activity.active[:, [site.first + index for index in range(site.latents)]].nonzero()
    assert {(int(activity.samples[r]), int(c)) for r, c in zip(row, column, strict=True)} == expected


def test_a_problem_that_lacks_a_place_takes_no_part_and_is_counted(make: Make, kept: ArtifactStore) -> None:
    road = make(short=200)
    problems = pl.read_parquet(road.problems.file("problems.parquet")).filter(pl.col("split") == "health")
    short = problems.filter(pl.col("cot_stop") - pl.col("cot_start") < 2)["id"].to_list()
    assert short
    found = associated(road, kept)
    used = pl.read_parquet(found.file("samples.parquet"))["id"].to_list()
    assert set(used) == set(problems["id"]) - set(short)
    assert read_json(found.file("rates.json"))["left_out"] == {"without_position": len(short), "unmatched": 0}


def test_pooled_latents_are_active_where_they_fire_at_any_token(make: Make, kept: ArtifactStore) -> None:
    road = make(select="all@cot")
    found = associated(road, kept)
    labels = pl.read_parquet(found.file("labels-robust.parquet"))
    assert labels["position"].null_count() == labels.height
    assert labels["id"].str.contains(r"^L1_F\d+$").all()
    # A class latent fires at either place: the class's two tags are two tokens, so it goes with both.
    pairs = pl.read_parquet(found.file("pairs-robust.parquet")).filter("kept")
    classes = pairs.with_columns(name=pl.col("text").str.split("-").list.last()).group_by("id").agg("name", "text")
    both = [row for row in classes.iter_rows(named=True) if len(row["text"]) == 2 and len(set(row["name"])) == 1]
    assert len(both) >= 6
    assert {row["name"][0] for row in both} <= set(CLASSES)


def test_models_are_associated_on_the_problems_they_share(make: Make, kept: ArtifactStore) -> None:
    road, other = make(), make(short=200)
    found = associated(road, kept, matched=[other.concepts, other.activity])
    used = set(pl.read_parquet(found.file("samples.parquet"))["id"])
    mine = set(pl.read_parquet(associated(road, kept).file("samples.parquet"))["id"])
    theirs = set(pl.read_parquet(associated(other, kept).file("samples.parquet"))["id"])
    assert used == mine & theirs
    assert len(used) < len(mine)
    inputs = [item["kind"] for item in json.loads(found.file("manifest.json").read_text())["inputs"]]
    assert inputs == ["activity", "concepts"], "the other model is no ancestor"


def test_the_same_recipe_gives_the_same_bytes_and_another_match_another_recipe(
    make: Make, tmp_path: Path, kept: ArtifactStore
) -> None:
    road = make()
    config = EnrichmentConfig(permutations=3, half_samples=3, presets=("robust", "seed-gsm8k-chi2"))
    first, second = (associated(road, store, config) for store in (kept, ArtifactStore(tmp_path / "again")))
    assert first.manifest()["files"] == second.manifest()["files"]
    alone = correlate_latents_recipe([road.activity], road.concepts, config=config)
    matched = correlate_latents_recipe([road.activity], road.concepts, config=config, matched=[road.concepts])
    assert alone.hash != matched.hash


def test_models_without_common_problems_are_refused_with_the_way_out(make: Make, kept: ArtifactStore) -> None:
    road = make()
    elsewhere = make(count=120, samples=19)
    with pytest.raises(DataError, match=r"(?s)shared by the models.*match_problems"):
        associated(road, kept, matched=[elsewhere.concepts, elsewhere.activity])
