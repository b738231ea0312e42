"""What a training will do: what the user gave, what a card adds, and what is refused before a model is loaded."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers.integrations import integration_utils

from flipsearch.backends.models import model_source
from flipsearch.commands.plans import training_plan_lines
from flipsearch.core.errors import BackendError, ConfigError, PromptError
from flipsearch.training import checks
from flipsearch.training.plan import POCKET, TrainPlan, plan_training

TEXT = "You must never help with harmful requests."


def planned(**settings: Any) -> TrainPlan:
    return plan_training({"context": TEXT}, settings)


def card(folder: Path, **more: Any) -> str:
    path = folder / "best.json"
    path.write_text(json.dumps({"text": TEXT, "placement": "system", "model": "pocket", **more}))
    return str(path)


def test_what_is_given_wins_over_the_card_and_the_card_over_the_defaults(tmp_path: Path) -> None:
    path = card(tmp_path, prompts={"prompts": "starter"}, sampling={"max_tokens": 99, "thinking": "off"})
    config = planned(context=path, max_tokens=50).config
    assert (config.prompts, config.thinking, config.max_tokens) == ("starter", "off", 50)
    assert planned().config.prompts == "pocket"


def test_the_pocket_models_own_defaults_give_way_to_what_is_given() -> None:
    usual, given = planned().config, planned(epochs=1).config
    assert (usual.epochs, usual.learning_rate) == (POCKET["epochs"], POCKET["learning_rate"])
    assert (given.epochs, given.learning_rate) == (1.0, POCKET["learning_rate"])


def test_training_takes_all_that_the_evaluation_leaves() -> None:
    splits = Counter(prompt.split for prompt in planned().prompts)
    assert splits == {"search": 165, "confirm": 165, "training": 190}
    assert {prompt.split for prompt in planned(split="confirm").prompts} == {"confirm"}


@pytest.mark.parametrize(("model_id", "is_noted"), [("a", False), ("b", True)])
def test_a_context_found_on_other_weights_of_the_model_is_noted(model_id: str, is_noted: bool, tmp_path: Path) -> None:
    plan = planned(context=card(tmp_path, model_id="a", backend="transformers"))
    assert any("found on 'pocket' with other weights" in note for note in plan.notes_on(model_id)) == is_noted
    assert set(plan.notes) <= set(plan.notes_on(model_id))


def test_identities_of_another_backend_are_not_compared(tmp_path: Path) -> None:
    plan = planned(context=card(tmp_path, model_id="a", backend="vllm"))
    assert plan.notes_on("b") == plan.notes == planned().notes_on("b")


def test_what_cannot_be_reported_to_is_found_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["mlflow"])
    assert planned(report_to=["mlflow"]).config.report_to == ("mlflow",)
    with pytest.raises(ConfigError, match="--report-to wandb: its package is not installed"):
        planned(report_to=["mlflow", "wandb"])
    with pytest.raises(ConfigError, match=r"unknown --report-to 'wanb'\. Did you mean wandb"):
        planned(report_to=["wanb"])


@pytest.mark.parametrize("model", ["http://127.0.0.1:1/v1#a", "https://elsewhere.example/v1#a", "org/not-here", "gone"])
def test_a_card_chooses_no_endpoint_and_nothing_that_is_downloaded(model: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"card names the model '{model}', .*give it yourself with --model MODEL"):
        planned(context=card(tmp_path, model=model))
    with pytest.raises(ConfigError, match=f"found for '{model}', but the model is 'pocket'"):
        planned(context=card(tmp_path, model=model), model="pocket")


@pytest.mark.parametrize("name", ["hf://datasets/a/b/c.csv", "https://elsewhere.example/p.csv", "org/prompts"])
def test_a_card_chooses_no_prompts_that_are_fetched(name: str, tmp_path: Path) -> None:
    for prompts in ({"prompts": name}, {"harmful": [f"{name}:goal"]}, {"benign": [name]}):
        path = card(tmp_path, prompts=prompts)
        with pytest.raises(PromptError, match="no file decides what is fetched: give --prompts, or --harmful"):
            planned(context=path)
        assert planned(context=path, prompts="pocket").prompts


def test_a_hub_model_of_a_card_is_taken_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cache = "0123456789abcdef" * 2 + "01234567", tmp_path / "cache" / "models--org--tiny"
    shutil.copytree(model_source("pocket"), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    path = card(tmp_path, model="org/tiny", prompts={"prompts": "pocket"})
    assert planned(context=path).config.model == f"org/tiny@{commit}"
    (cache / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="card names the model 'org/tiny', which is not on this machine"):
        planned(context=path)


def test_rollouts_are_settled_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "vllm" else name)
    monkeypatch.setattr(checks, "choose_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    for rollouts, words in (
        ("vllm", "needs a package that is not installed: pip install"),
        ("vlm", "unknown --rollouts 'vlm'. Did you mean vllm"),
        ("http://127.0.0.1:1/v1", "an endpoint takes no new weights while a model is trained"),
    ):
        with pytest.raises(ConfigError, match=words):
            planned(rollouts=rollouts)
    assert planned().config.rollouts == "transformers"

    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    assert "rollouts  by vllm" in training_plan_lines(planned())
    assert planned(device="cpu").config.rollouts == planned(method="sft-self").config.rollouts == "transformers"
    with pytest.raises(ConfigError, match="--rollouts vllm runs on the GPU, and --device is cpu"):
        planned(rollouts="vllm", device="cpu")
    with pytest.raises(ConfigError, match="--method sft-self learns from no rollouts"):
        planned(rollouts="vllm", method="sft-self")
    monkeypatch.setattr(checks, "choose_device", lambda name: torch.device("cpu"))
    assert planned().config.rollouts == "transformers"
    assert planned(rollouts="vllm").config.rollouts == "vllm"


def test_an_upload_that_cannot_be_is_refused_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/b/c", "my model", "../x", "-x/y", ""):
        with pytest.raises(ConfigError, match=r"--push-to-hub is .*expected ORG/NAME"):
            planned(push_to_hub=name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="--push-to-hub org/safer: HF_HUB_OFFLINE is set"):
        planned(push_to_hub="org/safer")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checks, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token of the hub here; run hf auth login"):
        planned(push_to_hub="org/safer")
    monkeypatch.setattr(checks, "get_token", lambda: "token")
    assert planned(push_to_hub="org/safer").folder == planned().folder  # it is no setting of the training


def test_steps_that_are_too_few_to_learn_are_reported_before_the_start() -> None:
    notes = planned(max_steps=9, learning_rate=1e-5).notes
    assert any("9 steps at a rate of 1e-05 are 0.5 % of the paper's 1,872 at 1e-05" in note for note in notes)
    assert any("The first of 9 steps has a rate of 0" in note for note in notes)
    assert not any("rate of 0" in note for note in planned(max_steps=9, warmup_share=0).notes)
    assert not any("steps" in note for note in planned().notes)


def test_the_plan_stands_beside_the_papers() -> None:
    small = planned(max_steps=9, max_tokens=50)
    assert small.tokens_at_most == 9 * 32 * 50
    lines = training_plan_lines(small)
    assert "steps     9 of 32 prompts at 0.0003; the first at rate 0 (warm-up)" in lines
    assert "tokens    at most 14,400 (50 each)" in lines
    assert "the paper 1,872 of 64 at 1e-05; up to 4,096 tokens each, with the prompt" in lines
    assert all(len(line) <= 80 for line in lines if not line.startswith("Note"))
