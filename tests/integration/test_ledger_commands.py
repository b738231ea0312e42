"""`flipsearch ledger`, `flipsearch plan` and events.jsonl as a user meets them, on scripted replies."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import flipsearch
from flipsearch.core.records import Label, Verdict
from flipsearch.ledger import Ledger
from tests.integration.test_cli import one_line_error, run, scripted
from tests.unit.ledger.test_ledger import rollout

UNMOVED = "Sure, here is how. Step 1: go there. Step 2: take it."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search of two contexts that flip nothing."""
    place = tmp_path_factory.mktemp("searched")
    run(*scripted(place, UNMOVED), "--study", "s", cwd=place, code=1)
    return place


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "reports" / "s" / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("study", ["s", "reports/s", "reports/s/ledger.db"])
def test_check_finds_the_ledger_by_name_folder_and_file(folder: Path, study: str) -> None:
    printed = json.loads(run("ledger", "check", study, "--json", cwd=folder).stdout)
    assert printed["is_sound"] is True
    assert printed["num_rollouts"] == printed["num_verdicts"] > 0
    shown = run("ledger", "check", study, cwd=folder).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("rollouts (0 failed", "context baseline", "judge", "sound"):
        assert word in shown


def test_check_exits_1_with_a_line_for_each_kind_of_fault(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger.db"
    copy.write_bytes((folder / "reports" / "s" / "ledger.db").read_bytes())
    connection = sqlite3.connect(copy)
    with connection:
        connection.execute("UPDATE rollouts SET seed = 9, temperature = 0.5")
        connection.execute("UPDATE verdicts SET label = '\x1b[31m'")
    connection.close()
    wrong = [
        line for line in run("ledger", "check", str(copy), cwd=tmp_path, code=1).stdout.splitlines() if "Wrong" in line
    ]
    assert len(wrong) == 2
    assert "\x1b" not in "".join(wrong)
    assert json.loads(run("ledger", "check", str(copy), "--json", cwd=tmp_path, code=1).stdout)["is_sound"] is False


def test_check_reports_what_was_in_flight(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger.db"
    copy.write_bytes((folder / "reports" / "s" / "ledger.db").read_bytes())
    with Ledger(copy) as ledger, pytest.raises(KeyboardInterrupt), ledger.in_flight("cohort 1/2", ["x", "y"]):
        raise KeyboardInterrupt
    shown = run("ledger", "check", "ledger.db", cwd=tmp_path).stdout
    assert "2 rollouts (cohort 1/2) were in flight when the last process ended; the same command makes them" in shown


def test_export_to_stdout_and_to_files(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in run("ledger", "export", "s", cwd=folder).stdout.splitlines()]
    assert {row["completion"] for row in rows} == {UNMOVED}
    assert all(len(row["verdicts"]) == 1 for row in rows)
    for ending in ("jsonl", "csv", "parquet"):
        path = tmp_path / f"out.{ending}"
        printed = json.loads(run("ledger", "export", "s", "--to", str(path), "--json", cwd=folder).stdout)
        assert (printed["path"], printed["rows"]) == (str(path), len(rows))
        assert path.stat().st_size > 0
    assert f"{len(rows)} rollouts" in run("ledger", "export", "s", "--to", str(path), cwd=folder).stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ledger", "check", "nowhere"), "unknown study 'nowhere'"),
        (("ledger", "check", "x.csv"), "not a"),
        (("ledger", "export", "nowhere"), "unknown study 'nowhere'"),
        (("ledger", "export", "x.csv", "--to", "out.txt"), ".parquet"),
        (("ledger", "chek", "s"), "chek"),
        (("plan", "--model", "pockt"), "Did you mean pocket?"),
        (("plan", "--judge", "refusl"), "Did you mean refusal?"),
        (("plan", "--delta", "2"), "delta = 2.0"),
        (("plan", "--budget-tokens", "3"), "cannot hold the baseline"),
        (("search", "--budget-tokens", "3"), "cannot hold the baseline"),
        (("search", "--time", "soon"), "--time is 'soon'"),
        (("search", "--trials", "0"), "--num-contexts is 0"),
        (("search", "--study", "_judges"), "--study is '_judges', expected a name that does not begin with '_'"),
        (("plan", "--study", "./_mine/s"), "--study is './_mine/s': expected the name of a folder"),
        (("score", "be safe", "--study", "trainings"), "--study is 'trainings', expected a name"),
        (("search", "--study", "evaluations"), "--study is 'evaluations', expected a name"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    (tmp_path / "x.csv").write_text("a,b\n" * 300)
    assert expected in one_line_error(*arguments, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_summary_of_what_goes_to_stdout_is_refused(tmp_path: Path) -> None:
    assert "give --to FILE" in run("ledger", "export", "s", "--json", cwd=tmp_path, code=2).stderr


def test_a_plan_is_printed_within_80_columns_and_writes_nothing(tmp_path: Path) -> None:
    shown = run("plan", "--trials", "1000", "--budget-tokens", "2000000", "--time", "2h", cwd=tmp_path).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("prompts", "baseline", "confirm", "at most", "2,000,000 tokens or 7200 s"):
        assert word in shown
    assert list(tmp_path.iterdir()) == []


def test_a_plan_knows_the_lengths_of_its_study(tmp_path: Path) -> None:
    command = ("plan", *scripted(tmp_path, UNMOVED)[1:], "--study", "s")
    assert json.loads(run(*command, "--json", cwd=tmp_path).stdout)["mean_length"] is None
    with Ledger(tmp_path / "reports" / "s" / "ledger.db") as ledger:
        answers = [rollout(1, completion_ids=(1, 2, 3)), rollout(2, completion_ids=(1, 2))]
        ledger.save_rollouts(answers)
        ledger.save_verdicts("judge", [(answer.rollout_id, Verdict(Label.SAFE, 0.0)) for answer in answers])
    assert json.loads(run(*command, "--json", cwd=tmp_path).stdout)["mean_length"] == 2.5
    assert "at 2.5 each, as in this study's ledger" in run(*command, cwd=tmp_path).stdout


def test_python_gives_what_the_commands_give(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert flipsearch.check_ledger("s").is_sound
    assert flipsearch.export_ledger("s", to="out.csv").num_rollouts == flipsearch.check_ledger("s").num_rollouts
    assert flipsearch.plan(num_contexts=3, delta=0.1).num_contexts == 3


def test_a_search_says_beforehand_what_it_takes(tmp_path: Path) -> None:
    done = run(*scripted(tmp_path, UNMOVED), "--study", "s", cwd=tmp_path, code=1)
    assert "rollouts" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
    again = run(*scripted(tmp_path, UNMOVED), "--study", "s", "--json", cwd=tmp_path, code=1)
    assert "rollouts" not in again.stderr


def test_events_record_the_course_of_a_search(tmp_path: Path) -> None:
    command = (*scripted(tmp_path, UNMOVED), "--study", "s", "--template", "values_prose")
    run(*command, cwd=tmp_path, code=1)
    first = events_of(tmp_path)
    names = ["launch", "baseline", "rung", "rung", "rung", "trial", "trial", "confirm", "done"]
    assert [event["event"] for event in first] == names
    launch, baseline, rung, _, _, trial, _, confirm, done = first
    assert (launch["command"], launch["settings"]["num_contexts"]) == ("search", 2)
    assert launch["versions"]["flipsearch"] == flipsearch.__version__
    assert launch["plan"]["rollouts"]["total"]["most"] > 0
    assert baseline["unsafe"] == {"count": baseline["num_prompts"] // 2, "n": baseline["num_prompts"] // 2, "rate": 1.0}
    assert (rung["cohort"], rung["rung"], rung["num_running"]) == ("cohort 1/1", 1, 2)
    assert (trial["state"], trial["template"], trial["flip"]["count"]) == ("complete", "values_prose", 0)
    assert trial["context_id"] in confirm["finalists"]
    assert done["winner"]["context_id"] == confirm["finalists"][0]
    assert done["num_rollouts"] > 0
    path = tmp_path / "reports" / "s" / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "20')
    run(*command, cwd=tmp_path, code=1)
    lines = path.read_text().splitlines()
    assert lines[len(names)] == '{"time": "20'
    assert [json.loads(line)["event"] for line in lines[len(names) + 1 :]] == names
    assert (tmp_path / "reports" / "s" / "optuna.db").is_file()


def test_a_score_has_events_too(tmp_path: Path) -> None:
    _, *model, _, _ = scripted(tmp_path, UNMOVED)
    run("score", "values_prose", *model, "--study", "s", cwd=tmp_path)
    assert [event["event"] for event in events_of(tmp_path)] == ["launch", "done"]
