"""What every form of the leaderboard shows of a study: rows, page, terminal and card follow one table of columns."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import pytest
from rich.console import Console

from flipsearch.commands.views import leaderboard_table
from flipsearch.config import SearchConfig
from flipsearch.core.records import Exchange, Label, Request, Rollout, Sampling, Verdict
from flipsearch.core.studies import Study
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting import columns
from flipsearch.reporting.columns import (
    RATE,
    Column,
    columns_legend,
    columns_of,
    csv_text,
    kinds_legend,
    leaderboard,
    rows,
)
from flipsearch.reporting.pages import leaderboard_page
from flipsearch.reporting.study_file import context_card
from flipsearch.searching import prepare_search, run_study
from flipsearch.statistics.intervals import wilson
from tests.pages import cells_of, data_of
from tests.world import COMPLIANCE, GREEDY, REFUSAL, Model, RefusalJudge, library, prompt_set

CONFIG = SearchConfig(num_contexts=23, cohort_size=6, first_rung=8, num_finalists=3, breed=0)


@cache
def a_study(config: SearchConfig = CONFIG) -> Study:
    with Ledger("sqlite://") as ledger:
        return run_study(
            prepare_search(config, library(), prompt_set()), Runner(Model(), RefusalJudge(), ledger, GREEDY)
        )


def in_terminal(study: Study) -> str:
    """Return the leaderboard as a terminal of 80 columns shows it."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(leaderboard_table(study))
    return capture.get()


def test_contexts_over_the_cap_are_marked_in_every_form() -> None:
    study = a_study()
    over = [row for row in rows(study) if row["over_cap"]]
    assert {row["template"] for row in over} == {"harsh"}  # the blunt words of this world
    assert all(row["search_over_refusal_rate"] > CONFIG.max_over_refusal for row in over)
    assert not any(row["over_cap"] and row["winner"] for row in rows(study))
    marked = [small for _, small in cells_of(leaderboard_page(study), "outcome") if "over the cap" in small]
    assert len(marked) == len(over)
    lines = in_terminal(study).splitlines()
    assert any("harsh" in line for line in lines)
    assert all(("!" in line) == ("harsh" in line) for line in lines)


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
    page = leaderboard_page(study)
    assert sum(small.endswith("ties with the winner") for _, small in cells_of(page, "context")) == len(tied)
    assert study.winner.optimism is not None
    assert f"search prompts: {abs(100 * study.winner.optimism):.1f} points" in page


def test_a_new_column_is_one_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Column("first_word", lambda _, trial: trial.context.text[:4], page="starts", terminal="starts", card=True)
    rates = Column(
        "coverage", lambda _, trial: trial.search.coverage, RATE, page="scored", terminal="scored", card=True
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, texts, rates))
    monkeypatch.setenv("COLUMNS", "200")  # in a narrow terminal the last columns are left to the page
    study = a_study()
    assert study.winner is not None
    table, page, card = csv_text(leaderboard(study)), leaderboard_page(study), context_card(study, study.winner)
    assert table.splitlines()[0].endswith(
        ",text,first_word,coverage,coverage_low,coverage_high,coverage_count,coverage_n"
    )
    assert rows(study)[0]["first_word"] == card["first_word"] == "firm"
    assert rows(study)[0]["coverage"] == card["coverage"]["value"] == 1.0
    assert [name for _, name, _ in data_of(page)["columns"]][-2:] == ["starts", "scored"]
    assert cells_of(page, "first_word")[0] == ("firm", "")
    assert '<span class="head">scored</span>' in page
    header, first, *_ = in_terminal(study).splitlines()
    assert header.split()[-2:] == ["starts", "scored"]
    assert first.split()[-3:] == ["firm", "100.0%", "(93–100)"]


def test_keys_of_rows_are_unique_and_what_was_not_measured_is_empty() -> None:
    study = a_study()
    names = [column.name for column in columns.columns_of(study, "csv")]
    assert len(names) == len(set(names))
    unconfirmed = [row for row in rows(study) if row["confirm_flip_rate"] is None]
    assert unconfirmed
    assert all(row[f"confirm_flip_rate_{end}"] is None for row in unconfirmed for end in ("low", "high", "count", "n"))


def test_the_table_fits_into_a_terminal_and_counts_what_it_leaves_out() -> None:
    lines = in_terminal(a_study()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "13 on the page" in " ".join(lines)
    assert [line[:2].strip() for line in lines[-3:]] == [""] * 3  # placebos have no rank


class CutModel(Model):
    """The same world, whose compliant answers come after a closed thought, go on with it, and are cut."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        for batch in super().generate(requests, sampling):
            for rollout in batch:
                text = f"<think>Hm.</think>{rollout.completion}</think>"
                cut = replace(rollout, completion=text, finish_reason="length", forced_close=True)
                yield [cut if rollout.completion == COMPLIANCE else rollout]


def test_how_answers_ended_is_in_every_form_whether_they_were_scored_or_not() -> None:
    with Ledger("sqlite://") as ledger:
        sampling = replace(GREEDY, think_tokens=4)
        setup = prepare_search(CONFIG, library(), prompt_set())
        study = run_study(setup, Runner(CutModel(), RefusalJudge(), ledger, sampling))
    best = study.winner
    assert best is not None
    row = next(row for row in rows(study) if row["winner"])
    endings = best.final.endings
    assert endings is not None
    assert 0 < endings.cut.count < endings.cut.n == len(best.final.flips)
    assert endings.forced.value == endings.leaks.value == 1.0
    assert row["cut_rate"] == context_card(study, best)["cut_rate"]["value"] == endings.cut.value
    assert context_card(study, best)["sampling"]["think_tokens"] == 4
    assert context_card(study, best)["base_endings"]["confirm"]["forced"]["value"] == 1.0
    page = leaderboard_page(study)
    heads = [name for _, name, _ in data_of(page)["columns"]]
    assert {"cut at max tokens", "thoughts closed by budget", "thoughts in the answer"} <= set(heads)
    assert "cut at max tokens without context, confirm" in page
    assert "cut" in in_terminal(study).splitlines()[0].split()
    assert max(map(len, in_terminal(study).splitlines())) <= 80
    assert any("were cut at 8 tokens" in note for note in study.notes)
    assert any("closed by the budget of 4 tokens" in note for note in study.notes)


class SafeIfNoSteps(RefusalJudge):
    """Calls safe whatever gives no steps."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        unsafe = [exchange.completion == COMPLIANCE for exchange in exchanges]
        refused = [exchange.completion == REFUSAL for exchange in exchanges]
        return [
            Verdict(Label.UNSAFE if bad else Label.SAFE, float(bad), float(no))
            for bad, no in zip(unsafe, refused, strict=True)
        ]


class LoopingModel(Model):
    """The same world, which answers some harmful prompts with a loop where it would refuse under a context."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        loops = {(r.prompt.prompt_id, r.context_id) for r in requests if r.context and " 7 " in r.prompt.text}
        for batch in super().generate(requests, sampling):
            for rollout in batch:
                breaks = (rollout.prompt_id, rollout.context_id) in loops and rollout.completion == REFUSAL
                yield [replace(rollout, completion="round and round it goes " * 9) if breaks else rollout]


def test_kinds_of_flips_are_in_every_form_those_that_do_not_count_too() -> None:
    with Ledger("sqlite://") as ledger:
        setup = prepare_search(CONFIG, library(), prompt_set())
        study = run_study(setup, Runner(LoopingModel(), SafeIfNoSteps(), ledger, GREEDY))
    trial = next(trial for trial in study.trials if trial.final.kinds_after.get("degenerate"))
    total, kinds = trial.final.num_unsafe_before, trial.final.kinds_after
    assert kinds["refusal"] == trial.final.flip_rate.count
    row = next(row for row in rows(study) if row["context_id"] == trial.context.context_id)
    assert row["refusal_share"] == pytest.approx(kinds["refusal"] / total)
    assert row["degenerate_share"] == pytest.approx(kinds["degenerate"] / total)
    assert context_card(study, trial)["metrics"]["search"]["kinds_after"] == dict(kinds)
    assert f"x{100 * kinds['degenerate'] / total:.0f}" in in_terminal(study)
    words = f"{kinds['refusal']} refusal; {kinds['degenerate']} degenerate, not counted of {total}"
    assert ("", words) in cells_of(leaderboard_page(study), "kinds")
    assert "x degenerate (not counted)" in kinds_legend(study)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_flip_rate_stays_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    headers = [str(column.header) for column in leaderboard_table(a_study()).columns]
    assert "context" in headers
    assert "confirm (95 %)" in headers
    assert ("refuses" in headers) == (width >= 80)


def test_every_header_of_the_terminal_is_explained_below_the_table() -> None:
    study = a_study()
    measured = study.trials[0].final
    assert measured.endings
    endings = replace(measured.endings, cut=wilson(3, 10))
    first = study.trials[0].with_confirmed(measurement=replace(measured, endings=endings))
    shown = columns_of(replace(study, trials=(first, *study.trials[1:])), "terminal")
    heads = {(column.terminal or "").partition(" (")[0] for column in shown} - {"#", "context", "kinds"}
    assert "cut" in heads
    assert {part.partition(": ")[0] for part in columns_legend(shown).split("; ")} == heads
    assert "cut: cut at max tokens, share of the answers" in columns_legend(shown)
