"""Reports made again: from what is stored in them, from the artifacts behind them, and anew from comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from planted_profiles import plant_profiles
from planted_reports import CONTROL, SUBJECT, World, build_world, put

from saeinterp.artifacts import Artifact, ArtifactStore, Workspace, open_artifact, verify_artifact
from saeinterp.errors import ArtifactError, ConfigError, DamagedArtifactError, DataError
from saeinterp.report import Results, rebuild, write_report

from .conftest import Report, read_report

PAGES = ("report.html", "report.md", "results.json", "results.schema.json")


@pytest.fixture
def copy(world: World, report: Report, tmp_path: Path) -> Artifact:
    """The report in a store of its own, which holds every artifact but is nobody else's."""
    shutil.copytree(world.store.root, tmp_path / "runs")
    return open_artifact(tmp_path / "runs" / report.artifact.path.relative_to(world.store.root))


def edited(artifact: Artifact, **changes: Any) -> None:
    """Change the manifest of an artifact."""
    path = artifact.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **changes}))


def test_pages_are_rendered_again_from_the_report_alone(report: Report, tmp_path: Path) -> None:
    alone = shutil.copytree(report.artifact.path, tmp_path / "elsewhere" / "report" / "copied")
    for name in ("report.html", "report.md"):
        (alone / name).write_text("spoiled")
    made = rebuild([open_artifact(alone)], out=tmp_path / "again")
    assert made.folder == tmp_path / "again"
    for name in PAGES:
        assert (made.folder / name).read_bytes() == (report.artifact.path / name).read_bytes()
    assert (alone / "report.md").read_text() == "spoiled"
    assert not (made.folder / "manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_version_has_made_its_report_already(report: Report) -> None:
    assert rebuild([report.artifact]) == (report.artifact.path, False)


def test_a_report_of_an_older_version_is_published_again_beside_it(copy: Artifact, report: Report) -> None:
    old = copy.path.with_name("smollm2-135m-and-top-tokens-as-explainers-00000000")
    copy.path.rename(old)
    edited(open_artifact(old), version=1, recipe="0" * 16)
    before = {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    made = rebuild([open_artifact(old)])
    assert made.made
    assert made.folder == copy.path
    assert (made.folder / "results.json").read_bytes() == report.artifact.file("results.json").read_bytes()
    verify_artifact(open_artifact(made.folder))
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()} == before


def test_results_of_an_older_format_are_made_again_from_their_artifacts(copy: Artifact, tmp_path: Path) -> None:
    path = copy.path / "results.json"
    path.write_text(json.dumps({"format": 1, "title": "older"}))
    manifest = copy.manifest()
    files = {name: entry for name, entry in manifest["files"].items() if name != "results.json"}
    edited(copy, files=files)
    copy.path.rename(copy.path.with_name("older-00000000"))
    made = rebuild([open_artifact(copy.path.with_name("older-00000000"))], out=tmp_path / "out")
    results = Results.model_validate_json((made.folder / "results.json").read_bytes())
    assert results.title == "SmolLM2 135M and top-tokens as explainers"


def test_removed_inputs_are_named_and_the_way_out_with_them(copy: Artifact, tmp_path: Path) -> None:
    gone = next((copy.path.parent.parent / "health").iterdir())
    shutil.rmtree(gone)
    with pytest.raises(ArtifactError, match=f"health/{gone.name}.*--out"):
        rebuild([copy])
    assert (rebuild([copy], out=tmp_path / "out").folder / "report.html").exists()


def test_inputs_of_inputs_that_are_gone_are_named_too(copy: Artifact) -> None:
    root = copy.path.parent.parent
    gone = next((root / "explanations").glob("smollm2*"))
    shutil.rmtree(gone)
    with pytest.raises(ArtifactError, match=f"explanations/{gone.name}"):
        rebuild([open_artifact(path) for path in (root / "explainer-comparison").iterdir()])


def test_damage_is_refused_by_file(copy: Artifact) -> None:
    table = copy.path / "tables" / "latents.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DamagedArtifactError, match=r"tables/latents\.parquet"):
        rebuild([copy])
    with pytest.raises(DamagedArtifactError, match=r"tables/latents\.parquet"):
        rebuild([copy], out=copy.path.parent.parent.parent / "out")


def test_comparisons_make_a_report_of_their_own(world: World, report: Report) -> None:
    assert world.explainers is not None
    assert world.models is not None
    made = rebuild([world.explainers, world.models])
    found = read_report(world, open_artifact(made.folder)).results
    assert found.title == "SmolLM2 135M and top-tokens as explainers"
    assert found.explainers == report.results.explainers
    assert found.models == report.results.models
    assert [(layer.side, layer.loss_recovered) for layer in found.layers] == [
        (layer.side, layer.loss_recovered) for layer in report.results.layers
    ]
    assert found.grades == report.results.grades
    assert {row.side for row in found.training} == {SUBJECT, CONTROL}
    assert found.provenance.settings == ()
    assert "sae training.seed" in {line.field for line in found.provenance.seeds}


def test_health_alone_is_named_by_its_models(world: World) -> None:
    made = rebuild([*world.health[SUBJECT], *world.health[CONTROL]], title="Two models, no comparison")
    found = read_report(world, open_artifact(made.folder)).results
    assert found.title == "Two models, no comparison"
    assert found.models is None
    assert list(dict.fromkeys(layer.side for layer in found.layers)) == [
        "SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct (random weights)",
    ]
    assert len(found.training) == 6


def test_what_makes_no_report_is_refused_with_what_does(world: World, report: Report, tmp_path: Path) -> None:
    corpus = open_artifact(next((world.store.root / "corpus").iterdir()))
    with pytest.raises(ConfigError, match=r"no report is made of this.*explainer-comparison"):
        rebuild([corpus])
    with pytest.raises(ConfigError, match="made again alone"):
        rebuild([report.artifact, *world.health[SUBJECT]])
    with pytest.raises(ConfigError, match="keeps its title"):
        rebuild([report.artifact], title="other")
    with pytest.raises(DataError, match="not a finished artifact"):
        open_artifact(tmp_path)
    elsewhere = shutil.copytree(world.health[SUBJECT][0].path, tmp_path / "runs" / "health" / "copied")
    with pytest.raises(ConfigError, match="different folders"):
        rebuild([open_artifact(elsewhere), world.health[SUBJECT][1]])


def test_nothing_is_written_over_or_into_an_artifact(world: World, report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty"):
        rebuild([report.artifact], out=tmp_path)
    with pytest.raises(ConfigError, match="never changes"):
        rebuild([report.artifact], out=report.artifact.path / "again")


def test_profiles_of_the_compared_latents_come_along(tmp_path: Path) -> None:
    world = build_world(ArtifactStore(tmp_path / "runs"), control=False, graded=False, hookpoints=("layers.5",))
    assert world.explainers is not None
    drawn = plant_profiles(world)[0]
    examples = next(open_artifact(path) for path in (world.store.root / "examples").iterdir())

    def write(space: Workspace) -> None:
        for name in ("profiles.parquet", "profiles.json"):
            shutil.copyfile(drawn.file(name), space.out / name)

    profiles = put(world.store, "profiles", "layers.5", write, examples, world.saes[SUBJECT][0], real=True)
    shutil.rmtree(drawn.path)
    first = write_report(**world.arguments(profiles=[profiles], detail_latents=3))
    edited(first, version=1)
    made = rebuild([first])
    assert read_report(world, open_artifact(made.folder)).results.detail_latents == 3
    anew = rebuild([world.explainers], title="Anew")
    found = read_report(world, open_artifact(anew.folder)).results
    assert [facts.source for facts in found.profiles] == [profiles.id]
    assert (anew.folder / "tables" / "profiles.parquet").exists()
