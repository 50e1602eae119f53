"""What a report holds: traceable numbers, nothing that differs between equal runs, and every kind of gap."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from planted_reports import THEMES, World, build_world

from saeinterp.artifacts import ArtifactStore, write_json
from saeinterp.errors import MissingDependencyError
from saeinterp.report import Failure, Results, render, write_report, write_report_recipe
from saeinterp.report.format import number, with_interval
from saeinterp.report.markdown import render_markdown
from saeinterp.report.pages import details, libraries
from saeinterp.report.pages.dashboard import numbers, render_dashboard

from .conftest import Report, read_report

FAILURE = Failure(
    stage="training",
    hookpoint="layers.10",
    side="subject",
    error="layers.10: the loss is NaN (got nan).\nNext: lower training.lr.",
)


class Page(HTMLParser):
    """Elements of a page with their attributes and direct text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.current: int | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.current = len(self.texts)
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.current = None

    def handle_data(self, data: str) -> None:
        if self.current is not None:
            self.texts[self.current] += data

    def by(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of every element of one name."""
        return [(attrs, text) for (name, attrs), text in zip(self.elements, self.texts) if name == tag]


def unpacked(html: str, name: str) -> str:
    """A packed script of the page."""
    text = next(text for attrs, text in Page(html).by("script") if attrs.get("id") == name)
    return gzip.decompress(base64.b64decode(text)).decode()


def at_path(results: Results, path: str) -> Any:
    node: Any = results.model_dump(mode="json")
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node


def test_a_report_is_two_pages_a_results_file_and_tables(report: Report) -> None:
    names = sorted(path.name for path in report.artifact.path.iterdir())
    assert names == [
        "manifest.json",
        "report.html",
        "report.md",
        "results.json",
        "results.schema.json",
        "tables",
        "timing.parquet",
    ]
    tables = {path.stem for path in (report.artifact.path / "tables").iterdir()}
    assert tables == {"latents", "examples", "layers", "curves", "density"}
    assert report.artifact.file("report.html").stat().st_size < 7_000_000


def test_every_number_on_the_page_is_the_one_in_the_results_file_and_rounded_once(report: Report) -> None:
    shown = [(attrs, text) for attrs, text in Page(report.html).by("data") if "data-path" in attrs]
    assert len(shown) > 200
    for attrs, text in shown:
        stored = at_path(report.results, attrs["data-path"] or "")
        assert json.loads(attrs["value"] or "") == stored["value"]
        assert text == with_interval(stored["value"], stored["low"], stored["high"], stored["style"])[0]


def test_every_number_has_a_source_and_a_count_or_a_reason(report: Report) -> None:
    found = numbers(report.results)
    known = {step.id for step in report.results.provenance.steps}
    assert len(found) > 250
    for path, item in found:
        assert item.source in known, path
        assert item.value is not None or item.reason, path
        if path.startswith(("explainers", "models")) and item.value is not None:
            assert item.n is not None, path
            assert item.of, path


def test_the_verdict_is_the_stored_comparison_word_for_word(report: Report) -> None:
    assert report.world.explainers is not None
    stored = json.loads(report.world.explainers.file("comparison.json").read_text(encoding="utf-8"))
    section = report.results.explainers
    assert section is not None
    assert section.sentence == stored["sentence"]
    assert section.primary.difference.value == stored["primary"]["difference"]
    assert section.primary.difference.low == stored["primary"]["ci_low"]
    assert section.primary.p.value == stored["primary"]["p_value"]
    assert section.primary.detectable is not None
    assert section.primary.detectable.value == stored["primary"]["min_detectable"]
    assert stored["sentence"] in report.markdown
    assert stored["sentence"] in report.html


def test_equal_inputs_give_equal_bytes_in_another_store(report: Report, tmp_path: Path) -> None:
    again = write_report(**build_world(ArtifactStore(tmp_path / "elsewhere")).arguments())
    assert again.hash == report.artifact.hash
    assert again.manifest()["files"] == report.artifact.manifest()["files"]


def test_wall_times_and_hosts_are_in_the_timing_table_alone(report: Report) -> None:
    timing = pl.read_parquet(report.artifact.file("timing.parquet"))
    assert set(timing["artifact"]) == {step.id for step in report.results.provenance.steps}
    assert set(timing["host"]) == {socket.gethostname()}
    payload_text = report.artifact.file("results.json").read_text(encoding="utf-8")
    assert socket.gethostname() not in payload_text + report.markdown
    assert "seconds" not in payload_text
    assert "timing.parquet" not in report.artifact.manifest()["files"]
    assert str(report.world.store.root) not in payload_text + report.markdown + report.html


def test_the_markdown_report_reads_as_reviewed(world: World, report: Report, golden: Path) -> None:
    """To accept a change: SAEINTERP_UPDATE_GOLDEN=1 pytest tests/report, then review the diff."""
    written = re.sub(r"-[0-9a-f]{8}`", "-########`", report.markdown)
    written = re.sub(r"^- (Versions|Platform): .*$", r"- \1: (differs by machine)", written, flags=re.M)
    if os.environ.get("SAEINTERP_UPDATE_GOLDEN"):
        (golden / "report.md").write_text(written, encoding="utf-8")
    assert written == (golden / "report.md").read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_a_network_and_runs_only_scripts_it_names(report: Report) -> None:
    page = Page(report.html)
    policy = next(
        attrs["content"] or "" for attrs, _ in page.by("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert not page.by("link")
    for tag, attrs in page.elements:
        assert not {"src", "srcset", "action", "onclick", "onerror", "onload"} & attrs.keys(), tag
        assert (attrs.get("href") or "#").startswith("#")
    inline = [text for attrs, text in page.by("script") if "type" not in attrs]
    sources = [*inline, unpacked(report.html, "lib-plotly"), unpacked(report.html, "lib-tabulator")]
    assert len(inline) == 1
    for source in sources:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_licences_of_what_is_embedded_come_along(report: Report) -> None:
    assert re.search(r"plotly\.js v\d.*licence", report.html)
    assert re.search(r"Tabulator v\d.*licence", report.html)
    assert "Oli Folkerd" in report.html
    assert "Plotly Technologies Inc." in report.html


def test_hostile_text_is_text_everywhere(store: ArtifactStore) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x00\u202e|`x`"
    themes = tuple((theme[0], (" <b>", "</td>", "\x1b", " \u202e"), evil, evil) for theme in THEMES)
    world = build_world(store, control=False, hookpoints=("layers.5",), themes=themes, hostile_reply=evil)
    failure = FAILURE.model_copy(update={"error": evil})
    written = read_report(world, write_report(**world.arguments(title=evil, failures=[failure])))
    page = Page(written.html)
    assert not page.by("img")
    assert len([1 for attrs, _ in page.by("script") if "type" not in attrs]) == 1
    for text in (written.html, written.markdown, unpacked(written.html, "payload")):
        assert "\x00" not in text
        assert "\u202e" not in text
    assert "<script>" not in written.markdown
    assert json.loads(unpacked(written.html, "payload"))["latents"]["columns"]["label_a"][0].startswith("</script>")


def test_a_failed_layer_comes_first_with_its_error_and_the_way_to_retry(world: World, report: Report) -> None:
    written = read_report(world, write_report(**world.arguments(failures=[FAILURE])))
    assert written.artifact.id != report.artifact.id
    for text in (written.html, written.markdown):
        assert "1 step failed; the numbers below are without it" in text
        assert "the loss is NaN" in text
        assert "run the same command again" in text
        assert text.index("the loss is NaN") < text.index("show no detectable difference")


def test_a_report_is_written_even_when_no_layer_finished(store: ArtifactStore) -> None:
    world = World(store)
    written = read_report(world, write_report(**world.arguments(failures=[FAILURE])))
    assert "Nothing was compared" in written.html
    assert "no layer finished" in written.markdown
    assert written.results.findings[-1].startswith("1 step did not finish")
    assert 'id="lib-plotly"' not in written.html


def test_models_alone_are_reported_with_their_sentence_first(world: World) -> None:
    written = read_report(world, write_report(**world.arguments(explainer_comparison=None)))
    section = written.results.models
    assert section is not None
    assert written.results.explainers is None
    assert section.sentence in written.markdown
    assert written.html.index('id="models"') < written.html.index('id="plots"')
    assert not (written.artifact.path / "tables" / "latents.parquet").exists()
    reasons = {row.b.reason for row in section.layers if row.b is not None and row.b.value is None}
    assert reasons
    for reason in reasons:
        assert reason is not None
        assert reason.split("<")[0] in written.html


def test_explainers_alone_are_reported(world: World) -> None:
    arguments = world.arguments(model_comparison=None, health={}, saes={})
    written = read_report(world, write_report(**arguments))
    assert written.results.models is None
    assert "Layer health" not in written.markdown
    assert 'id="plot-scatter"' in written.html
    assert 'id="plot-density"' not in written.html


def test_one_latent_has_values_and_says_why_nothing_is_tested(store: ArtifactStore) -> None:
    world = build_world(store, control=False, hookpoints=("layers.5",), latents=1, failing_explanations=False)
    written = read_report(world, write_report(**world.arguments()))
    section = written.results.explainers
    assert section is not None
    assert section.n_latents == 1
    assert section.primary.a.value is not None
    assert section.primary.difference.low is None
    assert section.primary.difference.no_interval
    assert section.primary.detectable is not None
    assert section.primary.detectable.reason
    assert "mean over 1 latent<" in written.html


def test_a_metric_without_probabilities_is_missing_with_a_reason_not_zero(store: ArtifactStore) -> None:
    world = build_world(store, control=False, hookpoints=("layers.5",), probabilities=False)
    written = read_report(world, write_report(**world.arguments()))
    section = written.results.explainers
    assert section is not None
    auroc = [row for row in section.rows if row.metric == "auroc"]
    assert all(row.a.value is None and row.a.reason for row in auroc)
    assert '"auroc_a_text"' not in unpacked(written.html, "payload")


def test_every_selected_latent_is_in_the_table_with_its_outcome(report: Report) -> None:
    table = pl.read_parquet(report.artifact.path / "tables" / "latents.parquet")
    assert len(table) == 21
    assert table.filter(pl.col("status") == "too_rare")["outcome"].unique().to_list() == ["unscored"]
    assert table.filter(pl.col("status") == "explanation_failed")["outcome"].unique().to_list() == ["failed"]
    both = table.filter(pl.col("outcome") == "both")
    assert (both["value_a"] > both["f1_always_yes"]).all()
    assert (both["value_b"] > both["f1_always_yes"]).all()
    assert "neither" in table["outcome"]


def test_a_row_shows_every_example_with_truth_and_both_verdicts(report: Report) -> None:
    data = json.loads(unpacked(report.html, "payload"))
    index = data["latents"]["columns"]["id"].index("L10_F108")
    detail = page_of(report, index)
    verdicts = pl.read_parquet(report.artifact.path / "tables" / "examples.parquet").filter(
        (pl.col("hookpoint") == "layers.10") & (pl.col("latent") == 108) & (pl.col("role") == "score")
    )
    assert len(detail["score"]) == len(verdicts) == 35
    assert [example["truth"] for example in detail["score"]] == verdicts["truth"].to_list()
    assert [example["a"]["verdict"] for example in detail["score"]] == verdicts["verdict_a"].to_list()
    assert detail["score"][0]["band"].startswith("Activating, quantile 10: peak activation ")
    assert max(detail["score"][0]["levels"]) == 10
    assert len(detail["explain"]) == 6
    failed = data["latents"]["columns"]["id"].index("L10_F302")
    sides = page_of(report, failed)["sides"]
    assert [side["reason"] for side in sides] == ["the reply holds no explanation", None]
    assert detail["top"] == ["·for", "·while", "·range", "·iterate"]


def page_of(report: Report, index: int) -> dict[str, Any]:
    """The page of one row of the latent table, from the packed part of the report that holds it."""
    chunks = json.loads(unpacked(report.html, "payload"))["latents"]["chunks"]
    chunk = next(number for number, rows in enumerate(chunks) if index in rows)
    return json.loads(unpacked(report.html, f"details-{chunk}"))[str(index)]


def test_pages_beyond_the_first_lie_beside_the_report_and_those_beyond_the_limit_are_named(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(details, "INSIDE", 6)
    monkeypatch.setattr(details, "CHUNK", 4)
    monkeypatch.setattr(details, "SHARD", 5)
    shutil.copytree(report.artifact.path, tmp_path / "report")
    results = {**report.results.model_dump(mode="json"), "detail_latents": 15}
    write_json(tmp_path / "report" / "results.json", results)
    render(tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    data = json.loads(unpacked(html, "payload"))["latents"]
    deltas = [-1 if value is None else abs(value) for value in data["columns"]["delta"]]
    inside = [row for rows in data["chunks"] for row in rows]
    assert [len(rows) for rows in data["chunks"]] == [4, 2]
    assert sorted(deltas[row] for row in inside) == sorted(deltas)[-6:]
    beside: list[int] = []
    for shard in data["shards"]:
        text = (tmp_path / "report" / "latents" / f"shard-{shard:05d}.js").read_text(encoding="ascii")
        found = re.fullmatch(r'saeinterpShard\((\d+),"([A-Za-z0-9+/=]+)"\);\n', text)
        assert found is not None
        assert int(found[1]) == shard
        pages = json.loads(gzip.decompress(base64.b64decode(found[2])))
        assert all(int(row) // 5 == shard for row in pages)
        beside += map(int, pages)
    assert len(beside) == 9
    assert sorted(deltas[row] for row in [*inside, *beside]) == sorted(deltas)[-15:]
    assert "of the other 6 are in tables/examples.parquet" in data["left_out"]
    assert data["left_out"] in html
    policy = next(
        attrs["content"] for attrs, _ in Page(html).by("meta") if "script-src" in (attrs.get("content") or "")
    )
    nonce = re.search(r"'nonce-([0-9a-f]{32})'", policy or "")
    assert nonce is not None
    assert f'data-nonce="{nonce[1]}"' in html
    assert "'nonce-" not in report.html


def test_an_unmatched_comparison_carries_a_banner(report: Report) -> None:
    tables = report.artifact.path / "tables"
    section = report.results.explainers
    assert section is not None
    assert "Unmatched comparison" not in report.html + report.markdown
    broken = section.checks[0].model_copy(update={"ok": False, "a": "set one", "b": "set two"})
    changed = section.model_copy(update={"matched": False, "checks": (broken, *section.checks[1:])})
    results = report.results.model_copy(update={"explainers": changed})
    for text in (render_dashboard(results, tables), render_markdown(results, tables)):
        assert "Unmatched comparison" in text
        assert "set one (A) against set two (B)" in text


def test_without_tabulator_the_page_has_a_plain_table_and_says_how_to_get_the_other(
    report: Report, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = libraries.importlib.util.find_spec
    monkeypatch.setattr(
        libraries.importlib.util, "find_spec", lambda name: None if name == "pytabulator" else found(name)
    )
    with caplog.at_level(logging.WARNING):
        page = render_dashboard(report.results, report.artifact.path / "tables")
    assert "pip install --no-deps pytabulator" in caplog.text
    assert "pip install --no-deps pytabulator" in page
    assert 'data-latent="20"' in page
    assert 'id="lib-tabulator"' not in page


def test_without_plotly_the_error_names_the_remedy(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    found = libraries.importlib.util.find_spec
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None if name == "plotly" else found(name))
    with pytest.raises(MissingDependencyError, match="pip install plotly"):
        render_dashboard(report.results, report.artifact.path / "tables")


def test_a_removed_cache_is_listed_as_gone_and_stops_nobody(store: ArtifactStore) -> None:
    world = build_world(store, compare=False, control=False, hookpoints=("layers.5",))
    shutil.rmtree(next((store.root / "activations").glob("*-*")))
    written = read_report(world, write_report(**world.arguments()))
    assert len(written.results.provenance.gone) == 1
    assert "removed since" in written.markdown


def test_the_recipe_knows_sides_failures_and_configuration(world: World) -> None:
    arguments = world.arguments()
    del arguments["store"]
    recipe = write_report_recipe(**arguments)
    assert recipe.kind == "report"
    assert recipe.name == "smollm2-135m-and-top-tokens-as-explainers"
    assert write_report_recipe(**{**arguments, "failures": [FAILURE]}).hash != recipe.hash
    assert write_report_recipe(**{**arguments, "title": "another"}).hash != recipe.hash
    sides = list(world.health)
    renamed = {"other": world.health[sides[0]], sides[1]: world.health[sides[1]]}
    assert write_report_recipe(**{**arguments, "health": renamed}).hash != recipe.hash


def test_the_plots_have_tables_with_the_same_numbers(report: Report) -> None:
    figures = {item["id"]: item for item in json.loads(unpacked(report.html, "payload"))["figures"]}
    assert set(figures) == {"scatter", "fvu-heldout", "dead", "density"}
    curves = pl.read_parquet(report.artifact.path / "tables" / "curves.parquet")
    last = curves.filter((pl.col("side") == "subject") & (pl.col("hookpoint") == "layers.5"))["fvu_heldout"][-1]
    trace = figures["fvu-heldout"]["data"][0]
    assert trace["y"][-1] == last
    assert number(last, "score") in report.html
    places = [index for trace in figures["scatter"]["data"] for index in trace["customdata"]]
    assert len(places) == len(set(places)) == 18
