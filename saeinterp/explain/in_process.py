"""The in-process client: a transformers model on this machine's CPU or GPU.

Two jobs: greedy or sampled text, and the log-probabilities of two answers. For the latter the longest common
beginning of a batch is run once and its keys and values are shared by all. The surprising choice: batches are
cut from the whole request list before the cache is consulted, and a batch is cached as one, because
low-precision results depend on what a prompt is batched with; so a resumed run computes the same numbers.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import LLMConfig
from saeinterp.errors import LLMError
from saeinterp.explain.llm import Completions, Reply, Request, llm_identity, request_key, subject_config
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.progress import Progress, silent
from saeinterp.subject import Subject, load_subject, prepare_subject
from saeinterp.subject.autoclasses import auto_classes

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
        sent = 0
        for batch in batches(requests, size=self._config.batch_size):
            keys = [request_key(request, identity=self._identity) for request in batch]
            key = hashlib.sha256("\n".join(keys).encode()).hexdigest()
            known = self._cache.get(key)
            if known is None:
                with _LOCK:
                    model = model or load_model(self._config, store=self._store)
                    known = model.choose(batch) if batch[0].choices else model.generate(batch)
                self._cache.put(key, known)
                sent += len(batch)
            replies += known
            report(len(replies), len(requests), "replies")
        return Completions(replies, sent=sent, cached=len(requests) - sent)


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


class LocalModel:
    """A loaded model that generates and chooses, batch by batch.

    Args:
        subject: The model and its tokenizer.
        share_prefix: Run the common beginning of a batch once; off only to compare.
    """

    def __init__(self, subject: Subject, *, share_prefix: bool = True) -> None:
        self.subject = subject
        self._max_positions = _max_positions(subject)
        forward = inspect.signature(subject.model.forward).parameters
        self._keeps_logits = "logits_to_keep" in forward
        # Recurrent models have no keys and values to share.
        self._share_prefix = share_prefix and not getattr(subject.model, "_is_stateful", False)
        self._prefix: tuple[tuple[int, ...], Any] | None = None
        specials = sorted({*subject.tokenizer.all_special_tokens, *_added_specials(subject.tokenizer)}, key=len)
        self._special = re.compile("|".join(re.escape(token) for token in reversed(specials)) or "(?!)")

    def tokens(self, request: Request) -> list[int]:
        """The prompt as token ids, ending where the reply begins.

        Special tokens that occur in the contents are broken up: what a document or another model wrote must not
        end a turn.
        """
        tokenizer = self.subject.tokenizer
        turns = [{"role": m.role, "content": self._special.sub(_break_up, m.content)} for m in request.messages]
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(tokenizer("\n\n".join(turn["content"] for turn in turns) + "\n\n")["input_ids"])

    def choose(self, batch: Sequence[Request]) -> list[Reply]:
        """Log-probabilities of the two choices as the next token; the reply text is the likeliest token."""
        choices = batch[0].choices
        assert choices is not None
        first, second = (
            torch.tensor(ids, device=self.subject.device) for ids in choice_ids(self.subject.tokenizer, choices)
        )
        prompts = [self.tokens(request) for request in batch]
        fits = [index for index, prompt in enumerate(prompts) if len(prompt) < self._max_positions]
        replies = [_too_long(len(prompt), self._max_positions) for prompt in prompts]
        if not fits:
            return replies
        with torch.inference_mode():
            logits = self._next_logits([prompts[index] for index in fits]).float()
            logprobs = logits - logits.logsumexp(1, keepdim=True)
            pairs = torch.stack([logprobs[:, first].logsumexp(1), logprobs[:, second].logsumexp(1)], 1).tolist()
            texts = self.subject.tokenizer.batch_decode(logits.argmax(1, keepdim=True))
        for index, (yes, no), text in zip(fits, pairs, texts, strict=True):
            replies[index] = Reply(text, (yes, no))
        return replies

    def generate(self, batch: Sequence[Request]) -> list[Reply]:
        """Reply texts, greedy at temperature 0, else sampled with the request's seed."""
        model, tokenizer = self.subject.model, self.subject.tokenizer
        prompts = [self.tokens(request) for request in batch]
        limit = self._max_positions - batch[0].max_tokens
        fits = [index for index, prompt in enumerate(prompts) if len(prompt) <= limit]
        replies = [_too_long(len(prompt), limit) for prompt in prompts]
        if not fits:
            return replies
        longest = max(len(prompts[index]) for index in fits)
        pad, ends = _pad_and_ends(model, tokenizer)
        ids = torch.full((len(fits), longest), pad, device=self.subject.device)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(fits):
            ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        temperature = batch[0].temperature
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        settings = auto_classes().generation(
            max_new_tokens=batch[0].max_tokens, pad_token_id=pad, eos_token_id=ends, **sampling
        )
        devices = [self.subject.device] if self.subject.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(batch[0].seed)
            found = model.generate(ids, attention_mask=mask, generation_config=settings)
        texts = tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
        for index, text in zip(fits, texts, strict=True):
            replies[index] = Reply(text)
        return replies

    def _next_logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """Logits `[B, vocabulary]` of the token after each prompt."""
        model, device = self.subject.model, self.subject.device
        shared = common_prefix(prompts) if self._share_prefix and len(prompts) > 1 else 0
        # Right padding: under causal attention a real token never sees the padding behind it, so that
        # neither mask nor positions are needed.
        lengths = torch.tensor([len(prompt) - shared for prompt in prompts])
        ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : lengths[row]] = torch.tensor(prompt[shared:])
        last, place = (lengths - 1).unique(return_inverse=True)
        options: dict[str, Any] = {"logits_to_keep": last.to(device)} if self._keeps_logits else {}
        if shared:
            cache = copy.deepcopy(self._run_prefix(prompts[0][:shared]))
            cache.batch_repeat_interleave(len(prompts))
            options["past_key_values"] = cache
        logits = model(input_ids=ids.to(device), use_cache=bool(shared), **options).logits
        columns = place if self._keeps_logits else lengths - 1
        return logits[torch.arange(len(prompts), device=device), columns.to(device)]

    def _run_prefix(self, tokens: Sequence[int]) -> Any:
        """Keys and values of a common beginning; the last one is kept, since neighbouring batches share it."""
        key = tuple(tokens)
        if self._prefix is None or self._prefix[0] != key:
            ids = torch.tensor([tokens], device=self.subject.device)
            options = {"logits_to_keep": 1} if self._keeps_logits else {}
            self._prefix = (key, self.subject.model(input_ids=ids, use_cache=True, **options).past_key_values)
        return self._prefix[1]


def choice_ids(tokenizer: Any, choices: tuple[str, str]) -> tuple[list[int], list[int]]:
    """The tokens that begin each choice: as written, lower and upper case, with and without a space before it.

    Raises:
        LLMError: A choice is unknown to the tokenizer, or both begin with the same token.
    """
    found: list[list[int]] = []
    for choice in choices:
        variants = [space + form for space in ("", " ") for form in (choice, choice.lower(), choice.upper())]
        encoded = [tokenizer(variant, add_special_tokens=False)["input_ids"] for variant in variants]
        single = {ids[0] for ids in encoded if len(ids) == 1}
        found.append(sorted((single or {encoded[0][0]}) - {tokenizer.unk_token_id}))
    first, second = found
    if not first or not second or set(first) & set(second):
        raise LLMError(
            f"the tokenizer cannot tell {choices[0]!r} from {choices[1]!r}",
            field="scorer.llm.model",
            got=type(tokenizer).__name__,
            expected="a language model whose tokenizer knows both words",
            next_step="name another scorer model",
        )
    return first, second


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of the longest common beginning that leaves every prompt at least one token."""
    low, high = min(prompts), max(prompts)  # of sorted sequences, the first and the last differ earliest
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def _manner(request: Request) -> tuple[object, ...]:
    return request.group, request.max_tokens, request.temperature, request.seed, request.choices


def _too_long(length: int, limit: int) -> Reply:
    return Reply("", status="refused", error=f"the prompt has {length} tokens, the model takes {limit}")


def _max_positions(subject: Subject) -> int:
    found = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else int(min(getattr(subject.tokenizer, "model_max_length", math.inf), 2**30))


def _added_specials(tokenizer: Any) -> list[str]:
    return [token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]


def _break_up(match: re.Match[str]) -> str:
    text = match.group()
    return f"{text[:1]} {text[1:]}"


def _pad_and_ends(model: Any, tokenizer: Any) -> tuple[int, list[int]]:
    configured = model.generation_config.eos_token_id
    ends = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id
    return (pad if pad is not None else min(ends, default=0)), sorted(ends)


def unembedding(subject: Artifact) -> tuple[Tensor, Any]:
    """The unembedding `[vocabulary, d]` of a prepared subject on the CPU, and its tokenizer.

    A model that answers requests in this process is not loaded again.
    """
    with _LOCK:
        loaded = _LOADED[subject.hash].subject if subject.hash in _LOADED else load_subject(subject, device="cpu")
    return loaded.model.get_output_embeddings().weight.detach().cpu(), loaded.tokenizer
