"""What grading reads: one row per SAE and dataset, made from health and absorption artifacts.

The surprising choice: absorption is joined by the SAE behind an artifact, never by its name or its place in a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saeinterp.artifacts import Artifact, read_json
from saeinterp.health.checks import Check, integrity_checks
from saeinterp.health.grading.results import Measured, NullValue
from saeinterp.stats import number

DATASET = "held-out"
"""The name of the text of a health artifact that names none."""
NOT_MEASURED = Measured(value=None, reason="not measured")


class LayerRow(NamedTuple):
    """One SAE on one dataset, before it is graded.

    Attributes:
        key: What tells SAEs apart; rows of one SAE share it.
        source: Where the numbers are from; None makes the dataset missing.
        values: Of each graded metric.
        checks: Integrity checks of the row.
        control: Absorption of a random SAE.
        cosine: `decoder_top_cosine` with its null.
        training: Settings of the SAE's training, where they are known.
    """

    key: str
    hookpoint: str
    layer: int | None
    dataset: str
    source: str | None
    values: Mapping[str, Measured]
    checks: Sequence[Check] = ()
    sae: str | None = None
    seed: int | None = None
    num_latents: int | None = None
    k: int | None = None
    absorption_source: str | None = None
    control: Measured | None = None
    cosine: NullValue | None = None
    training: Mapping[str, Any] = {}


def rows_of(health: Sequence[Artifact], absorption: Sequence[Artifact] = ()) -> list[LayerRow]:
    """One row per health artifact, absorption joined by SAE."""
    measured = {_input(item, "sae"): item for item in absorption}
    rows = []
    for artifact in health:
        data = read_json(artifact.file("health.json"))
        sae = _input(artifact, "sae")
        settings = _config(artifact, "sae").get("training", {})
        found = measured.get(sae)
        first = read_json(found.file("absorption.json")) if found is not None and sae is not None else None
        values = {
            "loss_recovered": _measured(data.get("loss_recovered")),
            "l0": _measured(data.get("l0_mean")),
            "dead_fraction": _measured(data.get("dead_fraction")),
            "absorption": _absorption(first) if first is not None else _measured(data.get("absorption")),
        }
        rows.append(
            LayerRow(
                key=sae or f"{data['hookpoint']} of {artifact.id}",
                hookpoint=data["hookpoint"],
                layer=data.get("layer"),
                dataset=data.get("dataset") or DATASET,
                source=artifact.id,
                values=values,
                checks=[Check(**check) for check in data.get("checks", ())] or integrity_checks(data),
                sae=sae,
                seed=settings.get("seed"),
                num_latents=data.get("num_latents"),
                k=data.get("k"),
                absorption_source=found.id if first is not None and found is not None else None,
                control=_control(first),
                cosine=_cosine(first),
                training=settings,
            )
        )
    return rows


def _measured(value: Any) -> Measured:
    if isinstance(value, Mapping):
        return Measured(**{name: value.get(name) for name in Measured.model_fields})
    return Measured(value=value, reason=None if value is not None else "not in the artifact")


def _control(data: Mapping[str, Any] | None) -> Measured | None:
    control = (data or {}).get("random_control")
    return None if control is None else _absorption(control)


def _absorption(data: Mapping[str, Any]) -> Measured:
    """The score, or why it does not apply and what it would have been: a random SAE may look better than a real one."""
    found = _measured(data)
    if found.value is None and data.get("mean_fraction") is not None:
        reason = f"{found.reason or 'not applicable'} (mean fraction {number(data['mean_fraction'])})"
        return found.model_copy(update={"reason": reason})
    return found


def _cosine(data: Mapping[str, Any] | None) -> NullValue | None:
    found = (data or {}).get("decoder_top_cosine")
    if not isinstance(found, Mapping) or found.get("value") is None:
        return None
    return NullValue(**{name: found.get(name) for name in NullValue.model_fields})


def _behind(artifact: Artifact, kind: str) -> Artifact | None:
    """The first input of this kind."""
    inputs = artifact.manifest()["inputs"]
    return next((artifact.beside(item) for item in inputs if item["kind"] == kind), None)


def _input(artifact: Artifact, kind: str) -> str | None:
    """Its id."""
    found = _behind(artifact, kind)
    return found.id if found else None


def _config(artifact: Artifact, kind: str) -> Mapping[str, Any]:
    """The configuration of that input's recipe; empty where its folder is gone."""
    found = _behind(artifact, kind)
    config: Mapping[str, Any] = found.manifest().get("config", {}) if found is not None and found.exists else {}
    return config
