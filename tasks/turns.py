"""Steps that compute with torch in this process take turns.

torch's default dtype and random generator belong to the whole process, and transformers changes both while
it loads a model: of two steps side by side one could change the other's numbers. Nothing is lost, because
each step uses every core (or the whole card) by itself; training runs in processes of its own and servers
elsewhere, and neither waits.
"""

from __future__ import annotations

import threading

TURN = threading.Lock()
"""Held by a step for as long as it computes."""
