"""Layer health of several layers: ours in one go against a loop over layers, as SAEBench evaluates them.

`make bench-health` does it all and prints markdown; `BENCH="--quick"` sees in a minute or two that everything works.
Everyone gets the same model in float32, tokens, batches, SAEs and threads, and nothing is masked, since SAEBench masks
nothing. The loop is timed twice: as SAEBench's own functions over TransformerLens (in .venv-peers, skipped where that
is absent), and as the same passes over the bare transformers model, so that what TransformerLens costs shows apart.
The surprising choice: numbers are printed beside speeds, because a fast evaluation of something else would be no use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"
NUMBERS = ("loss_recovered", "kl_recovered", "cosine", "l0_mean")
OURS, LOOP, SAEBENCH = "ours, all layers together", "the loop, bare transformers", "SAEBench, over TransformerLens"


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model_folder, subject = _subject(options.folder)
        tokens = _tokens(subject.tokenizer, options)
        saes = {f"layers.{layer}": _sae(subject.d_model, options.k) for layer in options.layers}
        runs: dict[str, list[dict[str, Any]]] = {OURS: [], LOOP: []}
        for evaluate in (_ours, _loop):  # first calls allocate
            evaluate(subject, tokens[: options.batch], saes, options)
        for _ in range(options.rounds):  # in turns, so that a machine that slows down slows both
            runs[OURS].append(_timed(subject, lambda: _ours(subject, tokens, saes, options)))
            runs[LOOP].append(_timed(subject, lambda: _loop(subject, tokens, saes, options)))
        if PEER.exists():
            runs[SAEBENCH] = _saebench(Path(folder), model_folder, tokens, saes, options)
    document = {
        "about": {
            "command": shlex.join(["tests/benchmarks/health.py", *sys.argv[1:]]),
            "machine": platform.processor() or platform.machine(),
            "threads": options.threads,
            "tokens": tokens.numel(),
            "contexts": list(tokens.shape),
            "batch": options.batch,
            "layers": list(saes),
            "latents": next(iter(saes.values())).num_latents,
            "torch": torch.__version__,
            "minutes": round((time.monotonic() - started) / 60, 1),
        },
        "runs": runs,
    }
    out = options.out or options.folder / "bench-health.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))
    print(f"\nwritten to {out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens, one round: speeds mean nothing")
    parser.add_argument("--layers", nargs="+", type=int, default=[5, 10, 15])
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs", help="artifact folder and place of the results")
    parser.add_argument("--out", type=Path, help="JSON file; default is bench-health.json in the folder")
    options = parser.parse_args()
    if options.quick:
        options.contexts, options.length, options.batch, options.rounds = 4, 32, 2, 1
    if options.contexts < options.batch:
        parser.error(f"--contexts {options.contexts} is below --batch {options.batch}: SAEBench drops short batches")
    options.folder.mkdir(parents=True, exist_ok=True)
    return options


def _subject(folder: Path) -> tuple[Path, Any]:
    """The demo model in float32: its folder, and loaded."""
    from saeinterp.artifacts import ArtifactStore
    from saeinterp.config import SubjectConfig
    from saeinterp.subject import load_subject, prepare_subject

    made = prepare_subject(SubjectConfig(dtype="float32"), store=ArtifactStore(folder))
    return made.file("model"), load_subject(made, device="cpu")


def _tokens(tokenizer: Any, options: argparse.Namespace) -> Tensor:
    """`[N, T]` tokens of the Python language reference, nothing padded."""
    from pydoc_data.topics import topics

    ids = tokenizer("\n\n".join(topics[name] for name in sorted(topics)), verbose=False).input_ids
    count = options.contexts * options.length
    return torch.tensor(ids[:count]).view(options.contexts, options.length)


def _sae(d: int, k: int) -> Any:
    """2 d latents, of which the k largest coordinates of a row are active."""
    from saeinterp.sae import TopKSae

    eye = torch.eye(d)
    rows = torch.cat([eye, -eye])
    return TopKSae(rows, torch.zeros(2 * d), rows.clone(), torch.zeros(d), k=k)


def _timed(subject: Any, evaluate: Callable[[], dict[str, dict[str, float]]]) -> dict[str, Any]:
    with _counted(subject) as passes:
        begun = time.perf_counter()
        sites = evaluate()
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "passes": passes[0] / subject.num_layers, "calls": passes[1], "sites": sites}


@contextmanager
def _counted(subject: Any) -> Iterator[list[int]]:
    """Blocks computed (by their attention, which a skipped block does not reach) and calls of the model."""
    from saeinterp.subject import blocks

    counts = [0, 0]

    def hook(which: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            counts[which] += 1

        return count

    handles = [block.self_attn.register_forward_pre_hook(hook(0), with_kwargs=True) for block in blocks(subject.model)]
    handles.append(subject.model.register_forward_pre_hook(hook(1), with_kwargs=True))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _ours(subject: Any, tokens: Tensor, saes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    from saeinterp.health import RowMask, measure_reconstruction
    from saeinterp.subject import Context

    spans = np.arange(tokens.shape[1], dtype=np.int32)
    contexts = [
        Context(row, "health", ids.numpy().astype(np.int32), np.full(len(ids), row, np.int32), spans, spans + 1)
        for row, ids in enumerate(tokens)
    ]
    found = measure_reconstruction(
        subject,
        contexts,
        saes,
        means={name: torch.zeros(sae.d_in) for name, sae in saes.items()},
        masks=dict.fromkeys(saes, RowMask(norm_limit=None, first=False)),
        splice="all",
        batch_contexts=options.batch,
    )
    return {name: {key: float(item.documents.value(key)) for key in NUMBERS} for name, item in found.items()}


@torch.inference_mode()
def _loop(subject: Any, tokens: Tensor, saes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Per layer and batch what SAEBench runs: clean, spliced and zeroed passes for CE and KL, then one up to the layer
    for L0 and cosine."""
    from saeinterp.subject import capture, splice

    model = subject.model
    results = {}
    for name, sae in saes.items():
        sums = dict.fromkeys(("clean", "spliced", "zero", "kl_spliced", "kl_zero", "cosine", "l0"), 0.0)

        def reconstruct(x: Tensor, sae: Any = sae) -> Tensor:
            restored: Tensor = sae.decode(sae.encode(x.flatten(0, 1))).view(x.shape)
            return restored

        for batch in tokens.split(options.batch):
            target = batch[:, 1:, None]
            log_p = model(batch, use_cache=False).logits[:, :-1].log_softmax(-1)
            sums["clean"] -= float(log_p.gather(2, target).sum())
            p = log_p.exp()
            for run, replace in (("spliced", reconstruct), ("zero", torch.zeros_like)):
                with splice(model, name, replace):
                    log_q = model(batch, use_cache=False).logits[:, :-1].log_softmax(-1)
                sums[run] -= float(log_q.gather(2, target).sum())
                sums[f"kl_{run}"] += float((p * (log_p - log_q)).sum())
            x = capture(model, batch, None, [name])[name].flatten(0, 1)
            code = sae.encode(x)
            sums["cosine"] += float(torch.cosine_similarity(x, sae.decode(code), dim=1).sum())
            sums["l0"] += float((code.values != 0).sum())
        results[name] = {
            "loss_recovered": (sums["zero"] - sums["spliced"]) / (sums["zero"] - sums["clean"]),
            "kl_recovered": 1 - sums["kl_spliced"] / sums["kl_zero"],
            "cosine": sums["cosine"] / tokens.numel(),
            "l0_mean": sums["l0"] / tokens.numel(),
        }
    return results


def _saebench(
    folder: Path, model: Path, tokens: Tensor, saes: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """SAEBench's own functions in an environment of its own; one entry per round."""
    from safetensors.torch import save_file

    tensors = {
        f"{hookpoint}/{name}": getattr(sae, name).clone()
        for hookpoint, sae in saes.items()
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    save_file({"tokens": tokens.contiguous(), **tensors}, folder / "rows.safetensors")
    sites = {name: {"layer": int(name.partition(".")[2]), "k": sae.k} for name, sae in saes.items()}
    job = {"model": str(model), "batch": options.batch, "threads": options.threads, "rounds": options.rounds}
    (folder / "job.json").write_text(json.dumps({**job, "sites": sites}))
    script = ROOT / "tests" / "peers" / "saebench.py"
    command = [str(PEER), "-W", "ignore", str(script), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "results.json").read_text())["sites"]
    numbers = {name: {key: site[key] for key in NUMBERS} for name, site in found.items()}
    calls = sum(site["passes"] for site in found.values())
    return [
        {"seconds": sum(site["seconds"][index] for site in found.values()), "calls": calls, "sites": numbers}
        for index in range(options.rounds)
    ]


def markdown(document: dict[str, Any]) -> str:
    """Speeds, passes and the numbers themselves."""
    about, runs = document["about"], document["runs"]
    speeds = {who: [about["tokens"] / run["seconds"] for run in found] for who, found in runs.items()}
    lines = [
        f"### Health of {len(about['layers'])} layers ({', '.join(about['layers'])})",
        "",
        "| | tokens/s | ours is | forward passes | as full passes |",
        "|---|---|---|---|---|",
    ]
    for who, found in runs.items():
        ratio = "" if who == OURS else f"{fmean(speeds[OURS]) / fmean(speeds[who]):.2f}×"
        full = f"{found[0]['passes']:.1f}" if "passes" in found[0] else "–"
        spread = f"{fmean(speeds[who]):,.0f} ({min(speeds[who]):,.0f}–{max(speeds[who]):,.0f})"
        lines.append(f"| {who} | {spread} | {ratio} | {found[0]['calls']} | {full} |")
    lines += ["", f"| | layer | {' | '.join(NUMBERS)} |", "|---|---|" + "---|" * len(NUMBERS)]
    for who, found in runs.items():
        for name, site in found[0]["sites"].items():
            lines.append(f"| {who} | {name} | {' | '.join(f'{site[key]:.5f}' for key in NUMBERS)} |")
    apart = max(
        abs(found[0]["sites"][name][key] - runs[OURS][0]["sites"][name][key])
        for found in runs.values()
        for name in about["layers"]
        for key in NUMBERS
    )
    lines += [
        "",
        f"Largest difference from ours: {apart:.1e}. SmolLM2-135M in float32, {about['tokens']:,} tokens in contexts "
        f"of {about['contexts'][1]}, batches of {about['batch']}, {about['latents']:,} latents; {about['machine']}, "
        f"{about['threads']} threads, torch {about['torch']}; {about['minutes']:g} minutes: `{about['command']}`. A "
        "token counts once, whatever the number of layers. Ours also takes mean ablation and sums per document. As "
        "full passes: each pass counts for the share of the blocks that it computes.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
