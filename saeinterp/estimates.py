"""What steps cost by arithmetic: FLOPs from shapes, hours from a card's peak and a stated utilisation.

Multiplications and additions of matrix products count, one FLOP each; what is elementwise (norms, activations,
selection, the optimizer) is left out: it is bound by memory and below a few percent at full size. The formulas stand in
docs/method/scale.md. The surprising choice: attention counts every pair of positions, as dense kernels compute them,
so that kernels which skip the masked half do up to half of that term less.
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """The sizes of a decoder-only transformer.

    Attributes:
        layers: Blocks.
        d_model: Width of the residual stream.
        d_query: Heads times their width.
        d_key: Heads of keys (and of values) times their width; less than `d_query` where heads share them.
        d_mlp: Width inside the MLP.
        mlp_matrices: 3 where the MLP is gated, else 2.
        vocabulary: Tokens.
        tied: Whether input and output embedding are one matrix.
    """

    layers: int
    d_model: int
    d_query: int
    d_key: int
    d_mlp: int
    mlp_matrices: int
    vocabulary: int
    tied: bool = False

    @property
    def block_parameters(self) -> int:
        """Weights of the matrices of one block; biases and norms are left out."""
        attention = 2 * self.d_model * self.d_query + 2 * self.d_model * self.d_key
        return attention + self.mlp_matrices * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """Weights of all matrices, embeddings included."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.d_model
        return self.layers * self.block_parameters + embeddings


def forward_flops(shape: Architecture, tokens: float, *, context: int, blocks: int | None = None, head: bool) -> float:
    """FLOPs of a forward pass: `2 · weights · tokens`, and attention's `4 · tokens · context · d_query` a block.

    Args:
        tokens: All of them.
        context: Positions that each attends to.
        blocks: How many blocks run (all by default): an early stop, or those after a hookpoint.
        head: Whether logits are computed.
    """
    count = shape.layers if blocks is None else blocks
    products = 2.0 * tokens * (count * shape.block_parameters + (shape.vocabulary * shape.d_model if head else 0))
    return products + 4.0 * tokens * context * shape.d_query * count


def training_flops(rows: float, *, d_in: int, num_latents: int, k: int, dense: bool) -> float:
    """FLOPs of SAE training on so many rows, epochs included, without AuxK.

    Encoding is one dense product, `2 · d · M` a row. The four others (decoding, the gradients of the activations and
    of both matrices) take `2 · d · M` each on the dense road and `2 · d · k` each on the sparse one.
    """
    return rows * 2.0 * d_in * (num_latents + 4 * (num_latents if dense else k))


def encoding_flops(rows: float, *, d_in: int, num_latents: int, k: int, decode: bool) -> float:
    """FLOPs of `2 · d · M` a row to encode and `2 · d · k` to decode."""
    return rows * 2.0 * d_in * (num_latents + (k if decode else 0))


def asking_flops(parameters: float, *, prompt: float, completion: float) -> float:
    """FLOPs of a language model that reads and writes so many tokens: `2 · parameters` each, attention left out."""
    return 2.0 * parameters * (prompt + completion)


def gpu_hours(flops: float, *, peak: float, utilisation: float) -> float:
    """Hours on one card of `peak` FLOP/s of which the share `utilisation` is reached."""
    return flops / (peak * utilisation) / 3600
