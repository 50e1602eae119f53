"""Artifacts in, `Results` parts and tables out: layer health, training, provenance.

Reads payloads by the schemas their steps document. The surprising choice: nothing is computed here
beyond looking up, joining and counting; a number that no step wrote is absent, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeinterp.artifacts import Artifact, read_json
from saeinterp.health.grading.inputs import DATASET
from saeinterp.report.format import Style, number
from saeinterp.report.lineage import Lineage
from saeinterp.report.results import LayerHealth, LayerTraining, Provenance, Step
from saeinterp.report.sae_titles import side_titles
from saeinterp.report.values import Fact, Number, Setting
from saeinterp.sae import adopted_from

NOT_WRITTEN = "not in the artifact"
Row = dict[str, Any]


def measured(
    value: Any,
    *,
    source: str,
    style: Style = "score",
    n: int | None = None,
    of: str | None = None,
    interval: str | None = None,
) -> Number:
    """A stored value as a `Number`: a plain number, or a mapping with value, low, high and reason."""
    if not isinstance(value, Mapping):
        value = {"value": value}
    low, high, reason = value.get("low"), value.get("high"), value.get("reason")
    held = value.get("n_documents", n)
    known = value.get("value") is not None
    return Number(
        value=value.get("value"),
        style=style,
        low=low,
        high=high,
        interval=interval if low is not None and high is not None else None,
        no_interval=reason if known else None,
        n=held,
        of=of if held is not None else None,
        source=source,
        reason=None if known else reason or NOT_WRITTEN,
    )


def layer_health(side: str, artifact: Artifact, *, title: str, absorption: Number | None = None) -> LayerHealth:
    """One health artifact as a row of the health table.

    Args:
        side: Title of the model.
        artifact: The health artifact.
        title: Name of its SAE within the side.
        absorption: Where a step of its own measured it.
    """
    data = read_json(artifact.file("health.json"))
    source, documents, tokens = artifact.id, data.get("documents"), data.get("tokens")
    made = data.get("interval", {})
    interval = f"{made.get('level', 0.95):.0%} CI, {made.get('method', 'bootstrap over documents')}"

    def over_documents(key: str, style: Style = "score") -> Number:
        return measured(data.get(key), source=source, style=style, n=documents, of="documents", interval=interval)

    def over_tokens(key: str, style: Style = "score") -> Number:
        return measured(data.get(key), source=source, style=style, n=tokens, of="tokens")

    return LayerHealth(
        side=side,
        hookpoint=data["hookpoint"],
        title=title,
        dataset=data.get("dataset") or DATASET,
        layer=data.get("layer"),
        loss_recovered=over_documents("loss_recovered"),
        loss_recovered_mean=over_documents("loss_recovered_mean_ablation"),
        delta_ce=over_documents("delta_ce", "nat-difference"),
        kl_recovered=over_documents("kl_recovered"),
        explained_variance=over_documents("explained_variance"),
        fvu=over_documents("fvu"),
        cosine=over_tokens("cosine"),
        l0=over_tokens("l0_mean", "plain"),
        dead=over_tokens("dead_fraction", "share"),
        always_on=over_tokens("always_on", "count"),
        absorption=absorption or measured(data.get("absorption"), source=source),
        failed_checks=(
            *(f"{check['name']}: {check['detail']}" for check in data.get("checks", ()) if not check["passed"]),
            *_trained_on(data.get("training_overlap") or {}),
        ),
        source=source,
    )


def _trained_on(overlap: Mapping[str, Any]) -> list[str]:
    """What to say where a text that was trained on is evaluated all the same."""
    shared, documents = overlap.get("shared"), overlap.get("documents")
    return [f"training overlap: {shared} of {documents} documents were trained on"] if shared else []


def layer_training(side: str, artifact: Artifact, *, title: str) -> LayerTraining:
    """One SAE artifact as a row of the training table."""
    data = read_json(artifact.file("training.json"))

    absent = {"value": None, "reason": "trained elsewhere" if adopted_from(data) else NOT_WRITTEN}

    def last(key: str, style: Style, *, n: str | None = None, of: str | None = None) -> Number:
        return measured(data.get(key, absent), source=artifact.id, style=style, n=data.get(n) if n else None, of=of)

    return LayerTraining(
        side=side,
        hookpoint=data["hookpoint"],
        title=title,
        num_latents=data.get("num_latents"),
        k=data.get("k"),
        rows=last("rows", "count"),
        steps=last("steps", "count"),
        fvu=last("fvu_heldout", "score", n="rows_heldout", of="rows"),
        dead=last("dead", "count", n="num_latents", of="latents"),
        source=artifact.id,
    )


def titles_of(sides: Mapping[str, Sequence[Artifact]], lineage: Lineage) -> dict[tuple[str, str], str]:
    """(Side, artifact id) -> title of the SAE; artifacts are SAEs or their health."""
    titles: dict[tuple[str, str], str] = {}
    for side, artifacts in sides.items():
        file = {"sae": "training.json", "health": "health.json"}
        named = [(item, str(read_json(item.file(file[item.kind]))["hookpoint"])) for item in artifacts]
        titles |= {(side, key): title for key, title in side_titles(named, lineage).items()}
    return titles


def curve_rows(saes: Mapping[str, Sequence[Artifact]], titles: Mapping[tuple[str, str], str]) -> list[Row]:
    """All training curves in long form: side, hookpoint, title, then the columns of `curves.parquet`.

    SAEs that were trained elsewhere have none.
    """
    import polars as pl

    rows: list[Row] = []
    for side, artifacts in saes.items():
        for artifact in artifacts:
            data = read_json(artifact.file("training.json"))
            if adopted_from(data):
                continue
            named = {"side": side, "hookpoint": data["hookpoint"], "title": titles[side, artifact.id]}
            table = pl.read_parquet(artifact.file("curves.parquet"))
            rows += [{**named, **row} for row in table.to_dicts()]
    return rows


def density_rows(health: Mapping[str, Sequence[Artifact]], layers: Sequence[LayerHealth]) -> list[Row]:
    """The density histograms in long form: side, hookpoint, dataset, title, low and high (log10 of the share of
    tokens), latents."""
    rows: list[Row] = []
    found = {(layer.side, layer.source): layer for layer in layers}
    several = len({layer.dataset for layer in layers}) > 1
    for side, artifacts in health.items():
        for artifact in artifacts:
            layer = found[side, artifact.id]
            histogram = read_json(artifact.file("health.json")).get(
                "density_histogram", {"log10_edges": [], "counts": []}
            )
            edges = histogram["log10_edges"]
            named = {"side": side, "hookpoint": layer.hookpoint, "dataset": layer.dataset}
            named["title"] = f"{layer.title}, {layer.dataset}" if several else layer.title
            rows += [
                {**named, "low": low, "high": high, "latents": count}
                for low, high, count in zip(edges, edges[1:], histogram["counts"])
            ]
    return rows


def layer_rows(layers: Iterable[LayerHealth], columns: Iterable[str]) -> list[Row]:
    """The health table in long form, one row per number."""
    rows: list[Row] = []
    for layer in layers:
        for column in columns:
            number: Number = getattr(layer, column)
            rows.append(
                {
                    "side": layer.side,
                    "hookpoint": layer.hookpoint,
                    "dataset": layer.dataset,
                    "title": layer.title,
                    "metric": column,
                    "value": None if number.value is None else float(number.value),
                    "low": number.low,
                    "high": number.high,
                    "n": number.n,
                    "of": number.of,
                    "reason": number.reason,
                    "source": number.source,
                }
            )
    return rows


def provenance(roots: Sequence[Artifact], lineage: Lineage, config: Mapping[str, Any]) -> Provenance:
    """What the report rests on, without anything that differs between two equal runs.

    Args:
        config: The run's configuration as JSON values; empty where no run is behind the report, whose seeds are then
            those in the artifacts' recipes.
    """
    steps: list[Step] = []
    versions: dict[str, list[str]] = {}
    platforms: list[str] = []
    tokens: list[Fact] = []
    recipes: list[Setting] = []
    for artifact in lineage.walk(roots):
        manifest = lineage.manifest(artifact)
        steps.append(
            Step(
                id=artifact.id,
                kind=artifact.kind,
                version=manifest["version"],
                counts={key: _count(value) for key, value in _whole(manifest["counts"]).items()},
                files=len(manifest["files"]),
                bytes=sum(item["bytes"] for item in manifest["files"].values()),
            )
        )
        recipes += [
            Setting(field=f"{artifact.kind} {line.field}", value=line.value) for line in settings_of(manifest["config"])
        ]
        made = manifest["made"]
        for name, version in made["versions"].items():
            versions.setdefault(name, []).append(version or "not installed")
        versions.setdefault("python", []).append(made["python"])
        platforms.append(made["platform"])
        if artifact.kind == "corpus":
            tokens += _corpus_facts(artifact)
    settings = settings_of(config)
    seeds = [line for line in settings or recipes if re.split(r"[. ]", line.field)[-1] in ("seed", "weights_seed")]
    return Provenance(
        steps=tuple(steps),
        gone=tuple(sorted(lineage.gone)),
        settings=settings,
        seeds=tuple(dict.fromkeys(seeds)),
        tokens=tuple(tokens),
        versions=tuple(
            Setting(field=name, value=", ".join(dict.fromkeys(values))) for name, values in sorted(versions.items())
        ),
        platforms=tuple(dict.fromkeys(platforms)),
    )


def timing_rows(roots: Sequence[Artifact], lineage: Lineage) -> list[Row]:
    """Wall time, time and host of every step; for `timing.parquet` alone."""
    rows = []
    for artifact in lineage.walk(roots):
        made = lineage.manifest(artifact)["made"]
        rows.append({"artifact": artifact.id, "seconds": made["seconds"], "at": made["at"], "host": made["host"]})
    return rows


def settings_of(values: Mapping[str, Any], prefix: str = "") -> tuple[Setting, ...]:
    """A nested configuration as `a.b.c = value` lines, in its own order."""
    lines: list[Setting] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += settings_of(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                lines += settings_of(item, f"{prefix}{key}.{index}.")
        else:
            lines.append(Setting(field=f"{prefix}{key}", value=_shown(value)))
    return tuple(lines)


def _whole(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of what was asked: how much of it a response cache held, and cost nothing, differs between equal runs."""
    parts = ("requests_sent", "requests_cached")
    if not all(name in counts for name in parts):
        return dict(counts)
    paid = ("prompt_tokens", "reply_tokens", "cost")
    rest = {key: value for key, value in counts.items() if key not in (*parts, *paid)}
    return {"requests": sum(counts[name] for name in parts), **rest}


def _corpus_facts(artifact: Artifact) -> list[Fact]:
    data = read_json(artifact.file("corpus.json"))
    tokens, documents = data.get("tokens", {}), data.get("documents", {})
    return [
        Fact(
            title=f"Tokens, split {split}",
            number=measured(
                count, source=artifact.id, style="count", n=documents.get(split), of="documents", interval=None
            ),
        )
        for split, count in tokens.items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return str(value)


def _count(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_count(item)}" for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return number(value, "count")
    return number(value, "plain") if isinstance(value, float) else _shown(value)
