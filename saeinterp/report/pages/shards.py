"""Packed text in a page, and the files beside it that hold what one file has no room for.

A page opened from disk may not fetch a file, but a script element may load one. The surprising choice: such files are
scripts that call one function with base64, and the page admits them by a nonce made from its own content, because
hashes would fill the policy and `'self'` means different things to browsers where a page comes from disk.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = "latents"
EXAMPLES, PAIRS = "shard", "pairs"
"""What the files are called: pages of explained latents, pages of latents and tokens."""


def packed(text: str) -> str:
    """Text as gzip + base64, the same bytes every time."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def as_json(value: Any) -> str:
    """Compact JSON; NaN is refused."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def shard_name(number: int, kind: str = EXAMPLES) -> str:
    """The file of one shard, relative to the page."""
    return f"{FOLDER}/{kind}-{number:05d}.js"


def write_shards(folder: Path, parts: Iterable[tuple[int, Any]], kind: str = EXAMPLES) -> int:
    """Write numbered shards below the folder of a page; returns how many."""
    count = 0
    for number, value in parts:
        path = folder / shard_name(number, kind)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'saeinterpShard({number},"{packed(as_json(value))}");\n', encoding="ascii")
        count += 1
    return count


def nonce(results: str) -> str:
    """What lets a page load its shards: it follows from all results, so nothing within them can hold it."""
    return hashlib.sha256(results.encode()).hexdigest()[:32]
