"""How well a subject works on SAE reconstructions: cross entropies, KL, explained variance, L0, density.

One clean forward pass per batch serves every hookpoint; reconstructions, zeros and means then run only through
the blocks after theirs. The surprising choice: with every position replaced by one constant vector a causal
model's logits depend on the position alone, so zero and mean ablation are computed once for the longest
context, after a probe with other tokens has shown that it holds for this model.

Which tokens count: a *row* is an unmasked token (see `RowMask`); a *prediction* is a row whose next token lies
in the same context and is no padding. Cross entropy and KL average over predictions, everything else over
rows. With packing, the last token of a document predicts the separator and counts.

Shapes: B contexts, T tokens, V vocabulary, N rows, D documents, M latents, d width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.health.tally import MEAN, SPLICED, ZERO, Batch, Reconstruction, RowMask, Tally, refuse_non_finite
from saeinterp.progress import Progress, silent
from saeinterp.subject import Context, Subject, blocks, resolve
from saeinterp.subject import splice as spliced

_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}  # float32 values [n, V] held at once per run; 16 MiB stays in reused memory
_PROBE = 16  # tokens
_SAME = 2.0**-6  # relative; bfloat16 rounds to 2**-8


class Autoencoder(Protocol):
    """What is measured; `TopKSae` is one."""

    @property
    def k(self) -> int: ...
    @property
    def num_latents(self) -> int: ...
    def encode(self, x: Tensor) -> Any: ...
    def decode(self, code: Any) -> Tensor: ...


def measure_reconstruction(
    subject: Subject,
    contexts: Sequence[Context],
    saes: Mapping[str, Autoencoder],
    *,
    means: Mapping[str, Tensor],
    masks: Mapping[str, RowMask],
    splice: Literal["all", "unmasked"] = "all",
    batch_contexts: int = 16,
    progress: Progress | None = None,
) -> dict[str, Reconstruction]:
    """Run the subject clean, on reconstructions, zeroed and mean-ablated, one hookpoint at a time.

    Per batch: one clean pass for all hookpoints, one pass from each hookpoint on with its reconstruction; with
    `splice="unmasked"` (or where constants do not suffice) two more each for zeros and means.

    Args:
        contexts: Held-out contexts.
        saes: Hookpoint -> SAE, on the subject's device.
        means: Hookpoint -> `[d]`, what mean ablation puts in; of training rows, as the SAE is.
        masks: Hookpoint -> which tokens are left out.
        splice: `all` replaces every position; `unmasked` leaves masked positions clean in the spliced, zeroed
            and mean-ablated run alike. The averages are over unmasked positions either way.
        batch_contexts: Contexts per forward pass; longer ones run first.

    Raises:
        DataError: No context, or NaN/infinite activations or losses, naming run, hookpoint and context.
        ConfigError: No such hookpoint.
    """
    if not contexts:
        raise DataError(
            "the health split has no contexts",
            field="corpus",
            next_step="raise corpus.fractions.health or add documents to the corpus",
        )
    report = progress or silent
    doc_ids = np.unique(np.concatenate([context.doc_ids for context in contexts]))
    order = sorted(range(len(contexts)), key=lambda index: -len(contexts[index].token_ids))
    total = sum(len(context.token_ids) for context in contexts)
    done = 0
    with torch.inference_mode():
        probe = torch.from_numpy(contexts[order[0]].token_ids.astype(np.int64)).to(subject.device)
        sites = {}
        for name, sae in saes.items():
            site = _Site(subject, name, sae, means[name], masks[name], everywhere=splice == "all")
            site.probe(probe)
            sites[name] = site
        tallies = {
            name: Tally(doc_ids, name, site.mask, site.sae.num_latents, len(contexts)) for name, site in sites.items()
        }
        for start in range(0, len(order), batch_contexts):
            members = order[start : start + batch_contexts]
            batch = Batch.of([contexts[index] for index in members], members, subject.device)
            clean, captured = _clean_pass(subject, batch, list(saes))
            for name, site in sites.items():
                _measure_batch(batch, site, captured.pop(name), clean, tallies[name])
            done += int(batch.attention_mask.sum())
            report(done, total, "tokens")
    return {
        name: tally.result(k=site.sae.k, splice=splice, uniform_ce=site.uniform_ce)
        for (name, site), tally in zip(sites.items(), tallies.values(), strict=True)
    }


class _Site:
    """A hookpoint of the subject and what is put there."""

    def __init__(
        self, subject: Subject, name: str, sae: Autoencoder, mean: Tensor, mask: RowMask, *, everywhere: bool
    ) -> None:
        self.name, self.sae, self.mask = name, sae, mask
        self.everywhere = everywhere
        self._subject = subject
        module = resolve(subject.model, name)
        # Below a block's output the rest of the block is needed, so nothing can be skipped.
        self._is_block = any(module is block for block in blocks(subject.model))
        dtype = getattr(torch, subject.dtype)
        self.vectors = {
            ZERO: torch.zeros_like(mean, dtype=dtype, device=subject.device),
            MEAN: mean.to(subject.device, dtype),
        }
        self.constants: dict[str, Tensor] = {}

    def logits(self, input_ids: Tensor, attention_mask: Tensor, replacement: Tensor) -> Tensor:
        """Logits `[B, T, V]` with the hookpoint replaced by `[B, T, d]`."""
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
            if (ours[: len(theirs)] - theirs).abs().max() <= _SAME * theirs.abs().max():
                table = ours.log_softmax(-1)
                self.constants[run] = table[:1] if torch.equal(ours, ours[:1].expand_as(ours)) else table

    @property
    def uniform_ce(self) -> float | None:
        """ln V where zeros stay zero all the way to the logits: nothing after the hookpoint adds a bias."""
        biased = any(name.endswith("bias") for name, _ in self._subject.model.named_parameters())
        if biased or not self._is_block or ZERO not in self.constants:
            return None
        return math.log(self.constants[ZERO].shape[-1])


def _clean_pass(subject: Subject, batch: Batch, hookpoints: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits `[B, T, V]` and the hookpoints' outputs `[B, T, d]` of one forward pass."""
    captured: dict[str, Tensor] = {}

    def keep(name: str, hidden: Tensor) -> Tensor:
        # A spread model gives it on the device of that module.
        captured[name] = hidden.to(subject.device)
        return hidden

    with contextlib.ExitStack() as stack:
        for name in hookpoints:
            stack.enter_context(spliced(subject.model, name, partial(keep, name)))
        output = subject.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return output.logits, captured


def _measure_batch(batch: Batch, site: _Site, x: Tensor, clean: Tensor, tally: Tally) -> None:
    """Add one batch to one hookpoint's tally; x `[B, T, d]`, clean `[B, T, V]`."""
    present = batch.attention_mask.bool()
    refuse_non_finite(torch.isfinite(x).all(-1) | ~present, batch, site.name, "the activations of the clean run")
    usable = tally.add_mask(batch, x, present)
    code = site.sae.encode(x.flatten(0, 1).float())
    reconstruction = site.sae.decode(code).view(x.shape)
    tally.add_rows(batch, x[usable], reconstruction[usable], code, usable)

    def placed(new: Tensor) -> Tensor:
        return new if site.everywhere else torch.where(usable[..., None], new.to(x.dtype), x)

    def run(new: Tensor) -> Tensor:
        return site.logits(batch.input_ids, batch.attention_mask, placed(new))

    predicted = usable[:, :-1] & present[:, 1:]
    row, position = predicted.nonzero(as_tuple=True)
    logits = {SPLICED: run(reconstruction)}
    for name, vector in site.vectors.items():
        if name not in site.constants:
            logits[name] = run(vector.expand_as(x))
    losses = _losses(clean, logits, site.constants, row, position, batch.input_ids[row, position + 1])
    tally.add_losses(batch, row, position, losses)


def _losses(
    clean: Tensor,
    logits: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    row: Tensor,
    position: Tensor,
    target: Tensor,
) -> dict[str, Tensor]:
    """Cross entropy of every run and KL(clean ‖ run), in nats per prediction `[n]`, on the CPU in float64.

    Args:
        clean: `[B, T, V]` logits.
        logits: Of other runs, `[B, T, V]` each.
        constants: Log-probabilities of runs that do not depend on tokens, `[T, V]` or `[1, V]` each.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, values: Tensor) -> None:
        found.setdefault(name, []).append(values.double().cpu())

    step = max(1, _CHUNK.get(clean.device.type, _CHUNK["cpu"]) // clean.shape[-1])
    for start in range(0, len(row), step):
        i, t, y = (index[start : start + step] for index in (row, position, target))
        log_p = _log_probabilities(clean[i, t])
        keep("ce_clean", -log_p.gather(1, y[:, None])[:, 0])
        p = log_p.exp()
        negative_entropy = torch.linalg.vecdot(p, log_p)
        for name, run in logits.items():
            log_q = _log_probabilities(run[i, t])
            keep(f"ce_{name}", -log_q.gather(1, y[:, None])[:, 0])
            if name != MEAN:
                keep(f"kl_{name}", negative_entropy - torch.linalg.vecdot(p, log_q))
        for name, table in constants.items():
            at = t.clamp(max=len(table) - 1)
            keep(f"ce_{name}", -table[at, y])
            if name != MEAN:
                cross = p @ table[0] if len(table) == 1 else torch.linalg.vecdot(p, table[at])
                keep(f"kl_{name}", negative_entropy - cross)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)
