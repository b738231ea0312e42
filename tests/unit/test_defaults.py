"""What a model's name says of its defaults: a checkpoint takes those of the model that it was made from."""

import json
from pathlib import Path

import pytest

from flipsearch.backends.models import TRAINING_FILE, base_model
from flipsearch.config import SearchConfig, TrainConfig
from flipsearch.core.errors import BackendError, ConfigError, TrainingError
from flipsearch.core.trainings import TRAINING_FORMAT
from flipsearch.settings import default_settings, resolve


def checkpoint(folder: Path, model: str) -> str:
    folder.mkdir()
    (folder / TRAINING_FILE).write_text(json.dumps({"format": TRAINING_FORMAT, "model": model}))
    return str(folder)


def test_a_checkpoint_has_the_defaults_of_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "first", "pocket")
    second = checkpoint(tmp_path / "second", first)
    other = checkpoint(tmp_path / "other", "Qwen/Qwen3-0.6B")
    assert base_model(second) == "pocket"
    assert default_settings(second) == default_settings("pocket")
    assert default_settings("pocket")["prompts"] == "pocket"
    assert default_settings("pocket")["max_tokens"] < default_settings(other)["max_tokens"]
    assert default_settings(other)["prompts"] == default_settings("a/b")["prompts"] == "starter"


def test_a_base_beside_the_checkpoint_is_found_from_anywhere(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", "pocket")
    assert base_model(checkpoint(tmp_path / "new", "../base")) == "pocket"


def test_a_circle_of_bases_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(Path("one"), "../two")
    checkpoint(Path("two"), "../one")
    with pytest.raises(BackendError, match="leads back to itself"):
        base_model("one")
    checkpoint(Path("pocket"), "pocket")
    assert base_model("pocket") == "pocket"
    assert base_model("x" * 5000) == "x" * 5000


@pytest.mark.parametrize(
    "content", ["[", "[" * 100_000, "[]", '{"model": "pocket"}', '{"format": 99, "model": "pocket"}']
)
def test_a_training_file_that_cannot_be_used_is_named(content: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "first", "pocket")
    (Path(folder) / TRAINING_FILE).write_text(content)
    with pytest.raises((BackendError, TrainingError), match=TRAINING_FILE):
        base_model(folder)


def test_a_judge_in_another_spelling_gives_the_same_names_of_study_and_checkpoint() -> None:
    resolved = resolve(SearchConfig(judge="a + b(y=2,x='1'):any", confirm_judge="c()"))
    other = resolve(SearchConfig(judge="a+b(x=1, y=2):any", confirm_judge="c"))
    assert resolved == other
    assert resolved.study_name() == other.study_name()
    assert resolve(SearchConfig(judge="refusal()")).study_name() == resolve(SearchConfig()).study_name()
    named = [resolve(TrainConfig(context=("x",), judge=judge)).checkpoint_name() for judge in ("compact ", "compact")]
    assert named[0] == named[1]
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(SearchConfig(second_judges=("a(",)))
