"""Problems for the planted subject, in which what each latent goes with is known."""

from __future__ import annotations

import json
import random
from pathlib import Path

from planted import CLASSES, FILLERS, WORDS_PER_CLASS


def write_planted_problems(path: Path, *, count: int = 900, short: int = 0, seed: int = 0) -> Path:
    """Problems whose second and fourth word of the reasoning are of known classes, which are their tags.

    Args:
        short: So many have a single word of reasoning, and so lack the second of two places.
    """
    source = random.Random(seed)

    def word(name: str) -> str:
        return f"{name}{source.randrange(WORDS_PER_CLASS)}"

    def filler() -> str:
        return f"w{source.randrange(FILLERS)}"

    with path.open("w") as file:
        for number in range(count):
            first, second = source.choice(CLASSES), source.choice(CLASSES)
            row = {
                "id": f"p{number}",
                "question": " ".join(filler() for _ in range(source.randint(3, 8))),
                "answer": f"{filler()} {word(first)} {filler()} {word(second)}" if number >= short else word(first),
                "tags": [f"first-{first}", f"second-{second}"],
            }
            file.write(json.dumps(row) + "\n")
    return path
