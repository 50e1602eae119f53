"""How well a subject works on SAE reconstructions: cross entropies, KL, explained variance, L0, density.

One clean forward pass per batch serves every SAE of every hookpoint; reconstructions, zeros and means then run only
through the blocks after theirs (see `sites`). The surprising choice: an SAE that fails leaves the pass and the others
go on, so one pass for many is worth as much as one each.

Which tokens count: a *row* is an unmasked token (see `RowMask`); a *prediction* is a row whose next token lies
in the same context and is no padding. Cross entropy and KL average over predictions, everything else over
rows. With packing, the last token of a document predicts the separator and counts.

Shapes: B contexts, T tokens, V vocabulary, N rows, D documents, M latents, d width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from saeinterp.errors import DataError, SaeinterpError
from saeinterp.health.sites import Passes, Place
from saeinterp.health.tally import MEAN, SPLICED, Batch, Reconstruction, RowMask, Tally, refuse_non_finite
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.subject import Context, Subject
from saeinterp.subject import splice as spliced

_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}  # float32 values [n, V] held at once per run; 16 MiB stays in reused memory
K = TypeVar("K", bound=Hashable)


class Autoencoder(Protocol):
    """What is measured; `TopKSae` is one."""

    @property
    def k(self) -> int: ...
    @property
    def num_latents(self) -> int: ...
    def encode(self, x: Tensor) -> Any: ...
    def decode(self, code: Any) -> Tensor: ...


class Site(NamedTuple):
    """One SAE to measure."""

    hookpoint: str
    """Where it reads and writes."""
    sae: Autoencoder
    """On the subject's device."""
    mean: Tensor
    """`[d]`, what mean ablation puts in; of training rows, as the SAE is."""
    mask: RowMask
    """Which tokens are left out."""


class Measured(NamedTuple, Generic[K]):
    """What one pass over the text gave."""

    results: dict[K, Reconstruction]
    """By the keys of the sites."""
    failures: dict[K, SaeinterpError]
    """The error of each site that could not be measured."""
    passes: Passes
    """What it took, for all sites together."""


def measure_reconstruction(
    subject: Subject,
    contexts: Sequence[Context],
    saes: Mapping[str, Autoencoder],
    *,
    means: Mapping[str, Tensor],
    masks: Mapping[str, RowMask],
    **options: Any,
) -> dict[str, Reconstruction]:
    """`measure_sites` with one SAE per hookpoint; the first error is raised.

    Args:
        saes: Hookpoint -> SAE.
        means: Hookpoint -> `[d]`.
        masks: Hookpoint -> mask.
        options: As of `measure_sites`.
    """
    sites = {name: Site(name, sae, means[name], masks[name]) for name, sae in saes.items()}
    found = measure_sites(subject, contexts, sites, **options)
    for error in found.failures.values():
        raise error
    return found.results


def measure_sites(
    subject: Subject,
    contexts: Sequence[Context],
    sites: Mapping[K, Site],
    *,
    splice: Literal["all", "unmasked"] = "all",
    batch_contexts: int = 16,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> Measured[K]:
    """Run the subject clean, on reconstructions, zeroed and mean-ablated, one SAE at a time.

    Per batch: one clean pass for all sites, one pass from its hookpoint on for each SAE; with `splice="unmasked"`
    (or where constants do not suffice) two more per hookpoint for zeros and means. A site's result does not depend
    on which others are measured with it.

    Args:
        contexts: Held-out contexts.
        splice: `all` replaces every position; `unmasked` leaves masked positions clean in the spliced, zeroed
            and mean-ablated run alike. The averages are over unmasked positions either way.
        batch_contexts: Contexts per forward pass; longer ones run first.
        dataset: What errors call the text.

    Returns:
        Results, and errors: `ConfigError` where there is no such hookpoint, `DataError` for NaN or infinite
        activations or logits, naming run, hookpoint, context and dataset, or where every token is masked.

    Raises:
        DataError: No context.
    """
    of = "the health split" if dataset is None else dataset
    if not contexts:
        raise DataError(
            f"{of} has no contexts",
            field="corpus",
            next_step="raise corpus.fractions.health or add documents to the corpus",
        )
    report = progress or silent
    doc_ids = np.unique(np.concatenate([context.doc_ids for context in contexts]))
    order = sorted(range(len(contexts)), key=lambda index: -len(contexts[index].token_ids))
    total = sum(len(context.token_ids) for context in contexts)
    done = 0
    failures: dict[K, SaeinterpError] = {}
    passes = Passes()
    with torch.inference_mode():
        probe = torch.from_numpy(contexts[order[0]].token_ids.astype(np.int64)).to(subject.device)
        groups = _groups(subject, sites, probe, everywhere=splice == "all", passes=passes, failures=failures)
        tallies = {
            key: Tally(doc_ids, group.place.name, group.place.mask, sae.num_latents, len(contexts))
            for group in groups
            for key, sae in group.saes.items()
        }
        for start in range(0, len(order), batch_contexts):
            groups = [group for group in groups if group.saes]
            if not groups:
                break
            members = order[start : start + batch_contexts]
            batch = Batch.of([contexts[index] for index in members], members, subject.device, dataset)
            clean, captured = _clean_pass(subject, batch, list(dict.fromkeys(group.place.name for group in groups)))
            passes.clean += 1
            passes.full += 1
            for group in groups:
                failed = _measure_batch(batch, group, captured[group.place.name], clean, tallies, passes)
                failures |= failed
                for key in failed:
                    del group.saes[key]
            done += int(batch.attention_mask.sum())
            report(done, total, "tokens")
    results = {}
    for group in groups:
        for key, sae in group.saes.items():
            try:
                results[key] = tallies[key].result(k=sae.k, splice=splice, uniform_ce=group.place.uniform_ce, of=of)
            except DataError as error:
                failures[key] = error
    return Measured({key: results[key] for key in sites if key in results}, failures, passes)


class _Group(NamedTuple, Generic[K]):
    """SAEs that share hookpoint, rows and ablated runs."""

    place: Place
    saes: dict[K, Autoencoder]


def _groups(
    subject: Subject,
    sites: Mapping[K, Site],
    probe: Tensor,
    *,
    everywhere: bool,
    passes: Passes,
    failures: dict[K, SaeinterpError],
) -> list[_Group[K]]:
    found: list[_Group[K]] = []
    for key, site in sites.items():
        known = next((group for group in found if group.place.serves(site.hookpoint, site.mean, site.mask)), None)
        if known is None:
            try:
                place = Place(subject, site.hookpoint, site.mean, site.mask, everywhere=everywhere, passes=passes)
                place.probe(probe)
            except SaeinterpError as error:
                failures[key] = error
                continue
            known = _Group(place, {})
            found.append(known)
        known.saes[key] = site.sae
    return found


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


def _measure_batch(
    batch: Batch,
    group: _Group[K],
    x: Tensor,
    clean: Tensor,
    tallies: Mapping[K, Tally],
    passes: Passes,
) -> dict[K, SaeinterpError]:
    """Add one batch to the tallies of one hookpoint's SAEs; x `[B, T, d]`, clean `[B, T, V]`; returns what failed."""
    place = group.place
    present = batch.attention_mask.bool()
    try:
        refuse_non_finite(torch.isfinite(x).all(-1) | ~present, batch, place.name, "the activations of the clean run")
    except DataError as error:
        return dict.fromkeys(group.saes, error)
    rows = place.mask.rows(batch, x, present)
    usable = rows.usable
    predicted = usable[:, :-1] & present[:, 1:]
    row, position = predicted.nonzero(as_tuple=True)
    target = batch.input_ids[row, position + 1]

    def run(new: Tensor) -> Tensor:
        placed = new if place.everywhere else torch.where(usable[..., None], new.to(x.dtype), x)
        return place.logits(batch.input_ids, batch.attention_mask, placed)

    ablated = {name: run(vector.expand_as(x)) for name, vector in place.vectors.items() if name not in place.constants}
    passes.ablated += len(ablated)
    failures: dict[K, SaeinterpError] = {}
    for key, sae in group.saes.items():
        tally = tallies[key]
        try:
            tally.add_mask(batch, rows)
            code = sae.encode(x.flatten(0, 1).float())
            reconstruction = sae.decode(code).view(x.shape)
            tally.add_rows(batch, x[usable], reconstruction[usable], code, usable)
            if isinstance(sae, TopKSae):
                tally.add_positive(sae.positive(x[usable].float()))
            passes.spliced += 1
            logits = {SPLICED: run(reconstruction), **ablated}
            tally.add_losses(batch, row, position, _losses(clean, logits, place.constants, row, position, target))
        except SaeinterpError as error:
            failures[key] = error
    return failures


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
