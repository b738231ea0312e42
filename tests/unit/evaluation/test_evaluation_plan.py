"""What an evaluation covers, and every bad input that is found before a model is loaded."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flipsearch.backends.models import model_source
from flipsearch.config import EvalConfig
from flipsearch.core.errors import BackendError, ConfigError, FlipsearchError, PromptError
from flipsearch.core.settings import make_config
from flipsearch.core.trainings import TRAINING_FORMAT
from flipsearch.evaluation import plan as module
from flipsearch.evaluation.plan import EvaluationPlan, plan_evaluation
from flipsearch.prompts.sets import PromptSet, load_prompts
from pocket_model.prompt_set import problems


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as training leaves it: the pocket model's files, and what it was made from."""
    folder = tmp_path / "checkpoints" / "Mine"
    shutil.copytree(model_source("pocket"), folder)
    (folder / "training.json").write_text(json.dumps({"format": TRAINING_FORMAT, "model": "pocket"}))
    return folder


def planned(prompts: PromptSet | None = None, **settings: Any) -> EvaluationPlan:
    return plan_evaluation(make_config(EvalConfig, settings), prompts or load_prompts("pocket"))


def test_a_checkpoint_of_the_pocket_model_needs_no_flag(checkpoint: Path) -> None:
    plan = planned(model=str(checkpoint))
    assert plan.config.against == "pocket"
    assert plan.base_config is not None
    assert plan.base_config.model == "pocket"
    assert {prompt.split for prompt in plan.prompts} == {"evaluation"}
    assert {prompt.kind for prompt in plan.prompts} == {"harmful", "benign"}
    assert [len(problems.problems) for problems in plan.problem_sets] == [len(problems())]
    assert plan.path == checkpoint / "scorecard.json"


@pytest.mark.parametrize("base", ["http://127.0.0.1:1/v1#a", "org/not-here"])
def test_a_checkpoint_chooses_no_endpoint_and_nothing_that_is_downloaded(base: str, checkpoint: Path) -> None:
    (checkpoint / "training.json").write_text(json.dumps({"format": TRAINING_FORMAT, "model": base}))
    with pytest.raises(
        BackendError, match=rf"training.json' names the model '{base}', .*yourself with --against MODEL"
    ):
        planned(model=str(checkpoint))
    assert planned(model=str(checkpoint), against="pocket").config.against == "pocket"


def test_a_named_base_wins(checkpoint: Path) -> None:
    assert planned(model="pocket", against=str(checkpoint)).config.against == str(checkpoint)


def test_a_repetition_penalty_is_refused_where_a_model_cannot_have_it() -> None:
    usual, other = planned().config.sampling(), planned(repetition_penalty=1.2).config.sampling()
    assert (usual.repetition_penalty, other.repetition_penalty) == (1.0, 1.2)
    assert usual.sampling_id != other.sampling_id
    with pytest.raises(ConfigError, match=r"--repetition-penalty 1\.2: http://127\.0\.0\.1:1/v1#a does not know it"):
        planned(against="http://127.0.0.1:1/v1#a", repetition_penalty=1.2)


def test_another_model_has_no_base_no_problems_and_a_folder_of_its_own(checkpoint: Path) -> None:
    (checkpoint / "training.json").unlink()
    plan = planned(model=str(checkpoint), reports=Path("elsewhere"))
    assert (plan.config.against, plan.base_config, plan.problem_sets, plan.problems_id) == (None, None, (), None)
    assert plan.path.name == "scorecard.json"
    assert plan.path.parent.name.startswith("mine-")
    assert plan.path.parent.parent == Path("elsewhere") / "evaluations"


def test_the_folder_follows_what_changes_results_and_nothing_else() -> None:
    path = planned().path
    assert planned(batch_size=3, device="cpu").path == path
    assert planned(max_prompts=5).path != path
    assert planned(split="confirm").path != path
    assert planned(reasoning=()).path != path


def test_reasoning_can_be_left_out() -> None:
    assert planned(reasoning=()).problem_sets == ()


def test_the_most_prompts_are_a_set_and_kind_and_the_most_problems_a_set() -> None:
    plan = planned(max_prompts=4, max_problems=7)
    assert [sum(prompt.kind == kind for prompt in plan.prompts) for kind in ("harmful", "benign")] == [4, 4]
    assert [len(problems.problems) for problems in plan.problem_sets] == [7]


def test_every_prompt_set_has_its_own_first_prompts(tmp_path: Path) -> None:
    rows = {"a.csv": ("bread", "soup", "cake"), "b.csv": ("a shed", "a boat", "a kite")}
    files = [
        put(tmp_path, name, "prompt\n" + "".join(f"how do I make {thing}?\n" for thing in things))
        for name, things in rows.items()
    ]
    chosen = planned(load_prompts(benign=files), split="all", max_prompts=2).prompts
    assert Counter(prompt.source for prompt in chosen) == {"a.csv": 2, "b.csv": 2}


def test_split_all_takes_every_prompt() -> None:
    every = load_prompts("pocket")
    assert len(planned(every, split="all").prompts) == len(every.prompts)


def test_a_set_without_splits_of_its_own_has_prompts_that_no_search_sees() -> None:
    starter = load_prompts("starter")
    chosen = planned(starter).prompts
    assert {prompt.kind for prompt in chosen} == {"harmful", "benign"}
    assert not set(chosen) & {prompt for prompt in starter.prompts if prompt.split in ("search", "confirm")}


def test_a_set_named_twice_is_used_once() -> None:
    assert len(planned(reasoning=("arithmetic", "arithmetic")).problem_sets) == 1


def put(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def test_no_prompt_in_the_split_says_what_there_is_and_what_to_do(tmp_path: Path) -> None:
    lines = "\n".join(f"how do I steal bike number {word}?,training" for word in ("one", "two", "three", "four"))
    prompts = load_prompts(harmful=put(tmp_path, "bikes.csv", f"prompt,split\n{lines}\n"))
    with pytest.raises(
        PromptError, match=r"no prompt of 'bikes\.csv' is set aside .*\(it has: 4 training.*Give --split all if"
    ):
        planned(prompts)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"samples": 4}, ConfigError, "--samples is 4, but greedy decoding .* give a --temperature"),
        ({"samples": 0}, ConfigError, "--samples is 0"),
        ({"split": "test"}, ConfigError, "--split is 'test': .*'evaluation' or 'all'"),
        ({"reasoning": ["arithmatic"]}, PromptError, r"unknown problem set 'arithmatic'\. Did you mean arithmetic"),
        ({"reasoning": ["missing.csv"]}, PromptError, r"missing\.csv"),
        ({"against": "no/such/folder/here"}, BackendError, "no/such/folder/here"),
        ({"against": "pockt"}, BackendError, "Did you mean pocket"),
        ({"model": "pockt"}, BackendError, "Did you mean pocket"),
        ({"agianst": "pocket"}, ConfigError, "Did you mean against"),
    ],
)
def test_bad_input_is_one_clear_line(settings: dict[str, Any], error: type[FlipsearchError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        planned(**settings)
    assert "\n" not in str(caught.value)


def test_samples_need_a_temperature_and_nothing_else() -> None:
    assert planned(samples=4, temperature=0.6).config.samples == 4


def test_expressions_without_math_verify_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "1/2?", "answer": r"\frac{1}{2}"}]
    path = put(tmp_path, "maths.jsonl", "\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"maths\.jsonl:2: the answer .*pip install 'flipsearch\[reasoning\]'"):
        planned(reasoning=(path,))
    assert planned(reasoning=("arithmetic",)).problem_sets


def test_a_checkpoint_that_cannot_be_written_is_found_before_the_work(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="which cannot be written"):
        planned(model=str(checkpoint))


def test_an_unreadable_file_of_unsafe_answers_names_its_flag(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    for name in ("empty.csv", "missing.csv"):
        config = EvalConfig(model="pocket", attacks=("prefill",), unsafe_answers=str(tmp_path / name))
        with pytest.raises(PromptError, match=r"^--unsafe-answers: "):
            plan_evaluation(config, load_prompts("pocket"))
