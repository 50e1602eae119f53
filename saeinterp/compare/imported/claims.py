"""What a report says about its own table of scores: means, spreads, ranges, a correlation, who is higher.

The surprising choice: only what can be held against the rows is read, each in the few ways that people write it; other
prose is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from saeinterp.compare.imported.headings import METRICS
from saeinterp.compare.imported.records import ScoreClaim
from saeinterp.health.imported.cells import NUMBER, Place, plain_text, quantities
from saeinterp.health.imported.files import split_cells

_WORDS = r"(?:\s+[\w-]+){0,3}\s*(?:=|:|≈)\s*"
_MEAN = re.compile(rf"\bmean\b{_WORDS}({NUMBER})", re.IGNORECASE)
_SD = re.compile(rf"\b(?:std|sd|standard deviation)\b{_WORDS}({NUMBER})", re.IGNORECASE)
_RANGE = re.compile(rf"\brange\b\s*(?:=|:)\s*\[?\s*({NUMBER})\s*(?:,|to|–)\s*({NUMBER})\s*\]?", re.IGNORECASE)
_CORRELATION = re.compile(rf"\br\s*(?:≈|=|~)\s*({NUMBER})")
_HIGHER = r"(?:significantly\s+)?(?:outperforms|outperformed|beats|is better than|performs better than)"


def read_claims(
    lines: Sequence[str],
    names: Sequence[str],
    differences: Sequence[int],
    header: Sequence[str],
    heading_line: int,
    rows: Sequence[tuple[int, Sequence[Any]]],
) -> list[ScoreClaim]:
    """The claims of one file.

    Args:
        lines: Its text; empty for formats without prose.
        names: The explainers, as the file calls them.
        differences: Columns of the table of scores that hold differences.
        header: Its heading, on line `heading_line`.
        rows: Its rows, each with its line.
    """
    found = list(_differences(names, differences, rows))
    inside = {heading_line, *(line for line, _ in rows)}
    columns: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if number in inside:
            continue
        text = plain_text(line)
        if "|" in line:
            cells = [plain_text(cell) for cell in split_cells(line)]
            columns = _owners(cells, names) or columns
            found += _overall(cells, columns, number)
            continue
        columns = {}
        found += _prose(text, names, number)
    return found


def _prose(text: str, names: Sequence[str], line: int) -> Iterator[ScoreClaim]:
    about = [name for name in names if _mentions(text, name)]
    if len(about) == 1:
        for subject, pattern in (("mean", _MEAN), ("sd", _SD), ("range", _RANGE)):
            if match := pattern.search(text):
                yield _claim(line, subject, match, match.groups(), name=about[0])
    if match := _CORRELATION.search(text):
        yield _claim(line, "correlation", match, match.groups())
    for name in names:
        for other in names:
            said = rf"{re.escape(name)}\s+{_HIGHER}\s+{re.escape(other)}"
            if name != other and (match := re.search(said, text, re.IGNORECASE)):
                yield _claim(line, "higher", match, (), name=name, other=other)


def _mentions(text: str, name: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))


def _owners(cells: Sequence[str], names: Sequence[str]) -> dict[int, str]:
    """Columns of a heading that are an explainer's; empty for any other line."""
    found = {at: name for at, cell in enumerate(cells) for name in names if cell.lower() == name.lower()}
    return found if len(found) == len(names) else {}


def _overall(cells: Sequence[str], columns: dict[int, str], line: int) -> Iterator[ScoreClaim]:
    """`| Overall F1 Score | 0.298 | 0.372 |`: one value of all latents per explainer."""
    if not columns or max(columns) >= len(cells):
        return
    named = re.sub(r"^overall\s+", "", cells[0], flags=re.IGNORECASE)
    what = "frequency_weighted_f1" if re.match(r"frequency[\s-]weighted f1", named, re.IGNORECASE) else None
    for metric, pattern in METRICS.items():
        if what is None and re.fullmatch(pattern, named, re.IGNORECASE):
            what = metric
    if what is None:
        return
    for at, name in columns.items():
        if match := re.fullmatch(rf"({NUMBER})\s*%?", cells[at]):
            claim = _claim(line, "overall", match, (match[1],), name=name)
            yield claim.model_copy(update={"what": what})


def _differences(
    names: Sequence[str], columns: Sequence[int], rows: Sequence[tuple[int, Sequence[Any]]]
) -> Iterator[ScoreClaim]:
    """A column of differences of two explainers, second minus first or the reverse."""
    if len(names) != 2 or len(columns) != 1:
        return
    for line, cells in rows:
        if match := re.match(rf"\s*({NUMBER})(?!\s*%|[\d.])", plain_text(str(cells[columns[0]] or ""))):
            claim = _claim(line, "difference", match, (match[1],), name=names[1])
            yield claim.model_copy(update={"other": names[0]})


def _claim(
    line: int, subject: Any, match: re.Match[str], numbers: Sequence[str], *, name: str = "", other: str = ""
) -> ScoreClaim:
    read = [quantities(number, "", Place("", line, ""))[0] for number in numbers]
    return ScoreClaim(
        line=line,
        subject=subject,
        name=name,
        other=other,
        values=tuple(item.value for item in read),
        half_step=max((item.half_step for item in read), default=0.0),
        text=match[0].strip(),
    )
