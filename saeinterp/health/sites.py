"""A hookpoint of a subject under measurement: what is put there, and the forward passes that takes.

The surprising choice: with every position replaced by one constant vector a causal model's logits depend on the
position alone, so zero and mean ablation are computed once for the longest context, after a probe with other
tokens has shown that it holds for this model.

Shapes: B contexts, T tokens, V vocabulary, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saeinterp.health.tally import MEAN, ZERO, RowMask
from saeinterp.subject import Subject, blocks, resolve
from saeinterp.subject import splice as spliced

_PROBE = 16  # tokens
_SAME = 2.0**-6  # relative; bfloat16 rounds to 2**-8


@dataclass
class Passes:
    """Forward passes of a measurement by what they were for; a pass may run only the blocks after a hookpoint.

    Attributes:
        clean: Full passes, shared by every hookpoint.
        spliced: With reconstructions.
        ablated: With zeros or means.
        probes: Of one context, to see whether ablation depends on the tokens.
        full: All of them as full passes: each counts for the share of the blocks that it runs.
    """

    clean: int = 0
    spliced: int = 0
    ablated: int = 0
    probes: int = 0
    full: float = 0.0


class Place:
    """A hookpoint, the rows that count there, and the vectors of zero and mean ablation.

    Args:
        mean: `[d]`, what mean ablation puts in.
        everywhere: Replace every position, so that ablation may not depend on tokens.
        passes: Counts what runs.
    """

    def __init__(
        self, subject: Subject, name: str, mean: Tensor, mask: RowMask, *, everywhere: bool, passes: Passes
    ) -> None:
        self.name, self.mask, self.everywhere = name, mask, everywhere
        self._subject, self._passes, self._mean = subject, passes, mean
        module = resolve(subject.model, name)
        index = next((i for i, block in enumerate(blocks(subject.model)) if block is module), None)
        # Below a block's output the rest of the block is needed, so nothing can be skipped.
        self._is_block = index is not None
        self._share = 1.0 if index is None else 1 - (index + 1) / subject.num_layers
        dtype = getattr(torch, subject.dtype)
        self.vectors = {
            ZERO: torch.zeros_like(mean, dtype=dtype, device=subject.device),
            MEAN: mean.to(subject.device, dtype),
        }
        self.constants: dict[str, Tensor] = {}

    def serves(self, name: str, mean: Tensor, mask: RowMask) -> bool:
        """Whether another SAE has the same hookpoint, rows and mean, and so the same ablated runs."""
        return name == self.name and mask == self.mask and torch.equal(mean, self._mean)

    def logits(self, input_ids: Tensor, attention_mask: Tensor, replacement: Tensor) -> Tensor:
        """Logits `[B, T, V]` with the hookpoint replaced by `[B, T, d]`."""
        self._passes.full += self._share
        with spliced(self._subject.model, self.name, lambda _: replacement, skip_before=self._is_block):
            output = self._subject.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = output.logits
        return logits

    def probe(self, input_ids: Tensor) -> None:
        """Fill `constants` where zero and mean ablation give logits that depend on the position alone.

        Log-probabilities `[T, V]`, or `[1, V]` where not even the position matters (relative positions).
        """
        if not self.everywhere:
            return
        others = (input_ids[:_PROBE] + 1) % self._subject.vocab_size
        for run, vector in self.vectors.items():
            ours, theirs = (
                self.logits(ids[None], torch.ones_like(ids)[None], vector.expand(1, len(ids), -1))[0].float()
                for ids in (input_ids, others)
            )
            self._passes.probes += 2
            if (ours[: len(theirs)] - theirs).abs().max() <= _SAME * theirs.abs().max():
                table = ours.log_softmax(-1)
                self.constants[run] = table[:1] if torch.equal(ours, ours[:1].expand_as(ours)) else table

    @property
    def uniform_ce(self) -> float | None:
        """ln V where zeros stay zero all the way to the logits: nothing after the hookpoint adds a constant."""
        if not self._is_block or ZERO not in self.constants or not keeps_zero(self._subject):
            return None
        return math.log(self.constants[ZERO].shape[-1])


def keeps_zero(subject: Subject) -> bool:
    """Whether a stream of zeros can only give zeros: no parameter is a bias, and every norm maps zero to zero.

    A norm is called with zeros, since what it adds may have any name.
    """
    if any(name.endswith("bias") for name, _ in subject.model.named_parameters()):
        return False
    for module in subject.model.modules():
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1:
            # A weight that is fetched for each call lies on no device; the module puts its input where it needs it.
            device = subject.device if weight.is_meta else weight.device
            if bool(module(torch.zeros(1, 1, len(weight), dtype=weight.dtype, device=device)).any()):
                return False
    return True
