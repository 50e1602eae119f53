"""GPU slots: one task a card, children see theirs alone, two cards work at once, a missing limit is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from operations import TERMINAL, Operations

from saeinterp.config import LaunchConfig, Placement
from saeinterp.errors import ConfigError
from tasks.cards import SLOTS, Cards, Need, _choices, cards, slot_names

slow = pytest.mark.slow


def test_a_subject_needs_the_cards_that_its_placement_names() -> None:
    assert Need.of(Placement(device="cpu")) == Need()
    assert Need.of(Placement()).number == 1
    assert Need.of(Placement(device="cuda:1")).named == (1,)
    assert Need.of(Placement(), processes=2).number == 2
    assert Need.of(Placement(device_map="auto")).every
    assert Need.of(Placement(device_map="auto", max_memory={"2": "9GiB", "cpu": "9GiB"})).named == (2,)
    assert Need.of(Placement(device_map={"": "cuda:3", "lm_head": 0, "model.norm": "cpu"})).named == (0, 3)


def test_training_needs_a_card_a_process_or_those_of_the_model_it_runs() -> None:
    assert Need.of_training(LaunchConfig(), None).number == 1
    assert Need.of_training(LaunchConfig(processes=4), Placement()).number == 4
    assert Need.of_training(LaunchConfig(), Placement(device="cuda:1")).named == (1,)
    assert Need.of_training(LaunchConfig(), Placement(device_map="balanced")).every
    assert Need.of_training(LaunchConfig(command=("srun",), processes=8), None) == Need()


def test_children_count_the_cards_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    held = Cards((1, 3))
    assert held.visible == "1,3"
    assert held.below(Placement(device="cuda:1")).device == "cuda"
    assert held.below(Placement(device_map={"": "cuda:3", "lm_head": 1})).device_map == {"": 1, "lm_head": 0}
    assert held.below(Placement(device_map="auto", max_memory={"3": "9GiB", "cpu": "1GiB"})).max_memory == {
        "1": "9GiB",
        "cpu": "1GiB",
    }
    # Where this process itself sees some of the machine's cards, slots count those.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-77")
    assert held.visible == "5,GPU-77"
    assert Cards().visible is None
    assert Cards().below(Placement(device="cuda:1")).device == "cuda:1"


def test_what_runs_in_this_process_is_given_its_card_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Cards((1,))
    assert held.here(Placement()).device == "auto"  # no GPU here
    monkeypatch.setattr("tasks.cards._cuda", lambda: True)
    assert held.here(Placement()).device == "cuda:1"
    assert Cards().here(Placement()).device == "auto"
    spread = Placement(device_map="auto")
    assert Cards((0, 1)).here(spread) == spread


def test_without_the_setting_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SLOTS, raising=False)
    with cards(Need(number=1), server=True) as held:
        assert held.numbers == ()


def test_the_setting_names_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOTS, "2")
    assert slot_names() == ["gpu-0", "gpu-1"]
    monkeypatch.setenv(SLOTS, "node7:1")
    assert slot_names() == ["node7-0"]
    with pytest.raises(ConfigError, match="2 cards are needed"), cards(Need(number=2)):
        pass
    with pytest.raises(ConfigError, match="card 3 has no slot"), cards(Need(named=(3,))):
        pass
    monkeypatch.setenv(SLOTS, "two")
    with pytest.raises(ConfigError, match="a number of cards"):
        slot_names()
    monkeypatch.setenv(SLOTS, "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as runs of the small pool have it
    assert slot_names() == []


def test_several_processes_on_one_named_card_need_that_card_alone() -> None:
    assert _choices(Need(number=4, named=(0,)), ["gpu-0", "gpu-1"]) == [(0,)]
    assert _choices(Need(number=1), ["gpu-0", "gpu-1"]) == [(0,), (1,)]


@slow
def test_a_limit_that_is_missing_fails_the_run_and_says_how_to_make_it(
    operations: Operations, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    deployment = operations.deploy(
        "train-saes", "flows/train_saes.py:train_saes", root=tmp_path / "missing", env={SLOTS: "elsewhere:1"}
    )
    run = operations.submit(deployment, tiny_training)
    assert operations.wait(run, *TERMINAL)["type"] == "FAILED"
    remedy = "prefect gcl create elsewhere-0 --limit 1"
    operations.until(lambda: any(remedy in line for line in operations.logs(run)), 60, lambda: operations.story(run))
