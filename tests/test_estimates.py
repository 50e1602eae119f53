"""Costs by arithmetic: against numbers worked by hand, and against what torch counts on real parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.pricing import described
from saeinterp.artifacts import read_json
from saeinterp.estimates import (
    Architecture,
    asking_flops,
    encoding_flops,
    forward_flops,
    gpu_hours,
    training_flops,
)
from saeinterp.sae.kernels import Method, Weights, write_gradients

SMALL = Architecture(layers=2, d_model=4, d_query=4, d_key=2, d_mlp=8, mlp_matrices=3, vocabulary=10)
"""A block: queries and output 4 x 4 each, keys and values 4 x 2 each, three of 4 x 8: 32 + 16 + 96 = 144 weights."""


def test_weights_of_a_model_by_hand() -> None:
    assert SMALL.block_parameters == 144
    assert SMALL.parameters == 2 * 144 + 2 * 10 * 4
    assert SMALL._replace(tied=True).parameters == 2 * 144 + 10 * 4


def test_the_sizes_of_llama_2_add_up_to_its_published_number_of_parameters() -> None:
    llama = Architecture(
        layers=32, d_model=4096, d_query=4096, d_key=4096, d_mlp=11008, mlp_matrices=3, vocabulary=32000
    )
    # The norms, 65 vectors of 4096, are what is missing.
    assert llama.parameters + 65 * 4096 == 6_738_415_616


def test_a_forward_pass_by_hand() -> None:
    # 5 tokens: 2 x 5 x 2 x 144 for the blocks, 4 x 5 x 5 x 4 a block for attention, 2 x 5 x 10 x 4 for the logits.
    assert forward_flops(SMALL, 5, context=5, head=True) == 2880 + 800 + 400
    assert forward_flops(SMALL, 5, context=5, head=False, blocks=1) == 1440 + 400


def test_a_training_step_by_hand() -> None:
    # 3 rows of width 4, 16 latents, 2 active. Dense: five products of 2 x 3 x 4 x 16.
    assert training_flops(3, d_in=4, num_latents=16, k=2, dense=True) == 5 * 384
    # Sparse: one of them, and four of 2 x 3 x 4 x 2.
    assert training_flops(3, d_in=4, num_latents=16, k=2, dense=False) == 384 + 4 * 48
    assert encoding_flops(3, d_in=4, num_latents=16, k=2, decode=True) == 384 + 48
    assert encoding_flops(3, d_in=4, num_latents=16, k=2, decode=False) == 384


def test_asking_and_hours_by_hand() -> None:
    assert asking_flops(7e9, prompt=900, completion=100) == 1.4e13
    # 3.6e18 FLOPs at half of 2e15 FLOP/s: an hour.
    assert gpu_hours(3.6e18, peak=2e15, utilisation=0.5) == pytest.approx(1.0)


def test_a_forward_pass_counts_as_torch_counts_it(planted_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    # Eager attention is made of plain products, which torch counts one by one.
    model = AutoModelForCausalLM.from_pretrained(planted_folder, dtype=torch.float32, attn_implementation="eager")
    shape = described(read_json(planted_folder / "config.json"), where="config.json")
    tokens = torch.zeros((3, 40), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, use_cache=False)
    expected = forward_flops(shape, 3 * 40, context=40, head=True)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_a_dense_training_step_counts_as_torch_counts_it() -> None:
    S, N, d, M, k = 2, 64, 24, 96, 8
    torch.manual_seed(0)
    flat = torch.randn(S, 2 * M * d + M + d)
    weights = Weights.split(flat, num_latents=M, d_in=d)
    gradients = Weights.split(torch.zeros_like(flat), num_latents=M, d_in=d)
    method = Method(compute=torch.float32, dense=True, backend="torch")
    with FlopCounterMode(display=False) as counter:
        write_gradients(torch.randn(S, N, d), weights, gradients, k=k, activation="topk", method=method)
    expected = S * training_flops(N, d_in=d, num_latents=M, k=k, dense=True)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_the_sparse_road_multiplies_only_the_encoder_densely() -> None:
    N, d, M, k = 64, 24, 512, 4
    torch.manual_seed(0)
    flat = torch.randn(1, 2 * M * d + M + d)
    weights = Weights.split(flat, num_latents=M, d_in=d)
    gradients = Weights.split(torch.zeros_like(flat), num_latents=M, d_in=d)
    method = Method(compute=torch.float32, dense=False, backend="torch")
    with FlopCounterMode(display=False) as counter:
        write_gradients(torch.randn(1, N, d), weights, gradients, k=k, activation="topk", method=method)
    sparse = training_flops(N, d_in=d, num_latents=M, k=k, dense=False)
    # Sums over the active latents are no matrix products for torch: what it counts is the encoder, up to those.
    assert encoding_flops(N, d_in=d, num_latents=M, k=k, decode=False) <= counter.get_total_flops() <= 1.03 * sparse
