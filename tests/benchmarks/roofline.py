"""How fast a training step can be on a GPU: operations and bytes counted from shapes, over what the chip can do.

`python tests/benchmarks/roofline.py` prints, for H100 and H200 (and the card of this machine, if there is one, with its
measured share), the bound in rows a second of the dense and of the sparse step, and M / k at which the two are equal.
The surprising choice: each kernel is bound by its own larger term and the kernels add up, for they run one after
another; a bound for the whole step at once would be lower and unreachable.

Shapes: S SAEs, N rows of each, d width, M latents, k active.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple


class Chip(NamedTuple):
    """What a GPU does in a second at most."""

    name: str
    flops: float
    """Operations of bfloat16 matrix products without sparsity."""
    bytes: float
    """Of its memory, read and written."""
    cache_bytes: float
    """Of its level-two cache, read. No vendor gives it; about what was measured on H100 by others."""
    cache_size: float


# Data sheets of the SXM parts; in practice matrix products reach about 80% and memory 90% of these.
CHIPS = {
    "H100": Chip("H100 SXM", 989e12, 3.35e12, 5.5e12, 50e6),
    "H200": Chip("H200 SXM", 989e12, 4.8e12, 5.5e12, 60e6),
}


class Shape(NamedTuple):
    """One training step."""

    S: int
    N: int
    d: int
    M: int
    k: int

    @property
    def label(self) -> str:
        """As tables show it."""
        return f"{self.S} x {self.N} rows, d {self.d}, M {self.M}, k {self.k}"


SHAPES = (
    Shape(1, 4096, 576, 400, 32),
    Shape(1, 4096, 576, 4096, 32),
    Shape(96, 256, 576, 512, 100),
    Shape(1, 4096, 2304, 16_384, 64),
    Shape(1, 4096, 2304, 131_072, 64),
)


class Cost(NamedTuple):
    """One kernel of a step, of one SAE."""

    name: str
    flops: float = 0.0
    bytes: float = 0.0
    """Streamed from and to memory."""
    gathered: float = 0.0
    """Read row by row out of a table that is read many times."""
    table: float = 0.0
    """Size of that table: beyond half the cache, gathers go to memory."""

    def seconds(self, chip: Chip) -> float:
        """The larger of its terms."""
        rate = chip.cache_bytes if self.table <= chip.cache_size / 2 else chip.bytes
        return max(self.flops / chip.flops, self.bytes / chip.bytes, self.gathered / rate)


def step_costs(shape: Shape, *, dense: bool, optimizer: str = "adam", compute: int = 2) -> list[Cost]:
    """Every kernel of a step as `kernels.write_gradients`, `trainer` and `triton_kernels` launch them.

    `compute` is the size of the type of matrix products; everything else is float32. AuxK is not counted: it costs
    what its dead latents cost, and a healthy SAE has few.
    """
    _, N, d, M, k = shape
    c, f = compute, 4
    product = 2.0 * N * M * d
    costs = [
        Cost("centre the rows", bytes=N * d * (c + f) + N * d * (f + c)),
        Cost("weights to the compute type", bytes=2 * M * d * (f + c)),
        Cost("encode", product, bytes=c * (N * d + M * d + N * M)),
    ]
    if dense:
        costs += [
            Cost("top-k", bytes=2 * c * N * M),
            Cost("decode", product, bytes=c * (N * M + M * d + N * d)),
            Cost("error", bytes=N * d * (c + f + f + f + c)),
            Cost("gradient of activations", product, bytes=c * (N * d + M * d + N * M)),
            Cost("its mask", bytes=N * M * (c + 1 + 1 + 2 * c)),
            Cost("gradient of W_dec", product, bytes=c * (N * M + N * d + M * d) + M * d * (c + f)),
            Cost("gradient of W_enc", product, bytes=c * (N * M + N * d + M * d) + M * d * (c + f)),
            Cost("gradient of b_enc", bytes=c * N * M),
        ]
    else:
        pairs = N * k
        costs += [
            Cost("top-k", bytes=c * N * M + pairs * (4 + 8)),
            Cost(
                "decode and gradient of activations",
                4.0 * pairs * d,
                bytes=c * min(pairs, M) * d + 2 * f * N * d + pairs * (4 + 8 + 4),
                gathered=pairs * d * c,
                table=M * d * c,
            ),
            # Keys made, four passes over keys and 64-bit places, bounds searched.
            Cost("sort pairs by latent", bytes=pairs * (20 + 4 * 2 * (4 + 8)) + M * 40),
            Cost(
                "gradients of W_dec, W_enc, b_enc",
                4.0 * pairs * d,
                bytes=N * d * (f + c) + 2 * f * M * d + pairs * (8 + 4 + 4),
                gathered=2 * pairs * d * c,
                table=2 * N * d * c,
            ),
        ]
    words = {"adam": 7, "signum": 5}[optimizer]  # parameters, gradient and moments read; all but the gradient written
    return [
        *costs,
        Cost("sums for the loss", bytes=4 * f * N * d),
        Cost("optimizer", bytes=words * f * (2 * M * d + M + d)),
    ]


def step_seconds(shape: Shape, chip: Chip, *, dense: bool, optimizer: str = "adam") -> float:
    """The least a step of all SAEs can take."""
    return shape.S * sum(cost.seconds(chip) for cost in step_costs(shape, dense=dense, optimizer=optimizer))


def border(chip: Chip, *, N: int, d: int, k: int) -> float:
    """M / k from which on the sparse step has the lower bound, by halving."""
    low, high = 1.0, 1e5
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        shape = Shape(1, N, d, round(middle * k), k)
        if step_seconds(shape, chip, dense=True) < step_seconds(shape, chip, dense=False):
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def table(shape: Shape, chip: Chip, *, dense: bool) -> str:
    """The kernels of a step in markdown."""
    lines = ["| kernel | GFLOP | MB | MB gathered | least µs |", "|---|---:|---:|---:|---:|"]
    for cost in step_costs(shape, dense=dense):
        scaled = (cost.flops / 1e9, cost.bytes / 1e6, cost.gathered / 1e6, cost.seconds(chip) * 1e6)
        lines.append(f"| {cost.name} | " + " | ".join(f"{shape.S * value:.1f}" for value in scaled) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="also each kernel of each shape")
    options = parser.parse_args()
    chips, measured = list(CHIPS.values()), {}
    try:
        import gpu

        if gpu.torch.cuda.is_available():
            chips.append(gpu.measured_chip())
            measured = {shape: gpu.step_rates(shape) for shape in SHAPES}
    except ImportError as error:
        print(f"Not measured here: {error}.\n")
    for chip in chips:
        here = chip.name not in {known.name for known in CHIPS.values()}
        print(f"## {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s, {chip.bytes / 1e12:.2f} TB/s\n")
        print("| shape | dense, rows/s | sparse, rows/s |" + (" measured, share of the bound |" if here else ""))
        print("|---|---:|---:|" + ("---|" if here else ""))
        for shape in SHAPES:
            bounds = {dense: shape.S * shape.N / step_seconds(shape, chip, dense=dense) for dense in (True, False)}
            line = f"| {shape.label} | {bounds[True]:,.0f} | {bounds[False]:,.0f} |"
            if here:
                shares = [
                    f"{name} {rate:,.0f} ({rate / bounds[name == 'dense']:.0%})" for name, rate in measured[shape]
                ]
                line += f" {', '.join(shares)} |"
            print(line)
        ratios = [
            f"{border(chip, N=4096, d=d, k=k):.0f} (d {d}, k {k})" for d, k in ((576, 32), (2304, 64), (4096, 64))
        ]
        print(f"\nSparse has the lower bound from M / k = {', '.join(ratios)} on.\n")
        if options.kernels:
            for shape in SHAPES:
                for dense in (True, False):
                    print(f"### {shape.label}, {'dense' if dense else 'sparse'}\n\n{table(shape, chip, dense=dense)}\n")


if __name__ == "__main__":
    main()
