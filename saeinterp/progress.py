"""How library steps tell their caller how far they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)`; `what` names the unit, such as `tokens`."""


def silent(done: int, total: int, what: str) -> None:
    """The default listener: nobody."""
