"""GPU slots: one task a card, children see theirs alone, two cards work at once, a missing limit is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from operations import TERMINAL, Operations

from saeinterp.config import LaunchConfig, Placement
from saeinterp.errors import ConfigError
from tasks.cards import SLOTS, Cards, Need, cards, slot_names

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


@slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads environments through /proc")
def test_a_flow_on_two_cards_uses_both_at_once(
    operations: Operations, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    operations.make_limits("gpu-0", "gpu-1", "vllm")
    deployment = operations.deploy(
        "train-saes", "flows/train_saes.py:train_saes", root=tmp_path / "two-cards", env={SLOTS: "2"}
    )
    run = operations.submit(deployment, {**tiny_training, "launch": {"threads": 1, "parallel": 2}})
    seen: set[tuple[str, ...]] = set()
    visible: dict[str, str] = {}

    def look() -> bool:
        slots = operations.slots("gpu-0", "gpu-1")
        seen.add(tuple(sorted(name for name, taken in slots.items() if taken)))
        assert max(slots.values()) <= 1
        visible.update(_training_processes(tmp_path))
        return operations.state(run)["type"] in TERMINAL

    operations.until(look, 280, lambda: operations.story(run))
    assert operations.state(run)["type"] == "COMPLETED", operations.story(run)
    assert ("gpu-0", "gpu-1") in seen
    assert operations.slots("gpu-0", "gpu-1", "vllm") == {"gpu-0": 0, "gpu-1": 0, "vllm": 0}
    # Which slot each layer had stands in the log of its task; its process saw that card alone.
    held = operations.task_lines(run, r"holds gpu-(\d)")
    layers = {name: held[f"train-layer {name} subject"] for name in tiny_training["capture"]["hookpoints"]}
    assert set(layers.values()) == {"0", "1"}
    assert visible.items() <= layers.items()
    assert visible
    # What computes in the flow's own process takes a card too, one at a time.
    assert {"capture-activations subject", "measure-together subject"} <= held.keys()


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


def _training_processes(root: Path) -> dict[str, str]:
    """Layer to the `CUDA_VISIBLE_DEVICES` of its running training process."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        match = re.search(r"/sae/(layers\.\d)-\w{8}/job\.json", line)
        if match and str(root) in line and "saeinterp.sae.training" in line:
            try:
                found[match[1]] = process.environ()["CUDA_VISIBLE_DEVICES"]
            except (psutil.Error, KeyError):
                continue
    return found
