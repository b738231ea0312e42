"""--start: contexts of a card, a text file or another study come first, and what is none is one line."""

import json
from pathlib import Path

import pytest

import flipsearch
from flipsearch.core.errors import FlipsearchError
from flipsearch.results import SearchResult


def search(folder: Path, best: str, start: tuple[str, ...]) -> SearchResult:
    return flipsearch.search(
        reports=folder, best=folder / best, start=start, max_prompts=12, num_contexts=3, num_finalists=1, depths=(),
        benign_context=False, screen=1,
    )  # fmt: skip


@pytest.mark.parametrize("start", ["nope.json", "nope.txt", "no-such-study"])
def test_what_cannot_be_read_is_one_line_before_a_model_is_loaded(start: str, tmp_path: Path) -> None:
    with pytest.raises(FlipsearchError) as caught:
        flipsearch.plan(start=(start,), reports=tmp_path)
    assert start in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_starts_from_the_best_of_another(tmp_path: Path) -> None:
    first = search(tmp_path, "best.txt", ())
    winner = first.study.winner
    assert winner is not None
    for start in (str(tmp_path / "best.json"), first.study.name):
        second = search(tmp_path, "next.txt", (start,))
        (trial,) = [trial for trial in second.study.trials if trial.context.operator == "start"]
        assert trial.context.text == winner.context.text
        assert dict(trial.context.params)["from"] in ("best.json", first.study.name)
        assert any("--start" in note and trial.context.context_id in note for note in second.study.notes)
        if second.study.winner == trial:
            card = json.loads((tmp_path / "next.json").read_text(encoding="utf-8"))
            assert card["params"]["from"] in ("best.json", first.study.name)
            assert card["lineage"]["operator"] == "start"
