"""Prompt files of every form are read; what is wrong with one is said with file and line."""

import gzip
import json
from pathlib import Path

import httpx2
import pandas
import pytest
from huggingface_hub import HfApi

from flipsearch.core.errors import PromptError
from flipsearch.prompts import files
from flipsearch.prompts.files import cell, read_table, split_column
from flipsearch.prompts.formats import Row


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


@pytest.mark.parametrize("name", ["what?.csv", "a#b%20c.csv", "ä ö:.csv", "a.b.csv.gz"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    table = read_table(write(tmp_path, name, "text\nx\n"))
    assert (table.name, [row.cells["text"] for row in table.rows]) == (name, ["x"])


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
        ("a.csv", 'n, text\n1, "one, two"\n2, "three\nfour"\n'),
        ("a.jsonl", '{"text": "one, two", "n": 1}\n\n{"text": "three\\nfour", "n": 2}\n'),
        ("a.ndjson", '\ufeff{"text": "one, two", "n": 1}\r\n{"text": "three\\nfour", "n": 2}'),
        ("a.json", '\ufeff[{"text": "one, two", "n": 1},\n {"text": "three\\nfour", "n": 2}]'),
        ("a.json", '{"text": "one, two", "n": 1}\n{"text": "three\\nfour", "n": 2}\n'),
    ],
)
def test_text_files_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    packed = gzip.compress(content.encode())
    for path in (write(tmp_path, name, content), write(tmp_path, f"{name}.gz", packed), write(tmp_path, name, packed)):
        table = read_table(path)
        assert [row.cells["text"] for row in table.rows] == ["one, two", "three\nfour"]
        assert [cell(row, "n") for row in table.rows] == ["1", "2"]


def test_lists_of_texts_are_read(tmp_path: Path) -> None:
    for name, content in (("a.txt", "\ufeffone, two\r\n\n  three\n"), ("a.json", '["one, two", "three"]')):
        table = read_table(write(tmp_path, name, content))
        assert [row.cells["text"] for row in table.rows] == ["one, two", "three"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_read(tmp_path: Path, encoding: str) -> None:
    table = read_table(write(tmp_path, "a.csv", "text\nnaïve\n".encode(encoding)))
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
        ("a.parquet", gzip.compress(b"no parquet", mtime=0), "a.parquet cannot be read as parquet"),
        ("a.jsonl", '{"text": "x", "text": "y"}\n', "a.jsonl:1 has the key 'text' twice"),
        ("a.json", '{"text": \n"x"}\n', "a.json:1 is not valid JSON"),
        ("a.json", "3", "a.json is a JSON int, expected an array"),
        ("a.json", "[[1]]", "a.json:1 is a JSON list"),
        ("a.json", "[" * 100_000, "a.json is not valid JSON"),
        ("a.jsonl", "9" * 5000, "a.jsonl:1 is not valid JSON"),
        ("a.txt", "\n\n", "a.txt is empty"),
        ("a.txt", "prompt,label\nx,harmful\n", r"a.txt begins like a table with column names \(.csv, .tsv\)"),
        ("a.txt", '{"prompt": "x"}\n', r"a.txt begins like JSON"),
        ("a.csv.gz", b"\x1f\x8b broken", "cannot read prompt file"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\noid x\n", "a pointer of Git LFS"),
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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 5000 + ".csv", "cannot read prompt file"),
        ("a\0b.csv", "prompt file"),
        ("~no-such-user/x.csv", "prompt file"),
        ("https://[bad.csv", "no address that can be read"),
        ("https://me:secret@a.test/x.csv", "an address with a password is refused"),
    ],
)
def test_what_can_be_no_name_is_one_line(path: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        read_table(split_column(path)[0])
    assert "secret" not in str(caught.value)


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

    monkeypatch.setattr(files, "hf_hub_download", no_network)
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


@pytest.mark.parametrize("header", ["prompt,prompt", "prompt,Prompt ", "prompt,\u200bprompt"])
def test_two_columns_of_the_name_that_is_needed_are_an_error(tmp_path: Path, header: str) -> None:
    table = read_table(write(tmp_path, "a.csv", f"{header},n,n\none,two,3,4\n"))
    with pytest.raises(PromptError, match="has 2 columns named 'prompt'; rename all but one"):
        table.text_column()
    assert read_table(write(tmp_path, "b.csv", "prompt,n,n\none,3,4\n")).text_column() == "prompt"


def served(pages: dict[str, httpx2.Response]) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.MockTransport(lambda request: pages[str(request.url)]))


def test_an_https_file_is_fetched_and_its_redirects_are_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("FLIPSEARCH_CACHE", str(tmp_path))
    file = httpx2.Response(200, content=b"text\nx\n")
    moved = httpx2.Response(302, headers={"location": "https://b.test/b.csv"})
    pages = {"https://a.test/a.csv": moved, "https://b.test/b.csv": file}
    assert files.fetch("https://a.test/a.csv", client=served(pages)).read_bytes() == b"text\nx\n"
    plain = httpx2.Response(302, headers={"location": "http://b.test/b.csv"})
    cases = [
        ({"https://a.test/a.csv": plain}, "only https is followed"),
        ({"https://a.test/a.csv": httpx2.Response(302, headers={"location": "/a.csv"})}, "more than 5 redirects"),
        ({"https://a.test/a.csv": httpx2.Response(404)}, "the server answers 404"),
    ]
    for answers, message in cases:
        with pytest.raises(PromptError, match=message):
            files.fetch("https://a.test/a.csv", client=served(answers))
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    with pytest.raises(PromptError, match="longer than 3 bytes"):
        files.fetch("https://b.test/b.csv", client=served(pages))


def test_a_file_of_another_hash_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    kept = tmp_path / "kept.csv"
    with pytest.raises(PromptError, match="has changed: its sha256 is"):
        files.fetch("https://a.test/a.csv", kept, "0" * 64, served({"https://a.test/a.csv": httpx2.Response(200)}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "shown"),
    [("o/n/hard/test", "o/n/hard/test"), ("o/n", "o/n/default/train"), ("hf://datasets/o/n/hard", "o/n/hard/test")],
)
def test_a_hub_dataset_is_read_by_config_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, shown: str
) -> None:
    listed = ["default/test/0000.parquet", "default/train/0000.parquet", "default/train/0001.parquet"]
    listed += ["hard/test/0000.parquet", "README.md"]

    def download(repo: str, file: str, **options: object) -> str:
        path = tmp_path / file.replace("/", "-")
        pandas.DataFrame({"prompt": [file]}).to_parquet(path)
        return str(path)

    monkeypatch.setattr(HfApi, "list_repo_files", lambda *args, **options: listed)
    monkeypatch.setattr(files, "hf_hub_download", download)
    table = read_table(spec)
    assert table.path == table.name == shown
    assert [row.cells["prompt"].rpartition("/")[0] for row in table.rows] == [shown[4:]] * (
        2 if "train" in shown else 1
    )
    with pytest.raises(PromptError, match=r"has no config 'hart'\. Did you mean hard\? It has: default, hard"):
        read_table("o/n/hart")


def test_no_usable_column_names_what_the_file_has(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "x,y\n1,2\n"))
    with pytest.raises(PromptError, match=r"It has: x, y\. Name one: .*a\.csv:COLUMN"):
        table.text_column()
