"""What the documentation shows: its fenced blocks, the commands in them, and commands in running text."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("", "bash", "sh", "shell", "console")
"""Languages of blocks that are taken for commands; what a program prints stands in blocks marked `text`."""
PROGRAMS = ("saeinterp", "prefect", "make")
_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*([\w-]*)\s*$")
_BETWEEN = re.compile(r"&&|\|\||[;|&()]")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: Path of the page below the repository.
        line: Number of the first line inside the fence.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """One command of a shell block, continued lines joined and comments left out, or of running text."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, every page of docs/ and CONTRIBUTING, in the order of reading."""
    docs = ROOT / "docs"
    first = [ROOT / "README.md", docs / "tutorial.md", ROOT / "CONTRIBUTING.md"]
    return [*first, *sorted(path for path in docs.rglob("*.md") if path not in first)]


def blocks(*languages: str) -> list[Block]:
    """Every fenced block in one of these languages."""
    found = []
    for path in pages():
        name = path.relative_to(ROOT).as_posix()
        opened: tuple[int, str, str] | None = None
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            match = _FENCE.match(line)
            if match is None:
                continue
            if opened is None:
                opened = (number, match[2], match[3])
            elif match[2] == opened[1] and not match[3]:
                start, _, language = opened
                text = textwrap.dedent("\n".join(lines[start : number - 1]))
                found.append(Block(name, start + 1, language, text))
                opened = None
        assert opened is None, f"{name}:{opened and opened[0]}: a fence that does not end"
    return [block for block in found if block.language in languages]


def commands() -> list[Command]:
    """Every command of every shell block."""
    return [command for block in blocks(*SHELL) for command in _commands(block)]


def _commands(block: Block) -> list[Command]:
    found = []
    held, start = "", block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        start = start if held else number
        held += line.removeprefix("$ ").rstrip()
        if held.endswith("\\"):
            held = held[:-1].rstrip() + " "
            continue
        if text := _without_comment(held).strip():
            found.append(Command(block.page, start, re.sub(r"\s+", " ", text)))
        held = ""
    return found


def _without_comment(line: str) -> str:
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def mentions() -> list[Command]:
    """Commands of our programs in running text and tables: spans of code that begin with a program and an argument."""
    found = []
    for path in pages():
        name = path.relative_to(ROOT).as_posix()
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if _FENCE.match(line):
                fenced = not fenced
            elif not fenced:
                spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", line)
                found += [Command(name, number, span) for span in spans if span.split()[0] in PROGRAMS and " " in span]
    return found


def calls(text: str) -> list[list[str]]:
    """The words of each simple command in a line that starts one of our programs; redirections are left out."""
    found = []
    for words in _simple(text):
        while words and re.fullmatch(r"[A-Z_][A-Z_0-9]*=.*", words[0]):
            words = words[1:]
        if words and Path(words[0]).name in PROGRAMS:
            found.append([Path(words[0]).name, *words[1:]])
    return found


def _simple(text: str) -> list[list[str]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if _BETWEEN.fullmatch(word):
            found.append([])
        else:
            found[-1].append(word)
    return found
