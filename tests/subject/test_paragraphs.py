"""Text files into documents."""

from __future__ import annotations

from saeinterp.subject.paragraphs import LONGEST, group_paragraphs, is_heading, paragraphs, split_text

WIKI = " \n = Lobster = \n \n A crustacean . \n = = Habitat = = \n The sea . \n = Otter = \n \n A mammal . \n"


def test_wikitext_is_split_at_top_level_headings_only() -> None:
    documents = split_text(WIKI)
    assert len(documents) == 2
    assert "= = Habitat = =" in documents[0]
    assert "Otter" in documents[1]
    assert "".join(documents).strip() == WIKI.strip()


def test_sub_headings_and_equations_are_no_headings() -> None:
    assert is_heading(" = Homarus gammarus = \n")
    assert not is_heading(" = = Description = = ")
    assert not is_heading("x = y = z")
    assert not is_heading("a = 3")


def test_form_feeds_separate_documents() -> None:
    assert split_text("one\n\nstill one\ftwo\f\n\f") == ["one\n\nstill one", "two"]


def test_paragraphs_are_grouped_into_documents_of_moderate_size() -> None:
    text = "\n\n".join(f"Paragraph {index} " + "word " * 100 for index in range(40))
    documents = split_text(text)
    assert 5 < len(documents) < 15
    assert all(1500 < len(document) <= LONGEST for document in documents[:-1])
    assert "\n\n".join(documents) == text


def test_a_document_starts_at_a_heading_where_there_is_one() -> None:
    blocks = ["intro " * 200, "Section\n=======", "body " * 50]
    assert [document[:7] for document in group_paragraphs(blocks)] == ["intro i", "Section"]


def test_one_endless_line_is_cut_at_spaces() -> None:
    pieces = paragraphs("word " * 5000)
    assert len(pieces) > 5
    assert all(len(piece) <= LONGEST for piece in pieces)
    assert all(piece.split() == ["word"] * len(piece.split()) for piece in pieces)
    assert sum(len(piece.split()) for piece in pieces) == 5000


def test_windows_line_ends_separate_paragraphs_too() -> None:
    assert paragraphs("one\r\n\r\ntwo\r\nlines") == ["one", "two\nlines"]
