"""Runs in .venv-peers: writes SAE folders with the real sparsify and SAELens, or reads folders with them.

`write OUT` makes one folder a case and says in `OUT/cases.json` whether a `TopKSae` can represent it; `read IN`
expects `IN/<kind>-<name>` folders (kind `sparsify` or `lens`). Both put `answer.safetensors` next to each SAE: the
rows `x` `[N, d]`, and what the package itself makes of them: activations `z` `[N, M]` and `x_hat` `[N, d]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from torch import Tensor

D, M, K, N = 16, 64, 5, 300


def rows(count: int = N, *, seed: int = 0) -> Tensor:
    """Centred elsewhere than at 0, so that `b_dec` matters."""
    source = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, D, generator=source) + torch.linspace(-2, 3, D)


def randomise(module: torch.nn.Module, *, norms: bool = True) -> None:
    """Random biases, and decoder rows of other norms than 1."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source))
            if norms and name == "W_dec":
                parameter.mul_(torch.linspace(0.3, 2.5, len(parameter))[:, None])


def sparsify_answer(coder: SparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    code = coder.encode(x)
    z = torch.zeros(len(x), coder.num_latents).scatter(1, code.top_indices, code.top_acts)
    return z, coder.decode(code.top_acts, code.top_indices)


def lens_answer(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    z = sae.encode(x)
    return z, sae.decode(z)


@torch.no_grad()
def answer(folder: Path, x: Tensor, *, kind: str) -> dict[str, str]:
    """What the package itself, having loaded the folder, makes of the rows; its metadata as it reads them.

    In float32 whatever the stored type: ties are common in bfloat16, and who breaks them how is no matter of format.
    """
    if kind == "sparsify":
        coder = SparseCoder.load_from_disk(folder)
        stored = coder.dtype
        found = sparsify_answer(coder.float(), x)
        metadata = {}
    else:
        sae = SAE.load_from_disk(folder)
        stored = sae.W_enc.dtype
        found = lens_answer(sae.to(dtype=torch.float32), x)
        metadata = {key: str(value) for key, value in sae.cfg.metadata.items()}
    z, x_hat = found
    tensors = {"x": x, "z": z, "x_hat": x_hat}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "answer.safetensors")
    return {"dtype": str(stored), **metadata}


def train_sparsify(coder: SparseCoder) -> None:
    """A few steps with sparsify's own loss and optimizer."""
    optimizer = SignSGD(coder.parameters(), lr=3e-3)
    for step in range(30):
        coder(rows(256, seed=10 + step)).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()


def train_lens(sae: TopKTrainingSAE) -> None:
    """A few steps with SAELens' own trainer."""
    batches = (rows(256, seed=10 + step) for step in range(30))
    config = SAETrainerConfig(total_training_samples=30 * 256, train_batch_size_samples=256, lr=1e-2, lr_end=1e-2)
    SAETrainer(config, sae, batches).fit()


def sparsify_cases() -> Iterator[tuple[str, SparseCoder, bool]]:
    """Name, coder, whether a `TopKSae` can represent it."""
    yes, no = True, False
    torch.manual_seed(2)
    config = {"num_latents": M, "k": K}
    trained = SparseCoder(D, SparseCoderConfig(**config))
    train_sparsify(trained)
    yield "trained", trained, yes
    for name, options, dtype, fits in [
        ("random", config, torch.float32, yes),
        ("free-norms", {**config, "normalize_decoder": False}, torch.float32, yes),
        ("expansion-factor", {"expansion_factor": 4, "k": K}, torch.float32, yes),
        ("bfloat16", config, torch.bfloat16, yes),
        ("groupmax", {"num_latents": M, "k": 4, "activation": "groupmax"}, torch.float32, no),
        ("transcoder", {**config, "transcode": True}, torch.float32, no),
        ("skip", {**config, "skip_connection": True}, torch.float32, no),
    ]:
        coder = SparseCoder(D, SparseCoderConfig(**options), dtype=dtype)
        randomise(coder, norms=name == "free-norms")
        yield name, coder, fits


def lens_cases() -> Iterator[tuple[str, SAE, bool]]:
    """Name, SAE, whether a `TopKSae` can represent it."""
    yes, no = True, False
    torch.manual_seed(3)
    shape = {"d_in": D, "d_sae": M}
    topk = {**shape, "k": K}
    for name, sae, fits in [
        ("plain", TopKSAE(TopKSAEConfig(**topk)), yes),
        ("rescaled", TopKSAE(TopKSAEConfig(**topk, rescale_acts_by_decoder_norm=True)), yes),
        ("uncentred", TopKSAE(TopKSAEConfig(**topk, apply_b_dec_to_input=False)), yes),
        (
            "both",
            TopKSAE(TopKSAEConfig(**topk, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True)),
            yes,
        ),
        ("absolute", AbsTopKSAE(AbsTopKSAEConfig(**topk, rescale_acts_by_decoder_norm=True)), yes),
        ("bfloat16", TopKSAE(TopKSAEConfig(**topk, dtype="bfloat16")), yes),
        ("bfloat16-both", TopKSAE(TopKSAEConfig(**topk, dtype="bfloat16", apply_b_dec_to_input=False)), yes),
        ("layer-norm", TopKSAE(TopKSAEConfig(**topk, normalize_activations="layer_norm")), no),
        ("averaged", TopKSAE(TopKSAEConfig(**topk, normalize_activations="expected_average_only_in")), no),
        ("hook-z", TopKSAE(TopKSAEConfig(**topk, reshape_activations="hook_z")), no),
        ("standard", StandardSAE(StandardSAEConfig(**shape)), no),
        ("jumprelu", JumpReLUSAE(JumpReLUSAEConfig(**shape)), no),
    ]:
        randomise(sae)
        yield name, sae, fits
    config = TopKTrainingSAEConfig(**topk, decoder_init_norm=0.5)
    trained = TopKTrainingSAE(config)
    train_lens(trained)
    yield "trained", trained, yes
    yield "batchtopk", BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**topk)), no


def write(out: Path) -> None:
    cases: dict[str, bool] = {}
    x = rows()
    for name, coder, fits in sparsify_cases():
        coder.save_to_disk(out / f"sparsify-{name}")
        cases[f"sparsify-{name}"] = fits
        if fits:
            answer(out / f"sparsify-{name}", x, kind="sparsify")
    for name, sae, fits in lens_cases():
        saves = {name: sae.save_model}
        if hasattr(sae, "save_inference_model"):
            saves[f"{name}-inference"] = sae.save_inference_model
        for saved, save in saves.items():
            save(out / f"lens-{saved}")
            cases[f"lens-{saved}"] = fits
            if fits:
                answer(out / f"lens-{saved}", x, kind="lens")
    (out / "cases.json").write_text(json.dumps(cases))


def read(folder: Path) -> None:
    """An SAE that the package refuses, when loaded or when used, gets its error instead of an answer."""
    results: dict[str, dict[str, str]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        x = load_file(folder / "x.safetensors")["x"]
        try:
            results[path.name] = answer(path, x, kind=path.name.partition("-")[0])
        except Exception as error:  # noqa: BLE001  whatever it is, the test decides
            results[path.name] = {"error": f"{type(error).__name__}: {error}"}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"write": write, "read": read}[options.action](options.folder)
