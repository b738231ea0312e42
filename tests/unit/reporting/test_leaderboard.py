"""What every form of the leaderboard shows of a study."""

from rich.console import Console

from flipsearch.commands.console import leaderboard_table
from flipsearch.config import StudyConfig
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting.card import context_card
from flipsearch.reporting.columns import rows
from flipsearch.reporting.page import leaderboard_page
from flipsearch.searching import prepare_search, run_study
from tests.world import GREEDY, Model, RefusalJudge, library, prompt_set

CONFIG = StudyConfig(num_contexts=23, cohort_size=6, first_rung=8, num_finalists=3, breed=0)


def a_study(config: StudyConfig = CONFIG) -> Study:
    with Ledger("sqlite://") as ledger:
        return run_study(
            prepare_search(config, library(), prompt_set()), Runner(Model(), RefusalJudge(), ledger, GREEDY)
        )


def test_contexts_over_the_cap_are_marked_in_every_form() -> None:
    study = a_study()
    over = [row for row in rows(study) if row["over_cap"]]
    assert {row["template"] for row in over} == {"harsh"}  # the blunt words of this world
    assert all(row["search_over_refusal_rate"] > CONFIG.max_over_refusal for row in over)
    assert not any(row["over_cap"] and row["winner"] for row in rows(study))
    assert leaderboard_page(study).count('<small class="over">over the cap</small>') == len(over)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(leaderboard_table(study))
    shown = [line for line in capture.get().splitlines() if "harsh" in line]
    assert shown
    assert all("!" in line for line in shown)
    assert "!" not in "".join(line for line in capture.get().splitlines() if "harsh" not in line)


def test_card_and_page_name_the_commit_of_a_hub_model() -> None:
    study = a_study()
    assert study.winner is not None
    assert context_card(study, study.winner)["revision"] == Model.revision == "c0ffee"
    assert "commit c0ffee" in leaderboard_page(study)


def test_what_ties_with_the_winner_is_named_in_every_form() -> None:
    study = a_study(CONFIG.model_copy(update={"num_finalists": 20}))
    assert study.winner is not None
    tied = [row["context_id"] for row in rows(study) if row["ties_winner"]]
    apart = [row for row in rows(study) if row["ties_winner"] is False]
    assert tied
    assert apart
    assert all(row["behind_winner_low"] > 0 for row in apart)
    assert context_card(study, study.winner)["tie_set"] == tied
    assert leaderboard_page(study).count("ties with the winner</summary>") == len(tied)
    assert f"search read {100 * (study.winner.optimism or 0):+.1f} points" in leaderboard_page(study)
