"""Whether training rows are streamed from the running model or read from files of activations."""

from __future__ import annotations

from saeinterp.artifacts import Artifact, Recipe, Ref, read_json
from saeinterp.config import CaptureConfig, CorpusConfig, SubjectConfig
from saeinterp.subject.corpora import estimate_tokens
from saeinterp.subject.models import subject_info, subject_width
from saeinterp.subject.shards import activation_bytes


def streams(
    subject: Ref, corpus: Ref, config: CaptureConfig, *, subject_config: SubjectConfig, corpus_config: CorpusConfig
) -> bool:
    """Whether `capture.source` asks for the running model, or is `auto` and the files would exceed the disk budget.

    While planning, before the corpus exists, an estimate decides (and without one, files).
    """
    if config.source != "auto":
        return config.source == "stream"
    if isinstance(subject, Artifact) and isinstance(corpus, Artifact):
        tokens = read_json(corpus.file("corpus.json"))["tokens"]["train"]
        width = subject_info(subject)["d_model"]
    else:
        # What stands in for a subject that is not here states its width.
        given = subject.config.get("d_model") if isinstance(subject, Recipe) else None
        tokens = estimate_tokens(corpus_config, splits=("train",))
        width = given if isinstance(given, int) else subject_width(subject_config)
    if tokens is None or width is None:
        return False
    return activation_bytes(tokens, width, config.hookpoints) > config.disk_budget_gb * 1e9
