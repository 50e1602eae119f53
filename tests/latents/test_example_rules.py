"""Every rule of example sets, checked row by row against the dense code of a planted cache."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_latents import HOOKPOINT, PlantedLatents, plant_latents, spelled

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.config import ExamplesConfig
from saeinterp.latents import LatentCache, build_examples
from saeinterp.latents.entries import Entries
from saeinterp.latents.picking import Pick
from saeinterp.latents.rendering import Text
from saeinterp.latents.windows import cut_windows
from saeinterp.sae import TopKSae
from saeinterp.subject import Context, Contexts, read_contexts
from saeinterp.subject.contexts import CONTEXTS_SCHEMA

CONFIG = ExamplesConfig(latents="all", window=20, max_share=0.5, min_windows=12, seed=3)
PLANT = {"tokens": 60_000, "num_latents": 150}


class Truth(NamedTuple):
    """The planted artifacts, their example set, and the same facts computed densely."""

    planted: PlantedLatents
    examples: Artifact
    rows: pl.DataFrame
    outcomes: pl.DataFrame
    tokens: np.ndarray  # [W, 20], -1 beyond a short window's end
    dense: np.ndarray  # [W, 20, M]
    firings: np.ndarray  # [M], on all tokens, in a window or not
    explain: np.ndarray  # [W]: does it belong to the explain split?
    place: dict[tuple[int, int], int]  # (context, start) -> window

    def window(self, row: dict[str, object]) -> int:
        return self.place[row["context_id"], row["start"]]  # type: ignore[index]


def frozen(planted: PlantedLatents, store: ArtifactStore, config: ExamplesConfig = CONFIG, **options: int) -> Artifact:
    return build_examples(*planted_inputs(planted), hookpoint=HOOKPOINT, config=config, store=store, **options)


def planted_inputs(planted: PlantedLatents) -> tuple[Artifact, Artifact, Artifact]:
    return planted.latents, planted.corpus, planted.sae


def files(artifact: Artifact) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in artifact.path.glob("*.*")
        if path.stem != "manifest"
    }


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    store = ArtifactStore(tmp_path_factory.mktemp("example-rules"))
    planted = plant_latents(store, **PLANT, train_tokens=900)
    examples = frozen(planted, store)
    cache = LatentCache.open(planted.latents)
    contexts = read_contexts(planted.corpus, splits=("explain", "score"))
    code = np.zeros((cache.rows + 1, cache.num_latents), np.float32)
    for chunk in cache.firings():
        code[chunk.rows, chunk.latents] = chunk.values
    ids = np.append(contexts.token_ids, -1)
    members, explain, place = [], [], {}
    row = 0
    for context in contexts:
        for start in range(0, len(context.token_ids), 20):
            length = min(20, len(context.token_ids) - start)
            if length >= 10:
                place[context.context_id, start] = len(members)
                members.append([row + start + at if at < length else cache.rows for at in range(20)])
                explain.append(context.split == "explain")
        row += len(context.token_ids)
    member = np.array(members)
    return Truth(
        planted,
        examples,
        pl.read_parquet(examples.file("examples.parquet")),
        pl.read_parquet(examples.file("latents.parquet")),
        ids[member],
        code[member],
        (code != 0).sum(0),
        np.array(explain),
        place,
    )


def test_outcomes_follow_from_the_share_of_active_windows(truth: Truth) -> None:
    active = truth.dense.any(axis=1)  # [W, M]
    early, late = active[truth.explain].sum(0), active[~truth.explain].sum(0)
    totals = truth.explain.sum(), (~truth.explain).sum()
    expected = []
    for a, b, fired in zip(early, late, truth.firings, strict=True):
        if not fired:
            expected.append("dead")
        elif min(a, b) < 12:
            expected.append("too_rare")
        else:
            expected.append("too_dense" if a > 0.5 * totals[0] or b > 0.5 * totals[1] else "ok")
    assert truth.outcomes["status"].to_list() == expected
    assert set(expected) == {"ok", "dead", "too_rare", "too_dense"}
    assert truth.outcomes["windows_explain"].to_list() == early.tolist()
    assert truth.outcomes["windows_score"].to_list() == late.tolist()
    assert truth.outcomes["firings"].to_list() == truth.firings.tolist()
    assert (
        truth.outcomes["density"].to_list() == (truth.firings / LatentCache.open(truth.planted.latents).rows).tolist()
    )
    assert set(truth.rows["latent"]) == set(truth.outcomes.filter(status="ok")["latent"])


def test_top_tokens_are_those_of_the_largest_sums_on_the_explain_split(truth: Truth) -> None:
    tokens, dense = truth.tokens[truth.explain], truth.dense[truth.explain].astype(np.float64)
    for row in truth.outcomes.filter(status="ok").head(40).iter_rows(named=True):
        sums = np.zeros(500)
        np.add.at(sums, tokens[tokens >= 0], dense[..., row["latent"]][tokens >= 0])
        expected = [spelled(int(token)) for token in np.argsort(-sums, kind="stable")[:8] if sums[token]]
        assert row["top_tokens"] == expected


def test_each_row_shows_what_the_latent_does_there(truth: Truth) -> None:
    for row in truth.rows.iter_rows(named=True):
        window = truth.window(row)
        length = row["end"] - row["start"]
        assert row["token_ids"] == truth.tokens[window][:length].tolist()
        assert row["activations"] == truth.dense[window, :length, row["latent"]].tolist()
        assert row["tokens"] == [spelled(token) for token in row["token_ids"]]
        assert row["text"] == "".join(row["tokens"])
        assert (row["role"] == "explain") == truth.explain[window]
    assert any("語" in text for text in truth.rows["text"])


def test_negatives_are_what_their_kind_says(truth: Truth) -> None:
    directions = TopKSae.load(truth.planted.sae.path).W_dec.double().numpy()
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    rivals = np.argsort(-cosines, axis=1)[:, :5]
    top = {row["latent"]: set(row["top_tokens"][:3]) for row in truth.outcomes.iter_rows(named=True)}
    negatives = truth.rows.filter(pl.col("kind") != "activating")
    assert {(row["role"], row["kind"]) for row in negatives.iter_rows(named=True)} == {
        ("score", "near-miss"),
        ("score", "similar"),
        ("score", "random"),
        ("explain", "silent"),
    }
    for row in negatives.iter_rows(named=True):
        window, latent = truth.window(row), row["latent"]
        assert not truth.dense[window, :, latent].any()
        assert row["quantile"] is None
        if row["kind"] == "near-miss":
            assert top[latent] & set(row["tokens"])
        if row["kind"] == "similar":
            assert truth.dense[window][:, rivals[latent]].any()
    assert truth.rows.height == truth.rows.unique(["latent", "context_id", "start"]).height


def test_missing_negatives_are_those_that_do_not_exist(truth: Truth, store: ArtifactStore) -> None:
    folder = frozen(truth.planted, store, CONFIG.model_copy(update={"max_share": 1.0})).path
    outcomes = pl.read_parquet(folder / "latents.parquet").filter(status="ok")
    counts = pl.read_parquet(folder / "examples.parquet").group_by("latent", "kind").len()
    for row in outcomes.iter_rows(named=True):
        have = dict(counts.filter(latent=row["latent"]).select("kind", "len").iter_rows())
        replaced = row["missing_near_miss"] + row["missing_similar"]
        assert have.get("near-miss", 0) == 5 - row["missing_near_miss"]
        assert have.get("similar", 0) == 5 - row["missing_similar"]
        assert have.get("random", 0) == 5 + replaced - row["missing_random"]
        assert have.get("silent", 0) == 6 - row["missing_silent"]
    # Latents that fire nearly everywhere leave too few silent windows for all kinds.
    assert (outcomes.select(pl.selectors.starts_with("missing_")).max().row(0)) == (5, 5, 15, 6)


def test_texts_an_explainer_is_shown_as_silent_are_hard_ones_too(truth: Truth) -> None:
    outcome = truth.outcomes.filter(status="ok", missing_near_miss=0)
    held = 0
    for row in outcome.iter_rows(named=True):
        silent = truth.rows.filter(latent=row["latent"], kind="silent")
        held += sum(bool(set(row["top_tokens"][:3]) & set(tokens)) for tokens in silent["tokens"])
    assert held >= 2 * outcome.height * 0.8  # a third of six, where the explain split has them


def test_none_is_drawn_where_no_silent_text_is_wanted(truth: Truth, store: ArtifactStore) -> None:
    rows = pl.read_parquet(
        frozen(truth.planted, store, CONFIG.model_copy(update={"explain_silent": 0})).file("examples.parquet")
    )
    assert rows.equals(truth.rows.filter(pl.col("kind") != "silent"))


def test_positives_cover_the_quantiles_of_their_split(truth: Truth) -> None:
    peaks = np.abs(truth.dense).max(axis=1)
    for latent in truth.outcomes.filter(status="ok")["latent"].head(40):
        for role, of_split, wanted in (("explain", truth.explain, 12), ("score", ~truth.explain, 15)):
            active = np.flatnonzero(of_split & (peaks[:, latent] > 0))
            order = active[np.argsort(peaks[active, latent], kind="stable")]
            quantile = {int(window): rank * 10 // len(order) for rank, window in enumerate(order)}
            rows = truth.rows.filter(latent=latent, role=role, kind="activating")
            shown = [truth.window(row) for row in rows.iter_rows(named=True)]
            assert len(shown) == min(wanted, len(order))
            assert rows["quantile"].to_list() == [quantile[window] for window in shown]
            if role == "explain":
                assert shown[:6] == order[::-1][:6].tolist()
            if len(order) >= 100:
                assert set(rows["quantile"]) == set(range(10)) or role == "explain"


def test_any_budget_gives_the_same_bytes(truth: Truth, tmp_path: Path) -> None:
    for budget in (1, 700_000):
        assert files(frozen(truth.planted, ArtifactStore(tmp_path / str(budget)), budget=budget)) == files(
            truth.examples
        )


def test_the_content_hash_is_of_the_values_not_of_how_they_were_written(truth: Truth) -> None:
    digest = hashlib.sha256()
    for frame in (truth.rows, truth.outcomes):
        digest.update(frame.write_ndjson().encode())
    assert read_json(truth.examples.file("examples.json"))["content_hash"] == digest.hexdigest()
    assert pl.scan_parquet(truth.examples.file("examples.parquet")).collect().height == truth.rows.height


def test_progress_reaches_the_end_of_both_passes(truth: Truth, store: ArtifactStore) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def listen(done: int, total: int, what: str) -> None:
        assert done >= seen.get(what, (0, 0))[0]
        seen[what] = (done, total)

    inputs = planted_inputs(truth.planted)
    build_examples(*inputs, hookpoint=HOOKPOINT, config=CONFIG, store=store, progress=listen)
    assert seen == {"tokens": (60_000, 60_000), "latents": (150, 150)}


@pytest.mark.parametrize("moment", ["tokens", "latents"])
def test_killed_and_run_again_it_writes_the_same_bytes(truth: Truth, tmp_path: Path, moment: str) -> None:
    root = truth.planted.latents.path.parents[1]
    done = child("kill", root, tmp_path, {**PLANT, "train_tokens": 900}, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = ArtifactStore(tmp_path)
    assert list((tmp_path / ".work").rglob("rows.bin"))
    assert not list((tmp_path / "examples").glob("*/manifest.json"))
    assert files(frozen(truth.planted, store)) == files(truth.examples)
    assert not [path for path in (tmp_path / ".work").rglob("*") if path.suffix == ".bin"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_grows_by_less_than_the_latent_cache_itself(tmp_path: Path) -> None:
    sizes = [50_000, 250_000]
    peaks = []
    for tokens in sizes:
        plant = {"tokens": tokens, "k": 32, "num_latents": 400}
        plant_latents(ArtifactStore(tmp_path), **plant)
        done = child("measure", tmp_path, tmp_path / str(tokens), plant)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    # 32 entries of 8 bytes are 256 bytes a token before any of them is sorted; text, spans, windows and the token
    # index are between 100 and 200 while they are read and joined.
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < 230


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=5, max_size=24))
def test_tokens_that_share_a_character_give_it_to_the_first(steps: list[tuple[int, int]]) -> None:
    # Spans that step back over the end of the one before are what byte-level tokens of one character have.
    ends = np.cumsum([width for _, width in steps])
    starts = np.maximum(0, np.concatenate([[0], ends[:-1]]) - [back for back, _ in steps])
    document = "".join(chr(0x4E00 + place) for place in range(int(ends[-1]) + 1))
    count = len(steps)
    columns = [[0], ["explain"], [np.arange(count)], [np.zeros(count)], [starts], [ends]]
    contexts = Contexts(pa.table(columns, schema=CONTEXTS_SCHEMA))
    windows = cut_windows(contexts, size=5)
    text = Text(contexts, {0: document}, windows)
    picks = [Pick(window, "explain", "silent", None) for window in range(len(windows.row))]
    fires = Entries(np.array([2], np.int32), np.array([0.5], np.float32))
    rows = text.table([text.shown(0, picks, fires)]).to_pylist()
    assert [sum(row["activations"]) for row in rows] == [0.5] + [0] * (len(rows) - 1)
    context: Context = contexts[0]
    assert len(rows) == len(picks) > 0
    for row in rows:
        assert row["tokens"] == context.pieces(row["start"], row["end"], {0: document})
        assert row["text"] == context.text(row["start"], row["end"], {0: document})


def child(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `main` below in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__)),
        *(repr(argument) if isinstance(argument, dict) else str(argument) for argument in arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def main(what: str, planted_root: str, root: str, plant: str, moment: str = "") -> None:
    """Build the example set of a planted cache; die at a moment, or print how much memory it took, in bytes."""
    import ast

    planted = plant_latents(ArtifactStore(planted_root), **ast.literal_eval(plant))
    inputs = planted_inputs(planted)

    def memory(field: str) -> int:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[field].split()[0]) * 1024

    def die(done: int, total: int, step: str) -> None:
        if what == "kill" and step == moment and done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if what == "measure":  # what is loaded or allocated once does not count
        small = plant_latents(ArtifactStore(planted_root), tokens=6_000)
        frozen(small, ArtifactStore(root))
        Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    config = CONFIG if what == "kill" else CONFIG.model_copy(update={"latents": "0:100"})
    build_examples(*inputs, hookpoint=HOOKPOINT, config=config, store=ArtifactStore(root), progress=die, budget=2**20)
    sys.stdout.write(str(memory("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
