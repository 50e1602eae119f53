"""Parts for layer health: a subject with corpus and activation cache, and SAEs made by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from planted import vocabulary

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, SplitFractions, SubjectConfig
from saeinterp.health import DocumentSums
from saeinterp.health.documents import COLUMNS
from saeinterp.sae import TopKSae
from saeinterp.subject import (
    Context,
    Subject,
    build_corpus,
    collect_activations,
    load_subject,
    prepare_subject,
    read_contexts,
)

HOOKPOINTS = ("layers.0", "layers.1")


def write_repetitive_corpus(path: Path, *, count: int = 160, seed: int = 0) -> Path:
    """Documents in which words come in runs, which the planted subject predicts (it repeats what it reads)."""
    source = random.Random(seed)
    words = vocabulary()[3:]
    texts = []
    for _ in range(count):
        runs = ([source.choice(words)] * source.randint(3, 9) for _ in range(16))
        texts.append(" ".join(word for run in runs for word in run))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Prepared(NamedTuple):
    """A subject with everything health needs."""

    artifact: Artifact
    corpus: Artifact
    activations: Artifact
    subject: Subject
    contexts: Sequence[Context]


def prepare(store: ArtifactStore, folder: Path, documents: Path, *, control: bool = False, **corpus: Any) -> Prepared:
    """Prepare a subject in float32, or its random-weights control, over short contexts of the documents.

    The corpus is tokenised for the pretrained subject, so both share it.
    """
    pretrained = prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=store)
    artifact = pretrained
    if control:
        artifact = prepare_subject(SubjectConfig(model=str(folder), dtype="float32", weights="random"), store=store)
    options = {"context_length": 24, "fractions": SplitFractions(train=0.8, health=0.1, explain=0.05, score=0.05)}
    config = CorpusConfig(sources=(CorpusSource(name=str(documents)),), **{**options, **corpus})
    made = build_corpus(pretrained, config=config, store=store)
    capture = CaptureConfig(hookpoints=HOOKPOINTS)
    activations = collect_activations(artifact, made, config=capture, splits=("train", "health"), store=store)
    return Prepared(artifact, made, activations, load_subject(artifact), read_contexts(made, splits="health"))


def signed_identity(d: int, *, scale: float = 1.0) -> TopKSae:
    """An SAE that gives back `scale * x` exactly: one latent per direction and sign."""
    eye = torch.eye(d)
    rows = torch.cat([eye, -eye])
    return TopKSae(rows, torch.zeros(2 * d), scale * rows, torch.zeros(d), k=d)


def silent_sae(d: int, *, num_latents: int = 16, k: int = 4) -> TopKSae:
    """An SAE that never fires and gives back zeros."""
    nothing = torch.zeros(num_latents, d)
    return TopKSae(nothing, -torch.ones(num_latents), nothing.clone(), torch.zeros(d), k=k)


def random_sae(d: int, *, num_latents: int = 48, k: int = 6, seed: int = 0) -> TopKSae:
    """Random unit directions."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(num_latents, d, generator=generator), dim=1)
    return TopKSae(rows, torch.zeros(num_latents), rows.clone(), torch.zeros(d), k=k)


def sae_artifact(
    store: ArtifactStore, sae: TopKSae, activations: Artifact, *, hookpoint: str, **training: Any
) -> Artifact:
    """An SAE made by hand, as the artifact that training would leave."""
    settings = {"num_latents": sae.num_latents, "k": sae.k, **training}
    values = {"hookpoint": hookpoint, "training": settings, "launch": {"processes": 1}}

    def write(space: Workspace) -> None:
        sae.save(space.out)

    return store.build(Recipe(kind="sae", name=hookpoint, version=1, config=values, inputs=(activations,)), write)


def planted_sums(
    count: int,
    *,
    clean: float,
    spliced: float,
    zero: float,
    fvu: float = 0.25,
    noise: float = 0.1,
    seed: int,
    first: int = 0,
) -> DocumentSums:
    """Document sums with planted means per prediction; documents differ in length and by `noise` in every loss."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 150, count).astype(float)

    def losses(mean: float) -> np.ndarray:
        return tokens * (mean + noise * rng.standard_normal(count))

    variance = tokens * (10 + rng.standard_normal(count))
    columns = {
        "tokens": tokens,
        "predictions": tokens,
        "ce_clean": losses(clean),
        "ce_spliced": losses(spliced),
        "ce_zero": losses(zero),
        "ce_mean": losses(zero - 1),
        "kl_spliced": losses(spliced - clean + 1),
        "kl_zero": losses(abs(zero - clean) + 1),
        "squared_error": variance * (fvu + noise / 10 * rng.standard_normal(count)),
        "squared_deviation": variance,
        "cosine": 0.9 * tokens,
        "l0": 2 * tokens,
    }
    ids = np.arange(first, first + count, dtype=np.int32)
    return DocumentSums(ids, np.stack([columns[name] for name in COLUMNS], axis=1))
