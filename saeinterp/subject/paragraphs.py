"""Running text into documents.

Text with WikiText headings (` = Title = ` on a line of its own) is split before every top-level heading.
Other text is split at form feeds, or, where there are none, into paragraphs (blank lines) that are grouped
into documents of about 2,000 characters. The surprising choice: documents are small, because splits,
bootstrap and dead-latent checks all count documents, and one huge document cannot be split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

TARGET = 2_000
LONGEST = 4_000
_HEADING = re.compile(r" ?= [^=\s](?:[^=\n]*[^=\s])? = ?")
_UNDERLINE = re.compile(r"[^\n]+\n([=*\-~^#\"])\1{2,}(?:\n|$)")
_MARKDOWN = re.compile(r"#{1,6} ")


def is_heading(line: str) -> bool:
    """Whether a line is a top-level WikiText heading, such as ` = Homarus gammarus = `."""
    return _HEADING.fullmatch(line.rstrip("\n")) is not None


def split_text(text: str) -> list[str]:
    """Split a text file's content into documents (see the module docstring)."""
    lines = text.splitlines(keepends=True)
    if sum(map(is_heading, lines)) >= 2:
        return list(join_wikitext(lines))
    if "\f" in text:
        return [part for part in text.split("\f") if part.strip()]
    return list(group_paragraphs(paragraphs(text)))


def join_wikitext(lines: Iterable[str]) -> Iterator[str]:
    """Articles out of WikiText lines (hub copies of WikiText hold one line per row)."""
    article: list[str] = []
    for line in lines:
        if is_heading(line) and any(part.strip() for part in article):
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") else line + "\n")
    if any(part.strip() for part in article):
        yield "".join(article)


def paragraphs(text: str) -> list[str]:
    """The blocks between blank lines; a block beyond 4,000 characters is cut at line ends, then at spaces."""
    result: list[str] = []
    for block in re.split(r"\n[ \t]*\n+", text.replace("\r\n", "\n")):
        if block.strip():
            result.extend([block.strip("\n")] if len(block) <= LONGEST else _cut(block.strip("\n")))
    return result


def group_paragraphs(blocks: Sequence[str]) -> Iterator[str]:
    """Group paragraphs into documents of about 2,000 characters, preferably starting at headings."""
    current: list[str] = []
    size = 0
    for block in blocks:
        heading = bool(_UNDERLINE.match(block) or _MARKDOWN.match(block))
        if current and (size >= TARGET or (heading and size >= TARGET // 3) or size + len(block) > LONGEST):
            yield "\n\n".join(current)
            current, size = [], 0
        current.append(block)
        size += len(block)
    if current:
        yield "\n\n".join(current)


def _cut(block: str) -> Iterator[str]:
    while len(block) > LONGEST:
        at = max(block.rfind("\n", TARGET, LONGEST), 0) or max(block.rfind(" ", TARGET, LONGEST), 0) or LONGEST
        yield block[:at]
        block = block[at:].lstrip("\n ")
    if block.strip():
        yield block
