"""Runs in .venv-peers: SAEBench's own core evaluation of TopK SAEs on rows it is given.

`FOLDER/job.json` names the model's folder, the batch size, threads and, per hookpoint, its layer and k;
`FOLDER/rows.safetensors` holds `tokens` `[N, T]` (whole batches, nothing padded) and `<hookpoint>/W_enc` and so on.
`FOLDER/results.json` gets what SAEBench makes of them, measured `rounds` times after an untimed batch (none: 1 time,
without that batch). The model is TransformerLens' bridge over the folder, the SAE
SAEBench's own class, the numbers come from its functions; only its KL is averaged here, because it also counts the
last token, which predicts nothing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sae_bench.custom_saes.topk_sae import TopKSAE
from sae_bench.evals.core.main import (
    get_downstream_reconstruction_metrics,
    get_recons_loss,
    get_sparsity_and_variance_metrics,
)
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


class Rows:
    """What SAEBench takes for its activation store: the batches, in order, again and again."""

    def __init__(self, tokens: Tensor, size: int) -> None:
        self.batches = list(tokens.split(size))
        self._next = 0

    def get_batch_tokens(self, size: int) -> Tensor:
        batch = self.batches[self._next % len(self.batches)]
        self._next += 1
        assert len(batch) == size
        return batch


def sae_of(tensors: dict[str, Tensor], hookpoint: str, *, layer: int, k: int) -> TopKSAE:
    weights = {name: tensors[f"{hookpoint}/{name}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    num_latents, d_in = weights["W_dec"].shape
    sae = TopKSAE(d_in, num_latents, k, "planted", layer, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        sae.W_enc.copy_(weights.pop("W_enc").T)
        for name, tensor in weights.items():
            getattr(sae, name).copy_(tensor)
    return sae


@torch.no_grad()
def evaluate(model: Any, sae: TopKSAE, tokens: Tensor, *, size: int) -> dict[str, float]:
    """SAEBench's numbers; `seconds` is the time its own functions took, `passes` the forward passes they made."""
    n = len(tokens) // size
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.original_model.register_forward_pre_hook(count)
    started = time.perf_counter()
    found = get_downstream_reconstruction_metrics(
        sae, model, Rows(tokens, size), compute_kl=True, compute_ce_loss=True, n_batches=n, eval_batch_size_prompts=size
    )
    sparsity, _ = get_sparsity_and_variance_metrics(
        sae,
        model,
        Rows(tokens, size),
        n_batches=n,
        compute_l2_norms=False,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=size,
        model_kwargs={},
    )
    seconds = time.perf_counter() - started
    handle.remove()
    return {
        "loss_recovered": found["ce_loss_score"],
        "ce_clean": found["ce_loss_without_sae"],
        "ce_spliced": found["ce_loss_with_sae"],
        "ce_zero": found["ce_loss_with_ablation"],
        "cosine": sparsity["cossim"],
        "l0_mean": sparsity["l0"],
        "seconds": seconds,
        "passes": passes,
    }


@torch.no_grad()
def kl(model: Any, sae: TopKSAE, tokens: Tensor, *, size: int) -> dict[str, float]:
    """SAEBench's KL, averaged over tokens that predict one."""
    values: dict[str, list[Tensor]] = {"kl_div_with_sae": [], "kl_div_with_ablation": []}
    for batch in tokens.split(size):
        per_token = get_recons_loss(sae, model, batch, Rows(tokens, size), compute_kl=True, compute_ce_loss=False)
        for name, found in values.items():
            found.append(per_token[name][:, :-1].flatten())
    spliced, zeroed = (torch.cat(found).double().mean().item() for found in values.values())
    return {"kl_recovered": (zeroed - spliced) / zeroed, "kl_spliced": spliced, "kl_zero": zeroed}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    tensors = load_file(folder / "rows.safetensors")
    tokens, size = tensors["tokens"].long(), job["batch"]
    model = TransformerBridge.boot_transformers(job["model"], device="cpu", dtype=torch.float32)
    results: dict[str, dict[str, Any]] = {}
    for hookpoint, site in job["sites"].items():
        sae = sae_of(tensors, hookpoint, layer=site["layer"], k=site["k"])
        if job.get("rounds"):
            evaluate(model, sae, tokens[:size], size=size)
        runs = [evaluate(model, sae, tokens, size=size) for _ in range(job.get("rounds", 1))]
        results[hookpoint] = {**runs[0], **kl(model, sae, tokens, size=size), "seconds": [r["seconds"] for r in runs]}
    (folder / "results.json").write_text(json.dumps({"sites": results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
