"""`probe-latents`: what few latents of each layer's SAE know of the labels in a user's table."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed, State

from flows import lanes
from flows.ending import Outcome, incomplete
from flows.runner import main, named_by_config, runner
from saeinterp.artifacts import Artifact
from saeinterp.config import ProbeLatentsConfig
from saeinterp.health.probing.labelled import read_labelled, split_rows
from tasks.probing import probe_table
from tasks.publish import publish_probes
from tasks.step import finished, settle

SIDE = "subject"


@flow(
    name="probe-latents",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def probe_latents(config: ProbeLatentsConfig) -> State[Outcome]:
    """Train or find one SAE per hookpoint, then probe them for the classes of a labelled table."""
    # A table that cannot be used should not cost a training first.
    split_rows(read_labelled(config.probing), config.probing)
    subject, texts = lanes.prepare(config.subject, config.corpus, config.health, training=config.training, side=SIDE)
    lane = lanes.train(
        config.subject,
        subject,
        texts.corpus,
        lanes.Pipeline.of(config),
        corpus_config=config.corpus,
        trainings={"": config.training},
        side=SIDE,
    )
    saes, failures = settle("training", SIDE, lane.saes)
    layers = ", ".join(str(item.hookpoint) for item in failures)
    lines = [f"{item.hookpoint}: {item.stage} failed: {item.error}" for item in failures]
    if not saes:
        return incomplete("No layer has an SAE to probe", Outcome(report="", failures=lines))
    probes = finished(
        probe_table.submit(
            subject=subject,
            activations=lane.activations,
            saes=tuple(saes.values()),
            hookpoints=tuple(member.hookpoint for member in saes),
            config=config.probing,
            device=config.subject.placement,
            label=Path(config.probing.file).name,
        )
    )
    if not isinstance(probes, Artifact):  # planning: a recipe, nothing to publish
        return Completed(data=Outcome(report="", failures=[]))
    publish_probes(probes, failures=lines)
    outcome = Outcome(report=str(probes.path), failures=lines)
    for line in lines:
        get_run_logger().error(line)
    if lines:
        return incomplete(f"{layers} failed; the report holds the others. Retry this flow run.", outcome)
    return Completed(message=f"Report: {probes.path / 'report.md'}", data=outcome)


if __name__ == "__main__":
    main(probe_latents, ProbeLatentsConfig)
