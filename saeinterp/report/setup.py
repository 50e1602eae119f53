"""What was compared on what, one line each, read from the artifacts behind the numbers.

The surprising choice: nothing is taken from the configuration of the run. What an artifact says about
itself cannot differ from what was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saeinterp.artifacts import Artifact, read_json
from saeinterp.compare.comparability import lineage as nodes
from saeinterp.compare.comparability import scorer_name
from saeinterp.health.grading.inputs import DATASET
from saeinterp.report.explainer_results import ExplainerSection, PairsSection
from saeinterp.report.format import listing, number, plural
from saeinterp.report.lineage import Lineage
from saeinterp.report.values import Setting
from saeinterp.sae import adopted_from

LISTED = 12
"""As many names are written out."""


def setup_lines(
    roots: Sequence[Artifact],
    lineage: Lineage,
    *,
    comparison: Artifact | None,
    section: ExplainerSection | None,
    pairs: PairsSection | None = None,
) -> tuple[Setting, ...]:
    """Set-up lines in the order of the reports; a line whose artifact does not exist is left out."""
    lines = [
        ("Outside table", _each(lineage.of_kind(roots, "health-table"), "table.json", _outside)),
        ("Outside table", _each(lineage.of_kind(roots, "score-table"), "table.json", _outside_scores)),
        ("Model under study", _each(lineage.of_kind(roots, "subject"), "subject.json", _subject)),
        ("SAEs", _each(lineage.of_kind(roots, "sae"), "training.json", _sae)),
        ("Corpus", _each(lineage.of_kind(roots, "corpus"), "corpus.json", _corpus)),
        ("Problems", _each(lineage.of_kind(roots, "problems"), "problems.json", _problems)),
        ("Positions", _each(_positional(lineage.of_kind(roots, "activations")), "cache.json", _positions)),
        ("Tokens", _each(lineage.of_kind(roots, "concepts"), "concepts.json", _concepts)),
        ("Health measured on", _health(lineage.of_kind(roots, "health"))),
    ]
    if section is not None and comparison is not None:
        again = [lineage.inputs(item) for item in lineage.of_kind(roots, "scorer-agreement")]
        by_second = {one.id: one for items in again for one in items[len(items) // 2 :]}
        comparisons = [one for one in lineage.of_kind(roots, "explainer-comparison") if one.id not in by_second]
        scores = list({item.id: item for one in comparisons for item in lineage.inputs(one, "scores")}.values())
        sides: list[tuple[str, str]] = [(side.key, side.title) for side in section.sides]
        if pairs is not None:
            sides = sorted((item.key, item.title) for item in pairs.ranking)
        examples = lineage.of_kind(scores, "examples")
        lines += [
            ("Explainers", listing([f"{key.upper()}: {title}" for key, title in sides])),
            ("Scorer", _scorers(comparisons, lineage)),
            ("Second scorer", _scorers(list(by_second.values()), lineage)),
            ("Latents", f"{plural(section.n_latents, 'latent')} in the primary comparison"),
            ("Example sets", _grouped((item.name, _counts(lineage.counts(item))) for item in examples)),
            (
                "Primary endpoint",
                f"{section.metric_title}, mean over latents; two-sided level {section.alpha:g}, "
                f"equivalence margin ±{section.margin:g}",
            ),
        ]
    return tuple(Setting(field=field, value=value) for field, value in lines if value)


def _scorers(comparisons: Sequence[Artifact], lineage: Lineage) -> str:
    names = [scorer_name(nodes(item)) or "" for one in comparisons for item in lineage.inputs(one, "scores")]
    return listing(list(dict.fromkeys(names)))


def _each(artifacts: Sequence[Artifact], file: str, describe: Callable[[Mapping[str, Any]], str]) -> str:
    """The distinct descriptions of the artifacts."""
    read = [read_json(artifact.file(file)) for artifact in artifacts]
    return _grouped((data.get("hookpoint", ""), describe(data)) for data in read)


def _grouped(items: Iterable[tuple[str, str]]) -> str:
    """Texts by name, each distinct text once behind all its names."""
    groups: dict[str, list[str]] = {}
    for name, text in items:
        groups.setdefault(text, []).append(name)
    parts = []
    for text, names in groups.items():
        named = list(dict.fromkeys(name for name in names if name))
        parts.append(f"{_listed(named)}: {text}" if named else text)
    return "; ".join(parts)


def _listed(names: list[str]) -> str:
    """All names, or of many the first and the last."""
    return listing(names) if len(names) <= LISTED else f"{names[0]} to {names[-1]} ({len(names)})"


def _subject(data: Mapping[str, Any]) -> str:
    title = data.get("title") or data["model"]
    revision = f" at {data['revision'][:12]}" if data.get("revision") else ""
    size = f"{plural(data['num_layers'], 'layer')}, width {data['d_model']}, {data['dtype']}"
    return f"{title} ({data['model']}{revision}), {size}"


def _sae(data: Mapping[str, Any]) -> str:
    shape = f"{data.get('activation', 'topk')}, {plural(data['num_latents'], 'latent')}, k = {data['k']}"
    if origin := adopted_from(data):
        return (
            f"{shape}, trained elsewhere ({origin}); its training text is not known, so it may have seen the held-out "
            "text, and whether it did cannot be checked"
        )
    rate = f", peak learning rate {number(data['lr'], 'plain')}" if data.get("lr") is not None else ""
    return f"{shape}, {data.get('optimizer', 'optimizer not recorded')}{rate}"


def _corpus(data: Mapping[str, Any]) -> str:
    sources = listing([_source(item) for item in data["sources"]])
    splits = ", ".join(f"{split} {number(count, 'count')}" for split, count in data["tokens"].items())
    length = f"; contexts of {plural(data['context_length'], 'token')}" if data.get("context_length") else ""
    return f"{sources}; tokens: {splits}{length}"


def _problems(data: Mapping[str, Any]) -> str:
    counts, left = data["problems"], data["left_out"]
    associated, trained = (number(counts[split], "count") for split in ("health", "train"))
    text = f"{data['source']}; {associated} for the associations, {trained} for the SAEs"
    gone = left["duplicates"] + sum(left["too_long"].values())
    return f"{text}; {plural(gone, 'problem')} left out as too long or met twice" if gone else text


def _positional(caches: Sequence[Artifact]) -> list[Artifact]:
    return [item for item in caches if "positions" in read_json(item.file("cache.json"))]


def _positions(data: Mapping[str, Any]) -> str:
    chosen = data["positions"]
    return f"{chosen['select']}: {listing(list(chosen['titles']))}; {data['semantics']}"


def _concepts(data: Mapping[str, Any]) -> str:
    mean, distinct = (number(data[f"{name}_per_problem"], "plain") for name in ("tokens", "distinct"))
    unique = plural(data["unique_tokens"], "token")
    return f"{unique} by grammar {data['grammar']}, {mean} a problem ({distinct} different ones)"


def _source(item: Any) -> str:
    return str(item.get("name", item)) if isinstance(item, Mapping) else str(item)


def _outside(data: Mapping[str, Any]) -> str:
    models = listing([item["title"] for item in data["models"]])
    return f"{data['file']}, {plural(len(data['rows']), 'row')} of {models}"


def _outside_scores(data: Mapping[str, Any]) -> str:
    files = listing([item["file"] for item in data["files"]])
    rows = [len(item["rows"]) for item in data["explainers"]]
    return f"{files}, {plural(max(rows), 'latent')} of {listing([item['title'] for item in data['explainers']])}"


def _health(artifacts: Sequence[Artifact]) -> str:
    """What was evaluated, each dataset by its name where there are several."""
    by_dataset: dict[str, list[Any]] = {}
    for artifact in artifacts:
        data = read_json(artifact.file("health.json"))
        by_dataset.setdefault(data.get("dataset") or DATASET, []).append(data)
    texts = {name: _evaluated(read) for name, read in by_dataset.items()}
    return _grouped((name if len(texts) > 1 else "", text) for name, text in texts.items())


def _evaluated(read: Sequence[Mapping[str, Any]]) -> str:
    documents = " or ".join(dict.fromkeys(plural(data["documents"], "held-out document") for data in read))
    tokens = sorted(data["tokens"] for data in read)
    span = number(tokens[0], "count")
    if tokens[-1] != tokens[0]:
        span += f" to {number(tokens[-1], 'count')}"
    splice = " or ".join(dict.fromkeys(data["splice"] for data in read))
    return f"{documents}, {span} tokens a layer after masking, splice {splice}"


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {number(value, 'count')}" for key, value in counts.items() if isinstance(value, int)
    )
