"""Studies beside each other: shared contexts, paired differences, and whether a ranking holds."""

from dataclasses import replace
from pathlib import Path

import pytest

import flipsearch
from flipsearch.commands.views import check_table, write_table
from flipsearch.core.errors import ConfigError
from flipsearch.reporting.compare import CONTROL, compare_studies
from flipsearch.reporting.files import write_study
from tests.integration.test_study import study_of


def test_a_study_beside_itself_differs_in_nothing() -> None:
    study = study_of()
    compared = compare_studies([study, replace(study, name="other")])
    assert {row.context_id for row in compared.shared} == {trial.context.context_id for trial in study.trials}
    assert all(row.differences[0] is None for row in compared.shared)
    assert all(row.differences[1] is None or row.differences[1].value == 0 for row in compared.shared)
    assert compared.shared[-1].name == CONTROL
    assert "not decisive" in compared.ranking
    frame = compared.frame()
    assert len(frame) == 2 * len(compared.shared)
    assert set(frame["study"]) == {study.name, "other"}
    assert len(compared.as_dict()["rows"]) == len(frame)


@pytest.mark.parametrize("ending", ["csv", "json", "md", "parquet"])
def test_a_study_is_written_as_a_table_of_each_kind_and_compared_with_others_alone(tmp_path: Path, ending: str) -> None:
    write_study(study_of(), tmp_path / "one")
    frame = flipsearch.report(tmp_path / "one").leaderboard.full
    write_table(frame, tmp_path / f"table.{ending}")
    assert (tmp_path / f"table.{ending}").stat().st_size > 1000
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(ConfigError, match="expected a file"):
        check_table(tmp_path / f"folder.{ending}")
    with pytest.raises(ConfigError, match="is given twice"):
        flipsearch.compare([tmp_path / "one", tmp_path / "one" / ".." / "one"])


def test_studies_without_a_context_in_common_are_refused() -> None:
    study = study_of()
    halves = [replace(study, trials=study.trials[:2]), replace(study, trials=study.trials[2:4])]
    with pytest.raises(ConfigError, match="no context in common"):
        compare_studies(halves)
