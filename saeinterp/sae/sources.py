"""What a trainer draws its rows from: an endless, seeded, shuffled stream of one SAE's training rows.

The surprising choice: a source keeps no random generator. Its whole state is a small JSON mapping, the cursor, and
the rows at a cursor are a pure function of seed and data, so that a checkpoint need not hold any rows.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Cursor = dict[str, int]
"""Where a source stands; JSON."""


class Source(Protocol):
    """Training rows of one SAE."""

    hookpoint: str
    d_in: int
    collective: bool
    """Whether `next` waits for the other processes, which must then call it in the same order."""

    @property
    def rows(self) -> int:
        """Rows of one epoch."""

    @property
    def masked(self) -> dict[str, int]:
        """Rows never given out, each counted under its first reason (`position0`, `special`, `norm`)."""

    @property
    def cursor(self) -> Cursor:
        """The position: rows given out so far, over all processes, and what else is needed to go on from here."""

    def seek(self, cursor: Cursor) -> None:
        """Go to a position that `cursor` gave, of this or of an earlier process."""

    def first(self, count: int) -> Tensor:
        """At most `count` rows `[n, d_in]` from the very start of the stream; the position stays."""

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        """Rows `[rank * count // size, (rank + 1) * count // size)` of the next `count`, which are passed.

        Every process of a group calls this with the same `count` at the same positions.
        """

    def where(self, count: int) -> str:
        """The next `count` rows in words, for errors: `rows 640-767 of the shuffle of epoch 0`."""
