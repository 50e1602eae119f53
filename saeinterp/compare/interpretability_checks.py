"""What should be equal between two sides whose latents were held against tokens, read from the artifacts behind them.

The surprising choice: k and the dictionary size may differ; their ratio may not, nor the dictionary's to the width.
Models of other widths need other dictionaries, and an equal k then makes their latents fire at other rates, from which
rates of association follow by chance alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from saeinterp.artifacts import read_json
from saeinterp.compare.comparability import ComparabilityRow, Node, comparability_row, differing
from saeinterp.compare.interpretability_sides import Associated, depth_tolerance, depths, layer_pairs
from saeinterp.compare.sides import shown_value
from saeinterp.ids import is_block

CLOSE = 0.01
"""Ratios and numbers of rows count as equal within one in a hundred."""
GONE = "a recipe behind it is gone"
_PACKAGES = ("saeinterp", "torch", "transformers")
# Settings of a step that may differ: they belong to one model, or change no more than the rounding.
_FREE: dict[str, set[str]] = {
    "sae": {"hookpoint", "training.seed", "training.num_latents", "training.k"},
    "activations": {"hookpoints"},
    "activity": {"sites"},
    # Samples shared with the other side; the samples themselves are compared.
    "enrichment": {"matched"},
}
_SOFT: dict[str, set[str]] = {
    "activations": {
        "dtype",
        "batch_contexts",
        "positions.thoughts.checkpoint",
        "positions.thoughts.bot",
    },
    "enrichment": {"permutations", "half_samples", "seed", "presets"},
}
_STEPS = (
    ("problems", "problems"),
    ("concepts", "concepts"),
    ("positions", "activations"),
    ("SAE training", "sae"),
    ("activity", "activity"),
)


def check_interpretability(a: Sequence[Associated], b: Sequence[Associated]) -> list[ComparabilityRow]:
    """What should be equal, and whether it is: every SAE training against the first of the other side.

    Hard: the problems analysed and their text, how they were split, vocabulary and grammar, positions, hook, relative
    depth, k over dictionary size, dictionary size over width, rows of SAE training and its settings, rules and code of
    every step. Soft: k and dictionary size by themselves, width, number of blocks, training seeds, draws, packages.
    """
    found: dict[str, ComparabilityRow] = {}
    for x, y in [*((item, b[0]) for item in a), *((a[0], item) for item in b[1:])]:
        for row in _pair_rows(x, y):
            if row.field not in found or (found[row.field].ok and not row.ok):
                found[row.field] = row
    seeds = [", ".join("not known" if item.seed is None else str(item.seed) for item in side) for side in (a, b)]
    trainings = comparability_row(
        "SAE training seeds", *seeds, severity="soft", note="other seeds, or more of them on one side"
    )
    return [*found.values(), trainings]


def shared_problems(a: Sequence[Associated], b: Sequence[Associated]) -> bool:
    """Whether all SAE trainings of both sides were associated on the same problems, with the same halves."""
    everyone = [*a, *b]
    settings = {(item.node.config.get("seed"), item.node.config.get("half_samples")) for item in everyone}
    return len({tuple(sorted(problem_ids(item))) for item in everyone}) == 1 and len(settings) == 1


def problem_ids(item: Associated) -> list[str]:
    """Ids of the problems that were analysed."""
    return [str(value) for value in pl.read_parquet(item.artifact.file("samples.parquet"), columns=["id"])["id"]]


def _pair_rows(a: Associated, b: Associated) -> list[ComparabilityRow]:
    rows = [*_problem_rows(a, b), *_vocabulary_rows(a, b), *_layer_rows(a, b), *_size_rows(a, b)]
    for step, kind in _STEPS:
        rows += _step_rows(step, kind, a.first(kind), b.first(kind))
    rows += _step_rows("association", "enrichment", a.node, b.node)
    models = [item.subject for item in (a, b)]
    for field in ("d_model", "num_layers", "vocab_size"):
        x, y = (model.manifest.get("counts", {}).get(field) if model else None for model in models)
        rows.append(_soft(field, (x, y)))
    rows.append(_soft("compute type", [model.config.get("dtype") if model else None for model in models]))
    rows.append(_soft("package versions", [_versions(item.node) for item in (a, b)]))
    return rows


def _problem_rows(a: Associated, b: Associated) -> list[ComparabilityRow]:
    left, right = (set(problem_ids(item)) for item in (a, b))
    shared = left & right
    note = f"{len(shared):,} problems are on both sides" if left != right else ""
    rows = [_hard("problems analysed", [f"{len(ids):,} ({_digest(sorted(ids))})" for ids in (left, right)], note)]
    texts = [_texts(item, shared) for item in (a, b)]
    if None not in texts and shared:
        rows.append(_hard("text of the shared problems", texts, "the same ids, other problems"))
    return rows


def _texts(item: Associated, ids: set[str]) -> str | None:
    """A hash of what the problems say; None where the artifact is gone."""
    problems = item.first("problems")
    if problems is None or not problems.artifact.has("problems.parquet"):
        return None
    table = pl.read_parquet(
        problems.artifact.file("problems.parquet"), columns=["id", "split", "question", "reasoning"]
    )
    kept = table.filter(pl.col("id").is_in(sorted(ids)), pl.col("split") == "health").sort("id")
    return _digest(kept.select("id", "question", "reasoning").iter_rows())


def _vocabulary_rows(a: Associated, b: Associated) -> list[ComparabilityRow]:
    """Of the samples used: those left out may hold other tokens."""
    facts = [read_json(item.artifact.file("rates.json"))["vocabulary"] for item in (a, b)]
    return [_hard("vocabulary", [f"{fact['held']:,} tokens ({fact['sha256'][:8]})" for fact in facts])]


def _layer_rows(a: Associated, b: Associated) -> list[ComparabilityRow]:
    hooks = [", ".join(sorted({_hook(name) for name in item.hookpoints})) for item in (a, b)]
    semantics = [_semantics(item) for item in (a, b)]
    slots = [", ".join(dict.fromkeys(site.title for site in item.sites)) for item in (a, b)]
    rows = [
        _hard("hook", hooks),
        _hard("layer semantics", semantics),
        _hard("position slots", slots),
        _soft("layers", [", ".join(item.hookpoints) for item in (a, b)]),
    ]
    left, right = depths(a), depths(b)
    if left is None or right is None:
        return [*rows, _hard("relative depth", [None if item is None else "known" for item in (left, right)])]
    shown = [", ".join(f"{depth:.2f}" for depth in found.values()) for found in (left, right)]
    paired = len(layer_pairs(a, b))
    row = ComparabilityRow(
        field="relative depth",
        a=shown[0],
        b=shown[1],
        severity="hard",
        ok=paired == len(left) == len(right),
        note=f"{paired} of {len(left)} and {len(right)} layers have a counterpart within {depth_tolerance(a, b):.2f}",
    )
    return [*rows, row]


def _size_rows(a: Associated, b: Associated) -> list[ComparabilityRow]:
    """k, dictionary size, their ratios, and the rows that SAEs were trained on."""
    shapes = [{(site.k, site.latents) for site in item.sites} for item in (a, b)]
    widths = [item.subject.manifest.get("counts", {}).get("d_model") if item.subject else None for item in (a, b)]
    k, sizes = ([_several(shape[index] for shape in side) for side in shapes] for index in (0, 1))
    ratios = [[k / latents for k, latents in side] for side in shapes]
    expansions = [
        None if width is None else [latents / width for _, latents in side] for side, width in zip(shapes, widths)
    ]
    note = "firing rates follow from it, and rates of association from them"
    return [
        _soft("k", k),
        _soft("latents per SAE", sizes),
        _close("k / latents", ratios, note),
        _close("latents / width", expansions, "a larger dictionary splits features further"),
        _close("rows of SAE training", [_training_rows(item) for item in (a, b)], "", style=",.0f"),
    ]


def _training_rows(item: Associated) -> list[float] | None:
    saes = [sae.artifact for sae in item.behind.get("sae", ())]
    rows = [read_json(sae.file("training.json")).get("rows") for sae in saes if sae.has("training.json")]
    return None if not rows or None in rows else [float(value) for value in rows]


def _close(field: str, sides: Sequence[Sequence[float] | None], note: str, *, style: str = ".3g") -> ComparabilityRow:
    """A hard row of numbers per SAE: their means agree within `CLOSE`."""
    shown: list[str | None] = []
    means = []
    for values in sides:
        if not values:
            shown.append(None)
            continue
        low, high = format(min(values), style), format(max(values), style)
        shown.append(low if low == high else f"{low} to {high}")
        means.append(math.fsum(values) / len(values))
    row = _hard(field, shown, note)
    if len(means) < 2:
        return row
    ok = math.isclose(*means, rel_tol=CLOSE)
    return row.model_copy(update={"ok": ok, "note": "" if ok else note})


def _step_rows(step: str, kind: str, a: Node | None, b: Node | None) -> list[ComparabilityRow]:
    """One row per setting that differs, else one row for the step; the code's version is a setting too."""
    if a is None or b is None or not a.manifest or not b.manifest:
        return [_hard(step, (a and a.id, b and b.id), GONE)]
    first, second = ({**node.config, "code version": node.manifest["version"]} for node in (a, b))
    rows = []
    for key, x, y in differing(first, second):
        if key in _FREE.get(kind, ()):
            continue
        soft = key in _SOFT.get(kind, ()) or key.startswith("launch.")
        make = _soft if soft else _hard
        rows.append(make(f"{step} {key.removeprefix('training.')}", (shown_value(x), shown_value(y))))
    return rows or [_hard(step, ("equal settings", "equal settings"))]


def _semantics(item: Associated) -> str | None:
    """What a hook sees, as the capture recorded it; None where the activations are gone."""
    activations = item.first("activations")
    if activations is None or not activations.artifact.has("cache.json"):
        return None
    return str(read_json(activations.artifact.file("cache.json")).get("semantics"))


def _hook(hookpoint: str) -> str:
    if is_block(hookpoint):
        return "block output"
    return ".".join(part for part in hookpoint.split(".") if not part.isdigit())


def _several(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _digest(items: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(items)).encode()).hexdigest()[:8]


def _hard(field: str, sides: Sequence[object], note: str = "") -> ComparabilityRow:
    a, b = sides
    return comparability_row(field, a, b, severity="hard", note="" if a == b else note)


def _soft(field: str, sides: Sequence[object], note: str = "") -> ComparabilityRow:
    a, b = sides
    return comparability_row(field, a, b, severity="soft", note="" if a == b else note)


def _versions(node: Node) -> str | None:
    versions: Mapping[str, Any] = node.manifest.get("made", {}).get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)) or None
