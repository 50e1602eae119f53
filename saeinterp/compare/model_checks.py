"""What should be equal between two sides of layer health, read from the manifests behind them.

The surprising choice: a setting may be the subject of a comparison or its ruin. Other SAE settings are named and
allowed where both sides are one model, since then they are what is compared; between two models they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from saeinterp.compare.comparability import (
    ComparabilityRow,
    Node,
    comparability_row,
    differing,
    fold_rows,
)
from saeinterp.compare.evaluated import EvaluatedText, TextLibrary
from saeinterp.compare.sides import MeasuredSae, Place, input_of, shown_value, training_text
from saeinterp.sae import adopted_from

_SOFT = {"health batch_contexts", "health bootstrap", "health seed", "capture dtype", "capture batch_contexts"}
_SOFT_PREFIXES = ("SAE training launch.", "corpus max_tokens")
_PACKAGES = ("saeinterp", "torch", "transformers")
COMPARED = "both sides are one model: this is what is compared"
EQUAL = "equal settings"

Group = Mapping[Place, Sequence[MeasuredSae]]
_Equal = Callable[..., ComparabilityRow]


def check_sides(a: Group, b: Group, *, library: TextLibrary) -> list[ComparabilityRow]:
    """What should be equal between two sides, and whether it is.

    Hard: text, SAE training, activation capture, health settings and code. Soft: the sets of layers, datasets, SAE
    recipes and training seeds (what is missing is shown), tokenizer (losses are then compared in bits per byte),
    evaluated tokens, width, depth, compute type, batch sizes, seeds of resampling, packages. Between two sides of
    one model SAE training, capture and training text are soft: they are what is compared.
    """
    rows = [
        _sets("layers", a, b, lambda place: place.hookpoint, "only layers of both sides are compared", by_length=True),
        _sets("datasets", a, b, lambda place: place.dataset, "only datasets of both sides are compared"),
    ]
    recipes = _sets("SAE recipes", a, b, lambda place: place.recipe, "recipes of one side only count in its frontier")
    if recipes.a or recipes.b:
        rows.append(recipes)
    datasets = len({place.dataset for place in (*a, *b)})
    found = {place.shown(datasets=datasets): _place_rows(a[place], b[place], library) for place in a if place in b}
    met = {(place.hookpoint, place.dataset) for place in a if place in b}
    for place in a:
        # Sweeps without a common recipe meet in their frontiers alone.
        others = [other for other in b if (other.hookpoint, other.dataset) == (place.hookpoint, place.dataset)]
        if others and (place.hookpoint, place.dataset) not in met:
            met.add((place.hookpoint, place.dataset))
            found[place.shown(datasets=datasets)] = _place_rows(a[place], b[others[0]], library)
    return [*rows, *fold_rows(found), *_within(a, library), *_within(b, library)]


def _within(side: Group, library: TextLibrary) -> list[ComparabilityRow]:
    """Other text under one dataset's name on one side: a frontier or a mean over layers would mix them."""
    rows: dict[str, ComparabilityRow] = {}
    firsts: dict[str, Node] = {}
    for place, saes in side.items():
        for sae in saes:
            first = firsts.setdefault(place.dataset, sae.node)
            for row in _text_rows(first, sae.node, library, _hard):
                if not row.ok:
                    field = f"{place.dataset}, within one side: {row.field}"
                    rows[field] = row.model_copy(update={"field": field})
    return list(rows.values())


def _hard(field: str, a: object, b: object, note: str = "") -> ComparabilityRow:
    return comparability_row(field, a, b, severity="hard", note=note)


def _sets(
    field: str, a: Group, b: Group, key: Callable[[Place], str], note: str, *, by_length: bool = False
) -> ComparabilityRow:
    order = (lambda name: (len(name), name)) if by_length else None
    shown = []
    for side in (a, b):
        names = list(dict.fromkeys(key(place) for place in side))
        shown.append(", ".join(sorted(names, key=order) if order else names))
    if not by_length and set(shown[0].split(", ")) == set(shown[1].split(", ")):
        shown[1] = shown[0]
    return comparability_row(field, *shown, severity="soft", note=note)


def _place_rows(a: Sequence[MeasuredSae], b: Sequence[MeasuredSae], library: TextLibrary) -> list[ComparabilityRow]:
    """Every SAE of a place against the first of the other side; a row per field, the first that differs."""
    found: dict[str, ComparabilityRow] = {}
    for x, y in [*((sae, b[0]) for sae in a), *((a[0], sae) for sae in b[1:])]:
        for row in _pair_rows(x, y, library):
            if row.field not in found or (found[row.field].ok and not row.ok):
                found[row.field] = row
    seeds = [", ".join("not known" if sae.seed is None else str(sae.seed) for sae in side) for side in (a, b)]
    rows = list(found.values())
    rows.append(comparability_row("SAE training seeds", *seeds, severity="soft", note="other seeds, or more of them"))
    # Some SAEs of a place may agree where others differ: then only the rows of what differs stand.
    broken = [row.field for row in rows if not row.ok]
    return [row for row in rows if row.a != EQUAL or not any(field.startswith(f"{row.field} ") for field in broken)]


def _pair_rows(a: MeasuredSae, b: MeasuredSae, library: TextLibrary) -> list[ComparabilityRow]:
    left, right = a.node, b.node
    models = [input_of(node, "subject") for node in (left, right)]
    one_model = None not in models and models[0] == models[1]
    one_corpus = input_of(left, "corpus") == input_of(right, "corpus")

    def equal(field: str, x: object, y: object, note: str = "", *, compared: bool = False) -> ComparabilityRow:
        soft = field in _SOFT or field.startswith(_SOFT_PREFIXES) or (compared and one_model)
        shown_note = COMPARED if compared and one_model and x != y else note
        return comparability_row(field, x, y, severity="soft" if soft else "hard", note=shown_note)

    def compared(field: str, x: object, y: object, note: str = "") -> ComparabilityRow:
        return equal(field, x, y, note, compared=True)

    steps = [("SAE training", "sae", "seed"), ("capture", "activations", "hookpoints")]
    rows = [*_text_rows(left, right, library, equal), *_training_text_rows(left, right, compared)]
    for step, kind, skip in steps:
        if kind == "sae" and (row := _adopted_row(step, left, right, compared)):
            rows.append(row)
            continue
        rows += _config_rows(step, input_of(left, kind), input_of(right, kind), compared, skip=skip)
    rows += _config_rows("health", left, right, equal)
    first, second = a.health.values, b.health.values
    rows += [
        compared("SAE latents", first["num_latents"], second["num_latents"]),
        compared("k", first["k"], second["k"]),
        comparability_row(
            "evaluated tokens",
            first["tokens"],
            second["tokens"],
            severity="soft",
            note="the norm mask leaves out other rows" if one_corpus else "other tokens of the text",
        ),
    ]
    for field in ("d_model", "num_layers", "vocab_size"):
        x, y = (model.manifest.get("counts", {}).get(field) if model else None for model in models)
        rows.append(comparability_row(field, x, y, severity="soft"))
    x, y = (model.config.get("dtype") if model else None for model in models)
    rows.append(comparability_row("compute type", x, y, severity="soft"))
    rows.append(comparability_row("package versions", _versions(left), _versions(right), severity="soft"))
    return rows


def _text_rows(a: Node, b: Node, library: TextLibrary, equal: _Equal) -> list[ComparabilityRow]:
    """The evaluated text: one corpus, or the same documents in two, or documents they share."""
    left, right = input_of(a, "corpus"), input_of(b, "corpus")
    ids = [node.id if node else None for node in (left, right)]
    if left is None or right is None or left.recipe == right.recipe:
        return [equal("corpus", *ids, "other text or another tokenizer")]
    texts = library(left), library(right)
    if texts[0] is None or texts[1] is None:
        return [equal("corpus", *ids, "a corpus behind it is gone, so its documents are not known")]
    documents = [set(text.keys.values()) for text in texts if text]
    shared = documents[0] & documents[1]
    if not shared:
        return [equal("corpus", *ids, "other text: the sides share no document")]
    counts = [f"{len(some)} documents" for some in documents]
    rows = [
        ComparabilityRow(
            field="corpus",
            a=counts[0],
            b=counts[1],
            severity="soft",
            ok=documents[0] == documents[1],
            note=f"{len(shared)} documents of both sides are paired by their text",
        )
    ]
    for key, x, y in differing(left.config, right.config):
        if documents[0] != documents[1] or not key.startswith("sources"):
            rows.append(equal(f"corpus {key}", shown_value(x), shown_value(y)))
    rows.append(_tokenizer_row(left, right, texts[0], texts[1]))
    return rows


def _tokenizer_row(a: Node, b: Node, first: EvaluatedText, second: EvaluatedText) -> ComparabilityRow:
    same = bool(first.same_tokens(second))
    owners = [input_of(node, "subject") for node in (a, b)]
    shown = ["equal tokens"] * 2 if same else [f"that of {owner.id if owner else 'not known'}" for owner in owners]
    note = "" if same else "losses are compared in bits per byte; loss recovered and FVU are over other tokens"
    return ComparabilityRow(field="tokenizer", a=shown[0], b=shown[1], severity="soft", ok=same, note=note)


def _training_text_rows(a: Node, b: Node, equal: _Equal) -> list[ComparabilityRow]:
    """The text the SAEs were trained on, where it is not the evaluated corpus of both sides."""
    left, right = training_text(a), training_text(b)
    if left is None or right is None or (left == input_of(a, "corpus") and right == input_of(b, "corpus")):
        return []
    if left.recipe == right.recipe:
        return [equal("training text", left.id, right.id)]
    rows = [
        equal(f"training text {key}", shown_value(x), shown_value(y))
        for key, x, y in differing(left.config, right.config)
    ]
    return rows or [equal("training text", EQUAL, EQUAL)]


def _config_rows(
    step: str, a: Node | None, b: Node | None, equal: _Equal, *, skip: str | None = None
) -> list[ComparabilityRow]:
    """One row per setting that differs, else one row for the step; code versions are settings too."""
    if a is None or b is None or not a.manifest or not b.manifest:
        return [equal(step, a and a.id, b and b.id, "a recipe behind it is gone")]
    first, second = ({**node.config, "code version": node.manifest["version"]} for node in (a, b))
    rows = [
        equal(f"{step} {key.removeprefix('training.')}", x, y)
        for key, x, y in differing(first, second)
        if key.rpartition(".")[2] != skip
    ]
    return rows or [equal(step, EQUAL, EQUAL)]


def _adopted_row(step: str, a: Node, b: Node, equal: _Equal) -> ComparabilityRow | None:
    """One row where an SAE was trained elsewhere: equal weights or not is all that can be said."""
    saes = [input_of(node, "sae") for node in (a, b)]
    origins = [adopted_from(sae.config) if sae else None for sae in saes]
    if not any(origins):
        return None
    shown = [f"trained elsewhere, {origin}" if origin else "trained here" for origin in origins]
    return equal(step, *shown, "how an SAE was trained elsewhere is not known")


def _versions(node: Node) -> str | None:
    versions = node.manifest.get("made", {}).get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)) or None
