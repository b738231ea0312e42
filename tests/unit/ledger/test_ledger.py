"""The ledger: records come back unchanged, survive a kill, and errors are one line."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import LedgerError
from flipsearch.core.records import Label, Rollout, Sampling, Verdict
from flipsearch.ledger import CHUNK, Ledger
from flipsearch.ledger.tables import IN_FLIGHT

SAMPLING = Sampling(max_tokens=32, temperature=0.7, top_p=0.9, top_k=20, seed=3, repetition_penalty=1.1)


def rollout(number: int, **fields: object) -> Rollout:
    known = {
        "prompt_id": f"p{number}",
        "context_id": None,
        "model_id": "m",
        "sampling": SAMPLING,
        "sample_index": 0,
        "completion": f"text {number}",
        "completion_ids": (number, 2**32 - 1),
        "num_prompt_tokens": 7,
        "finish_reason": "stop",
    }
    return Rollout(**(known | fields))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


ROLLOUTS = st.builds(
    rollout,
    st.integers(0, 999),
    context_id=st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
    completion=st.text(st.characters(exclude_categories=["Cs"])),
    completion_ids=st.lists(st.integers(0, 2**32 - 1)).map(tuple),
    finish_reason=st.sampled_from(["stop", "length"]),
    opens_thinking=st.booleans(),
)


@given(st.lists(ROLLOUTS, unique_by=lambda r: r.rollout_id))
def test_rollouts_come_back_as_they_went_in(rollouts: list[Rollout]) -> None:
    with Ledger("sqlite://") as ledger:
        ledger.save_rollouts(rollouts)
        ids = [each.rollout_id for each in rollouts]
        assert ledger.rollouts(ids) == dict(zip(ids, rollouts, strict=True))
        assert ledger.lengths(ids) == {each.rollout_id: len(each.completion_ids) for each in rollouts}


def test_more_ids_than_fit_into_one_query(ledger: Ledger) -> None:
    rollouts = [rollout(number) for number in range(2 * CHUNK + 1)]
    ledger.save_rollouts(rollouts)
    assert len(ledger.rollouts([each.rollout_id for each in rollouts] + ["unknown"])) == len(rollouts)


def test_a_failed_rollout_is_kept_but_not_served(ledger: Ledger) -> None:
    failed = rollout(1, finish_reason="error", error="too long", completion="", completion_ids=())
    ledger.save_rollouts([failed])
    id = failed.rollout_id
    assert ledger.rollouts([id]) == {}
    assert ledger.lengths([id]) == {}
    assert ledger.rollouts([id], errors=True) == {id: failed}
    assert ledger.counts() == {"rollouts": 1, "errors": 1, "verdicts": 0}
    ledger.save_rollouts([rollout(1)])
    assert ledger.rollouts([id]) == {id: rollout(1)}
    assert ledger.counts() == {"rollouts": 1, "errors": 0, "verdicts": 0}


def test_repeats_are_never_served_as_each_other(ledger: Ledger) -> None:
    repeats = [rollout(1, sample_index=index, completion=f"draw {index}") for index in range(3)]
    ledger.save_rollouts(repeats[:2])
    assert len({each.rollout_id for each in repeats}) == 3
    assert set(ledger.rollouts(each.rollout_id for each in repeats).values()) == set(repeats[:2])
    ledger.save_rollouts(repeats[2:])
    for each in repeats:
        assert ledger.rollouts([each.rollout_id]) == {each.rollout_id: each}


def test_rollouts_in_flight_are_marked_until_they_have_come_back(ledger: Ledger) -> None:
    with ledger.in_flight("rung 1", ["a", "b"]):
        assert json.loads(ledger.notes()[IN_FLIGHT].value) == {"phase": "rung 1", "rollout_ids": ["a", "b"]}
    assert ledger.notes() == {}
    for phase in ("one", "two"):
        with pytest.raises(KeyboardInterrupt), ledger.in_flight(phase, ["c"]):
            raise KeyboardInterrupt
    assert json.loads(ledger.notes()[IN_FLIGHT].value)["phase"] == "two"


def test_pages_hold_every_rollout_once_in_the_order_of_ids(ledger: Ledger) -> None:
    assert list(ledger.pages()) == []
    ledger.save_rollouts([rollout(number) for number in range(CHUNK + 3)])
    pages = list(ledger.pages())
    assert [len(page) for page in pages] == [CHUNK, 3]
    ids = [row["rollout_id"] for page in pages for row in page]
    assert ids == sorted(rollout(number).rollout_id for number in range(CHUNK + 3))


def test_the_mean_length_is_that_of_judged_rollouts_with_known_tokens(ledger: Ledger) -> None:
    assert ledger.mean_length() is None
    ledger.save_rollouts([rollout(1, completion_ids=(1, 2, 3)), rollout(2, completion_ids=(1, 2))])
    ledger.save_rollouts([rollout(3, completion_ids=()), rollout(4, finish_reason="error", completion_ids=(1,) * 9)])
    ledger.save_rollouts([rollout(5, completion_ids=(1,) * 9)])  # never judged: no answer to a prompt
    for judge in ("one", "another"):
        ledger.save_verdicts(judge, [(rollout(number).rollout_id, Verdict(Label.SAFE, 0.0)) for number in range(1, 5)])
    assert ledger.mean_length() == 2.5


def test_verdicts_belong_to_their_judge(ledger: Ledger) -> None:
    unscored = Verdict(Label.UNSCORED, reason="cut short")
    unsafe = Verdict(Label.UNSAFE, 0.9, 0.1, "complies", 0.99)
    ledger.save_verdicts("one", [("a", unscored), ("b", unsafe)])
    ledger.save_verdicts("two", [("a", unsafe)])
    assert ledger.verdicts("one", ["a", "b", "c"]) == {"a": unscored, "b": unsafe}
    assert ledger.verdicts("two", ["a", "b"]) == {"a": unsafe}


def test_a_note_is_written_once(ledger: Ledger) -> None:
    first = ledger.note("opened", "x")
    assert ledger.note("opened", "y") == first
    ledger.note("later", "z")
    assert {key: note.value for key, note in ledger.notes().items()} == {"opened": "x", "later": "z"}
    assert first.time.endswith("+00:00")


def test_everything_is_there_after_reopening(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.save_rollouts([rollout(1)])
        ledger.note("k", "v")
    with Ledger(path) as ledger:
        assert ledger.counts()["rollouts"] == 1
        assert list(ledger.notes()) == ["k"]


def test_two_processes_do_not_share_a_study(path: Path) -> None:
    with Ledger(path) as first:
        with pytest.raises(LedgerError, match=r"in use by another flipsearch; wait .*another reports folder\.$"):
            Ledger(path)
        first.save_rollouts([rollout(1)])
        with Ledger(path, read_only=True) as reader:
            assert reader.counts()["rollouts"] == 1
    with Ledger(path) as second:
        assert second.counts()["rollouts"] == 1


def test_reading_writes_nothing(path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be"):
        Ledger(path, read_only=True)
    assert not path.exists()
    Ledger(path).close()
    with Ledger(path, read_only=True) as reader, pytest.raises(LedgerError, match="cannot be written"):
        reader.save_rollouts([rollout(1)])


KILLED = """
import sys
from flipsearch.ledger import Ledger
from tests.unit.ledger.test_ledger import rollout
ledger = Ledger(sys.argv[1])
ledger.save_rollouts([rollout(number) for number in range(5)])
with ledger._writing() as connection:  # a transaction that never ends
    connection.exec_driver_sql("DELETE FROM rollouts")
    print("now", flush=True)
    sys.stdin.read()
"""


def test_kill_loses_only_what_was_not_committed(path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        with pytest.raises(LedgerError, match="in use"):
            Ledger(path)
        process.send_signal(signal.SIGKILL)
    with Ledger(path) as ledger:
        assert ledger.counts()["rollouts"] == 5


def test_full_disk_is_one_line_and_loses_nothing(ledger: Ledger, path: Path) -> None:
    ledger.save_rollouts([rollout(1)])
    with ledger._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerError, match=r"full\. Free some space") as caught:
        ledger.save_rollouts([rollout(number, completion="x" * 9000) for number in range(2, 9)])
    assert "\n" not in str(caught.value)
    assert ledger.rollouts([rollout(1).rollout_id, rollout(2).rollout_id]) == {rollout(1).rollout_id: rollout(1)}


@pytest.mark.parametrize("content", [b"prompt,label\nhello,harmful\n" * 60, b"SQLite format 3\x00 but torn" * 60])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"not a flipsearch ledger|not a database"):
        Ledger(path)
    assert path.read_bytes() == content


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE users (name TEXT)")
    other.close()
    with pytest.raises(LedgerError, match="not a flipsearch ledger; name another file"):
        Ledger(path)


def test_another_format_is_refused(path: Path) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE flipsearch_format SET version = 99")
    raw.close()
    with pytest.raises(LedgerError, match=r"format 99, expected 8; .* or choose another reports folder"):
        Ledger(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(LedgerError, match="Choose a folder"):
        Ledger(tmp_path / "ledger.db")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LedgerError, match=r"cannot be created: .*\. Choose a folder"):
        Ledger(tmp_path / "file" / "ledger.db")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that refuses files even to root")
def test_a_folder_that_refuses_files() -> None:
    with pytest.raises(LedgerError, match="Choose a folder"):
        Ledger(Path("/proc/self/ledger.db"))


@pytest.mark.parametrize("url", ["nosuchdb://host/x", "sqlite://host:port:x/y", "postgresql+nosuchdriver://host/x"])
def test_a_bad_url_is_one_line(url: str) -> None:
    with pytest.raises(LedgerError, match="no database URL that can be used") as caught:
        Ledger(url)
    assert "\n" not in str(caught.value)
