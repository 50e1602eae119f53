"""What flows about tokens share: the SAEs of one model by layer and position, and what their latents go with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flows import lanes
from saeinterp.artifacts import Ref
from saeinterp.config import ConceptsConfig, CorrelateTokensConfig, SubjectConfig
from saeinterp.ids import parse_site
from saeinterp.report import Failure
from saeinterp.subject import site_names
from tasks import enriching, steps
from tasks.step import Pending, finished, settle


class Track(NamedTuple):
    """One model on its way: its samples with their tokens, and a pending SAE per seed and site."""

    title: str
    subject: Ref
    concepts: Ref
    activations: Ref
    saes: dict[int, dict[str, Pending]]
    """By seed of training, then by site (`layers.9@1`)."""


class Active(NamedTuple):
    """What a model's SAEs came to.

    Attributes:
        saes: Trained SAEs of all seeds.
        activities: By seed, those of the layers whose SAEs were all trained.
        failures: What failed.
    """

    saes: tuple[Ref, ...]
    activities: dict[int, tuple[Ref, ...]]
    failures: list[Failure]


def train(
    config: CorrelateTokensConfig, model: SubjectConfig, *, title: str, seeds: Sequence[int] | None = None
) -> Track:
    """Read the problems once, then train one SAE per layer and position, those of one seed as one batched problem.

    Args:
        model: `config.subject`, or its control.
        seeds: Only these of the configured seeds.
    """
    subject = finished(steps.prepare_model.submit(config=model, label=title))
    problems = finished(
        enriching.prepare_problems.submit(subject=subject, config=config.corpus, device=model.placement, label=title)
    )
    concepts = finished(_concepts(problems, subject, config.concepts, title))
    activations = finished(
        enriching.capture_positions.submit(
            subject=subject,
            problems=problems,
            capture=config.capture,
            positions=config.positions,
            device=model.placement,
            label=title,
        )
    )
    sites = site_names(config.capture.hookpoints, config.positions.select)
    saes: dict[int, dict[str, Pending]] = {}
    for training in config.trainings:
        if seeds is None or training.seed in seeds:
            settings = {
                "activations": activations,
                "config": training,
                "launch": config.launch.model_copy(update={"together": config.launch.together or len(sites)}),
                "subject": None,
                "corpus": None,
                "capture": None,
                "device": model.placement,
            }
            variant = f"seed {training.seed}" if len(config.trainings) > 1 else ""
            trained = lanes.train_each(sites, settings, variant=variant, side=title)
            saes[training.seed] = {member.hookpoint: sae for member, sae in trained.items()}
    return Track(title, subject, concepts, activations, saes)


def _concepts(problems: Ref, subject: Ref, config: ConceptsConfig, title: str) -> Pending:
    return enriching.parse_concepts.submit(problems=problems, subject=subject, config=config, label=title)


def extract(track: Track) -> Active:
    """Which latents are active where; a layer with a failed SAE is left out, and named."""
    failures: list[Failure] = []
    trained: list[Ref] = []
    pending: dict[int, dict[str, Pending]] = {}
    for seed, saes in track.saes.items():
        done, failed = settle("training", track.title, saes)
        failures += failed
        trained += done.values()
        layers: dict[str, dict[str, Ref]] = {}
        for site in saes:
            layers.setdefault(parse_site(site)[0], {})
        for site, sae in done.items():
            layers[parse_site(site)[0]][site] = sae
        whole = {
            hookpoint: found
            for hookpoint, found in layers.items()
            if len(found) == sum(parse_site(site)[0] == hookpoint for site in saes)
        }
        pending[seed] = {
            hookpoint: enriching.extract_activity.submit(
                activations=track.activations, saes=found, label=f"{hookpoint} {track.title}"
            )
            for hookpoint, found in whole.items()
        }
    activities = {}
    for seed, items in pending.items():
        done, failed = settle("activity", track.title, items)
        failures += failed
        activities[seed] = tuple(done.values())
    return Active(tuple(trained), activities, failures)


def correlate(
    config: CorrelateTokensConfig, track: Track, active: Active, *, matched: Sequence[Ref] = ()
) -> dict[int, Pending]:
    """By seed of training, the associations of all layers together: q is adjusted over the whole model."""
    return {
        seed: enriching.associate_tokens.submit(
            activities=activities,
            concepts=track.concepts,
            config=config.enrichment,
            matched=tuple(matched),
            label=f"{track.title}, seed {seed}" if len(active.activities) > 1 else track.title,
        )
        for seed, activities in active.activities.items()
        if activities
    }


def titled(title: str, by_seed: Mapping[int, Ref]) -> dict[str, Ref]:
    """Associations by what tells them apart in a report."""
    return {f"{title}, SAE seed {seed}" if len(by_seed) > 1 else title: ref for seed, ref in by_seed.items()}
