"""What a page or a screen says to do next can be pasted into a shell as it is, and a comparison names what leads."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from flipsearch.commands.main import make_app
from flipsearch.core.records import Context
from flipsearch.core.trainings import RoutedContext
from flipsearch.reporting.compare import compare_studies
from flipsearch.reporting.outcomes import scorecard_verdict, trained_under, training_verdict
from flipsearch.reporting.scorecard_page import compare_scorecards
from flipsearch.reporting.sweep_page import sweep_verdict
from flipsearch.reporting.verdict import StudyVerdict, verdict
from tests.finished_training import RUN
from tests.integration.test_study import CONFIG, study_of
from tests.unit.reporting.test_checkpoints import card
from tests.unit.reporting.test_outcomes import with_harm
from tests.unit.reporting.test_scorecard_table import ALONE, CARD, score
from tests.unit.reporting.test_sweep_page import a_sweep

PLACEHOLDER = re.compile(r"…|\.\.\.|<[^>]+>|[A-Z]{4,}")
TRAINED = replace(RUN, routed=(RoutedContext("harmful", Context("Think.", "system"), 3),))


def assert_can_be_pasted(command: str) -> None:
    """The command line takes every word of it, and none of them stands for another one."""
    program, *arguments = shlex.split(command)
    assert program == "flipsearch"
    assert not [word for word in arguments if PLACEHOLDER.fullmatch(word) or "…" in word]
    parser = get_command(make_app(arguments))
    while hasattr(parser, "commands"):
        parser = parser.commands[arguments.pop(0)]
    parser.make_context(program, arguments)


def comparisons() -> dict[str, StudyVerdict]:
    first, second = study_of(), study_of(config=CONFIG.model_copy(update={"seed": 1}))
    again, best = replace(first, name="again"), first.trials[0].context.context_id
    without = tuple(trial for trial in first.trials if trial.context.context_id != best)
    keeps = [trial for trial in first.trials if trial.role == "placebo"]
    alone = replace(again, trials=(first.trials[0], *keeps))
    return {
        "seeds": compare_studies([first, replace(second, name="second")]).verdict,
        "itself": compare_studies([first, again]).verdict,
        "not tried": compare_studies([first, replace(again, trials=without, winner=without[0])]).verdict,
        "one shared": compare_studies([first, alone]).verdict,
        "no winner": compare_studies([replace(first, winner=None), replace(again, winner=None)]).verdict,
    }


def checkpoints() -> dict[str, StudyVerdict]:
    limited = [replace(card(num), settings={"max_prompts": 30}) for num in (3, 5)]
    return {
        "clear": compare_scorecards(["firm", "mild"], [card(3), card(30, first=1)]).verdict,
        "ties": compare_scorecards(["one", "two"], [card(3), card(5)]).verdict,
        "few": compare_scorecards(["one", "two"], limited, ["checkpoints/one", "my runs/two"]).verdict,
        "no harm": compare_scorecards(["one", "two"], [replace(card(3), scores=())] * 2).verdict,
    }


def trainings() -> dict[str, StudyVerdict]:
    options = {"context": ["my best.txt"], "name": "mine", "model": "pocket", "learning_rate": 0.001, "lora": None}
    run = replace(TRAINED, settings=options)
    return {
        "trained": training_verdict(run, [], [], None, Path("my checkpoints/mine")),
        "evaluated": training_verdict(run, [], [], CARD, Path("checkpoints/mine")),
        "scorecard": scorecard_verdict(with_harm(0.4, -0.3, 0.1)),
        "no base": scorecard_verdict(ALONE),
        "no reasoning": scorecard_verdict(replace(CARD, reasoning=None, tax=None)),
    }


def sweeps() -> dict[str, StudyVerdict]:
    settings = {"seeds": 1, "predict_split": "confirm", "study": "a study", "methods": ["opsa", "sft-self"]}
    partial = replace(a_sweep(), settings=settings, runs=a_sweep().runs[1:])
    return {"sweep": sweep_verdict(a_sweep()), "one seed": sweep_verdict(partial)}


@pytest.mark.parametrize("made", [comparisons, checkpoints, trainings, sweeps], ids=lambda made: made.__name__)
def test_every_command_can_be_pasted(made: object) -> None:
    for said in made().values():  # type: ignore[operator]
        for step in said.next_steps:
            assert "…" not in step.text
            if step.command:
                assert_can_be_pasted(step.command)


@pytest.mark.parametrize("made", [comparisons, checkpoints], ids=lambda made: made.__name__)
def test_what_compares_names_a_command(made: object) -> None:
    for name, said in made().items():  # type: ignore[operator]
        assert any(step.command for step in said.next_steps), name


def test_a_study_names_commands_too() -> None:
    for step in verdict(study_of()).next_steps:
        if step.command:
            assert_can_be_pasted(step.command)


def test_a_comparison_says_which_context_leads_and_whether_it_is_ahead() -> None:
    said = comparisons()
    rates = r"\(\d+\.\d % in \S+, \d+\.\d % in again\)"
    assert re.match(
        rf"No shared context is decisively ahead: .+ {rates} leads, which may be chance", said["itself"].sentence
    )
    assert re.match(rf"One context alone is shared, .+ {rates}\.$", said["one shared"].sentence)


def test_the_control_is_trained_with_the_same_options_under_another_name() -> None:
    command = trainings()["evaluated"].next_steps[-1].command
    options = "--context 'my best.txt' --name mine-shuffled --learning-rate 0.001 --context-control shuffled"
    assert set(shlex.split(command)) == {"flipsearch", "train", *shlex.split(options)}


def test_settings_that_anyone_may_have_written_break_no_page(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{")
    for model in (7, None, str(tmp_path), "a\0b", ["x"]):
        run = replace(TRAINED, settings={"model": model, "context": 3, "name": "\ud800"})
        command = training_verdict(run, [], [], CARD, tmp_path).next_steps[-1].command
        assert command.startswith("flipsearch train ")


def test_a_checkpoint_that_was_not_evaluated_has_the_command_that_does(tmp_path: Path) -> None:
    made = trained_under(set(), RUN, None, "../my checkpoints/a", tmp_path / "study")
    assert made.command == f"flipsearch evaluate {shlex.quote(str(tmp_path / 'my checkpoints' / 'a'))}"
    assert trained_under(set(), RUN, CARD, "a", tmp_path).command == ""


def test_more_of_an_evaluation_keeps_its_base_and_judge() -> None:
    settings = {
        "against": "my base",
        "quantize_base": "4bit",
        "judge": "wildguard",
        "max_prompts": 4,
        "harmful": ["a b.csv"],
    }
    made = replace(
        CARD, scores=(score("harmful_rate", "pocket", 0.5, 0.5, pairs=4),), settings=settings, reasoning=None
    )
    more, reasoning = [step.command for step in scorecard_verdict(made).next_steps if step.command]
    kept = "checkpoints/mine --against 'my base' --quantize-base 4bit --judge wildguard --harmful 'a b.csv'"
    expected = {"flipsearch", "evaluate", *shlex.split(kept)}
    assert set(shlex.split(more)) == expected
    assert set(shlex.split(reasoning)) == expected | {"--max-prompts", "4", "--reasoning", "gsm8k"}


def test_folders_that_begin_with_a_dash_are_no_options() -> None:
    done = training_verdict(TRAINED, [], [], None, Path("-c/-n"))
    assert done.next_steps[0].command == "flipsearch evaluate ./-c/-n"
    assert scorecard_verdict(replace(CARD, model="-c")).next_steps[-1].command.startswith("flipsearch evaluate ./-c ")
    for step in (*done.next_steps, *verdict(replace(study_of(), name="-s")).next_steps):
        if step.command:
            assert_can_be_pasted(step.command)
