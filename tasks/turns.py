"""Steps that compute with torch in this process take turns.

torch's default dtype and random generator belong to the whole process, and transformers changes both while
it loads a model: of two steps side by side one could change the other's numbers. Nothing is lost, because
each step uses every core (or the whole card) by itself; training runs in processes of its own and servers
elsewhere, and neither waits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from saeinterp.config import Placement
from tasks.cards import Need, cards, computing_here

TURN = threading.Lock()
"""Held by a step for as long as it computes."""


@contextlib.contextmanager
def turn(device: Placement) -> Iterator[Placement]:
    """A turn of a step that computes where a subject lies, which may take a card; gives the subject's placement."""
    # A slot that is waited for outside a turn would be held idle until the turn comes.
    with TURN, cards(Need.of(device)) as held, computing_here(held):
        yield held.here(device)
