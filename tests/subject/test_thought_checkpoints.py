"""CODI and Coconut checkpoints, made by peft and by plain modules, and run as their own code runs them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import D_MODEL, FAMILIES, write_problems, write_tiny_model
from torch import Tensor, nn

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import (
    CaptureConfig,
    CorpusSource,
    Placement,
    PositionsConfig,
    ProblemsConfig,
    SubjectConfig,
    ThoughtsConfig,
)
from saeinterp.errors import ConfigError, SubjectError
from saeinterp.subject import (
    ActivationCache,
    build_problems,
    collect_positions,
    load_subject,
    load_tokenizer,
    prepare_subject,
)
from saeinterp.subject.thought_checkpoints import checkpoint_fingerprint, find_bot, load_thinker
from saeinterp.subject.thoughts import Thinker, think

RANK, ALPHA, HIDDEN = 4, 8.0, 48
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
PROMPT = np.array([5, 17, 3, 99, 42], np.int32)


class Codi(nn.Module):
    """The modules of CODI's own class, so that `state_dict` has its names."""

    def __init__(self, model: Any, family: str, *, lora: bool = True, norm: bool = True) -> None:
        super().__init__()
        model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=RANK,
            lora_alpha=int(ALPHA),
            target_modules=TARGETS[family],
            fan_in_fan_out=family == "gpt2",
        )
        self.codi = get_peft_model(model, settings) if lora else model
        self.prj = nn.Sequential(nn.Dropout(0.5), nn.Linear(D_MODEL, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, D_MODEL))
        if norm:
            self.prj.add_module("ln", nn.LayerNorm(D_MODEL))
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():  # a fresh LoRA adds nothing
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        self.eval()

    def thoughts(self, prompt: np.ndarray, count: int) -> Tensor:
        """CODI's published loop over one prompt: `[1 + n, d]` after the first block."""
        options: dict[str, Any] = {"use_cache": True, "output_hidden_states": True}
        with torch.inference_mode():
            state = self.codi(input_ids=torch.from_numpy(prompt).long()[None], **options)
            rows = [state.hidden_states[1][0, -1]]
            fed = self.prj(state.hidden_states[-1][:, -1, :].unsqueeze(1))
            for _ in range(count):
                state = self.codi(inputs_embeds=fed, past_key_values=state.past_key_values, **options)
                rows.append(state.hidden_states[1][0, -1])
                fed = self.prj(state.hidden_states[-1][:, -1, :].unsqueeze(1))
        return torch.stack(rows)


def save(state: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return folder


def prepare(folder: Path, store: ArtifactStore, **options: Any) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(folder), dtype="float32", **options), store=store)


def fresh(subject: Artifact) -> Any:
    return copy.deepcopy(load_subject(subject, device="cpu").model)


def codi(folder: Path, **options: Any) -> ThoughtsConfig:
    return ThoughtsConfig(**{"checkpoint": str(folder), "lora_alpha": ALPHA, "remove_eos": True, **options})


def coconut(folder: Path, **options: Any) -> ThoughtsConfig:
    return ThoughtsConfig(**{"checkpoint": str(folder), "format": "coconut", "feedback": "identity", **options})


def rows(thinker: Thinker, prompt: np.ndarray, count: int = 4) -> Tensor:
    return think(thinker, [prompt], thoughts=count, hookpoints=("layers.0",))["layers.0"][0]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model_folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp(family) / "model", family, tied=family == "gpt2")


@pytest.fixture
def subject(model_folder: Path, store: ArtifactStore) -> Artifact:
    return prepare(model_folder, store)


@pytest.mark.parametrize("lora", [True, False])
def test_a_codi_checkpoint_thinks_as_its_own_code(family: str, subject: Artifact, tmp_path: Path, lora: bool) -> None:
    original = Codi(fresh(subject), family, lora=lora)
    config = codi(save(original.state_dict(), tmp_path / "codi"))
    bot = find_bot(config, tokenizer=load_tokenizer(subject), vocab_size=257)
    assert bot == 257 + 1  # pad, bot, eot
    prompt = np.append(PROMPT, np.int32(bot))
    found = rows(load_thinker(subject, config, bot=bot, device="cpu"), prompt)
    assert float((found - original.thoughts(prompt, 4)).abs().max()) < 1e-4
    # The LoRA's scale is not in the file; another is another model.
    other = load_thinker(subject, config.model_copy(update={"lora_alpha": 2 * ALPHA}), bot=bot, device="cpu")
    assert (float((rows(other, prompt) - found).abs().max()) > 0.01) == lora


def test_a_projection_without_a_norm(family: str, subject: Artifact, tmp_path: Path) -> None:
    original = Codi(fresh(subject), family, norm=False)
    config = codi(save(original.state_dict(), tmp_path / "codi"))
    found = rows(load_thinker(subject, config, bot=None, device="cpu"), PROMPT)
    assert float((found - original.thoughts(PROMPT, 4)).abs().max()) < 1e-4


@pytest.mark.parametrize("prefix", ["base_causallm.", ""])
def test_a_coconut_checkpoint_feeds_its_hidden_state_back(subject: Artifact, tmp_path: Path, prefix: str) -> None:
    original = fresh(subject)
    original.resize_token_embeddings(257 + 3, mean_resizing=False)
    generator = torch.Generator().manual_seed(3)
    for parameter in original.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    state = {f"{prefix}{name}": value for name, value in original.state_dict().items()}
    if prefix:  # its wrapper names the embedding again, and may be all that a conversion keeps
        state["embedding.weight"] = original.get_input_embeddings().weight.detach()
        state = {name: value for name, value in state.items() if "embed_tokens" not in name and "wte" not in name}
    config = coconut(save(state, tmp_path / "coconut"))
    bot = find_bot(config, tokenizer=load_tokenizer(subject), vocab_size=257)
    assert bot == 257  # start, end, latent
    found = rows(load_thinker(subject, config, bot=bot, device="cpu"), np.append(PROMPT, np.int32(bot)))
    so_far = original.get_input_embeddings()(torch.tensor([[*PROMPT, bot]]))
    for step in range(5):  # all embeddings once more for each thought
        with torch.inference_mode():
            out = original(inputs_embeds=so_far, output_hidden_states=True, use_cache=False)
        assert float((found[step] - out.hidden_states[1][0, -1]).abs().max()) < 1e-4
        so_far = torch.cat([so_far, out.hidden_states[-1][:, -1:]], 1)


def test_the_control_keeps_its_random_weights_and_draws_a_projection(
    family: str, model_folder: Path, subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    config = codi(save(Codi(fresh(subject), family).state_dict(), tmp_path / "codi"))
    control = prepare(model_folder, store, weights="random", weights_seed=5)
    one, again = (load_thinker(control, config, bot=258, device="cpu") for _ in range(2))
    drawn = load_subject(control, device="cpu").model
    rows_of = one.subject.model.get_input_embeddings().weight
    assert torch.equal(rows_of[:257], drawn.get_input_embeddings().weight)
    assert rows_of.shape == (260, D_MODEL)
    prompt = np.append(PROMPT, np.int32(258))
    assert torch.equal(rows(one, prompt), rows(again, prompt))
    other = load_thinker(prepare(model_folder, store, weights="random", weights_seed=6), config, bot=258, device="cpu")
    stored = load_thinker(subject, config, bot=258, device="cpu")
    for different in (other, stored):
        assert not torch.allclose(one.feed(torch.ones(D_MODEL)), different.feed(torch.ones(D_MODEL)), atol=1e-3)


def test_a_batch_of_problems_is_captured_through_a_checkpoint(
    family: str, subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    original = Codi(fresh(subject), family)
    positions = PositionsConfig(select="latent:3@bot", thoughts=codi(save(original.state_dict(), tmp_path / "codi")))
    source = CorpusSource(name=str(write_problems(tmp_path / "a.jsonl")))
    problems = build_problems(subject, config=ProblemsConfig(source=source, samples=20, order="id"), store=store)
    capture = CaptureConfig(hookpoints=("layers.0",), batch_contexts=8)
    made = collect_positions(subject, problems, capture=capture, positions=positions, store=store, device="cpu")
    question = load_tokenizer(subject)("What is 0?")["input_ids"]  # a_0, the first by id
    expected = original.thoughts(np.array([*question, 258], np.int32), 2)
    for slot in range(3):
        cache = ActivationCache.open(made, f"layers.0@{slot}")
        row = cache.split_rows("health").start
        assert torch.allclose(cache.read(row, row + 1)[0].float(), expected[slot], rtol=0.01, atol=0.005)


def test_the_fingerprint_is_of_the_content(subject: Artifact, tmp_path: Path) -> None:
    state = fresh(subject).state_dict()
    one, two = (checkpoint_fingerprint(coconut(save(state, tmp_path / name))) for name in ("one", "two"))
    assert one == two
    first = next(iter(state))
    assert checkpoint_fingerprint(coconut(save({**state, first: state[first] + 1}, tmp_path / "two"))) != one
    assert checkpoint_fingerprint(ThoughtsConfig(feedback="identity")) is None


def _without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


def _wider(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat([value, value], -1) if part in name else value for name, value in state.items()}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("prj.3.weight"), r"lacks prj\.3\.weight, a part of the projection.*feedback: identity"),
        (_without("ln.bias"), r"lacks prj\.ln\.bias"),
        (_wider("prj.3.bias"), r"prj\.3\.bias has another shape \(got \(64,\)\)\. Expected shape \(32,\)"),
        (_without("lora_B"), r"has one half of the LoRA of .*Expected A and B"),
        (_wider("lora_A"), r".*lora_A\.default\.weight has another shape"),
        (_without(".1."), r"lacks \d+ weights, such as (model\.layers|transformer\.h)\.1\."),
        (
            lambda state: {**state, "codi.base_model.model.extra": torch.ones(1)},
            r"codi\.base_model\.model\.extra has no place",
        ),
        (
            lambda state: {**state, "decoder.weight": torch.ones(1)},
            r"decoder\.weight is no tensor of a CODI checkpoint",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    family: str,
    subject: Artifact,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    says: str,
) -> None:
    state = dict(Codi(fresh(subject), family).state_dict())
    if ".1." in says or "weights, such as" in says:  # not the projection's
        kept = {name: value for name, value in state.items() if name.startswith("prj.")}
        state = {**change({name: value for name, value in state.items() if name not in kept}), **kept}
    else:
        state = change(state)
    with pytest.raises(SubjectError, match=rf"positions\.thoughts\.checkpoint: {says}"):
        load_thinker(subject, codi(save(state, tmp_path / "codi")), bot=None, device="cpu")


def test_a_checkpoint_of_another_width_or_format_is_refused(
    family: str, subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = save(Codi(fresh(subject), family).state_dict(), tmp_path / "codi")
    with pytest.raises(SubjectError, match="lacks the embedding"):
        load_thinker(subject, coconut(folder), bot=None, device="cpu")
    plain = save(fresh(subject).state_dict(), tmp_path / "plain")
    with pytest.raises(SubjectError, match=r"lacks prj\.1\.weight.*feedback: identity"):
        load_thinker(subject, coconut(plain, feedback="mlp"), bot=None, device="cpu")
    wide = {name: torch.cat([value, value], -1) for name, value in fresh(subject).state_dict().items()}
    with pytest.raises(SubjectError, match=r"has another width than the subject \(got 64\)\. Expected 32 columns"):
        load_thinker(subject, coconut(save(wide, tmp_path / "wide")), bot=None, device="cpu")


def test_a_begin_token_beyond_the_vocabulary_is_refused(subject: Artifact, tmp_path: Path) -> None:
    config = coconut(save(fresh(subject).state_dict(), tmp_path / "plain"))  # not extended by the three tokens
    bot = find_bot(config, tokenizer=load_tokenizer(subject), vocab_size=257)
    with pytest.raises(ConfigError, match=r"positions\.thoughts\.bot: is no token of this model \(got 257\).*0 to 256"):
        load_thinker(subject, config, bot=bot, device="cpu")


def test_a_begin_token_is_named_by_text_or_id(subject: Artifact) -> None:
    tokenizer = load_tokenizer(subject)

    def of(bot: str | int | None) -> int | None:
        return find_bot(ThoughtsConfig(feedback="identity", bot=bot), tokenizer=tokenizer, vocab_size=257)

    assert (of("<eos>"), of(12), of(None)) == (0, 12, None)
    with pytest.raises(ConfigError, match=r"positions\.thoughts\.bot: the tokenizer has no such token \(got '<bot>'\)"):
        of("<bot>")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "checkpoint_12", "model.pt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for place in (folder, folder / name):
        with pytest.raises(SubjectError, match=rf"pickled \({name}\).*safetensors\.torch\.save_file"):
            checkpoint_fingerprint(coconut(place))
    (folder / name).unlink()
    with pytest.raises(SubjectError, match=r"holds no \*\.safetensors"):
        checkpoint_fingerprint(coconut(folder))


def test_a_conversion_by_the_recipe_of_the_message_is_read(subject: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    folder.mkdir()
    torch.save(fresh(subject).state_dict(), folder / "checkpoint_12")
    state = torch.load(folder / "checkpoint_12", weights_only=True, map_location="cpu")
    save_file({key: value.clone() for key, value in state.items()}, folder / "model.safetensors")
    assert len(load_file(folder / "model.safetensors")) == len(state)
    assert rows(load_thinker(subject, coconut(folder), bot=None, device="cpu"), PROMPT).shape == (5, D_MODEL)


def test_a_folder_that_is_not_there_and_a_damaged_file(subject: Artifact, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"positions\.thoughts\.checkpoint: no such folder"):
        checkpoint_fingerprint(coconut(tmp_path / "nowhere"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(SubjectError, match="cannot be read"):
        load_thinker(subject, coconut(tmp_path / "cut"), bot=None, device="cpu")


def test_a_spread_subject_takes_no_checkpoint(subject: Artifact, tmp_path: Path) -> None:
    config = coconut(save(fresh(subject).state_dict(), tmp_path / "plain"))
    with pytest.raises(ConfigError, match=r"subject\.device_map: .*\(got 'auto'\)\. Expected single"):
        load_thinker(subject, config, bot=None, device=Placement(device_map="auto"))
