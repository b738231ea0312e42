"""Files of finished work: what is written is read back, and anything else is one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from flipsearch.core.errors import NoContextError, StudyError
from flipsearch.core.measurements import Difference, json_value
from flipsearch.core.trainings import TRAINING_FORMAT, RoutedContext, Scorecard
from flipsearch.reporting.files import (
    note_checkpoint,
    read_study,
    read_training,
    write_best,
    write_scorecard,
    write_study,
    write_training,
)
from flipsearch.reporting.outcomes import scorecard_verdict
from flipsearch.reporting.verdict import verdict
from flipsearch.templating.library import given_cards
from tests.finished_training import RUN, a_log
from tests.unit.reporting.test_columns import a_study
from tests.unit.reporting.test_scorecard_table import ALONE, CARD


def test_a_scorecard_is_read_back(tmp_path: Path) -> None:
    for card in (CARD, ALONE):
        write_scorecard(card, tmp_path / "a" / "scorecard.json")
        assert TypeAdapter(Scorecard).validate_json((tmp_path / "a" / "scorecard.json").read_bytes()) == card
        assert json.loads((tmp_path / "a" / "scorecard.json").read_text()) == json_value(card)


def test_a_training_is_read_back(tmp_path: Path) -> None:
    write_training(RUN, a_log(2), tmp_path)
    assert read_training(tmp_path) == RUN
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "training.html", "README.md"}
    write_training(replace(RUN, num_steps=-5), a_log(2), tmp_path)
    with pytest.raises(StudyError, match="a count or time in it is none"):
        read_training(tmp_path)


@pytest.mark.parametrize(
    ("read", "name", "what"),
    [
        (read_study, "study.json.gz", "finished study"),
        (read_training, "training.json", "training"),
    ],
)
def test_a_missing_file_or_one_of_another_shape_is_one_line(
    read: Callable[[Path], object], name: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=rf"no {what} at '.*{name}': .*; run .* first\."):
        read(tmp_path)
    (tmp_path / name).write_text(f'{{"format": {TRAINING_FORMAT}, "model": 3}}')
    with pytest.raises(StudyError, match=rf"{name}: no {what} of this version: .*; run .* again\."):
        read(tmp_path)


def test_a_studys_page_names_the_checkpoints_that_were_trained_under_its_contexts(tmp_path: Path) -> None:
    study, folder, checkpoint = a_study(), tmp_path / "reports" / "s", tmp_path / "checkpoints" / "<b>mine"
    context = study.trials[0].context
    write_training(replace(RUN, routed=(RoutedContext("harmful", context, 5),)), a_log(2), checkpoint)
    for place in (checkpoint, tmp_path / "checkpoints" / "gone"):
        note_checkpoint(folder, place)

    def listed() -> str:
        write_study(study, folder)
        page = (folder / "leaderboard.html").read_text(encoding="utf-8")
        return page.partition('class="trained"')[2].partition("</ul>")[0]

    assert "<b>&lt;b&gt;mine</b>" in listed()
    assert 'href="../../checkpoints/%3Cb%3Emine/training.html"' in listed()
    assert f'href="#{context.context_id}"' in listed()
    assert "Not evaluated yet" in listed()
    assert "gone" not in listed()
    write_scorecard(CARD, checkpoint / "scorecard.json")
    assert scorecard_verdict(CARD).sentence in listed()


def test_a_context_that_was_not_confirmed_is_not_given_to_train_on(tmp_path: Path) -> None:
    study, path = a_study(), tmp_path / "best.txt"
    assert study.winner is not None
    write_best(study, path)
    assert [card.text for card in given_cards(str(path))] == [study.winner.context.text]
    null = study.winner.with_confirmed(net=Difference(0.0, -0.2, 0.2, 32, 1.0))
    study = replace(study, winner=null, trials=(null, *study.trials[1:]))
    write_best(study, path)
    assert {file.name for file in tmp_path.iterdir()} == {"best.json"}
    for given in ("best.txt", "best.json"):
        with pytest.raises(NoContextError) as raised:
            given_cards(str(tmp_path / given))
        assert f"study '{study.name}' confirmed no context. {verdict(study).sentence}" in str(raised.value)
    path.write_text("My own text.")
    assert given_cards(str(path)) == []  # it is no study's
    write_best(study, path)
    assert path.read_text() == "My own text."
