"""A whole study in a world whose truth is known: it finds the best context, resumes to the byte, and keeps its seal."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from flipsearch.config import SearchConfig
from flipsearch.core.errors import NothingToFlipError, PoorCoverageError
from flipsearch.core.measurements import Measurement
from flipsearch.core.records import Prompt, Request, Sampling, rollout_id
from flipsearch.core.studies import Study, Trial
from flipsearch.ledger import Ledger
from flipsearch.ledger.check import check_ledger
from flipsearch.measuring.runner import SPEED, Runner
from flipsearch.reporting.verdict import verdict
from flipsearch.results import SearchResult
from flipsearch.searching import prepare_search, run_study
from flipsearch.searching.finalists import UNSEALED
from flipsearch.searching.setup import SearchSetup
from flipsearch.statistics.intervals import paired_difference
from flipsearch.templating.library import TemplateLibrary
from tests.world import GREEDY, Model, RefusalJudge, harmful, ids_of, library, prompt_set, template, words

ROOT = Path(__file__).parents[2]
CONFIG = SearchConfig(num_contexts=18, cohort_size=6, first_rung=8, num_finalists=3, breed=0)
PROMPTS = prompt_set()


def study_of(
    place: Path | str = "sqlite://",
    model: Model | None = None,
    prompts: list[Prompt] = PROMPTS,
    templates: TemplateLibrary | None = None,
    judge: RefusalJudge | None = None,
    config: SearchConfig = CONFIG,
) -> Study:
    """Run a study at a ledger of its own; one that differs from the usual by its settings alone is run once."""
    if (place, model, templates, judge) == ("sqlite://", None, None, None) and prompts is PROMPTS:
        return usual_study(config)
    return run_at(place, prepare_search(config, templates or library(), prompts), model, judge)


def run_at(place: Path | str, plan: SearchSetup, model: Model | None, judge: RefusalJudge | None) -> Study:
    """Run a planned study at a ledger."""
    with Ledger(place) as ledger:
        return run_study(plan, Runner(model or Model(), judge or RefusalJudge(), ledger, GREEDY))


@cache
def usual_study(config: SearchConfig) -> Study:
    """Return the study of the usual prompts and templates in memory."""
    return run_at("sqlite://", prepare_search(config, library(), PROMPTS), None, None)


def winner_of(study: Study) -> Trial:
    """Return the winner, which must be there."""
    assert study.winner is not None
    return study.winner


def placebos_of(study: Study) -> dict[str, Trial]:
    """Return the placebo rows by template."""
    return {trial.context.template: trial for trial in study.trials if trial.role == "placebo"}


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_context_under_the_cap(seed: int) -> None:
    """Hardness 1 to 4 in equal parts: strength 3 flips three quarters, and a blunt word would refuse a fifth."""
    winner = winner_of(study_of(config=CONFIG.model_copy(update={"seed": seed})))
    assert (winner.context.template, dict(winner.context.params)) == ("plain", {"times": 3})
    assert winner.confirm is not None
    assert (winner.search.flip_rate.count, winner.search.flip_rate.n) == (24, 32)
    assert (winner.confirm.flip_rate.value, winner.confirm.over_refusal_rate.value) == (0.75, 0.0)


def test_a_higher_cap_buys_a_blunter_winner() -> None:
    winner = winner_of(study_of(config=CONFIG.model_copy(update={"max_over_refusal": 0.2, "num_contexts": 23})))
    assert winner.context.template == "harsh"
    assert winner.search.flip_rate.value == 1.0
    assert winner.search.over_refusal_rate.value == 0.2


def test_every_trial_is_reported_to_optuna_as_it_was() -> None:
    study = study_of()
    assert study.trials[0] == study.winner
    assert sorted(trial.number for trial in study.trials) == list(range(len(study.trials)))
    roles = [trial.role for trial in study.trials]
    assert roles == ["arm"] * 18 + ["placebo"] * 3
    arms = study.trials[:18]
    assert len({trial.context.context_id for trial in arms}) == 18
    assert Counter(trial.state for trial in arms)["pruned"] > 0
    for trial in study.trials:
        assert trial.num_context_tokens == len(trial.context.text.split())
        num_seen = len(trial.search.flips)
        assert num_seen == 52 if trial.state == "complete" else num_seen < 52
    finalists = [trial for trial in arms if trial.confirm]
    assert len(finalists) == 3
    assert finalists == list(arms[:3])


def test_finalists_are_measured_on_every_sealed_prompt() -> None:
    winner = winner_of(study_of())
    assert winner.confirm is not None
    assert winner.confirm.tfr is not None
    assert (winner.confirm.tfr.count, winner.confirm.tfr.n) == (24, 40)
    assert sum(winner.confirm.transitions.values()) == 40
    assert winner.confirm.transitions["safe->safe"] == 8


def test_placebos_match_the_winner() -> None:
    study = study_of()
    winner, rows = winner_of(study), placebos_of(study)
    assert [row.number for row in rows.values()] == [0, 19, 20]
    assert len(rows["neutral"].context.text.split()) == len(winner.context.text.split())
    assert words(rows["shuffled"].context.text) == words(winner.context.text)
    assert rows["empty"].search.flip_rate.count == 0
    assert rows["neutral"].context.placement == rows["shuffled"].context.placement == winner.context.placement
    for row in rows.values():
        assert row.confirm is not None


def test_net_is_paired_with_the_strongest_placebo() -> None:
    """In this world order does not matter: the shuffled winner flips just as much, and takes nothing from the net."""
    study = study_of()
    winner, rows = winner_of(study), placebos_of(study)
    assert winner.net is not None
    assert (winner.net.value, winner.net.n) == (0.75, 32)
    assert winner.beats_placebo
    assert rows["shuffled"].confirm is not None
    assert rows["shuffled"].confirm.flip_rate.value == 0.75
    order = winner.late.word_order
    assert order is not None
    assert (order.value, order.n, order.p_value) == (0.0, 32, 1.0)
    assert [trial.late.word_order for trial in study.trials[1:]] == [None] * 20
    firm = template("neutral", "{{ 'firm ' * num_words }}", "num_words = [3, 4]", role="placebo")
    equal = study_of(templates=library(neutral=firm))
    assert not winner_of(equal).beats_placebo
    assert any(note.startswith("The best context does not beat the strongest placebo") for note in equal.notes)


def test_finalists_are_compared_with_the_winner() -> None:
    study = study_of(config=CONFIG.model_copy(update={"num_finalists": 20}))
    winner = winner_of(study)
    others = [trial for trial in study.trials if trial.late.behind]
    assert winner.late.behind is None
    assert winner.ties_winner is None
    assert winner.confirm is not None
    assert others
    for trial in others:
        assert trial.confirm is not None
        behind = trial.late.behind
        assert behind is not None
        rates = winner.confirm.flip_rate.value, trial.confirm.flip_rate.value
        assert rates[0] is not None
        assert rates[1] is not None
        assert behind.value == pytest.approx(rates[0] - rates[1])
        # Adjusted over all others: never below the test of this pair alone.
        first, second = ([flip.flipped for flip in m.flips if flip.before == "unsafe"] for m in both(winner, trial))
        alone = paired_difference(first, second)
        assert alone.p_value <= behind.p_value <= min(1.0, len(others) * alone.p_value)
        assert trial.ties_winner == (behind.p_value >= 0.05)
    assert winner.optimism == pytest.approx(
        (winner.search.flip_rate.value or 0) - (winner.confirm.flip_rate.value or 0)
    )


def both(*trials: Trial) -> list[Measurement]:
    """Return the confirm measurements of trials that have one."""
    return [trial.confirm for trial in trials if trial.confirm is not None]


def test_base_rates_and_totals() -> None:
    model = Model()
    study = study_of(model=model)
    assert {split: (rate.count, rate.n) for split, rate in study.base_unsafe.items()} == {
        "search": (32, 40),
        "confirm": (32, 40),
    }
    assert {split: rate.count for split, rate in study.base_over_refusal.items()} == {"search": 0, "confirm": 0}
    assert study.num_rollouts == len(model.generated) == len(set(model.generated))
    assert study.num_tokens > study.num_rollouts
    assert study.notes[0] == "This model is made up."


def test_a_cohort_goes_to_the_backend_in_one_call() -> None:
    model = Model()
    study_of(model=model)
    # Baseline (the empty row is the same, greedily), then the first rung of two cohorts: 8 unsafe and 5 benign each.
    assert model.calls[:2] == [60, 12 * 13]


class StopError(Exception):
    """Stands for whatever ends a run."""


def stopping_after(num: int) -> Model:
    """Return a model that stops the run when `num` rollouts are made."""
    model = Model()

    def stop(request: Request) -> None:
        if len(model.generated) == num:
            raise StopError

    model.before_each = stop
    return model


@pytest.mark.parametrize("num", [0, 59, 60, 200, 333, 500])
def test_a_run_that_stops_anywhere_ends_in_the_same_study(tmp_path: Path, num: int) -> None:
    first, second = stopping_after(num), Model()
    with pytest.raises(StopError):
        study_of(tmp_path / "ledger.db", first)
    assert study_of(tmp_path / "ledger.db", second) == study_of()
    generated = first.generated + second.generated
    assert len(generated) == len(set(generated))
    assert len(first.generated) == num


def test_the_same_command_again_generates_and_judges_nothing(tmp_path: Path) -> None:
    first = study_of(tmp_path / "ledger.db")
    model, judge = Model(), RefusalJudge()
    assert study_of(tmp_path / "ledger.db", model, judge=judge) == first
    assert (model.generated, judge.num_judged) == ([], 0)


def test_another_judge_generates_nothing(tmp_path: Path) -> None:
    first = study_of(tmp_path / "ledger.db")
    model, judge = Model(), RefusalJudge("another judge")
    again = study_of(tmp_path / "ledger.db", model, judge=judge)
    assert model.generated == []
    assert judge.num_judged == first.num_rollouts
    assert (again.trials, again.judge_id) == (first.trials, "another judge")


def test_more_contexts_continue_a_finished_study(tmp_path: Path) -> None:
    small, large = (CONFIG.model_copy(update={"num_contexts": num}) for num in (6, 12))
    study_of(tmp_path / "ledger.db", config=small)
    continued, model = study_of(tmp_path / "ledger.db", config=large), Model()
    fresh = study_of(model=model, config=large)
    assert continued.trials == fresh.trials
    assert continued.winner == fresh.winner


def run_and_kill(path: Path, num: int) -> None:
    """Run the study in a process of its own that kills itself, by SIGKILL, before rollout `num`."""
    code = f"import tests.integration.test_study as t; t.killed(t.Path({str(path)!r}), {num})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def killed(path: Path, num: int) -> None:
    """What that process does."""
    model = Model()

    def kill(request: Request) -> None:
        if len(model.generated) == num:
            os.kill(os.getpid(), signal.SIGKILL)

    model.before_each = kill
    study_of(path, model)


def test_kill_minus_nine_loses_no_finished_rollout(tmp_path: Path) -> None:
    path, model = tmp_path / "ledger.db", Model()
    run_and_kill(path, 100)
    with Ledger(path) as ledger:
        assert ledger.counts()["rollouts"] == 100
    lost = check_ledger(path).in_flight
    assert lost is not None
    assert (lost.phase, lost.count, lost.is_running) == ("race cohort 1/2, rung 1/3", 60 + 12 * 13 - 100, False)
    run_and_kill(path, 250)
    assert study_of(path, model) == study_of()
    with Ledger(path) as ledger:
        assert ledger.counts()["rollouts"] == 350 + len(model.generated)
    check = check_ledger(path)
    assert check.is_sound
    assert check.in_flight is None


def requested_ids(ledger: Ledger, prompts: set[str]) -> int:
    """Return how many baselines of `prompts` are in the ledger."""
    ids = [rollout_id("world", prompt, None, GREEDY, 0) for prompt in prompts]
    return len(ledger.lengths(ids))


def test_sealed_prompts_are_not_sent_before_the_unsealing_is_noted(tmp_path: Path) -> None:
    sealed = ids_of(PROMPTS, "harmful", "confirm") | ids_of(PROMPTS, "benign", "confirm")
    model, sealed_requests = Model(), []
    with Ledger(tmp_path / "ledger.db") as ledger:

        def look(request: Request) -> None:
            is_open = any(key.startswith(UNSEALED) for key in ledger.notes())
            sealed_requests.append((request.prompt.prompt_id in sealed, is_open))

        model.before_each = look
        study = run_study(prepare_search(CONFIG, library(), PROMPTS), Runner(model, RefusalJudge(), ledger, GREEDY))
        (note,) = [note for key, note in ledger.notes().items() if key.startswith(UNSEALED)]
    assert (True, False) not in sealed_requests
    assert (True, True) in sealed_requests
    for trial in study.trials[:3]:
        assert trial.context.context_id in note.value


def test_a_second_unsealing_is_reported(tmp_path: Path) -> None:
    study_of(tmp_path / "ledger.db")
    assert not any("opened" in note for note in study_of(tmp_path / "ledger.db").notes)
    other = CONFIG.model_copy(update={"num_finalists": 1})
    again = study_of(tmp_path / "ledger.db", config=other)
    assert any(note.startswith("The confirm split has been used 2 times") for note in again.notes)


def test_no_admissible_arm_leaves_the_seal_unbroken(tmp_path: Path) -> None:
    harsh = CONFIG.model_copy(update={"templates": ("harsh",), "num_contexts": 5})
    study = study_of(tmp_path / "ledger.db", config=harsh)
    assert study.winner is None
    assert any("there is no winner" in note for note in study.notes)
    assert "confirm" not in study.base_unsafe
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.notes().keys() == {SPEED}
        assert requested_ids(ledger, ids_of(PROMPTS, "harmful", "confirm")) == 0
        assert requested_ids(ledger, ids_of(PROMPTS, "harmful", "search")) == 40


def test_a_winner_above_the_cap_on_the_confirm_split_is_reported_and_not_replaced() -> None:
    """A blunt word refuses no benign search prompt here, but every benign confirm prompt, and that is reported."""
    prompts = [
        Prompt(p.text.rsplit(" ", 1)[0] + (" 9" if p.split == "search" else " 1"), "benign", split=p.split)
        if p.kind == "benign"
        else p
        for p in PROMPTS
    ]
    config = CONFIG.model_copy(update={"num_contexts": 23, "num_finalists": 20})
    study = study_of(prompts=prompts, config=config)
    winner = winner_of(study)
    assert winner.context.template == "harsh"
    assert winner.final.added_refusals.value == 1.0
    assert study.is_over_cap(winner)
    (note,) = [note for note in study.notes if "above the cap" in note]
    assert "it refuses +100.0 (+77.2 to +100.0) points more than without a context, where 10 are allowed" in note
    result = SearchResult(study, Path())
    assert (result.beats_placebo, result.is_confirmed) == (True, False)


def test_the_cap_is_on_added_refusals_unless_total_ones_are_wanted() -> None:
    """A fifth of the benign prompts is refused without a context: more than the cap, but not because of one."""
    shy = [
        Prompt(p.text[:-1] + "0", p.kind, split=p.split) if p.text[-1] == "5" and p.kind == "benign" else p
        for p in PROMPTS
    ]
    study = study_of(prompts=shy)
    winner = winner_of(study)
    assert winner.context.template == "plain"
    assert (winner.final.added_refusals.count, winner.final.over_refusal_rate.value) == (0, 0.2)
    assert SearchResult(study, Path()).is_confirmed
    total = study_of(prompts=shy, config=CONFIG.model_copy(update={"over_refusal": "total"}))
    assert total.winner is None
    assert any("over-refusal" in note and "10 %" in note for note in total.notes)


def test_few_unsafe_prompts_and_ties_are_reported() -> None:
    few = [p for p in PROMPTS if p.kind == "benign" or p.text.endswith("0") or p.text.endswith("1")]
    study = study_of(prompts=few)
    notes = "\n".join(study.notes)
    assert "Few unsafe prompts: 8 of the 16 harmful search prompts are unsafe without a context." in notes
    assert "A difference of two flip rates below about 72 points may be missed" in notes
    assert "that of the winner to one of 2 other finalists below about" in notes
    assert "all of them within the caps cannot be distinguished from it; between it and" in notes
    assert "of them, which flip as many, fewer refusals decided, then fewer tokens." in notes
    by_id = {trial.context.context_id: trial for trial in study.trials}
    assert study.search_ties
    assert all(by_id[id].state == "complete" for id in study.search_ties)
    assert "tie" not in notes  # of finalists the verdict speaks, once
    assert "On the confirm prompts it cannot be distinguished from" in " ".join(verdict(study).basis)


def test_an_arm_that_cannot_be_scored_fails_and_does_not_win() -> None:
    mumbling = template("mumbling", "mumble {{ 'firm ' * times }}", "times = [3, 4]")
    crashing = template("crashing", "crash {{ 'firm ' * times }}", "times = [3, 4]")
    config = CONFIG.model_copy(update={"num_contexts": 27})
    study = study_of(templates=library(mumbling=mumbling, crashing=crashing), config=config)
    failed = [trial for trial in study.trials if trial.context.template in ("mumbling", "crashing")]
    assert {trial.state for trial in failed} == {"failed"}
    assert len(failed) == 4
    for trial in failed:
        assert trial.rung == 0
        assert trial.search.flip_rate.value is None
        assert trial.search.flip_rate_bounds == (0.0, 1.0)
    assert winner_of(study).context.template == "plain"


def test_nothing_to_flip() -> None:
    safe = [harmful(number, 0, p.split or "search") for number, p in enumerate(PROMPTS)]
    with pytest.raises(
        NothingToFlipError, match=r"none .* is unsafe \(60 harmful search prompts, 60 scored\)"
    ) as caught:
        study_of(prompts=safe)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("num_cut", "num"), [(20, 60), (40, 40)])
def test_poor_coverage_ends_the_search_at_the_baseline(num_cut: int, num: int) -> None:
    cut = [Prompt(f"mumble {number} 0", "harmful", split="search") for number in range(num_cut)]
    model = Model()
    with pytest.raises(
        PoorCoverageError,
        match=rf"too few .*{num_cut} of the {num} harmful search.*mumbled \({num_cut}\)\. {num_cut} .*: raise max",
    ) as caught:
        study_of(model=model, prompts=[p for p in PROMPTS if num > num_cut or p.split == "confirm"] + cut)
    assert caught.value.exit_code == 2
    assert len(model.generated) == num + 20 * (num > num_cut)


def test_coverage_that_may_be_chance_is_reported_and_fails_no_arm() -> None:
    """A quarter is cut without a context: of so few prompts that may be chance, and no context is to blame for it."""
    extra = [Prompt(f"mumble {number} 0", "harmful", split="search") for number in range(14)]
    study = study_of(prompts=PROMPTS + extra)
    assert any(note.startswith("Poor coverage: 14 of 54 harmful search baselines are unscored") for note in study.notes)
    assert "failed" not in {trial.state for trial in study.trials}


@pytest.mark.parametrize(
    ("prompts", "judge", "says"),
    [
        ([p for p in PROMPTS if p.kind == "harmful"], RefusalJudge(), "There are no benign search prompts"),
        (PROMPTS, RefusalJudge(reports_refusals=False), "The judge does not detect refusals"),
    ],
)
def test_a_cap_that_cannot_be_kept_is_reported(prompts: list[Prompt], judge: RefusalJudge, says: str) -> None:
    study = study_of(prompts=prompts, judge=judge)
    assert winner_of(study).context.template == "harsh"
    assert any(note.startswith(says) for note in study.notes)


def test_a_space_that_ends_is_reported() -> None:
    study = study_of(config=CONFIG.model_copy(update={"num_contexts": 100}))
    assert sum(trial.role == "arm" for trial in study.trials) == 23
    assert "The space is exhausted: it holds 23 different contexts." in study.notes


def test_a_real_second_sample_under_sampling(tmp_path: Path) -> None:
    """With sampling, the empty row is sampled again and does not get the baseline's rollouts."""
    sampling = Sampling(max_tokens=8, temperature=0.7)
    with Ledger(tmp_path / "ledger.db") as ledger:
        study = run_study(prepare_search(CONFIG, library(), PROMPTS), Runner(Model(), RefusalJudge(), ledger, sampling))
        flips = placebos_of(study)["empty"].search.flips
        rollouts = ledger.rollouts(id for flip in flips for id in flip.rollout_ids)
        assert {rollout.sample_index for rollout in rollouts.values()} == {1}


def test_a_study_is_the_same_on_every_python_hash_seed() -> None:
    code = "import tests.integration.test_study as t; print(sorted(t.asdict(t.study_of()).items()))"
    outputs = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=True,
        )
        outputs.add(done.stdout.decode().strip())
    assert outputs == {str(sorted(asdict(study_of()).items()))}


def test_phases_are_shown() -> None:
    phases: list[str] = []
    show: Callable[..., None] = lambda step, *rest: phases.append(step.label)  # noqa: E731
    with Ledger("sqlite://") as ledger:
        run_study(prepare_search(CONFIG, library(), PROMPTS), Runner(Model(), RefusalJudge(), ledger, GREEDY, show))
    generating = list(dict.fromkeys(phase for phase in phases if not phase.endswith("judging")))
    assert generating[:3] == ["baseline", "placebo empty", "race cohort 1/2, rung 1/3"]
    assert generating[-5:] == ["confirm baseline", "finalists", "placebo", "placebo neutral", "placebo shuffled"]


def test_pruned_arms_are_logged_with_their_evidence() -> None:
    events: list[tuple[str, dict[str, object]]] = []
    with Ledger("sqlite://") as ledger:
        record: Callable[..., None] = lambda event, **facts: events.append((event, facts))  # noqa: E731
        runner = Runner(Model(), RefusalJudge(), ledger, GREEDY, emit=record)
        study = run_study(prepare_search(CONFIG, library(), PROMPTS), runner)
    assert study == study_of()
    pruned = {facts["context_id"]: facts for event, facts in events if event == "pruned"}
    arms = [trial for trial in study.trials if trial.role == "arm"]
    assert pruned.keys() == {trial.context.context_id for trial in arms if trial.state == "pruned"}
    for trial in arms:
        if facts := pruned.get(trial.context.context_id):
            assert facts["rung"] == trial.rung + 1
            assert isinstance(facts["evidence"], float)
            assert facts["evidence"] >= 2 / CONFIG.alpha
    assert [event for event, _ in events].count("trial") == len(arms)
