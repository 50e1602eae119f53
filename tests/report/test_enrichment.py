"""Latents and tokens in reports: every rate beside chance, answers first, hostile tokens, tables behind the page."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from planted_enrichment import planted_side

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.compare import compare_interpretability
from saeinterp.config import ComparisonConfig
from saeinterp.report import Results, write_report
from saeinterp.report.associations.results import EnrichmentSection, InterpretabilitySection
from saeinterp.report.markdown import render_markdown
from saeinterp.report.pages.dashboard import numbers, render_dashboard

from .test_writing import Page, at_path, unpacked

SMALL, LARGE, CONTROL = "Small", "Large", "Small at random weights"
DEEPER: dict[str, Any] = {"blocks": 8, "width": 32, "layers": (3, 7), "latents": 64, "k": 16}


class Written(NamedTuple):
    """A report and its pages."""

    artifact: Artifact
    results: Results
    html: str
    markdown: str

    @property
    def section(self) -> EnrichmentSection:
        assert self.results.enrichment is not None
        return self.results.enrichment

    @property
    def compared(self) -> InterpretabilitySection:
        assert self.results.interpretability is not None
        return self.results.interpretability


def write(
    store: ArtifactStore, sides: dict[str, Artifact], comparison: Artifact | None = None, title: str = "Two models"
) -> Written:
    made = write_report(
        title=title,
        explainer_comparison=None,
        model_comparison=None,
        health={},
        saes={},
        failures=(),
        config=ComparisonConfig(),
        enrichment=sides,
        interpretability=comparison,
        store=store,
    )
    results = Results.model_validate_json(made.file("results.json").read_bytes())
    pages = [made.file(name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    return Written(made, results, *pages)


def build(store: ArtifactStore) -> Written:
    sides = {
        SMALL: planted_side(store, SMALL),
        LARGE: planted_side(store, LARGE, bound=0.25, **DEEPER),
        CONTROL: planted_side(store, SMALL, weights="random", bound=0.0),
    }
    comparison = compare_interpretability(
        [sides[SMALL]],
        [sides[LARGE]],
        controls={"a": [sides[CONTROL]]},
        config=ComparisonConfig(),
        names=(SMALL, LARGE),
        store=store,
    )
    return write(store, sides, comparison)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("associated"))


@pytest.fixture(scope="module")
def pair(store: ArtifactStore) -> Written:
    return build(store)


def test_the_markdown_report_of_a_pair_reads_as_reviewed(pair: Written, golden: Path) -> None:
    """To accept a change: SAEINTERP_UPDATE_GOLDEN=1 pytest tests/report, then review the diff."""
    written = re.sub(r"-[0-9a-f]{8}`", "-########`", pair.markdown)
    written = re.sub(r"^- (Versions|Platform): .*$", r"- \1: (differs by machine)", written, flags=re.M)
    if os.environ.get("SAEINTERP_UPDATE_GOLDEN"):
        (golden / "interpretability.md").write_text(written, encoding="utf-8")
    assert written == (golden / "interpretability.md").read_text(encoding="utf-8")


def test_every_number_on_the_page_is_in_the_results_file_with_its_source(pair: Written) -> None:
    shown = [attrs for attrs, _ in Page(pair.html).by("data") if "data-path" in attrs]
    assert len(shown) > 300
    for attrs in shown:
        assert json.loads(attrs["value"] or "") == at_path(pair.results, attrs["data-path"] or "")["value"]
    known = {step.id for step in pair.results.provenance.steps}
    for path, item in numbers(pair.results):
        assert item.source in known, path
        assert item.value is not None or item.reason, path


def test_the_answers_come_first_and_in_the_order_they_are_asked(pair: Written) -> None:
    section = pair.compared
    assert list(dict(section.questions)) == [
        "What is the monosemantic rate?",
        "What share of interpretable latents are number latents?",
        "What is the largest enrichment?",
        "Does the larger model have the lower monosemantic rate?",
    ]
    for text in (pair.markdown, pair.html):
        places = [text.index(part) for part in (section.sentence, "What is the monosemantic rate?", "layers.1")]
        assert places[0] < places[1]
    assert pair.markdown.index("Does the larger model") < pair.markdown.index("### Recommended rules (robust)")
    assert pair.html.index('id="interpretability"') < pair.html.index('id="enrichment"')
    for item in section.answers:
        assert item.difference is not None
        assert item.chance is not None


def test_every_rate_stands_beside_both_nulls_and_one_that_chance_gives_is_called_so(pair: Written) -> None:
    weak = 0
    for preset in pair.section.presets:
        for row in preset.rates:
            assert row.strata.mean.value is not None or row.strata.mean.reason
            assert row.free.mean.value is not None or row.free.mean.reason
            said = [
                line
                for line in preset.findings
                if line.startswith(f"{row.side} ({preset.preset}): {row.title.lower()} ")
            ]
            if row.scope == "model" and row.strata.p.value is not None and said:
                called = "not distinguishable from chance" in said[0]
                assert called == (row.strata.p.value > 0.05), said[0]
                weak += called
    assert weak >= 3
    assert [preset.preset for preset in pair.section.presets] == ["robust", "seed-gsm8k-chi2"]
    for line in (line for preset in pair.section.presets for line in preset.findings):
        assert line in pair.results.findings


def test_layers_and_positions_are_told_apart_and_the_control_stands_beside(pair: Written) -> None:
    rows = pair.section.presets[0].rates
    assert {row.where for row in rows if row.scope == "layer" and row.side == LARGE} == {"layers.3", "layers.7"}
    assert {row.where for row in rows if row.scope == "position"} == {"reasoning 1/2", "reasoning 2/2"}
    assert [row.side for row in rows if row.scope == "model" and row.rate == "interpretable"] == [SMALL, LARGE, CONTROL]
    assert "random-weights control of Small" in pair.markdown


def test_the_tables_hold_every_labelled_latent_and_every_rate(pair: Written) -> None:
    tables = pair.artifact.path / "tables"
    latents = pl.read_parquet(tables / "associated.parquet")
    assert latents.height == pair.section.latents
    enrichment = next(item for item in pair.results.provenance.steps if item.kind == "enrichment")
    folder = pair.artifact.path.parent.parent / enrichment.id
    for preset in ("robust", "seed-gsm8k-chi2"):
        labels = pl.read_parquet(folder / f"labels-{preset}.parquet")
        mine = latents.filter((pl.col("side") == SMALL) & (pl.col("preset") == preset))
        assert sorted(mine["id"]) == sorted(labels["id"])
        pairs = pl.read_parquet(folder / f"pairs-{preset}.parquet")
        first = mine.row(0, named=True)
        stored = pairs.filter((pl.col("id") == first["id"]) & (pl.col("text") == first["token"])).row(0, named=True)
        for name in ("odds_ratio", "odds_ratio_low", "q_value", "mcc", "replicated", "a", "b", "c", "d"):
            assert first[name] == stored[name]
        assert first["label"].endswith(first["token"])
    published = latents.filter(pl.col("preset") == "seed-gsm8k-chi2")
    assert published["enrichment"].null_count() == 0
    rates = pl.read_parquet(tables / "rates.parquet")
    assert set(rates["scope"]) == {"model", "layer", "position", "site"}
    assert {"strata_mean", "strata_p", "free_mean", "free_p", "halves"} <= set(rates.columns)


def test_the_page_lists_latents_for_sorting_and_says_how_many_it_left_out(
    pair: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = json.loads(unpacked(pair.html, "payload"))["associated"]["columns"]
    assert len(columns["id"]) == pair.section.latents
    assert columns["odds_ratio_text"][0].startswith(f"{columns['odds_ratio'][0]:,.4g} [")
    monkeypatch.setattr("saeinterp.report.pages.dashboard.GRID_ROWS", 5)
    page = render_dashboard(pair.results, pair.artifact.path / "tables")
    assert len(json.loads(unpacked(page, "payload"))["associated"]["columns"]["id"]) == 5
    assert f"The first 5 of {pair.section.latents}" in page


def test_the_plot_of_rates_holds_the_numbers_of_the_table(pair: Written) -> None:
    plots = {item["id"]: item for item in json.loads(unpacked(pair.html, "payload"))["figures"]}
    assert [name for name in plots if name.startswith("rates")] == ["rates-robust", "rates-seed-gsm8k-chi2"]
    rows = [row for row in pair.section.presets[0].rates if row.scope == "layer" and row.rate == "interpretable"]
    observed, chance = plots["rates-robust"]["data"][:2]
    assert observed["y"] == [row.value.value for row in rows if row.side == SMALL]
    assert chance["y"] == [row.strata.mean.value for row in rows if row.side == SMALL]


def test_one_model_is_reported_without_a_comparison(store: ArtifactStore, pair: Written) -> None:
    alone = write(store, {SMALL: planted_side(store, SMALL)}, title="Latents and tokens")
    assert alone.results.interpretability is None
    assert "Nothing was compared" not in alone.html + alone.markdown
    assert "#### Top 5 monosemantic features: Small" in alone.markdown
    assert "#### Feature type distribution" in alone.markdown
    assert alone.results.findings
    assert all(line.startswith("Small (") for line in alone.results.findings)
    # The answer comes first, before the set-up.
    head = alone.markdown.split("## Set-up")[0]
    assert "interpretable latents" in head
    assert "monosemantic latents" in head
    assert head.count("chance within strata") == 2
    assert alone.section.headline in head


def test_the_problems_positions_and_tokens_are_in_the_set_up(pair: Written) -> None:
    lines = {line.field: line.value for line in pair.results.setup}
    assert lines["Problems"] == (
        "planted; 160 for the associations, 800 for the SAEs; 2 problems left out as too long or met twice"
    )
    assert lines["Positions"].startswith("even:2@cot: reasoning 1/2 and reasoning 2/2; ")
    assert lines["Tokens"].startswith("12 tokens by grammar canonical, ")


def test_unmatched_models_carry_a_banner_that_names_what_differs(store: ArtifactStore, pair: Written) -> None:
    check = pair.compared.checks[0].model_copy(update={"field": "k / latents", "a": "0.2", "b": "0.3", "ok": False})
    broken = pair.compared.model_copy(update={"matched": False, "checks": (check, *pair.compared.checks[1:])})
    results = pair.results.model_copy(update={"interpretability": broken})
    assert "Unmatched comparison" not in pair.html + pair.markdown
    tables = pair.artifact.path / "tables"
    for text in (render_dashboard(results, tables), render_markdown(results, tables)):
        assert "Unmatched comparison" in text
        assert "0.2 (A) against 0.3 (B)" in text


def test_hostile_tokens_are_text_everywhere(store: ArtifactStore) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x00\u202e|`x`"
    tokens = [f"{evil}{index}" for index in range(12)]
    written = write(store, {evil: planted_side(store, "Evil", tokens=tokens, draws=0)}, title=evil)
    page = Page(written.html)
    assert not page.by("img")
    assert len([1 for attrs, _ in page.by("script") if "type" not in attrs]) == 1
    for text in (written.html, written.markdown, unpacked(written.html, "payload")):
        assert "\x00" not in text
        assert "\u202e" not in text
    assert "<script>" not in written.markdown
    assert "no null was computed" in written.markdown or "no permutations" in written.markdown


def test_equal_inputs_give_equal_bytes_in_another_store(pair: Written, tmp_path: Path) -> None:
    again = build(ArtifactStore(tmp_path / "elsewhere"))
    assert again.artifact.hash == pair.artifact.hash
    assert again.artifact.manifest()["files"] == pair.artifact.manifest()["files"]
    assert read_json(again.artifact.file("results.json")) == read_json(pair.artifact.file("results.json"))
