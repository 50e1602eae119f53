"""The comparison as markdown: for each case one table, means over seeds with their range."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from launching import WHO
from planted_rows import FEW


def markdown(document: dict[str, Any]) -> str:
    """All tables, then the machine, versions and the command."""
    about = document["about"]
    parts = [_table(entry) for entry in document["cases"].values()]
    versions: dict[str, str] = {}
    for entry in document["cases"].values():
        for run in entry["runs"]:
            versions |= run.get("versions", {})
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    parts.append(
        f"{about['machine']}, {about['threads']} threads; {about['system']}. {packages}. Rows: {about['rows']}. "
        f"{about['at']}, {about['minutes']:g} minutes: `{about['command']}`. "
        "FVU: `sum ||x - x_hat||² / sum ||x - mean||²` over the same held-out rows, by one function. "
        "Dead: share of latents that no held-out row activates. Memory: most resident memory during training, beyond "
        "packages and rows, and in all."
    )
    return "\n\n".join(parts)


def _table(entry: dict[str, Any]) -> str:
    case, runs = entry["case"], entry["runs"]
    by_who = {who: [run for run in runs if run["who"] == who and "error" not in run] for who in entry["settings"]}
    epochs = case["steps"] * case["batch_rows"] / case["rows"]
    title = f"### {case['title']}: {case['steps']} steps of {case['batch_rows']:,} rows"
    if case["saes"] > 1:
        title += f" for each of {case['saes']}"
    if epochs > 1:
        title += f", {epochs:g} epochs"
    if any(run.get("saes", case["saes"]) < case["saes"] for run in runs):
        title += (
            f"\n\nAfter the first seed the others train {FEW} of them: their rows/s do not grow with the number. FVU "
            f"and dead latents are of those {FEW} for everyone; memory is of all."
        )
    lines = [
        title,
        "",
        "| | rows/s | ours is | FVU | dead | memory, MB | settings |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, found in by_who.items():
        chosen = entry["settings"][who]
        settings = ", ".join(f"{key} {_value(value)}" for key, value in chosen.items()) or "none: its defaults"
        if not found:
            error = next(run["error"] for run in runs if run["who"] == who)
            lines.append(f"| {WHO[who]} | failed: {error} | | | | | {settings} |")
            continue
        cells = [
            WHO[who],
            _range([run["rows_per_second"] / 1000 for run in found], "{:.1f}", "k"),
            "" if who == "ours" else _ratio(by_who.get("ours", []), found),
            _range([run["fvu"] for run in found], "{:.3f}"),
            f"{100 * fmean(run['dead'] for run in found):.1f}%",
            _memory([run for run in found if run["saes"] == case["saes"]]),
            settings,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _memory(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    return f"{fmean(run['peak_mb'] for run in found):,.0f} ({fmean(run['total_mb'] for run in found):,.0f})"


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """How many times as fast ours is, seed by seed."""
    speed = {run["seed"]: run["rows_per_second"] for run in ours}
    ratios = [speed[run["seed"]] / run["rows_per_second"] for run in theirs if run["seed"] in speed]
    return _range(ratios, "{:.2f}", "×") if ratios else ""


def _range(values: list[float], shown: str, unit: str = "") -> str:
    """The mean, with the least and the most where there are several."""
    text = shown.format(fmean(values)) + unit
    return text if len(values) == 1 else f"{text} ({shown.format(min(values))}–{shown.format(max(values))})"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
