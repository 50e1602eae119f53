"""Which latents are about one token: its association replicates, is strong, and is most of what the latent says.

The surprising choice: a latent that fails a test is not called polysemantic for that. `polysemantic` needs evidence of
its own, another token that holds a part of the information; the rest is `unclear`, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from saeinterp.enrichment.contingency import Counts, Incidence, Matrix
from saeinterp.enrichment.information import Booleans, Steps, stepwise_information
from saeinterp.enrichment.strata import mantel_haenszel
from saeinterp.enrichment.tables import describe
from saeinterp.stats.hypergeometric import log_upper_tail
from saeinterp.stats.intervals import Floats

MIN_MCC = 0.5
"""Of the first token with the latent. F1 of 0.5 is chance for a token that most samples hold."""
MOST_CMH_P = 0.05
"""That the first token goes with the latent among samples of equally many steps."""
MIN_SHARE = 0.5
"""The first token must hold more of the latent's information than this."""
MAX_NEXT_SHARE = 0.2
"""And any other token less than this: of a latent of two tokens, one holds half of the information or a little more."""
MIN_HOLDING = 5
"""Samples that must hold a token for it to enter the information."""
MOST_TOKENS = 2_000
"""Tokens in the information beside the first, those that most samples hold: its time grows with their number."""
_CELLS = 50_000_000  # of a boolean matrix of samples and latents at once

LABEL_SCHEMA: dict[str, pl.DataType] = {
    "latent": pl.Int32(),
    "label": pl.String(),
    "kind": pl.String(),
    "category": pl.String(),
    "monosemantic": pl.Boolean(),
    "token": pl.Int32(),
    "odds_ratio": pl.Float64(),
    "mcc": pl.Float64(),
    "f1": pl.Float64(),
    "cmh_p": pl.Float64(),
    "share": pl.Float64(),
    "tokens_selected": pl.Int32(),
    "reason": pl.String(),
}


class _First(NamedTuple):
    """The first token of each latent; parallel arrays."""

    latent: Counts
    token: Counts
    replicated: Booleans
    mcc: Floats
    f1: Floats

    def where(self, which: Booleans | Counts) -> _First:
        return _First(self.latent[which], self.token[which], self.replicated[which], self.mcc[which], self.f1[which])


def first_tokens(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pair of each latent with the token that it is about before all others, ascending by latent.

    Of its kept pairs the one with the largest lower 95% limit of the odds ratio, so that a token of few samples does
    not come first by luck; of equal ones that with more samples in common, then the first column.

    Args:
        pairs: Of `associate`; the columns latent, token, a, b, c, d and kept are read, and all are returned, with `mcc`
            and `f1`.
    """
    kept = pairs.filter("kept")
    sizes = _sizes(kept)
    order = np.lexsort(
        (kept["token"], -kept["a"].to_numpy().astype(np.int64), -sizes["odds_ratio_low"], kept["latent"])
    )
    _, start = np.unique(kept["latent"].to_numpy()[order], return_index=True)
    return kept[order[start]].with_columns(mcc=sizes["mcc"][order[start]], f1=sizes["f1"][order[start]])


def label_latents(
    pairs: pl.DataFrame,
    incidence: Incidence,
    *,
    strata: Counts,
    vocabulary: Sequence[str],
    categories: Sequence[str],
    seed: int = 0,
) -> pl.DataFrame:
    """The label of every latent with a kept pair, ascending by latent.

    `monosemantic`: the first token's pair is replicated, its MCC is at least 0.5, it goes with the latent among samples
    with equally many steps (`mantel_haenszel`, p <= 0.05), and it holds more than half of what the latent says about
    tokens, any other token less than a fifth (`stepwise_information`, selected on the first half of the samples and
    measured on the second). `polysemantic`: replicated and not a matter of steps likewise, but other tokens hold that
    much. Else `unclear`.

    Args:
        pairs: Of `associate`, preset `robust`: columns latent, token, a, b, c, d, kept and replicated are read.
        incidence: Of the same samples.
        strata: `[n]`: of `strata_of`.
        vocabulary: The token of each column.
        categories: Its category.
        seed: Of the permutations.

    Returns:
        `label`: as in `number_48`, `polysemantic_48_/`, `unclear`; `category`: of the first token, whose column is
        `token`; `odds_ratio`: in the confirming half, where the pair is less significant; `mcc`, `f1`: in all samples;
        `cmh_p`; `share`: of the first token (null where nothing was measured); `tokens_selected`, the first included;
        `reason`: why the latent is not monosemantic.
    """
    first = _first(pairs)
    cmh, odds = _in_strata(first, incidence, strata)
    measured = np.flatnonzero(first.replicated & (cmh <= MOST_CMH_P))
    steps = dict(zip(measured.tolist(), _steps(first.where(measured), incidence, seed), strict=True))
    rows = []
    for index, (latent, token, replicated, mcc, f1) in enumerate(zip(*(part.tolist() for part in first), strict=True)):
        found = steps.get(index)
        kind, reason = _judge(replicated, mcc, float(cmh[index]), found)
        category = categories[token]
        names = [vocabulary[number] for number in found.tokens] if found else []
        rows.append(
            (
                latent,
                {"monosemantic": f"{category}_{vocabulary[token]}", "polysemantic": "_".join([kind, *names])}.get(
                    kind, kind
                ),
                kind,
                category,
                kind == "monosemantic",
                token,
                odds[index],
                mcc,
                f1,
                cmh[index],
                None if found is None or np.isnan(found.share) else found.share,
                None if found is None else len(found.tokens),
                reason,
            )
        )
    return pl.DataFrame(rows, schema=LABEL_SCHEMA, orient="row")


def monosemantic_latents(pairs: pl.DataFrame, incidence: Incidence, *, strata: Counts, seed: int = 0) -> pl.DataFrame:
    """The latents that `label_latents` calls monosemantic: `latent`, `token`, ascending by latent.

    For permutations and half-samples: what is cheap to test is tested first.
    """
    first = _first(pairs)
    first = first.where(first.replicated & (first.mcc >= MIN_MCC))
    cmh, _ = _in_strata(first, incidence, strata)
    first = first.where(cmh <= MOST_CMH_P)
    first = first.where(np.array([_is_one(steps) for steps in _steps(first, incidence, seed)], np.bool_))
    return pl.DataFrame({"latent": first.latent.astype(np.int32), "token": first.token.astype(np.int32)})


def _first(pairs: pl.DataFrame) -> _First:
    found = first_tokens(pairs)
    latent, token = (found[name].to_numpy().astype(np.int64) for name in ("latent", "token"))
    return _First(latent, token, *(found[name].to_numpy() for name in ("replicated", "mcc", "f1")))


def _sizes(pairs: pl.DataFrame) -> dict[str, Floats]:
    a, b, c, d = (pairs[name].to_numpy().astype(np.int64) for name in "abcd")
    return describe(a, a + b, a + c, int((a + b + c + d).max(initial=0)))


def _in_strata(first: _First, incidence: Incidence, strata: Counts) -> tuple[Floats, Floats]:
    """The Mantel–Haenszel p of each latent with its token, and the odds ratio in the confirming half."""
    cmh, odds = np.zeros(len(first.latent)), np.zeros(len(first.latent))
    size = max(1, _CELLS // incidence.samples[0])
    for start in range(0, len(first.latent), size):
        some = slice(start, start + size)
        active = _dense(incidence.active, first.latent[some])
        present = _dense(incidence.present, first.token[some])
        cmh[some] = mantel_haenszel(active, present, strata)
        log_p, ratio = [], []
        for half in (incidence.first, ~incidence.first):
            fires, holds, n = active[half], present[half], int(half.sum())
            table = ((fires & holds).sum(axis=0), fires.sum(axis=0), holds.sum(axis=0))
            log_p.append(log_upper_tail(*table, n))
            ratio.append(describe(*table, n)["odds_ratio"])
        odds[some] = np.where(log_p[0] > log_p[1], *ratio)
    return cmh, odds


def _steps(first: _First, incidence: Incidence, seed: int) -> list[Steps]:
    holding = incidence.holding[0]
    frequent = np.argsort(-holding, kind="stable")[:MOST_TOKENS]
    frequent = np.sort(frequent[holding[frequent] >= MIN_HOLDING])
    found: list[Steps] = []
    size = max(1, _CELLS // incidence.samples[0])
    for start in range(0, len(first.latent), size):
        tokens = first.token[start : start + size]
        columns = np.union1d(frequent, tokens)
        steps = stepwise_information(
            _dense(incidence.active, first.latent[start : start + size]),
            _dense(incidence.present, columns),
            np.searchsorted(columns, tokens),
            selectable=np.searchsorted(columns, frequent),
            selecting=incidence.first,
            seed=seed,
        )
        found += [Steps(tuple(columns[list(item.tokens)].tolist()), item.information) for item in steps]
    return found


def _dense(matrix: Matrix, columns: Counts) -> npt.NDArray[np.bool_]:
    part = matrix[:, columns]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, np.bool_)


def _is_one(steps: Steps) -> bool:
    """Whether the first token is what the latent says about tokens."""
    return steps.share > MIN_SHARE and steps.next_share < MAX_NEXT_SHARE


def _judge(replicated: bool, mcc: float, cmh_p: float, steps: Steps | None) -> tuple[str, str | None]:
    """The kind of a latent, and why it is not monosemantic."""
    if not replicated:
        return "unclear", "the first token's pair is not replicated"
    if steps is None:
        return "unclear", f"the number of steps explains the first token (Cochran–Mantel–Haenszel p {cmh_p:.2g})"
    if np.isnan(steps.share) or steps.information[0] <= 0:
        return "unclear", "the other half of the samples shows no information about tokens"
    if not _is_one(steps):
        return "polysemantic", (
            f"the first token holds {steps.share:.0%} of the information about tokens, the next {steps.next_share:.0%}"
        )
    if mcc < MIN_MCC:
        return "unclear", f"MCC with the first token is {mcc:.2f}, below {MIN_MCC}"
    return "monosemantic", None
