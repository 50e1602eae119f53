"""The planted road up to frozen examples, once per session; configurations that point at an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from explain.oracle import MODEL, Oracle

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import (
    CaptureConfig,
    CorpusConfig,
    CorpusSource,
    ExamplesConfig,
    ExplainerConfig,
    LaunchConfig,
    LLMConfig,
    ScorerConfig,
    SubjectConfig,
    TrainingConfig,
)
from saeinterp.explain import explain, score
from saeinterp.latents import build_examples, cache_latents
from saeinterp.sae import train_sae
from saeinterp.subject import build_corpus, collect_activations, prepare_subject

HOOKPOINT = "layers.1"


class Road(NamedTuple):
    """Artifacts of the planted subject up to its examples."""

    subject: Artifact
    sae: Artifact
    latents: Artifact
    examples: Artifact

    def explain(
        self, oracle: Oracle, store: ArtifactStore, *, options: Mapping[str, object] | None = None, **llm: object
    ) -> Artifact:
        """Explanations by an oracle; `options` are fields of the explainer."""
        fields = {"label": "oracle", "logit_lens": False, **(options or {})}
        config = ExplainerConfig(**{"llm": served_by(oracle, **llm), **fields})
        return explain(self.examples, self.subject, self.sae, hookpoint=HOOKPOINT, config=config, store=store)

    def score(
        self,
        explanations: Artifact,
        oracle: Oracle,
        store: ArtifactStore,
        *,
        kind: str = "detection",
        together: int = 1,
        **llm: object,
    ) -> Artifact:
        """Scores by an oracle, so many examples a request."""
        served = served_by(oracle, max_tokens=1, **llm)
        config = ScorerConfig(kind=kind, llm=served, examples_per_prompt=together)
        return score(explanations, self.examples, config=config, store=store)


def served_by(oracle: Oracle, **options: object) -> LLMConfig:
    """The configuration of a client of an oracle; failed requests are sent again once."""
    return LLMConfig(**{"provider": "openai", "model": MODEL, "base_url": oracle.url, "retries": 1, **options})


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, planted_corpus: Path) -> Road:
    store = ArtifactStore(tmp_path_factory.mktemp("explain-road"))
    subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
    source = CorpusConfig(sources=(CorpusSource(name=str(planted_corpus)),), context_length=64)
    corpus = build_corpus(subject, config=source, store=store)
    capture = CaptureConfig(hookpoints=(HOOKPOINT,))
    training = collect_activations(subject, corpus, config=capture, splits=("train", "health"), store=store)
    unseen = collect_activations(subject, corpus, config=capture, splits=("explain", "score"), store=store)
    config = TrainingConfig(num_latents=20, k=1, epochs=8, batch_rows=256, dead_after_rows=2000)
    sae = train_sae(training, hookpoint=HOOKPOINT, config=config, launch=LaunchConfig(threads=1), store=store)
    latents = cache_latents(unseen, sae, hookpoint=HOOKPOINT, store=store)
    sizes = {"score_activating": 8, "score_random": 4, "score_similar": 4, "score_near_miss": 2}
    chosen = ExamplesConfig(latents="all", window=16, max_share=0.6, **sizes)
    examples = build_examples(latents, corpus, sae, hookpoint=HOOKPOINT, config=chosen, store=store)
    return Road(subject, sae, latents, examples)
