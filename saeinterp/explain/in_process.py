"""The in-process client: a transformers model on this machine's CPU or GPU.

The surprising choice: batches are cut from the whole request list before the cache is consulted, and a batch is cached
as one, because low-precision results depend on what a prompt is batched with; so a resumed run computes the same
numbers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import LLMConfig
from saeinterp.explain.llm import Completions, Reply, Request, llm_identity, request_key, subject_config
from saeinterp.explain.local_model import LocalModel
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.explain.spending import Spent
from saeinterp.progress import Progress, silent
from saeinterp.subject import load_subject, prepare_subject

_LOADED: dict[str, LocalModel] = {}
_LOCK = threading.RLock()


class InProcessChat:
    """Answers requests with a model loaded once per process; threads take turns.

    Args:
        config: The model, and the batch size.
        cache: Where replies are kept.
        store: Where a converted checkpoint is kept.
    """

    def __init__(self, config: LLMConfig, *, cache: ResponseCache, store: ArtifactStore) -> None:
        self._config = config
        self._cache = cache
        self._store = store
        self._identity = llm_identity(config)

    def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> Completions:
        """Answer all requests. A prompt longer than the model's context is refused, the others are not affected.

        Raises:
            LLMError: The model cannot tell the two choices apart.
            SubjectError: The model cannot be loaded.
        """
        report = progress or silent
        model: LocalModel | None = None  # not loaded at all when every reply is known
        replies: list[Reply] = []
        spent = Spent()
        for batch in batches(requests, size=self._config.batch_size):
            keys = [request_key(request, identity=self._identity) for request in batch]
            key = hashlib.sha256("\n".join(keys).encode()).hexdigest()
            known = self._cache.get(key)
            if known is None:
                with _LOCK:
                    known = self._cache.get(key)  # another thread may have had the same batch before
                    if known is None:
                        model = model or load_model(self._config, store=self._store)
                        known = model.answer(batch)
                        self._cache.put(key, known)
                        for usage in (reply.usage for reply in known):
                            spent = spent.plus(Spent(1, usage.prompt, usage.reply) if usage else Spent(1))
            replies += known
            report(len(replies), len(requests), "replies")
        return Completions(replies, sent=spent.requests, cached=len(requests) - spent.requests, spent=spent)


def batches(requests: Sequence[Request], *, size: int) -> Iterator[list[Request]]:
    """Consecutive requests, at most `size`, of one group and one way of sampling."""
    batch: list[Request] = []
    for request in requests:
        if batch and (len(batch) == size or _manner(batch[0]) != _manner(request)):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def load_model(config: LLMConfig, *, store: ArtifactStore) -> LocalModel:
    """The model of a configuration, loaded at the first call and kept for the life of the process."""
    with _LOCK:
        artifact = prepare_subject(subject_config(config), store=store)
        if artifact.hash not in _LOADED:
            _LOADED[artifact.hash] = LocalModel(load_subject(artifact))
        return _LOADED[artifact.hash]


def unload_models() -> None:
    """Forget the models that were loaded; the next request loads its own again."""
    with _LOCK:
        _LOADED.clear()


def _manner(request: Request) -> tuple[object, ...]:
    return request.group, request.max_tokens, request.temperature, request.seed, request.choices, request.slot


def unembedding(subject: Artifact) -> tuple[Tensor, Any]:
    """The unembedding `[vocabulary, d]` of a prepared subject on the CPU, and its tokenizer.

    A model that answers requests in this process is not loaded again.
    """
    with _LOCK:
        loaded = _LOADED[subject.hash].subject if subject.hash in _LOADED else load_subject(subject, device="cpu")
    return loaded.model.get_output_embeddings().weight.detach().cpu(), loaded.tokenizer
