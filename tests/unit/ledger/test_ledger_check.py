"""Checking a ledger: a sound one is counted, every kind of fault is named, nothing is written."""

import json
import sqlite3
from pathlib import Path

import pytest

from flipsearch.core.errors import LedgerError
from flipsearch.core.records import FinishReason, Label, PrefixScore, Verdict
from flipsearch.ledger import Ledger
from flipsearch.ledger.check import check_ledger
from tests.unit.ledger.test_ledger import rollout

ROLLOUTS = [rollout(number) for number in range(4)]
IDS = [each.rollout_id for each in ROLLOUTS]
FAILED = rollout(4, finish_reason="error", error="too long", completion="", completion_ids=(), context_id="c" * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound ledger: four finished rollouts, three of them judged, and a failed one."""
    place = tmp_path / "ledger.db"
    with Ledger(place) as ledger:
        ledger.save_rollouts([*ROLLOUTS, FAILED])
        ledger.save_verdicts("judge", [(IDS[0], Verdict(Label.SAFE, 0.1)), (IDS[1], Verdict(Label.UNSAFE, 1.0))])
        ledger.save_verdicts("judge", [(IDS[2], Verdict(Label.UNSCORED, reason="pruned"))])
        ledger.save_verdicts("other", [(IDS[0], Verdict(Label.UNSAFE, 0.9))])
    return place


def broken(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_a_sound_ledger_is_counted(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    result = check_ledger(path)
    assert result.is_sound
    assert (result.num_rollouts, result.num_errors, result.num_verdicts, result.num_unjudged) == (5, 1, 4, 1)
    assert (result.by_model, result.by_context) == ({"m": 5}, {"baseline": 4, "c" * 16: 1})
    assert result.by_judge == {"judge": 3, "other": 1}
    assert result.in_flight is None
    assert json.loads(json.dumps(result.as_dict()))["is_sound"] is True
    assert {name: (path.parent / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE rollouts SET sample_index = 7 WHERE rollout_id = ?", "id is not the hash"),
        ("UPDATE rollouts SET model_id = 'n' WHERE rollout_id = ?", "id is not the hash"),
        ("UPDATE rollouts SET completion_ids = x'0102' WHERE rollout_id = ?", "tokens cannot be unpacked"),
        ("UPDATE rollouts SET finish_reason = 'odd' WHERE rollout_id = ?", "unknown finish reason"),
        ("DELETE FROM rollouts WHERE rollout_id = ?", "without a rollout"),
        ("UPDATE verdicts SET label = 'odd' WHERE judge_id = 'other' AND rollout_id = ?", "unknown label"),
        ("UPDATE verdicts SET kind = 'odd' WHERE judge_id = 'other' AND rollout_id = ?", "unknown kind of answer"),
        ("UPDATE verdicts SET label = 'unscored' WHERE judge_id = 'other' AND rollout_id = ?", "UNSCORED with a p"),
        ("UPDATE verdicts SET p_unsafe = NULL WHERE judge_id = 'other' AND rollout_id = ?", "without a p_unsafe"),
        ("UPDATE verdicts SET p_unsafe = 1.5 WHERE judge_id = 'other' AND rollout_id = ?", "outside 0 to 1"),
        ("UPDATE rollouts SET completion = 'No.' WHERE rollout_id = ?", "rollouts that were altered"),
        ("UPDATE rollouts SET opens_thinking = 1 WHERE rollout_id = ?", "rollouts that were altered"),
        (
            "UPDATE verdicts SET p_unsafe = 0.2 WHERE judge_id = 'other' AND rollout_id = ?",
            "verdicts that were altered",
        ),
        ("UPDATE verdicts SET reason = 'fine' WHERE judge_id = 'other' AND rollout_id = ?", "verdicts that were"),
        ("UPDATE rollouts SET completion = x'ff' WHERE rollout_id = ?", "rollouts with a value of the wrong kind"),
        ("UPDATE rollouts SET completion_ids = 5 WHERE rollout_id = ?", "rollouts with a value of the wrong kind"),
        ("UPDATE rollouts SET max_tokens = 'x' WHERE rollout_id = ?", "rollouts with a value of the wrong kind"),
        ("UPDATE verdicts SET p_unsafe = 'x' WHERE judge_id = 'other' AND rollout_id = ?", "of the wrong kind"),
    ],
)
def test_every_kind_of_fault_is_named_with_its_first_row(path: Path, statement: str, kind: str) -> None:
    broken(path, statement, IDS[0])
    (fault,) = check_ledger(path).faults
    assert kind in fault.kind
    assert fault.example == IDS[0]
    assert fault.count == (2 if "without a rollout" in kind or "failed or filtered" in kind else 1)


@pytest.mark.parametrize("reason", ["error", "filtered"])
def test_a_verdict_that_scores_a_rollout_without_an_answer_is_a_fault(path: Path, reason: FinishReason) -> None:
    with Ledger(path) as ledger:
        ledger.save_rollouts([rollout(0, finish_reason=reason, error="too long")])
    (fault,) = check_ledger(path).faults
    assert (fault.kind, fault.count, fault.example) == ("verdicts that score a failed or filtered rollout", 2, IDS[0])


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE rollouts SET completion = x'ff'", "rollouts"),
        ("UPDATE rollouts SET completion_ids = 5", "rollouts"),
        ("UPDATE rollouts SET finish_reason = 'odd'", "rollouts"),
        ("UPDATE verdicts SET label = 7", "verdicts"),
        ("UPDATE verdicts SET kind = 'odd'", "verdicts"),
        ("UPDATE prefix_scores SET log_probs = 'x'", "prefix_scores"),
        ("UPDATE notes SET value = x'00'", "notes"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_one_line_error_for_readers(path: Path, statement: str, read: str) -> None:
    with Ledger(path) as ledger:
        ledger.note("model", "m")
        ledger.save_prefix_scores([(IDS[0], PrefixScore((-0.5,), 1))])
    broken(path, statement)
    arguments = {"notes": (), "verdicts": ("judge", IDS)}.get(read, (IDS,))
    with Ledger(path) as ledger, pytest.raises(LedgerError, match=r"is not sound.*ledger check"):
        getattr(ledger, read)(*arguments)


def test_half_a_character_is_stored_as_a_replacement(path: Path) -> None:
    odd = rollout(9, completion="a \ud800 b")
    with Ledger(path) as ledger:
        ledger.save_rollouts([odd])
        ledger.save_verdicts("judge", [(odd.rollout_id, Verdict(Label.SAFE, 0.1, reason="\udfff"))])
        assert ledger.rollouts([odd.rollout_id])[odd.rollout_id].completion == "a \ufffd b"
    assert check_ledger(path).is_sound


def test_each_fault_is_one_entry(path: Path) -> None:
    broken(path, "UPDATE rollouts SET model_id = 'n'")
    broken(path, "UPDATE verdicts SET p_unsafe = NULL")
    assert [(fault.count, fault.kind) for fault in check_ledger(path).faults] == [
        (5, "rollouts whose id is not the hash of their fields"),
        (3, "verdicts scored without a p_unsafe"),
    ]


def test_damage_to_the_file_is_found(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.save_rollouts([rollout(number, completion="x" * 3000) for number in range(10, 60)])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    connection.close()
    content = bytearray(path.read_bytes())
    content[60_000:70_000] = b"\xff" * 10_000
    path.write_bytes(bytes(content))
    (fault,) = check_ledger(path).faults
    assert fault.kind == "the file is damaged"


def test_a_file_that_is_no_ledger_cannot_be_checked(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"a,b\n" * 500)
    with pytest.raises(LedgerError, match="not a database"):
        check_ledger(tmp_path / "x.db")


def test_rollouts_in_flight_when_a_process_ended_are_reported(path: Path) -> None:
    new = [rollout(number).rollout_id for number in (20, 21, 22)]
    with Ledger(path) as ledger:
        with pytest.raises(KeyboardInterrupt), ledger.in_flight("rung 2", [*new, FAILED.rollout_id]):
            raise KeyboardInterrupt
        ledger.save_rollouts([rollout(20)])
        running = check_ledger(path).in_flight
    ended = check_ledger(path).in_flight
    assert running is not None
    assert ended is not None
    # One came; two did not, and a failure is tried again.
    assert (running.is_running, running.phase, running.count) == (True, "rung 2", 3)
    assert (ended.is_running, ended.count) == (False, 3)
