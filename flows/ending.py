"""How every flow ends: the report is written even when layers failed, and the state says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from prefect.logging import get_run_logger
from prefect.states import Completed, Failed, State
from pydantic import BaseModel

from saeinterp.artifacts import Artifact, Ref
from saeinterp.report import Failure
from tasks import steps
from tasks.publish import publish_report
from tasks.step import finished

NONE: Mapping[str, Any] = MappingProxyType({})


class Outcome(BaseModel):
    """What a flow leaves behind.

    Attributes:
        report: Folder of the report.
        failures: One line per failed layer.
    """

    report: str
    failures: list[str]


class IncompleteError(Exception):
    """What a run ends with when its report stands, but not all that was asked is in it.

    A failed state must hold an exception: Prefect raises it in the process of a deployed run.

    Attributes:
        outcome: What the run left behind; None where the state was read from the server.
    """

    def __init__(self, message: str, outcome: Outcome | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome


def incomplete(message: str, outcome: Outcome) -> State[Outcome]:
    """The failed state of a run that left a report."""
    return cast("State[Outcome]", Failed(message=message, data=IncompleteError(message, outcome)))


def conclude(
    *,
    title: str,
    key: str,
    config: BaseModel,
    explainer_comparison: Ref | None = None,
    explainer_pairs: Ref | None = None,
    scorer_agreement: Ref | None = None,
    model_comparison: Ref | None = None,
    interpretability: Ref | None = None,
    enrichment: Mapping[str, Ref] = NONE,
    health: Mapping[str, Sequence[Ref]] = NONE,
    saes: Mapping[str, Sequence[Ref]],
    grades: Mapping[str, Ref] = NONE,
    profiles: Sequence[Ref] = (),
    detail_latents: int = 0,
    failures: Sequence[Failure],
    shortfalls: Sequence[str] = (),
) -> State[Outcome]:
    """Write and publish the report, then complete, or fail naming the failed layers.

    Args:
        shortfalls: What did not fail but falls short of what was asked, such as coverage: the report has the
            numbers, and the run still ends as completed with failures.
    """
    report = finished(
        steps.render_report.submit(
            title=title,
            explainer_comparison=explainer_comparison,
            explainer_pairs=explainer_pairs,
            scorer_agreement=scorer_agreement,
            model_comparison=model_comparison,
            interpretability=interpretability,
            enrichment=enrichment,
            health=health,
            saes=saes,
            grades=grades,
            profiles=tuple(profiles),
            detail_latents=detail_latents,
            failures=tuple(failures),
            config=config,
            label=key,
        )
    )
    if not isinstance(report, Artifact):  # planning: a recipe, nothing to publish
        return Completed(data=Outcome(report="", failures=[]))
    publish_report(report, key=key)
    lines = [f"{item.side} {item.hookpoint}: {item.stage} failed: {item.error}" for item in failures]
    lines += shortfalls
    outcome = Outcome(report=str(report.path), failures=lines)
    logger = get_run_logger()
    logger.info("Report: %s", report.path / "report.html")
    if report.url is not None:
        logger.info("Anywhere else: saeinterp view %s --root %s", report.id, report.url)
    if lines:
        for line in lines:
            logger.error(line)
        layers = ", ".join(sorted({f"{item.hookpoint} ({item.side})" for item in failures}))
        if not failures:
            return incomplete(f"Completed with failures: {'; '.join(shortfalls)}", outcome)
        message = f"{layers} failed; the report holds the others. Retry this flow run to run only what failed."
        return incomplete(message, outcome)
    return Completed(message=f"Report: {report.path / 'report.html'}", data=outcome)
