"""What users name as text, and what they are told when it cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saeinterp.config import CorpusSource
from saeinterp.errors import DataError
from saeinterp.subject.sources import read_source, source_recipe

SHARED = Path(__file__).parents[3] / "shared" / "data"


def read(name: Path | str, **options: object) -> list[str | None]:
    return list(read_source(CorpusSource(name=str(name), **options), seed=0))


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def test_jsonl_gives_one_document_per_line_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "zwei \\u00fc"}\n', encoding="utf-8")
    assert read(path) == ["one", "zwei ü"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello")
    assert read(path) == ["hello"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert read(path) == ["hello"]


def test_parquet_reads_the_text_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "body": ["one", "two"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_column="body") == ["one", "two"]


def test_several_columns_are_joined_by_line_ends(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": "1+1?", "answer": "2"}])
    assert read(path, text_column=("question", "answer")) == ["1+1?\n2"]


def test_a_row_without_text_is_handed_on_as_none(tmp_path: Path) -> None:
    assert read(write_rows(tmp_path / "a.jsonl", [{"text": None}, {"text": "x"}])) == [None, "x"]


def test_limit_takes_the_first_documents(tmp_path: Path) -> None:
    assert read(write_rows(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(9)]), limit=2) == ["0", "1"]


def test_a_missing_file_is_named_with_the_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.sources\.name: no such file .*nowhere\.txt.*Expected.*Next: check"):
        read(tmp_path / "nowhere.txt")


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match=r"unknown file type '\.docx'.*\.txt, \.jsonl, \.parquet.*jsonl"):
        read(tmp_path / "a.docx")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"the file is empty .*a\.txt.*Next"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 2 is not UTF-8 \(byte 0xe9\).*Expected UTF-8.*Next: convert.*iconv"):
        read(tmp_path / name)


def test_a_bad_json_line_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DataError, match=r"line 2 is not JSON.*a\.jsonl:2.*one JSON object per line.*Next"):
        read(tmp_path / "a.jsonl")


def test_a_json_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 is no JSON object"):
        read(write_rows(tmp_path / "a.jsonl", ["just a string"]))


def test_an_unknown_column_offers_the_nearest(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"content": "x", "id": 3}])
    with pytest.raises(
        DataError,
        match=r"text_column: has no column 'contents'.*one of: content, id.*did you mean text_column: content",
    ):
        read(path, text_column="contents")
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'text'.*one of: content"):
        read(tmp_path / "a.parquet")


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'id' holds int, not text"):
        read(write_rows(tmp_path / "a.jsonl", [{"content": "x", "id": 3}]), text_column="id")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"not a readable Parquet file.*a\.parquet.*Next"):
        read(tmp_path / "a.parquet")


def test_rows_that_are_wikitext_lines_become_articles(tmp_path: Path) -> None:
    lines = ["", " = Lobster = \n", "", " A crustacean . \n", " = = Habitat = = \n", " = Otter = \n", " A mammal . \n"]
    documents = read(write_rows(tmp_path / "a.jsonl", [{"text": line} for line in lines]))
    assert len(documents) == 2
    assert documents[0] is not None
    assert "Habitat" in documents[0]


def test_a_dataset_folder_is_read_like_a_hub_dataset_with_slices(tmp_path: Path) -> None:
    folder = tmp_path / "my-dataset"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": f"document {i}"} for i in range(40)])
    write_rows(folder / "test.jsonl", [{"text": "held out"}])
    assert len(read(folder)) == 40
    assert read(folder, split="train[:5%]") == ["document 0", "document 1"]
    assert read(folder, split="test") == ["held out"]
    with pytest.raises(DataError, match=r"has no column 'body'.*one of: text"):
        read(folder, text_column="body")


def test_an_unknown_split_of_a_dataset_names_the_ones_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "my-dataset"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": "x"}])
    with pytest.raises(
        DataError, match=r"cannot be loaded: Unknown split .*train.*Next: check name, hub_config and split"
    ):
        read(folder, split="nonsense")


def test_a_hub_dataset_without_network_says_so() -> None:
    with pytest.raises(DataError, match=r"the hub cannot be reached.*some-org/some-data.*Next: check the network"):
        read("some-org/some-data")


def test_the_recipe_of_a_local_file_follows_its_content_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "a.txt", tmp_path / "b" / "a.txt"
    first.write_text("hello")
    second.write_text("hello")

    def recipe(path: Path) -> object:
        return source_recipe(CorpusSource(name=str(path)), seed=0)

    assert recipe(first) == recipe(second)
    second.write_text("hallo!")
    assert recipe(first) != recipe(second)


def test_a_recipe_of_a_missing_file_fails_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        source_recipe(CorpusSource(name=str(tmp_path / "nowhere.jsonl")), seed=0)


def test_wikitext2_splits_into_sixty_articles() -> None:
    path = SHARED / "wikitext2-valid.txt"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    documents = read(path)
    assert len(documents) == 60
    assert all(document is not None and document.lstrip().startswith("= ") for document in documents)


def test_gsm8k_reads_question_and_answer() -> None:
    path = SHARED / "gsm8k-train.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    documents = read(path, text_column=("question", "answer"), limit=50)
    assert len(documents) == 50
    assert all(document is not None and "\n#### " in document for document in documents)
