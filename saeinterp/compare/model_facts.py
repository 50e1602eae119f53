"""What is known of two sides before anything is computed: what they share, which one is a control, what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saeinterp.compare.comparability import ComparabilityRow, differing
from saeinterp.compare.model_checks import COMPARED, Group
from saeinterp.compare.model_results import FailedCheck, SubjectDifference
from saeinterp.compare.sides import MeasuredSae, Side, input_of
from saeinterp.errors import ComparabilityError, ConfigError


def require_shared(left: Group, right: Group, names: tuple[str, str]) -> None:
    for field, of in (("hookpoints", "layer"), ("datasets", "dataset of a layer")):
        keys = [
            {(place.hookpoint, place.dataset if field == "datasets" else "") for place in side}
            for side in (left, right)
        ]
        if keys[0] & keys[1]:
            continue
        shown = [", ".join(sorted(" on ".join(filter(None, key)) for key in side)) or "none" for side in keys]
        raise ComparabilityError(
            f"the sides share no {of}",
            field=field,
            got=f"{shown[0]} ({names[0]}) and {shown[1]} ({names[1]})",
            expected="at least one hookpoint on both sides" + (", on one dataset" if field == "datasets" else ""),
            next_step="see which layers failed, and name the same hookpoints and datasets for both models",
        )


def require_control(floor: Group, side: str) -> None:
    for saes in floor.values():
        for sae in saes:
            if not _has_random_weights(sae):
                raise ConfigError(
                    "the control's model has weights of its own",
                    field=f"controls.{side}",
                    got=sae.artifact.id,
                    expected="health of a model with random weights",
                )


def control_side(sides: Sequence[Sequence[MeasuredSae]]) -> Side | None:
    """The side whose model has random weights, where the other's has not."""
    random = [_has_random_weights(side[0]) for side in sides]
    if random[0] == random[1]:
        return None
    return "a" if random[0] else "b"


def _has_random_weights(sae: MeasuredSae) -> bool:
    subject = input_of(sae.node, "subject")
    return subject is not None and subject.config.get("weights") == "random"


def subject_differences(sides: Sequence[Sequence[MeasuredSae]]) -> list[SubjectDifference]:
    first, second = (input_of(side[0].node, "subject") for side in sides)
    if first is None or second is None:
        return []
    return [
        SubjectDifference(step="subject", field=key, a=_shown(x), b=_shown(y))
        for key, x, y in differing(first.config, second.config)
        if key != "fingerprint"
    ]


def recipe_differences(rows: Sequence[ComparabilityRow]) -> list[SubjectDifference]:
    """Other SAE settings of one model, which are what is compared then."""
    return [
        SubjectDifference(step="SAE", field=row.field, a=row.a, b=row.b)
        for row in rows
        if row.note == COMPARED and not row.ok
    ]


def failed_checks(side: Side, saes: Sequence[MeasuredSae]) -> list[FailedCheck]:
    found = []
    for sae in saes:
        checks: Any = sae.health.values["checks"]
        found += [
            FailedCheck(
                side=side,
                hookpoint=sae.hookpoint,
                dataset=sae.dataset,
                seed=sae.seed,
                name=check["name"],
                detail=check["detail"],
            )
            for check in checks
            if not check["passed"]
        ]
    return found


def _shown(value: object) -> str:
    return "not known" if value is None else str(value)
