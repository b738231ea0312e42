"""The Optuna study on disk: every arm at its point, in its state, with its ids; opened by Optuna itself."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from flipsearch.config import SearchConfig
from flipsearch.core.errors import StudyError
from flipsearch.core.studies import Study
from flipsearch.searching.setup import Space, prepare_search
from flipsearch.searching.study import STORAGE_FILE, write_storage
from tests.integration.test_study import CONFIG, study_of
from tests.world import library, prompt_set, template

MUMBLING = library(mumbling=template("mumbling", "mumble {{ 'firm ' * times }}", "times = [3, 4]"))
WIDE: SearchConfig = CONFIG.model_copy(update={"num_contexts": 25})


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of(templates=MUMBLING, config=WIDE)


@pytest.fixture(scope="module")
def space() -> Space:
    return prepare_search(WIDE, MUMBLING, prompt_set()).space


def opened(folder: Path, study: Study) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STORAGE_FILE}")
    loaded = optuna.load_study(study_name=study.name, storage=storage)
    loaded.trials  # noqa: B018  (read while the file is open)
    storage.remove_session()
    storage.engine.dispose()
    return loaded


def test_optuna_opens_every_arm_as_it_was(study: Study, space: Space, tmp_path: Path) -> None:
    write_storage(study, space, tmp_path)
    loaded = opened(tmp_path, study)
    arms = {trial.context.context_id: trial for trial in study.trials if trial.role == "arm"}
    assert len(loaded.trials) == len(arms) == 25
    assert set(Counter(trial.state for trial in loaded.trials)) == {
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    }  # fmt: skip
    for trial in loaded.trials:
        arm = arms[trial.user_attrs["context"]["context_id"]]
        assert space.context(trial.params) == arm.context
        assert trial.user_attrs["context"]["text"] == arm.context.text
        assert trial.user_attrs["search"]["flip"]["n"] == arm.search.flip_rate.n
        assert trial.value == (None if arm.state == "failed" else arm.search.flip_rate.value)
        refusals = arm.search.over_refusal_rate.value
        assert trial.constraints == ({} if refusals is None else {"over_refusal": pytest.approx(refusals - 0.1)})
    assert study.winner is not None
    # Optuna's best is the best within the cap, as the constraint says.
    assert loaded.best_value == study.winner.search.flip_rate.value
    assert [path.name for path in tmp_path.iterdir()] == [STORAGE_FILE]


def test_a_child_of_operators_has_its_lineage_and_no_point(study: Study, space: Space, tmp_path: Path) -> None:
    first = next(trial for trial in study.trials if trial.role == "arm")
    child = replace(first, number=99, context=replace(first.context, text="new", operator="swap", parents=("a", "b")))
    write_storage(replace(study, trials=(*study.trials, child)), space, tmp_path)
    last = opened(tmp_path, study).trials[-1]
    assert last.params == {}
    lineage = last.user_attrs["context"]
    assert (lineage["operator"], lineage["parents"]) == ("swap", ["a", "b"])


def test_it_is_replaced(study: Study, space: Space, tmp_path: Path) -> None:
    (tmp_path / STORAGE_FILE).write_bytes(b"torn")
    write_storage(study, space, tmp_path)
    write_storage(study, space, tmp_path)
    assert len(opened(tmp_path, study).trials) == 25


def test_a_place_that_cannot_be_written(study: Study, space: Space, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot write .*optuna\.db"):
        write_storage(study, space, tmp_path / "file")


def test_points_that_are_not_of_this_space(space: Space) -> None:
    context = space.context(space.point(0))
    assert space.point_of(context) == space.point(0)
    assert space.point_of(replace(context, template="")) is None
    assert space.point_of(replace(context, placement="around")) is None
    assert space.point_of(replace(context, params=())) is None
