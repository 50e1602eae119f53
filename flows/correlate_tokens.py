"""`correlate-tokens`: SAEs per layer and position of a reasoning model, and which latents go with which tokens."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import enriching
from flows.ending import Outcome, conclude
from flows.runner import main, named_by_config, runner
from saeinterp.artifacts import Ref
from saeinterp.config import CorrelateTokensConfig
from tasks.step import settle

SIDE = "subject"
CONTROL = "random weights"


@flow(
    name="correlate-tokens",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def correlate_tokens(config: CorrelateTokensConfig = CorrelateTokensConfig()) -> State[Outcome]:
    """Train an SAE per layer and position, and test which latents go with which tokens of the reasoning."""
    tracks = [enriching.train(config, config.subject, title=SIDE)]
    if config.random_weights_control and config.subject.weights != "random":
        # One seed is enough for the floor.
        first = (config.trainings[0].seed,)
        tracks.append(enriching.train(config, config.subject.control(), title=CONTROL, seeds=first))
    active = [enriching.extract(track) for track in tracks]
    pending = [enriching.correlate(config, track, found) for track, found in zip(tracks, active, strict=True)]

    failures = [failure for found in active for failure in found.failures]
    enrichment: dict[str, Ref] = {}
    for track, items in zip(tracks, pending, strict=True):
        done, failed = settle("association", track.title, items)
        enrichment |= enriching.titled(track.title, done)
        failures += failed
    return conclude(
        title="Latents and tokens",
        key="correlate-tokens",
        config=config,
        detail_latents=config.report.latents,
        enrichment=enrichment,
        saes={track.title: found.saes for track, found in zip(tracks, active, strict=True)},
        failures=failures,
    )


if __name__ == "__main__":
    main(correlate_tokens, CorrelateTokensConfig)
