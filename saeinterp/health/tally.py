"""Running sums of one hookpoint over held-out text: which rows count, and what they add to which document.

The surprising choice: activations are summed per document as vectors too, so that the squared deviation
from the overall mean, known only at the end, is still exact per document.

Shapes: B contexts, T tokens, N rows, D documents, M latents, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.health.documents import COLUMNS, DocumentSums
from saeinterp.subject import ActivationCache, Context, batches

SPLICED, ZERO, MEAN = "spliced", "zero", "mean"
_RUNS = {SPLICED: "the spliced run", ZERO: "the zeroed run", MEAN: "the mean-ablated run"}


class Code(Protocol):
    """What encoding gives: activations and latents `[N, k]`."""

    @property
    def values(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...


@dataclass(frozen=True)
class RowMask:
    """Which tokens are left out; the defaults mask nothing but position 0.

    Attributes:
        special_ids: Token ids (pad, BOS, EOS ...).
        norm_limit: Rows with a larger norm; None masks none. It is the training cache's.
        dtype: The cache's storage type, in which norms are taken, so that the same rows fall out.
        first: Also mask position 0.
    """

    special_ids: tuple[int, ...] = ()
    norm_limit: float | None = None
    dtype: torch.dtype = torch.bfloat16
    first: bool = True

    @classmethod
    def of(cls, cache: ActivationCache) -> RowMask:
        """The mask of the activations an SAE was trained on."""
        return cls(cache.special_ids, cache.norm_limit, getattr(torch, cache.dtype))

    def rows(self, batch: Batch, x: Tensor, present: Tensor) -> Rows:
        """Which tokens of a batch are rows; x `[B, T, d]`, present `[B, T]`."""
        special = torch.isin(batch.input_ids, torch.tensor(self.special_ids, device=x.device, dtype=torch.int64))
        first = torch.zeros_like(present)
        first[:, 0] = self.first
        large = torch.zeros_like(present)
        if self.norm_limit is not None:
            # As the cache takes norms: in float32, of the stored values.
            large = torch.linalg.vector_norm(x.to(self.dtype).float(), dim=-1) > self.norm_limit
        left = present.clone()
        masked = {}
        for reason, out in (("position0", first), ("special", special), ("norm", large)):
            masked[reason] = int((left & out).sum())
            left &= ~out
        return Rows(left, masked, int(present.sum()))


class Rows(NamedTuple):
    """The rows of a batch."""

    usable: Tensor
    """bool `[B, T]`: True on rows."""
    masked: Mapping[str, int]
    """Tokens left out, each counted once in this order: position0, special, norm."""
    tokens: int
    """All tokens, masked ones included."""


@dataclass(frozen=True)
class Reconstruction:
    """One hookpoint on held-out text.

    Attributes:
        hookpoint: Its name.
        documents: Sums per document, documents without a single row left out.
        firings: int64 `[M]`, rows on which each latent was active.
        l0_max: Most latents active on one row.
        k: Latents the SAE may use per row.
        splice: Which positions were replaced.
        masked: Tokens masked, counted once in this order: position0, special, norm.
        rows: All tokens, masked ones included.
        usable: bool per context, in the order given: True on rows.
        uniform_ce: ln V where zeroing must make the output uniform (no biases, every position zeroed); else None.
        l0_preact: Latents per row that are positive before the k largest are chosen; None where that means nothing.
    """

    hookpoint: str
    documents: DocumentSums
    firings: NDArray[np.int64]
    l0_max: int
    k: int
    splice: str
    masked: Mapping[str, int]
    rows: int
    usable: tuple[NDArray[np.bool_], ...]
    uniform_ce: float | None
    l0_preact: float | None = None


class Batch(NamedTuple):
    """A batch on the subject's device; `contexts` and `members` on this side."""

    contexts: Sequence[Context]
    members: Sequence[int]
    input_ids: Tensor
    attention_mask: Tensor
    dataset: str | None

    @classmethod
    def of(cls, contexts: Sequence[Context], members: Sequence[int], device: str, dataset: str | None = None) -> Batch:
        (ids, mask), *_ = batches(contexts, len(contexts))
        return cls(contexts, members, ids.to(device), mask.to(device), dataset)

    def name(self, row: int) -> str:
        of = "" if self.dataset is None else f" of {self.dataset}"
        return f"context {self.contexts[row].context_id}{of}"


@dataclass
class Tally:
    """Running sums of one hookpoint."""

    doc_ids: NDArray[np.int32]
    hookpoint: str
    mask: RowMask
    num_latents: int
    contexts: int
    sums: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    vectors: Tensor | None = None
    firings: Tensor = field(init=False)
    l0_max: int = 0
    preact: int | None = None
    masked: dict[str, int] = field(default_factory=lambda: {"position0": 0, "special": 0, "norm": 0})
    rows: int = 0
    usable: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(self.doc_ids), len(COLUMNS), dtype=torch.float64)
        self.squares = torch.zeros(len(self.doc_ids), dtype=torch.float64)
        self.firings = torch.zeros(self.num_latents, dtype=torch.int64)

    def add_mask(self, batch: Batch, rows: Rows) -> None:
        """Add which tokens of the batch are rows, and how many are not for which reason."""
        for reason, count in rows.masked.items():
            self.masked[reason] += count
        self.rows += rows.tokens
        for index, context, keep in zip(batch.members, batch.contexts, rows.usable.cpu().numpy(), strict=True):
            self.usable[index] = keep[: len(context.token_ids)]

    def add_rows(self, batch: Batch, x: Tensor, reconstruction: Tensor, code: Code, usable: Tensor) -> None:
        """Add rows x and their reconstructions `[N, d]`; `code` is of all tokens of the batch."""
        documents = self._documents(batch, *usable.nonzero(as_tuple=True))
        x, reconstruction = x.double(), reconstruction.double()
        active = (code.values != 0)[usable.flatten()]
        l0 = active.sum(1)
        self.firings += torch.bincount(code.indices[usable.flatten()][active].long(), minlength=self.num_latents).cpu()
        self.l0_max = max(self.l0_max, int(l0.max()) if len(l0) else 0)
        self._add("tokens", documents, torch.ones(len(documents), dtype=torch.float64))
        self._add("l0", documents, l0)
        self._add("squared_error", documents, (x - reconstruction).square().sum(1))
        self._add("cosine", documents, torch.cosine_similarity(x, reconstruction, dim=1))
        self.squares.index_add_(0, documents, x.square().sum(1).cpu())
        if self.vectors is None:
            self.vectors = torch.zeros(len(self.doc_ids), x.shape[1], dtype=torch.float64)
        # Summed where x is, since [N, d] float64 is large to move; one document after the other, since scattered
        # additions come in no fixed order on a GPU.
        for document in documents.unique().tolist():
            self.vectors[document] += x[(documents == document).to(x.device)].sum(0).cpu()

    def add_positive(self, counts: Tensor | None) -> None:
        """Add how many latents are positive on each row `[N]`; None where that means nothing."""
        if counts is not None:
            self.preact = (self.preact or 0) + int(counts.sum())

    def add_losses(self, batch: Batch, row: Tensor, position: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Add losses `[n]` of the predictions at `row`, `position`."""
        for name, values in losses.items():
            what = _RUNS.get(name.partition("_")[2], "the clean run")
            finite = torch.ones(batch.input_ids.shape, dtype=torch.bool)
            finite[row.cpu(), position.cpu()] = torch.isfinite(values)
            refuse_non_finite(finite, batch, self.hookpoint, f"the logits of {what}")
        documents = self._documents(batch, row, position)
        self._add("predictions", documents, torch.ones(len(documents), dtype=torch.float64))
        for name, values in losses.items():
            self._add(name, documents, values)

    def result(self, *, k: int, splice: str, uniform_ce: float | None, of: str = "the health split") -> Reconstruction:
        """The sums as arrays; `squared_deviation` is about the mean over all rows; `of` names the text in errors."""
        sums = self.sums.numpy().copy()
        tokens = sums[:, COLUMNS.index("tokens")]
        if not tokens.sum():
            raise DataError(
                f"every token of {of} is masked",
                field=self.hookpoint,
                got=dict(self.masked),
                next_step="check the corpus, or raise capture.norm_multiple",
            )
        assert self.vectors is not None
        vectors = self.vectors.numpy()
        mean = vectors.sum(axis=0) / tokens.sum()
        sums[:, COLUMNS.index("squared_deviation")] = (
            self.squares.numpy() - 2 * vectors @ mean + tokens * float(mean @ mean)
        ).clip(min=0)
        kept = tokens > 0
        return Reconstruction(
            hookpoint=self.hookpoint,
            documents=DocumentSums(self.doc_ids[kept], sums[kept]),
            firings=self.firings.numpy(),
            l0_max=self.l0_max,
            k=k,
            splice=splice,
            masked=dict(self.masked),
            rows=self.rows,
            usable=tuple(self.usable[index] for index in range(self.contexts)),
            uniform_ce=uniform_ce,
            l0_preact=None if self.preact is None else self.preact / float(tokens.sum()),
        )

    def _add(self, column: str, documents: Tensor, values: Tensor) -> None:
        self.sums[:, COLUMNS.index(column)].index_add_(0, documents, values.double().cpu())

    def _documents(self, batch: Batch, row: Tensor, position: Tensor) -> Tensor:
        """Index into `doc_ids` of the tokens at `row`, `position`."""
        ids = np.zeros(batch.input_ids.shape, np.int32)
        for index, context in enumerate(batch.contexts):
            ids[index, : len(context.doc_ids)] = context.doc_ids
        return torch.from_numpy(np.searchsorted(self.doc_ids, ids[row.cpu().numpy(), position.cpu().numpy()]))


def refuse_non_finite(finite: Tensor, batch: Batch, hookpoint: str, what: str) -> None:
    if bool(finite.all()):
        return
    row = int((~finite).any(1).nonzero()[0])
    raise DataError(
        f"{what} are NaN or infinite, first in {batch.name(row)}",
        field=hookpoint,
        got=f"{int((~finite).sum())} such tokens in one batch",
        expected="finite numbers",
        next_step="run the subject in bfloat16 or float32 (subject.dtype), and check its weights and the SAE's",
    )
