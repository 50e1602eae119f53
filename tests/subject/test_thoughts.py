"""Continuous thoughts: in a batch as alone, and as computed without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import D_MODEL, FAMILIES, write_tiny_model
from torch import Tensor

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import SubjectConfig, ThoughtsConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.subject import Subject, load_subject
from saeinterp.subject.contexts import Context
from saeinterp.subject.generation import left_padded
from saeinterp.subject.thoughts import Thinker, identity, think, think_window, thought_prompts

HOOKPOINTS = ("layers.0", "layers.2")


def load(folder: Path, store: ArtifactStore) -> Subject:
    return load_subject(SubjectConfig(model=str(folder), dtype="float32"), device="cpu", store=store)


@pytest.fixture(scope="module", params=FAMILIES)
def thinker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Thinker:
    folder = tmp_path_factory.mktemp(request.param)
    subject = load(write_tiny_model(folder / "model", request.param), ArtifactStore(folder / "runs"))
    torch.manual_seed(1)
    projection = torch.nn.Sequential(torch.nn.Linear(D_MODEL, D_MODEL), torch.nn.GELU(), torch.nn.LayerNorm(D_MODEL))
    return Thinker(subject, projection.requires_grad_(False))


def prompts() -> list[np.ndarray]:
    source = np.random.default_rng(0)
    return [source.integers(1, 250, length).astype(np.int32) for length in (5, 23, 1, 11)]


def uncached(thinker: Thinker, prompt: np.ndarray, thoughts: int) -> Tensor:
    """The same at layers.0 without cache, batch, mask or positions: all embeddings so far, again for each thought."""
    model = thinker.subject.model
    so_far = model.get_input_embeddings()(torch.from_numpy(prompt).long())[None]
    rows = []
    for _ in range(thoughts + 1):
        with torch.inference_mode():
            state = model(inputs_embeds=so_far, output_hidden_states=True, use_cache=False)
        rows.append(state.hidden_states[1][0, -1])
        so_far = torch.cat([so_far, thinker.feed(state.hidden_states[-1][:, -1:])], 1)
    return torch.stack(rows)


def careless(thinker: Thinker, some: Sequence[np.ndarray], thoughts: int) -> Tensor:
    """CODI's published loop: no positions anywhere, no mask after the prompt; `[B, 1 + n, d]` at layers.0."""
    model = thinker.subject.model
    input_ids, mask = left_padded(some)
    options: dict[str, Any] = {"use_cache": True, "output_hidden_states": True}
    with torch.inference_mode():
        state = model(input_ids=input_ids, attention_mask=mask, **options)
        rows = [state.hidden_states[1][:, -1]]
        for _ in range(thoughts):
            fed = thinker.feed(state.hidden_states[-1][:, -1:])
            state = model(inputs_embeds=fed, past_key_values=state.past_key_values, **options)
            rows.append(state.hidden_states[1][:, -1])
    return torch.stack(rows, 1)


def test_a_prompt_has_the_same_thoughts_in_a_batch_as_alone(thinker: Thinker) -> None:
    together = think(thinker, prompts(), thoughts=6, hookpoints=HOOKPOINTS)
    for row, prompt in enumerate(prompts()):
        alone = think(thinker, [prompt], thoughts=6, hookpoints=HOOKPOINTS)
        for name in HOOKPOINTS:
            assert together[name][row].shape == (7, D_MODEL)
            assert float((together[name][row] - alone[name][0]).abs().max()) < 1e-5


def test_without_mask_and_positions_they_would_differ(thinker: Thinker) -> None:
    together = careless(thinker, prompts(), 6)
    alone = careless(thinker, prompts()[:1], 6)
    assert float((together[0] - alone[0]).abs().max()) > 1e-2


def test_thoughts_are_those_of_a_loop_without_a_cache(thinker: Thinker) -> None:
    found = think(thinker, prompts(), thoughts=4, hookpoints=HOOKPOINTS)
    for row, prompt in enumerate(prompts()):
        expected = uncached(thinker, prompt, 4)
        assert float((found["layers.0"][row] - expected).abs().max()) < 1e-5


def test_the_last_block_is_seen_before_the_final_norm(thinker: Thinker) -> None:
    model = thinker.subject.model
    prompt = prompts()[0]
    with torch.inference_mode():
        final = model(torch.from_numpy(prompt).long()[None], output_hidden_states=True).hidden_states[-1][0, -1]
        norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
        seen = think(thinker, [prompt], thoughts=0, hookpoints=("layers.2",))["layers.2"][0, 0]
        assert torch.allclose(norm(seen), final, atol=1e-5)
    assert not torch.allclose(seen, final, atol=1e-2)


def test_each_thought_depends_on_the_one_before(thinker: Thinker) -> None:
    found = think(thinker, prompts()[:1], thoughts=3, hookpoints=("layers.0",))["layers.0"][0]
    stuck = think(Thinker(thinker.subject, torch.zeros_like), prompts()[:1], thoughts=3, hookpoints=("layers.0",))
    assert torch.equal(found[0], stuck["layers.0"][0, 0])
    assert all(float((a - b).abs().max()) > 1e-2 for a, b in zip(found[1:], stuck["layers.0"][0, 1:], strict=True))


def test_a_window_gives_the_problems_back_in_order(thinker: Thinker) -> None:
    blank = np.zeros(0, np.int32)
    contexts = [Context(index, "train", ids, blank, blank, blank) for index, ids in enumerate(prompts())]
    settings: dict[str, Any] = {"thoughts": 2, "dtype": "bfloat16", "batch_contexts": 2}
    found = list(think_window(thinker, contexts, HOOKPOINTS, **settings))
    assert [context.context_id for context, _ in found] == [0, 1, 2, 3]
    for context, values in found:
        alone = think(thinker, [context.token_ids], thoughts=2, hookpoints=HOOKPOINTS)
        for name in HOOKPOINTS:
            assert torch.allclose(values[name].float(), alone[name][0], rtol=0.02, atol=0.02)


def test_thoughts_that_are_not_finite_are_refused(thinker: Thinker) -> None:
    context = Context(0, "train", prompts()[0], *[np.zeros(0, np.int32)] * 3)
    broken = Thinker(thinker.subject, lambda hidden: hidden * float("nan"))
    with pytest.raises(DataError, match=r"layers\.0: the thoughts are NaN or infinite"):
        list(think_window(broken, [context], ("layers.0",), thoughts=1, dtype="bfloat16", batch_contexts=1))
    huge = Thinker(thinker.subject, torch.zeros_like)
    embedding = huge.subject.model.get_input_embeddings().weight
    kept = embedding.clone()
    embedding.mul_(1e7)
    try:
        with pytest.raises(DataError, match=r"overflow float16.*capture\.dtype: bfloat16"):
            list(think_window(huge, [context], ("layers.0",), thoughts=0, dtype="float16", batch_contexts=1))
    finally:
        embedding.copy_(kept)


def test_prompts_are_what_each_codes_own_loop_reads(thinker: Thinker) -> None:
    tokenizer = thinker.subject.tokenizer
    codi, coconut = ThoughtsConfig(feedback="identity"), ThoughtsConfig(feedback="identity", format="coconut")

    def read(config: ThoughtsConfig, bot: int | None = 99) -> list[int]:
        return thought_prompts(tokenizer, [" How  many? "], config=config, bot=bot)[0].tolist()

    question = tokenizer("How many?")["input_ids"]
    assert read(codi) == [*question, tokenizer.eos_token_id, 99]
    assert read(codi.model_copy(update={"remove_eos": True})) == [*question, 99]
    assert read(codi, None) == [*question, tokenizer.eos_token_id]
    assert read(coconut) == [*tokenizer(" How  many? \n")["input_ids"], 99]


def test_problems_without_questions_have_no_thoughts(thinker: Thinker) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.question_column: continuous thoughts follow a question"):
        thought_prompts(thinker.subject.tokenizer, ["", ""], config=ThoughtsConfig(feedback="identity"), bot=None)


def test_smollm2_thinks_in_a_batch_as_alone(smollm2: Path, store: ArtifactStore) -> None:
    thinker = Thinker(load(smollm2, store), identity)
    questions = ["How many?", "Ada has 12 marbles and gives half of them to Omar. How many marbles does Ada keep?"]
    config = ThoughtsConfig(feedback="identity")
    some = thought_prompts(thinker.subject.tokenizer, questions, config=config, bot=None)
    together = think(thinker, some, thoughts=5, hookpoints=("layers.15",))["layers.15"]
    for row, prompt in enumerate(some):
        alone = think(thinker, [prompt], thoughts=5, hookpoints=("layers.15",))["layers.15"][0]
        # Its hidden states reach hundreds; float32 sums in another order differ in the last bits of that.
        assert float((together[row] - alone).abs().max() / alone.abs().max()) < 1e-5
