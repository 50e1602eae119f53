"""Hookpoints on tiny Llama and GPT-2 models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from saeinterp.errors import ConfigError, DataError
from saeinterp.subject import blocks, capture, module_path, resolve, splice

LAYERS = 4
IDS = torch.tensor([[3, 5, 7, 9, 11], [4, 6, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    ).eval()


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def test_a_block_gives_the_residual_stream_after_it(model: Any) -> None:
    with torch.no_grad():
        hidden = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    names = [f"layers.{index}" for index in range(LAYERS)]
    found = capture(model, IDS, MASK, names)
    for index in range(LAYERS - 1):
        assert torch.equal(found[f"layers.{index}"], hidden[index + 1])
    # transformers stores the final norm's output as the last hidden state.
    last = found[f"layers.{LAYERS - 1}"].clone()
    norm = model.base_model.norm if hasattr(model.base_model, "norm") else model.base_model.ln_f
    with torch.no_grad():
        assert torch.allclose(norm(last), hidden[-1], atol=1e-6)


def test_the_forward_pass_stops_after_the_deepest_hookpoint(model: Any) -> None:
    ran: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(blocks(model))
    ]
    capture(model, IDS, MASK, ["layers.2", "layers.0"])
    assert ran == [0, 1, 2]
    for handle in handles:
        handle.remove()


def test_capture_leaves_the_model_as_it_was(model: Any) -> None:
    before = logits(model)
    capture(model, IDS, MASK, ["layers.1"])
    assert torch.equal(logits(model), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_results_come_in_the_order_asked_for_and_once_each(model: Any) -> None:
    assert list(capture(model, IDS, MASK, ["layers.2", "layers.0", "layers.2"])) == ["layers.2", "layers.0"]
    assert capture(model, IDS, MASK, []) == {}


def test_submodules_and_full_paths_are_hookpoints_too() -> None:
    model = llama()
    assert resolve(model, "layers.1.mlp") is model.model.layers[1].mlp
    assert resolve(model, "model.layers.1.self_attn.o_proj") is model.model.layers[1].self_attn.o_proj
    assert module_path(gpt2(), "layers.2") == "transformer.h.2"
    assert module_path(gpt2(), "h.2") == "transformer.h.2"
    found = capture(model, IDS, MASK, ["layers.1.mlp", "model.embed_tokens", "layers.1.self_attn"])
    assert all(values.shape == (2, 5, 16) for values in found.values())


def test_a_layer_out_of_range_offers_the_last_one(model: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"capture\.hookpoints: layer 30 does not exist: the subject has 4 layers.*'layers\.30'.*"
        r"layers\.0 to layers\.3.*did you mean 'layers\.3'",
    ):
        resolve(model, "layers.30")


def test_a_misspelt_module_offers_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"no such module.*'model\.layers\.1\.mpl'.*did you mean 'model\.layers\.1\.mlp'"
    ):
        resolve(llama(), "model.layers.1.mpl")
    with pytest.raises(ConfigError, match="no such module"):
        resolve(llama(), "")


def test_a_module_without_a_wide_output_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gives no tensor \[contexts, tokens, width\] but \(1, 5, 8\).*rotary_emb"):
        capture(llama(), IDS, MASK, ["model.rotary_emb"])


def test_replacing_a_block_by_itself_changes_nothing(model: Any) -> None:
    before = logits(model)
    with splice(model, "layers.2", lambda hidden: hidden):
        assert torch.equal(logits(model), before)


def test_a_replacement_reaches_everything_after_it(model: Any) -> None:
    before = logits(model)
    with splice(model, "layers.1", torch.zeros_like):
        assert not torch.allclose(logits(model), before)
        # Zeros after block 1: the logits no longer depend on the token.
        changed = logits(model)
        assert torch.allclose(changed[0, 0], changed[1, 0], atol=1e-6)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_skipping_what_comes_before_gives_exactly_the_same_logits(model: Any, layer: int) -> None:
    new = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(layer))
    with splice(model, f"layers.{layer}", lambda _: new):
        full = logits(model)
    with splice(model, f"layers.{layer}", lambda _: new, skip_before=True):
        assert torch.equal(logits(model), full)


def test_skipping_does_not_compute_the_blocks_before(model: Any) -> None:
    calls: list[int] = []
    for index, block in enumerate(blocks(model)):
        attention = getattr(block, "self_attn", None) or block.attn
        attention.register_forward_hook(lambda *_, index=index: calls.append(index))
    with splice(model, "layers.2", torch.zeros_like):
        logits(model)
    assert calls == [0, 1, 2, 3]
    with splice(model, "layers.2", torch.zeros_like, skip_before=True):
        calls.clear()
        logits(model)
        assert calls == [3]
    calls.clear()
    logits(model)
    assert calls == [0, 1, 2, 3]


def test_a_model_is_whole_again_after_an_error_inside_a_splice(model: Any) -> None:
    before = logits(model)

    def fails(hidden: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), splice(model, "layers.1", fails, skip_before=True):
        logits(model)
    assert torch.equal(logits(model), before)


def test_skipping_needs_a_block() -> None:
    with (
        pytest.raises(ConfigError, match=r"only the output of a block.*'layers\.1\.mlp'.*such as 'layers\.2'"),
        splice(llama(), "layers.1.mlp", torch.zeros_like, skip_before=True),
    ):
        pass


def test_a_replacement_of_another_shape_is_refused(model: Any) -> None:
    with (
        splice(model, "layers.1", lambda hidden: hidden[:, :1]),
        pytest.raises(DataError, match=r"layers\.1: the replacement has another shape.*\(2, 1, 16\).*\(2, 5, 16\)"),
    ):
        logits(model)


def test_a_replacement_is_cast_to_the_models_type() -> None:
    model = llama().to(torch.bfloat16)
    before = logits(model)
    with splice(model, "layers.1", lambda hidden: hidden.float()):
        assert torch.equal(logits(model), before)


class TupleBlock(torch.nn.Module):
    """A block as older remote code writes it: it returns a tuple."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return self.block(*args, **kwargs), None


def test_blocks_that_return_tuples_work() -> None:
    class Unwrapping(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.inner = TupleBlock(block)

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.inner(*args, **kwargs)[0]

    model = llama()
    plain = capture(model, IDS, MASK, ["layers.1"])["layers.1"]
    wrapped = Unwrapping(model.model.layers[1])
    model.model.layers[1] = wrapped
    assert torch.equal(capture(model, IDS, MASK, ["model.layers.1.inner"])["model.layers.1.inner"], plain)
    with splice(model, "model.layers.1.inner", torch.zeros_like):
        zeroed = logits(model)
    with splice(model, "layers.1", torch.zeros_like, skip_before=True):
        assert torch.equal(logits(model), zeroed)
