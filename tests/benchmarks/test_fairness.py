"""What makes the comparison fair: one feed, one clock, one quality for everyone, and settings that were looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.measure import WARM_UP, Feed, fvu, grade
from benchmarks.planted_rows import CASES, Case, planted, read_rows, write_rows

SMALL = Case("small", 3, 8, 2, 16, 5, 40, heldout=10)


def test_rows_come_back_from_the_file_and_a_shorter_case_takes_the_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", SMALL, seed=1)
    rows, heldout = read_rows(tmp_path / "rows", SMALL, SMALL)
    assert rows.shape == (3, 40, 576)
    assert torch.equal(rows[2], planted(40, dictionary=1_002_001, draw=1_002_002))
    assert not torch.equal(rows[0], rows[1])
    shorter = SMALL._replace(rows=32)
    some, same_heldout = read_rows(tmp_path / "rows", SMALL, shorter)
    assert torch.equal(some, rows[:, :32])
    assert torch.equal(same_heldout, heldout)


def test_rows_are_sums_of_few_of_many_directions() -> None:
    rows = planted(4000, dictionary=1, draw=2)
    again = planted(4000, dictionary=1, draw=3)
    assert not torch.equal(rows, again)
    # More directions than dimensions: no subspace holds them, and their mean is not zero.
    spectrum = torch.linalg.svdvals(rows - rows.mean(0))
    assert spectrum[-1] > 0.05 * spectrum[0]
    assert rows.mean(0).norm() > 3 * (rows.mean(0) - again.mean(0)).norm()


def test_everyone_gets_the_same_batches_however_they_take_them() -> None:
    rows = torch.randn(3, 40, 4)
    feed = Feed(rows, batch_rows=16, steps=5)
    together = torch.stack(list(feed.together()))
    alone = torch.stack([torch.stack(list(feed.alone(s))) for s in range(3)], 1)
    single = torch.stack([torch.stack([feed.batch(step, s) for s in range(3)]) for step in range(5)])
    assert torch.equal(together, alone)
    assert torch.equal(together, single)
    # Two batches fill an epoch; the rest of the rows is left out.
    assert torch.equal(together[0], together[2])


def test_the_clock_counts_the_loop_without_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now)
    feed = Feed(torch.randn(2, 80, 4), batch_rows=8, steps=10)
    for step, _ in enumerate(feed.together()):
        now += 50.0 if step < WARM_UP else 0.5
    now += 1000.0
    assert feed.rows_per_second() == pytest.approx(2 * 8 / 0.5)


def test_between_two_loops_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now)
    feed = Feed(torch.randn(2, 80, 4), batch_rows=8, steps=10)
    for sae in range(2):
        now += 100.0
        for _ in feed.alone(sae):
            now += 0.25
    assert feed.rows_per_second() == pytest.approx(8 / 0.25)


def test_a_loop_that_did_other_work_has_no_speed() -> None:
    feed = Feed(torch.randn(1, 80, 4), batch_rows=8, steps=10)
    batches = feed.alone(0)
    for _ in range(9):
        next(batches)
    feed.stop()
    with pytest.raises(RuntimeError, match="not 10"):
        feed.rows_per_second()


def test_quality_is_one_definition() -> None:
    x = torch.randn(100, 4) + 7
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1, abs=1e-5)
    assert fvu(x, x + 1) == pytest.approx(400 / float((x - x.mean(0)).square().sum()), rel=1e-5)
    fired = torch.tensor([True, False, False, False])
    quality = grade([lambda rows: (rows, fired), lambda rows: (0 * rows, ~fired)], torch.stack([x, x - x.mean(0)]))
    assert quality.fvu == pytest.approx([0, 1])
    assert quality.dead == pytest.approx([0.75, 0.25])


def test_every_trainer_has_settings_that_were_the_best_tried() -> None:
    tuned = json.loads(Path(__file__).with_name("tuned.json").read_text())
    assert tuned.keys() == CASES.keys()
    for case, entries in tuned.items():
        assert entries.keys() == {"ours", "sparsify", "sae_lens", "dictionary_learning"}
        for who, entry in entries.items():
            found = {json.dumps(item["settings"]): item.get("fvu", float("inf")) for item in entry["tried"]}
            assert len(found) >= 3, (case, who)
            # An option that helps by no more than 0.003 is not kept, and there are several.
            assert found[json.dumps(entry["settings"])] < min(found.values()) + 0.01, (case, who)
