"""A study that runs or was stopped: reported as far as it came, without a winner, and only read while it runs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flipsearch
from flipsearch.core.errors import StudyError
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting.files import read_study, write_study
from flipsearch.reporting.verdict import verdict
from flipsearch.searching import prepare_search, run_study
from flipsearch.workspace import StudySession
from tests.integration.test_study import CONFIG, PROMPTS, study_of
from tests.pages import data_of, words_of
from tests.world import GREEDY, Model, RefusalJudge, library


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Study]]:
    """A folder as a search leaves it that is stopped after its second rung, and the studies after each rung."""
    folder, studies = tmp_path_factory.mktemp("study") / "stopped", list[Study]()

    def on_rung(make: Callable[[], Study]) -> None:
        studies.append(make())
        write_study(studies[-1], folder)
        if len(studies) == 2:
            raise KeyboardInterrupt

    setup = prepare_search(CONFIG, library(), PROMPTS)
    with Ledger(folder / "ledger.db") as ledger, pytest.raises(KeyboardInterrupt):
        run_study(setup, Runner(Model(), RefusalJudge(), ledger, GREEDY), on_rung=on_rung)
    (folder / "study.toml").touch()
    return folder, studies


def test_its_page_says_first_that_it_is_unfinished_and_claims_no_winner(stopped: tuple[Path, list[Study]]) -> None:
    folder, studies = stopped
    study = studies[-1]
    assert study.unfinished.startswith("rung 2 of 3, cohort 1/")
    said = verdict(study)
    assert (said.tone, study.winner) == ("unfinished", None)
    assert "Leads so far: #" in " ".join(said.basis)
    none_allowed = replace(study, settings={**study.settings, "max_over_refusal": -1.0})
    assert "None of them is within the caps" in " ".join(verdict(none_allowed).basis)
    page = (folder / "leaderboard.html").read_text(encoding="utf-8")
    words = page.partition("<main>")[2]
    assert words.index(f"Unfinished: {study.unfinished}. No winner is claimed.") < words.index("<table")
    assert "flipsearch train" not in page
    assert "flipsearch search --config" in words_of(page)
    states = {row["state"] for row in data_of(page)["rows"]}
    assert "running" in states
    assert "stopped" not in states


def test_a_stopped_study_is_reported_with_its_answers(stopped: tuple[Path, list[Study]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped[0], folder)
    result = flipsearch.report(folder)
    assert result.study == stopped[1][-1]
    assert result.is_confirmed is False
    assert not (folder / "best.txt").exists()
    answers = data_of((folder / "leaderboard.html").read_text(encoding="utf-8"), "answer-data")
    assert answers["answers"]
    with pytest.raises(StudyError, match="no finished study"):
        read_study(folder)
    write_study(study_of(), folder)
    assert {path.name for path in folder.glob("*.gz")} == {"study.json.gz"}
    assert flipsearch.report(folder).study.unfinished == ""


def test_the_folder_of_a_study_that_runs_is_only_read(stopped: tuple[Path, list[Study]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped[0], folder)
    with Ledger(folder / "ledger.db"):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if "ledger" not in path.name}
        result = flipsearch.report(folder)
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if "ledger" not in path.name} == before
        result.write(tmp_path / "page.html")
    assert "answer-data" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_finished_study_that_is_extended_is_reported_as_unfinished(
    stopped: tuple[Path, list[Study]], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped[0], folder)
    write_study(study_of(), folder)
    at: Any = SimpleNamespace(folder=folder, prompts_id="", notes=())
    StudySession(at, CONFIG, "search", at, at, None, at).unfinished_writer()(lambda: stopped[1][-1])
    words = (folder / "leaderboard.html").read_text(encoding="utf-8").partition("<main>")[2]
    assert f"Unfinished: {stopped[1][-1].unfinished}" in words
    assert "finished before and is being extended" in words
    assert flipsearch.report(folder).study.unfinished
    assert read_study(folder) == study_of()  # what others read stays
    write_study(study_of(), folder)
    assert not flipsearch.report(folder).study.unfinished


def test_a_study_without_a_rung_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.toml").touch()
    with pytest.raises(StudyError, match="nothing to report yet"):
        flipsearch.report(tmp_path)


def test_what_is_reported_meanwhile_changes_nothing() -> None:
    """The same study comes out, whether it was looked at after each rung or not."""
    seen = list[Study]()
    with Ledger("sqlite://") as ledger:
        runner = Runner(Model(), RefusalJudge(), ledger, GREEDY)
        setup = prepare_search(CONFIG, library(), PROMPTS)
        assert run_study(setup, runner, on_rung=lambda make: seen.append(make())) == study_of()
    assert len(seen) > 4
