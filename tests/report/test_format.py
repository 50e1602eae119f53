"""Numbers are rounded once, the same everywhere; untrusted text is shown, never obeyed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.report.format import Style, listing, markdown_text, number, plural, short, visible, with_interval


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.2644, "score", "0.264"),
        (-0.2644, "score", "−0.264"),
        (0.02353, "difference", "+0.024"),
        (0.02353, "fine-difference", "+0.0235"),
        (-0.00004, "fine-difference", "0.0000"),
        (0.0, "difference", "0.000"),
        (0.1248, "share", "12.5%"),
        (-0.128, "points", "−12.8 pp"),
        (0.125, "nat-difference", "+0.125 nat"),
        (1152, "count", "1,152"),
        (0.634766, "p", "0.635"),
        (0.0004, "p", "< 0.001"),
        (0.00012, "rate", "1.2e-04"),
        (0.0671, "rate", "0.0671"),
        (31.984, "plain", "31.98"),
        (None, "score", "NA"),
        (float("nan"), "score", "NA"),
    ],
)
def test_a_number_is_written_in_its_own_style(value: float | None, style: Style, text: str) -> None:
    assert number(value, style) == text


def test_a_unit_in_letters_is_written_once_behind_the_interval() -> None:
    assert with_interval(0.125, 0.119, 0.13, "nat-difference") == ("+0.125", "[+0.119, +0.130] nat")
    assert with_interval(0.125, 0.119, 0.13, "share") == ("12.5%", "[11.9, 13.0]%")
    assert with_interval(0.125, None, None, "nat-difference") == ("+0.125 nat", None)
    assert with_interval(None, 0.1, 0.2, "score") == ("NA", None)


def test_control_and_bidirectional_characters_become_visible() -> None:
    assert visible("a\x00b\x1b[31m\nc\t") == "a␀b␛[31m↵c⇥"
    assert visible("\u202egnp.exe\u2066\u200b\ufeff") == "⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩"
    assert visible("Ünïcode 漢字 🙂") == "Ünïcode 漢字 🙂"


@settings(deadline=None)
@given(st.text())
def test_visible_text_holds_nothing_that_a_terminal_or_browser_obeys(text: str) -> None:
    shown = visible(text)
    assert all(character.isprintable() or character.isspace() for character in shown)
    assert not set(shown) & set("\n\r\t\x00\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


@settings(deadline=None)
@given(st.text(alphabet="<>&|*_`[]()!\\$~ab\n\"'/", max_size=30))
def test_untrusted_text_in_a_markdown_table_is_one_cell_of_plain_text(text: str) -> None:
    from markdown_it import MarkdownIt

    line = f"| x{markdown_text(text)}x | end |"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(f"| a | b |\n|---|---|\n{line}\n")
    cells = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for cell in cells for child in cell.children or ()}
    assert len(cells) == 4
    assert kinds <= {"text", "text_special"}


def test_words_follow_their_counts() -> None:
    assert plural(1, "layer") == "1 layer"
    assert plural(1152, "latent") == "1,152 latents"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a"]) == "a"
    assert listing([]) == ""
    assert short("0123456789abcdef" * 4) == "0123456789ab…"
    assert short("layers.9") == "layers.9"
