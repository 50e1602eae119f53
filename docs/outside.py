"""What the site's Markdown reads otherwise than a repository's page does.

Pages link to files that are not part of the site: there such a link is its text alone. In a cell of a table code that
holds a bar has a backslash before it, which the site would show.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(?:#[^)]*)?\)")
_CODE = re.compile(r"`[^`]+`")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page."""
    folder = posixpath.dirname(page.file.src_uri)

    def keep_or_unlink(match: re.Match[str]) -> str:
        outside = posixpath.normpath(posixpath.join(folder, match[2])).startswith("../")
        return match[1] if outside else match[0]

    lines = _LINK.sub(keep_or_unlink, markdown).split("\n")
    return "\n".join(_CODE.sub(_plain_bars, line) if line.lstrip().startswith("|") else line for line in lines)


def _plain_bars(match: re.Match[str]) -> str:
    return match[0].replace("\\|", "|")
