"""Finds the settings each trainer is compared at, and keeps them with everything that was tried in `tuned.json`.

Learning rates climb a ladder of factors of about 3 until the best is no longer at an end; each other option is tried at
that rate and kept if it lowers held-out FVU by more than `SAME`, or, where it is about speed, if it is faster and FVU
stays; then the rates between. On rows of a seed that no comparison uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planted_rows import Case

FILE = Path(__file__).with_name("tuned.json")
SEED = 100
SAME = 0.003  # in FVU
SAES = 8  # of the case with many
_STEP = 3.2
_EXTENSIONS = 3

Settings = dict[str, Any]
Run = Callable[[Settings], dict[str, Any]]


def starts(who: str, case: Case) -> list[Settings]:
    """Where the ladders start: the trainer's own rule where it has one for this case, per optimizer."""
    width = (case.num_latents / 2**14) ** 0.5
    if who == "sparsify":
        return [{"optimizer": "signum", "lr": 5e-3 / width}, {"optimizer": "adam", "lr": 2e-3}]
    if who == "sae_lens":
        return [{"autocast": True, "lr": 3e-3}]
    if who == "dictionary_learning":
        return [{"lr": 3e-3}]
    return [{"optimizer": "signum", "lr": 5e-3 / width}, {"optimizer": "adam", "lr": 3e-3}]


_ENVIRONMENT = {"environment": "ours"}
OPTIONS: dict[str, list[Settings]] = {
    "sparsify": [{"auxk": 1 / 32}, _ENVIRONMENT],
    "sae_lens": [
        {"init_norm": 1.0},
        {"decay": 0.2},
        {"normalize": True},
        {"dead_window": 0.2},
        {"autocast": False},
        _ENVIRONMENT,
    ],
    "dictionary_learning": [{"warmup": 0.0}, {"decay": 0.2}, _ENVIRONMENT],
    "ours": [{"aux_coefficient": 0.0}],
}
"""Tried one after another, at the best learning rate."""
_ABOUT_SPEED = ("autocast", "environment", "aux_coefficient")


def tune(who: str, case: Case, run: Run) -> dict[str, Any]:
    """`{"settings": the best, "tried": [settings and what came of them, in order]}`."""
    tried: list[dict[str, Any]] = []

    def attempt(settings: Settings) -> dict[str, Any]:
        settings = {key: float(f"{value:.2g}") if key == "lr" else value for key, value in settings.items()}
        result = run(settings)
        kept = {key: round(result[key], 4) for key in ("fvu", "dead", "rows_per_second") if key in result}
        tried.append({"settings": settings, **(kept or result)})
        return tried[-1]

    best: dict[str, Any] | None = None
    if who == "ours":
        # What saeinterp takes when nothing is set.
        best = attempt({})
    for start in starts(who, case):
        ladder = {step: attempt({**start, "lr": start["lr"] * _STEP**step}) for step in (-1, 0, 1)}
        for _ in range(_EXTENSIONS):
            top = min(ladder, key=lambda step: ladder[step].get("fvu", float("inf")))
            if min(ladder) < top < max(ladder):
                break
            step = top - 1 if top == min(ladder) else top + 1
            ladder[step] = attempt({**start, "lr": start["lr"] * _STEP**step})
        for found in ladder.values():
            best = min(found, best or found, key=_fvu)
    if best is None or _fvu(best) == float("inf"):
        return {"settings": None, "tried": tried}
    for option in OPTIONS[who]:
        found = attempt({**best["settings"], **option})
        if _keep(found, best, about_speed=any(name in option for name in _ABOUT_SPEED)):
            best = found
    if "lr" in best["settings"]:
        for found in [attempt({**best["settings"], "lr": best["settings"]["lr"] * factor}) for factor in (0.56, 1.8)]:
            best = min(found, best, key=_fvu)
    if who == "ours" and _fvu(tried[0]) < _fvu(best) + SAME:
        best = tried[0]  # nothing set
    return {"settings": best["settings"], "tried": tried}


def _fvu(result: dict[str, Any]) -> float:
    """Of a run that failed or diverged: infinite."""
    value = result.get("fvu", float("inf"))
    return value if value == value else float("inf")


def _keep(new: dict[str, Any], old: dict[str, Any], *, about_speed: bool) -> bool:
    if about_speed:
        return _fvu(new) < _fvu(old) + SAME and new["rows_per_second"] > 1.03 * old["rows_per_second"]
    return _fvu(new) < _fvu(old) - SAME


def load() -> dict[str, dict[str, dict[str, Any]]]:
    """Case, trainer, then what `tune` gave."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def save(tuned: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write `tuned.json`, one line for each setting tried."""
    lines = ["{"]
    for i, (case, entries) in enumerate(sorted(tuned.items())):
        lines.append(f' "{case}": {{')
        for j, (who, entry) in enumerate(sorted(entries.items())):
            lines.append(f'  "{who}": {{')
            lines.append(f'   "settings": {json.dumps(entry["settings"])},')
            tried = ",\n    ".join(json.dumps(item) for item in entry["tried"])
            lines.append(f'   "tried": [\n    {tried}\n   ]\n  }}' + ("," if j < len(entries) - 1 else ""))
        lines.append(" }" + ("," if i < len(tuned) - 1 else ""))
    FILE.write_text("\n".join([*lines, "}"]) + "\n")
