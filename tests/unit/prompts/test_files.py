"""Prompt files of every form are read; what is wrong with one is said with file and line."""

import json
from pathlib import Path

import pandas
import pytest

from flipsearch.core.errors import PromptError
from flipsearch.prompts import downloads
from flipsearch.prompts.files import Row, cell, read_table, split_column


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("spec", "path", "column"),
    [
        ("a.csv", "a.csv", None),
        ("a.csv:goal", "a.csv", "goal"),
        ("x/a.CSV:my goal", "x/a.CSV", "my goal"),
        (r"C:\data\a.csv", r"C:\data\a.csv", None),
        (r"C:\data\a.csv:goal", r"C:\data\a.csv", "goal"),
        ("C:/data/a.jsonl:goal", "C:/data/a.jsonl", "goal"),
        ("hf://datasets/org/name/a.parquet", "hf://datasets/org/name/a.parquet", None),
        ("hf://datasets/org/name/a.parquet:goal", "hf://datasets/org/name/a.parquet", "goal"),
        ("a:b/c.csv", "a:b/c.csv", None),
    ],
)
def test_a_spec_is_split_into_path_and_column(spec: str, path: str, column: str | None) -> None:
    assert split_column(spec) == (path, column)


def test_a_file_whose_name_has_a_colon_is_a_file(tmp_path: Path) -> None:
    spec = write(tmp_path, "a.csv:b.csv", "text\nx\n")
    assert split_column(spec) == (spec, None)


def test_an_empty_column_is_an_error() -> None:
    with pytest.raises(PromptError, match="ends in a colon"):
        split_column("a.csv:")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,n\n"one, two",1\n"three\nfour",2\n'),
        ("a.CSV", '\ufefftext,n\r\n"one, two",1\r\n"three\nfour",2\r\n'),
        ("a.csv", 'text;n\n"one, two";1\n"three\nfour";2\n'),
        ("a.tsv", 'text\tn\none, two\t1\n"three\nfour"\t2\n'),
        ("a.csv", 'text\tn\none, two\t1\n"three\nfour"\t2\n'),
        ("a.jsonl", '{"text": "one, two", "n": 1}\n\n{"text": "three\\nfour", "n": 2}\n'),
        ("a.ndjson", '\ufeff{"text": "one, two", "n": 1}\r\n{"text": "three\\nfour", "n": 2}'),
    ],
)
def test_text_files_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    table = read_table(write(tmp_path, name, content))
    assert [row.cells["text"] for row in table.rows] == ["one, two", "three\nfour"]
    assert [cell(row, "n") for row in table.rows] == ["1", "2"]


def test_utf_16_is_read(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "text\nnaïve\n".encode("utf-16")))
    assert [row.cells["text"] for row in table.rows] == ["naïve"]


def test_parquet_is_read_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"text": ["one", None], "flag": [1.0, None]}).to_parquet(path)
    rows = read_table(str(path)).rows
    assert [(cell(row, "text"), cell(row, "flag")) for row in rows] == [("one", "1"), ("", "")]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", 'text\n"one\ntwo"\n\nthree\n'))
    assert [table.at(row).rpartition(":")[2] for row in table.rows] == ["2", "5"]


def test_a_line_separator_inside_json_does_not_cut_the_row(tmp_path: Path) -> None:
    record = json.dumps({"text": "one\u2028two"}, ensure_ascii=False)
    assert list(read_table(write(tmp_path, "a.jsonl", record)).rows) == [Row(1, {"text": "one\u2028two"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", " \n\n", "a.csv is empty"),
        ("a.csv", "text\n", "a header but no rows"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0", "a.csv:1 is not UTF-8 text"),
        ("a.csv", b"text\nok\n\xe9t\xe9\n", "a.csv:3 is not UTF-8 text"),
        ("a.csv", "text\na\0b\n", "is a binary file"),
        ("a.csv", "text,n\nok,1\none, two,2\n", "a.csv:3 has 3 fields, expected 2"),
        ("a.csv", 'text\nok\n"never closed\n', "a.csv:3 is not valid CSV"),
        ("a.jsonl", '{"text": "ok"}\n{"text": \n', "a.jsonl:2 is not valid JSON"),
        ("a.jsonl", '["text"]\n', "a.jsonl:1 is a JSON list"),
        ("a.parquet", "text\nno parquet\n", "a.parquet cannot be read as parquet"),
        ("a.xlsx", "x", r"unknown type of prompt file .*expected a name ending in .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        list(read_table(write(tmp_path, name, content)).rows)
    assert "\n" not in str(caught.value)


def test_a_missing_file_offers_near_names(tmp_path: Path) -> None:
    write(tmp_path, "prompts.csv", "text\nx\n")
    with pytest.raises(PromptError, match=r"no prompt file .* Did you mean prompts\.csv"):
        read_table(str(tmp_path / "promts.csv"))
    with pytest.raises(PromptError, match="There is no folder"):
        read_table(str(tmp_path / "nowhere" / "prompts.csv"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(PromptError, match="is a folder"):
        read_table(str(tmp_path / "a.csv"))


def test_other_addresses_are_refused() -> None:
    for address in ("http://example.org/a.csv", "ftp://example.org/a.csv", "file:///etc/a.csv"):
        with pytest.raises(PromptError, match="expected a local file, https:// or hf://"):
            read_table(address)


def test_a_hub_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **options: object) -> str:
        raise ConnectionError("no route\nlong trace")

    monkeypatch.setattr(downloads, "hf_hub_download", no_network)
    with pytest.raises(
        PromptError, match=r"cannot read 'hf://datasets/o/n/a\.csv' from the Hugging Face hub"
    ) as caught:
        read_table("hf://datasets/o/n/a.csv")
    assert "\n" not in str(caught.value)


def test_columns_are_found_by_name_or_named(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "Index,Behavior,GOAL\n1,short,long\n"))
    assert table.text_column() == "GOAL"
    assert table.text_column("behavior") == "Behavior"
    with pytest.raises(PromptError, match=r"no column 'gaol'\. Did you mean goal\? It has: Index, Behavior, GOAL"):
        table.text_column("gaol")


def test_no_usable_column_names_what_the_file_has(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "x,y\n1,2\n"))
    with pytest.raises(PromptError, match=r"It has: x, y\. Name one: .*a\.csv:COLUMN"):
        table.text_column()
