"""Whatever a prompt file holds, reading it gives prompts or one line that says what is wrong; never a traceback."""

import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipsearch.core.errors import FlipsearchError, PromptError
from flipsearch.judging.labels import read_labels
from flipsearch.prompts import formats
from flipsearch.prompts.problems import load_problems
from flipsearch.prompts.sets import load_prompts

ROWS = [
    {"prompt": "How do I pick a lock?", "label": "harmful", "category": "theft", "response": "No.", "is_safe": True},
    {"prompt": "How do I bake bread?", "label": "benign", "category": "cooking", "response": "Mix.", "is_safe": 1.0},
]
CHAT = [{"messages": [{"role": "user", "content": "Hello"}], "conversations": None, "turns": ["one"], "data_type": "x"}]
PROBLEMS = [{"question": "Which?", "choices": ["one", "two"], "answer": 1, "Correct Answer": None, "A": "x"}]
NASTY = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b'"', b"'", b"[", b"{", b"}", b"]", b",", b"\t", b";", b"\x1f\x8b",
    b"NaN", b"1e999", b"9" * 5000, b"\\ud800", b"\\u0000", b"null", b"true", b"\xed\xa0\x80", "\u2028\u200b".encode(),
    b"label", b"prompt", b"type", b"contrast_homonyms", b"choices", b"turns", b"split", b"search", b"\n" * 50,
]  # fmt: skip
ENDINGS = ["csv", "tsv", "json", "jsonl", "txt", "parquet"]


def content(rows: list[dict[str, object]], ending: str) -> bytes:
    if ending == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    if ending == "json":
        return json.dumps(rows).encode()
    if ending == "txt":
        return b"How do I pick a lock?\nHow do I bake bread?\n"
    frame, stream = pandas.DataFrame(rows), io.BytesIO()
    if ending == "parquet":
        frame.astype(dict.fromkeys(frame, "object")).astype(str).to_parquet(stream)
        return stream.getvalue()
    return frame.to_csv(index=False, sep="\t" if ending == "tsv" else ",").encode()


WHOLE = {(ending, i): content(rows, ending) for ending in ENDINGS for i, rows in enumerate((ROWS, CHAT, PROBLEMS))}  # type: ignore[arg-type]


def mangle(rng: random.Random) -> tuple[str, bytes]:
    """Return a file's ending and its bytes after a few cuts, flips, copies and insertions."""
    ending, number = rng.choice(list(WHOLE))
    data = bytearray(WHOLE[ending, number])
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data) + 1)
        other = place + rng.choice([1, 3, 10, len(data)])
        match rng.randrange(5):
            case 0:
                del data[place:other]
            case 1:
                data[place:place] = rng.choice(NASTY)
            case 2:
                data[place:place] = data[place:other]
            case 3 if data:
                data[min(place, len(data) - 1)] = rng.randrange(256)
            case 4:
                data[place : place + 4] = rng.choice(NASTY)
    if rng.random() < 0.15:
        return f"{ending}.gz", gzip.compress(bytes(data))[: rng.choice([None, 20, -4])]
    return ending, bytes(data)


def read_everything(path: str) -> tuple[list[Sequence[object]], list[str]]:
    """Read a file in all the ways in which commands do; return what was read, and the messages of the refusals."""
    readers: tuple[Callable[[], Sequence[object]], ...] = (
        lambda: load_prompts(path).prompts,
        lambda: load_prompts(harmful=path).prompts,
        lambda: load_prompts(benign=[f"{path}:prompt"]).prompts,
        lambda: load_problems(path).problems,
        lambda: read_labels([path]),
    )
    read, refusals = [], []
    for reader in readers:
        try:
            read.append(reader())
        except FlipsearchError as error:
            refusals.append(str(error))
    return read, refusals


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_mangled_file_is_read_or_refused(seed: int) -> None:
    ending, data = mangle(random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        path.write_bytes(data)
        read, refusals = read_everything(str(path))
    assert all(read)
    assert all(message.strip() and len(message.splitlines()) == 1 for message in refusals)


def test_a_packed_file_of_endless_lines_or_packed_twice_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_UNPACKED_BYTES", 10_000)
    path, rows = tmp_path / "a.csv.gz", b"prompt\n" + b"a\n" * 10_000
    for content, message in ((gzip.compress(rows), "unpacks to more"), (gzip.compress(gzip.compress(rows)), "twice")):
        path.write_bytes(content)
        with pytest.raises(PromptError, match=message):
            list(formats.read_rows(str(path), path, "csv"))
