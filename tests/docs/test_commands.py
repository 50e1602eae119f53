"""Every command that the documentation shows is typed, or its words are checked and the reason is on record."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer
from documented import ROOT, Command, calls, commands, mentions
from documented_commands import COMMANDS, Elsewhere, typed

from flows.catalogue import FLOWS, configuration
from flows.cli import app

ALL = commands()
TYPED = [command for command in ALL if typed(command.page, command.text)]
CLI = typer.main.get_command(app)


def _named(command: Command) -> str:
    return f"{command.place} {command.text[:60]}"


def test_every_command_is_typed_or_listed_with_its_reason() -> None:
    unknown = [f"{command.place}: {command.text}" for command in ALL if command.text not in COMMANDS]
    assert unknown == [], (
        "commands that tests/documented_commands.py does not know (output stands in blocks marked `text`)"
    )


def test_no_entry_is_left_of_a_command_that_is_gone() -> None:
    assert set(COMMANDS) - {command.text for command in ALL} == set()


@pytest.mark.parametrize("entry", [entry for entry in COMMANDS.values() if isinstance(entry, Elsewhere) and entry.test])
def test_the_test_that_runs_a_command_in_our_place_is_there(entry: Elsewhere) -> None:
    file, _, name = str(entry.test).partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", TYPED, ids=_named)
def test_a_command_does_what_its_page_says(command: Command, desk) -> None:  # type: ignore[no-untyped-def]
    entry = typed(command.page, command.text)
    assert entry is not None
    terminal = desk.terminal(command.page)
    result = terminal.reach(command)
    assert result.code == entry.code, f"{command.place}: {terminal.spoken(command.text, entry)}\n{result.shown}"
    assert re.search(entry.shows, result.shown, re.DOTALL), f"{command.place}: shows no {entry.shows}:\n{result.shown}"


@pytest.mark.parametrize("command", [*ALL, *mentions()], ids=_named)
def test_the_words_of_a_command_are_those_of_the_program(command: Command) -> None:
    words = re.sub(r"\\\||[\[\]]|\.\.\.", " ", command.text) if "[" in command.text else command.text
    for program, *arguments in calls(re.sub(r"<[^<>]*>", "X", words)):
        if program == "saeinterp":
            _check_ours(arguments, whole=command in ALL, place=command.place)
        elif program == "make":
            done = _said("make", "-n", *arguments)
            assert done.returncode == 0, f"{command.place}: {done.stderr}"
        else:
            _check_prefect(arguments, command.place)


@cache
def _said(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def _check_ours(arguments: list[str], *, whole: bool, place: str) -> None:
    """Subcommands and options are ours, and so are presets and values that are set; a whole command parses as it is."""
    group, path = CLI, ["saeinterp"]
    while arguments and hasattr(group, "commands"):
        assert arguments[0] in group.commands, f"{place}: {' '.join(path)} has no {arguments[0]}"
        path.append(arguments.pop(0))
        group = group.commands[path[-1]]
    known = {name for option in group.params for name in (*option.opts, *option.secondary_opts)}
    wrong = [word for word in arguments if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    assert wrong == [], f"{place}: {' '.join(path)} has no {wrong}, but {sorted(known)}"
    if whole:
        with group.make_context(" ".join(path), list(arguments)) as context:
            given = context.params
        flow = given.get("flow", "")
        preset = given.get("preset") and f"preset:{given['preset']}"
        source = preset or (given.get("config") or None)
        if path[1] in ("run", "plan", "submit"):
            assert flow.split("/")[0] in FLOWS, f"{place}: no flow {flow}"
            named = source if str(source).startswith("preset:") else None
            configuration(flow.split("/")[0], named, [*(given.get("overrides") or [])] if named or not source else [])


def _check_prefect(arguments: list[str], place: str) -> None:
    command = [word for word in arguments if word != "--no-prompt"]
    path = []
    while command and re.fullmatch(r"[a-z-]+", command[0]) and not command[0].startswith("-"):
        path.append(command.pop(0))
        if len(path) == 2 or path[0] == "deploy":
            break
    done = _said(sys.executable, "-m", "prefect", *path, "--help")
    assert done.returncode == 0, f"{place}: prefect has no {' '.join(path)}:\n{done.stdout}{done.stderr}"
    for option in (word for word in command if word.startswith("--")):
        assert option in done.stdout, f"{place}: prefect {' '.join(path)} has no {option}"


def test_the_reference_lists_every_command_with_every_option() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")

    def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from leaves(inner, f"{path} {name}")
        if not hasattr(command, "commands"):
            yield path, command

    missing = []
    for path, command in leaves(CLI, "saeinterp"):
        (row,) = [line for line in page.splitlines() if re.match(rf"\| `{path}(?![\w-])", line)] or [""]
        if not row:
            missing.append(path)
            continue
        options = [option for option in command.params if option.param_type_name == "option"]
        shown = [any(name in row for name in (*option.opts, *option.secondary_opts)) for option in options]
        names = [option.opts[0] for option, there in zip(options, shown, strict=True) if not there]
        missing += [f"{path} {name}" for name in names if name != "--root"]
    assert missing == []
