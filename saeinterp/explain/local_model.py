"""A causal language model in memory that answers batches of requests.

Three jobs: greedy or sampled text, the log-probabilities of two answers, and those of digits in slots of the prompt.
For the last two the longest common beginning of a batch is run once and its keys and values are shared by all. The
surprising choice: special tokens in contents are broken up before the chat template is applied, so that no document
and no other model's text can end a turn.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saeinterp.errors import LLMError
from saeinterp.explain.llm import Reply, Request, Usage
from saeinterp.explain.token_logprobs import DIGITS, last_places
from saeinterp.subject import Subject
from saeinterp.subject.autoclasses import auto_classes


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
        self._spelled: dict[str, list[int]] = {}  # tokens by their text, those that end in a digit
        specials = sorted({*subject.tokenizer.all_special_tokens, *_added_specials(subject.tokenizer)}, key=len)
        self._special = re.compile("|".join(re.escape(token) for token in reversed(specials)) or "(?!)")

    def tokens(self, request: Request) -> list[int]:
        """The prompt as token ids, ending where the reply begins.

        Special tokens that occur in the contents are broken up: what a document or another model wrote must not
        end a turn.
        """
        text, options = self._text(request)
        return list(self.subject.tokenizer(text, **options)["input_ids"])

    def _text(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The prompt as text, and how it is to be tokenized."""
        tokenizer = self.subject.tokenizer
        turns = [{"role": m.role, "content": self._special.sub(_break_up, m.content)} for m in request.messages]
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return text, {"add_special_tokens": False}
        return "\n\n".join(turn["content"] for turn in turns) + "\n\n", {}

    def answer(self, batch: Sequence[Request]) -> list[Reply]:
        """What the requests of a batch ask for, which is the same kind of reply for all.

        Raises:
            LLMError: The model cannot tell the two choices apart.
        """
        if batch[0].choices:
            return self.choose(batch)
        return self.generate(batch) if batch[0].slot is None else self.fill_slots(batch)

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
            replies[index] = Reply(text, choice_logprobs=(yes, no), usage=Usage(len(prompts[index]), 1))
        return replies

    def fill_slots(self, batch: Sequence[Request]) -> list[Reply]:
        """Log-probabilities of the ten digits at every slot, from one pass over each prompt.

        Prompts run one by one: beside the vocabulary, a batch of them would not fit the memory.
        """
        prompts = [self.tokens(request) for request in batch]
        replies = [_too_long(len(prompt), self._max_positions) for prompt in prompts]
        shared = common_prefix(prompts) if self._share_prefix and len(prompts) > 1 else 0
        for index, (request, prompt) in enumerate(zip(batch, prompts, strict=True)):
            if len(prompt) > self._max_positions:
                continue
            places = self._slot_places(request)
            ids = [self._digit_ids(before) for _, before in places]
            if request.messages[-1].content.count(request.slot or "") != len(places) or not all(map(all, ids)):
                problem = f"the tokens of the prompt do not spell the slots {request.slot!r}, or no digits in them"
                replies[index] = Reply("", status="refused", error=problem)
                continue
            # A slot that lies in the common beginning needs the logits of it.
            start = min([shared, *(place for place, _ in places)])
            with torch.inference_mode():
                rows = self._logprobs_before(prompt, [place for place, _ in places], shared=max(start - 1, 0))
            digits = [
                tuple(float(row[some].logsumexp(0)) for some in of_slot) for row, of_slot in zip(rows, ids, strict=True)
            ]
            replies[index] = Reply("", slot_logprobs=tuple(digits), usage=Usage(len(prompt), 0))
        return replies

    def _slot_places(self, request: Request) -> list[tuple[int, str]]:
        """Per slot of the last turn, the token that it begins in and the text of that token before it."""
        assert request.slot is not None
        text, options = self._text(request)
        encoded = self.subject.tokenizer(text, return_offsets_mapping=True, **options)
        content = self._special.sub(_break_up, request.messages[-1].content)
        found = last_places(text, request.slot, count=content.count(request.slot))
        offsets = encoded["offset_mapping"]
        places = []
        for at in found or ():
            covering = [index for index, (start, end) in enumerate(offsets) if start <= at < end]
            places += [(token, text[offsets[token][0] : at]) for token in covering[:1]]
        return places

    def _logprobs_before(self, prompt: Sequence[int], places: Sequence[int], *, shared: int) -> Tensor:
        """Log-probabilities `[slots, vocabulary]` of what comes at each place, in float32."""
        model, device = self.subject.model, self.subject.device
        ids = torch.tensor([prompt[shared:]], device=device)
        last = torch.tensor([place - 1 - shared for place in places], dtype=torch.long, device=device)
        options: dict[str, Any] = {"logits_to_keep": last} if self._keeps_logits else {}
        if shared:
            options["past_key_values"] = copy.deepcopy(self._run_prefix(prompt[:shared]))
        logits = model(input_ids=ids, use_cache=bool(shared), **options).logits[0]
        rows = (logits if self._keeps_logits else logits[last]).float()
        return rows - rows.logsumexp(1, keepdim=True)

    def _digit_ids(self, before: str) -> list[list[int]]:
        """The tokens that write each digit behind the beginning of a token, spaces aside."""
        if not self._spelled:
            every = self.subject.tokenizer.batch_decode([[token] for token in range(len(self.subject.tokenizer))])
            for token, text in enumerate(map(str.strip, every)):
                if text and text[-1] in DIGITS:
                    self._spelled.setdefault(text, []).append(token)
        return [self._spelled.get(before.strip() + digit, []) for digit in DIGITS]

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
        stops = torch.tensor(ends, device=found.device)
        for index, text, reply in zip(fits, texts, found[:, longest:], strict=True):
            ended = torch.isin(reply, stops).nonzero()
            length = int(ended[0]) + 1 if len(ended) else len(reply)
            usage = Usage(len(prompts[index]), length)
            replies[index] = Reply(text, cut=not len(ended), usage=usage)
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
