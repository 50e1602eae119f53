"""Everything that needs a GPU, in one command: are the kernels right, how fast are they, how fast is a whole step.

`python tests/benchmarks/gpu.py --out FOLDER` writes `gpu.json` and `gpu.md` (about five minutes on an H100); exits with
status 1 where a kernel is wrong. sparsify and SAELens are timed if they are installed beside us. The surprising choice:
rows are on the device before the clock starts, so this measures the step alone; how fast rows arrive, plain and
prefetched, has a table of its own.

`TRITON_INTERPRET=1 python tests/benchmarks/gpu.py --rehearse` runs all of it, tiny, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from roofline import CHIPS, SHAPES, Chip, Shape, border, step_seconds
from torch import Tensor

from saeinterp.config import TrainingConfig
from saeinterp.sae import Run, Trainer, reference
from saeinterp.sae.kernels import Weights
from saeinterp.sae.prefetch import Prefetch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = (Shape(1, 16, 24, 48, 4), Shape(3, 8, 24, 32, 6))
_BATCHES = 4  # distinct ones, more than the cache holds


class RowsOnDevice:
    """Random rows, there already: a `Source` that gives the same few batches over and over."""

    def __init__(self, shape: Shape, *, steps: int, device: torch.device = DEVICE) -> None:
        self.hookpoint, self.d_in, self.rows, self.collective = "layers.0", shape.d, steps * shape.N, False
        self.masked: dict[str, int] = {}
        self.cursor = {"drawn": 0}
        generator = torch.Generator(device).manual_seed(0)
        directions = torch.randn(2 * shape.d, shape.d, generator=generator, device=device)
        active = torch.rand(_BATCHES * shape.N, 2 * shape.d, generator=generator, device=device) < 12 / shape.d
        self._rows = (active.float() @ directions).bfloat16()

    def seek(self, cursor: dict[str, int]) -> None:
        self.cursor = dict(cursor)

    def first(self, count: int) -> Tensor:
        return self._rows[:count].cpu()

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        start = self.cursor["drawn"] % len(self._rows)
        self.cursor = {"drawn": self.cursor["drawn"] + count}
        return self._rows[start : start + count]

    def where(self, count: int) -> str:
        return f"rows {self.cursor['drawn']} and on"


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], *, least: float = 0.2) -> float:
    """Median time of a call on the device, over as many as fit into `least` seconds, at least five."""
    function()
    wait()
    times: list[float] = []
    while sum(times) < least or len(times) < 5:
        if DEVICE.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1000)
        else:
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


@cache
def measured_chip() -> Chip:
    """What a large matrix product and a large copy reach on this card; the cache is taken from the nearest known."""
    size, count = (8192, 2**30) if DEVICE.type == "cuda" else (128, 2**16)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * size**3 / seconds(lambda: a @ b)
    source = torch.ones(count, device=DEVICE, dtype=torch.int16)
    target = torch.empty_like(source)
    moved = 4 * count / seconds(lambda: target.copy_(source))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    known = CHIPS["H200" if "H200" in name else "H100"]
    return Chip(f"{name}, as measured", flops, moved, known.cache_bytes, known.cache_size)


def kernel_table(shape: Shape, *, compute: torch.dtype) -> list[dict[str, Any]]:
    """Each kernel of ours and of plain torch on the same tensors: error and time."""
    from saeinterp.sae import triton_kernels

    S, N, d, M, k = shape
    x = torch.randn(S, N, d, device=DEVICE)
    pre = torch.randn(S, N, M, device=DEVICE).to(compute)
    params = torch.randn(S, 2 * M * d + M + d, device=DEVICE)
    W_dec = Weights.split(params, num_latents=M, d_in=d).W_dec
    reference.normalise_rows(W_dec)
    W = W_dec.to(compute)
    values, indices = triton_kernels.top_k(pre, k, absolute=False)
    error, dvalues = triton_kernels.decode_error(x, values, indices, W)
    moments = torch.zeros(2, *params.shape, device=DEVICE)
    factor = torch.ones(S, device=DEVICE)
    adam: dict[str, Any] = {
        "num_latents": M, "d_in": d, "optimizer": "adam", "lr": [1e-3] * S, "steps": [3] * S, "factor_S": factor,
    }  # fmt: skip
    gradient = torch.randn_like(params)

    def gradients(module: Any) -> tuple[Tensor, ...]:
        out = Weights.split(torch.empty_like(params), num_latents=M, d_in=d)
        fired = module.weight_gradients(
            x, error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
        )
        return out.W_enc, out.b_enc, out.W_dec, fired

    def updated(module: Any) -> tuple[Tensor, ...]:
        ours, state = params.clone(), moments.clone()
        module.update(ours, gradient.clone(), state, **adam)
        return ours, state[0], state[1]

    def top(module: Any) -> tuple[Tensor, ...]:
        found = module.top_k(pre, k, absolute=False)
        return (found[0].sort(2).values,)

    def keep(module: Any) -> tuple[Tensor, ...]:
        z, fired = module.keep_top_k(pre, k, absolute=False)
        return (z.sort(2).values, fired.sum(1))  # which of equals is kept may differ

    # What is compared, and what is timed.
    cases: dict[str, tuple[Callable[[Any], tuple[Tensor, ...]], Callable[[Any], object]]] = {
        "top_k": (top, lambda module: module.top_k(pre, k, absolute=False)),
        "keep_top_k": (keep, lambda module: module.keep_top_k(pre, k, absolute=False)),
        "decode_error": (lambda module: module.decode_error(x, values, indices, W),) * 2,
        "weight_gradients": (gradients, gradients),
        "update": (updated, lambda module: module.update(params, gradient, moments, **adam)),
    }
    rows = []
    for name, (compared, timed) in cases.items():
        pairs = zip(compared(triton_kernels), compared(reference), strict=True)
        worst = max(float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)) for a, b in pairs)
        again = all(torch.equal(a, b) for a, b in zip(compared(triton_kernels), compared(triton_kernels)))
        rows.append({
            "shape": shape.label, "compute": str(compute).removeprefix("torch."), "kernel": name,
            "relative_error": worst, "repeatable": again,
            "right": again and worst <= (0.0 if name in ("top_k", "keep_top_k") else 1e-4),
            "ours_us": 1e6 * seconds(partial(timed, triton_kernels)),
            "torch_us": 1e6 * seconds(partial(timed, reference)),
        })  # fmt: skip
    return rows


def step_rates(shape: Shape) -> list[tuple[str, float]]:
    """Rows a second of the trainer's whole step, by dense and by sparse products."""
    steps = 48 if DEVICE.type == "cuda" else 4
    rates = []
    for name in ("dense", "sparse"):
        config = TrainingConfig.model_validate({
            "num_latents": shape.M, "k": shape.k, "batch_rows": shape.N, "epochs": 1, "log_every": 10**9,
            "dead_after_rows": 10**12,
        })  # fmt: skip
        sources = [RowsOnDevice(shape, steps=10**6) for _ in range(shape.S)]
        runs = [Run(source, source.first(64).float(), config) for source in sources]
        with torch.no_grad():
            trainer = Trainer(runs, compute=torch.bfloat16, device=DEVICE)
            trainer.method = trainer.method._replace(dense=name == "dense", backend="triton")

            def train(count: int, trainer: Trainer = trainer) -> None:
                for _ in range(count):
                    for error in trainer.step().values():
                        raise error

            train(max(2, steps // 3))
            wait()
            begun = time.perf_counter()
            train(steps)
            wait()
            rates.append((name, steps * shape.S * shape.N / (time.perf_counter() - begun)))
        del trainer, runs, sources
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    return rates


def peer_rates(shape: Shape) -> list[tuple[str, float]]:
    """Rows a second of the peers, as far as installed; several SAEs one after another. Rows are on the device."""
    steps = 24 if DEVICE.type == "cuda" else 3
    batches = list(RowsOnDevice(shape, steps=1).next(_BATCHES * shape.N).float().split(shape.N))
    found = []
    for name, peer in (("sparsify", _sparsify), ("sae_lens", _sae_lens)):
        if find_spec(name) is None:
            continue
        stamps: list[float] = []
        try:
            with torch.enable_grad():
                for step in peer(shape, batches, steps):
                    if step in (steps // 3, steps - 1):  # in between the device is left alone
                        wait()
                        stamps.append(time.perf_counter())
        except torch.OutOfMemoryError:
            found.append((f"{name}: out of memory", 0.0))
            continue
        found.append((name, (steps - 1 - steps // 3) * shape.N / (stamps[1] - stamps[0])))
    return found


def _sparsify(shape: Shape, batches: list[Tensor], steps: int) -> Iterator[int]:
    """Its SAE, its default optimizer, the order of its training loop without the loop's logging and waiting."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(shape.d, SparseCoderConfig(num_latents=shape.M, k=shape.k), device=DEVICE, dtype=torch.float32)
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=1e-3), momentum=0.95)
    optimizer.train()
    for step in range(steps):
        sae.set_decoder_norm_to_unit_norm()
        sae(batches[step % len(batches)]).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def _sae_lens(shape: Shape, batches: list[Tensor], steps: int) -> Iterator[int]:
    """The step of its own trainer, with its own optimizer."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    feed = (batches[step % len(batches)] for step in range(steps))
    config = SAETrainerConfig(
        total_training_samples=steps * shape.N, train_batch_size_samples=shape.N, lr=3e-3, lr_end=3e-3,
        device=str(DEVICE), autocast=True,
    )  # fmt: skip
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d, d_sae=shape.M, k=shape.k, device=str(DEVICE)))
    trainer = SAETrainer(config, sae, feed)
    for step in range(steps):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        yield step


def arrival_rates(shape: Shape) -> dict[str, float]:
    """Rows a second from CPU memory to the device: copied when asked for, and fetched ahead."""
    steps = 64 if DEVICE.type == "cuda" else 4
    rates = {}
    for name, thread in (("when asked for", False), ("fetched ahead", True)):
        sources = [RowsOnDevice(shape, steps=steps, device=torch.device("cpu")) for _ in range(shape.S)]
        with Prefetch(sources, shape.N, device=DEVICE, thread=thread) as batches:
            batches.next()
            wait()
            begun = time.perf_counter()
            for _ in range(steps):
                batches.next().square_()
            wait()
            rates[name] = steps * shape.S * shape.N / (time.perf_counter() - begun)
    return rates


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    chip = Chip(*report["chip"])
    lines = [
        f"# {chip.name}\n",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + ".",
        f"Matrix products {chip.flops / 1e12:.1f} TFLOP/s (bfloat16), copies {chip.bytes / 1e12:.2f} TB/s.\n",
        "| kernel | shape | type | right | relative error | ours, µs | torch, µs | torch / ours |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in report["kernels"]:
        lines.append(
            f"| {row['kernel']} | {row['shape']} | {row['compute']} | {'yes' if row['right'] else '**NO**'} | "
            f"{row['relative_error']:.1e} | {row['ours_us']:.0f} | {row['torch_us']:.0f} | "
            f"{row['torch_us'] / row['ours_us']:.1f} |"
        )
    lines += ["", "| step | trainer | rows/s | bound, rows/s | share |", "|---|---|---:|---:|---:|"]
    for row in report["steps"]:
        bound = f"{row['bound']:,.0f} | {row['rate'] / row['bound']:.0%}" if row["bound"] else "| "
        lines.append(f"| {row['shape']} | {row['who']} | {row['rate']:,.0f} | {bound} |")
    lines += ["", "| rows arrive | when asked for, rows/s | fetched ahead, rows/s |", "|---|---:|---:|"]
    for label, rates in report["arrival"].items():
        lines.append(f"| {label} | {rates['when asked for']:,.0f} | {rates['fetched ahead']:,.0f} |")
    lines.append(f"\nBy the bounds, sparse is faster from M / k = {report['border']:.0f} on (N 4096, d 576, k 32).")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.json and gpu.md")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on whatever there is")
    options = parser.parse_args()
    if DEVICE.type != "cuda" and not options.rehearse:
        sys.exit("no CUDA device; --rehearse runs without one")
    torch.manual_seed(0)
    # By M / k: where dense and sparse meet.
    ladder = tuple(Shape(1, 4096, 576, M, 32) for M in (1024, 2048, 8192, 16_384, 32_768))
    shapes, chip = (TINY if options.rehearse else SHAPES + ladder), measured_chip()
    packages = ("torch", "triton", "eai-sparsify", "sae-lens")
    names = {"eai-sparsify": "sparsify", "sae-lens": "sae_lens"}
    report: dict[str, Any] = {
        "chip": chip, "border": border(chip, N=4096, d=576, k=32), "kernels": [], "steps": [], "arrival": {},
        "versions": {name: version(name) for name in packages if find_spec(names.get(name, name))},
    }  # fmt: skip
    for shape in shapes if options.rehearse else SHAPES:
        for compute in (torch.bfloat16, torch.float32):
            print(f"kernels: {shape.label}, {compute}", file=sys.stderr)
            with torch.no_grad():
                report["kernels"] += kernel_table(shape, compute=compute)
        report["arrival"][shape.label] = arrival_rates(shape)
    for shape in shapes:
        print(f"steps: {shape.label}", file=sys.stderr)
        for name, rate in step_rates(shape):
            bound = shape.S * shape.N / step_seconds(shape, chip, dense=name == "dense")
            report["steps"].append({"shape": shape.label, "who": f"ours, {name}", "rate": rate, "bound": bound})
        for name, rate in peer_rates(shape):
            report["steps"].append({"shape": shape.label, "who": name, "rate": rate, "bound": None})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "gpu.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    sys.exit(0 if all(row["right"] for row in report["kernels"]) else 1)


if __name__ == "__main__":
    main()
