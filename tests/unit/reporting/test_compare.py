"""Studies beside each other: shared contexts, paired differences, and whether a ranking holds."""

from dataclasses import replace
from pathlib import Path

import pytest

import flipsearch
from flipsearch.core.errors import ConfigError, StudyError
from flipsearch.core.records import Context
from flipsearch.reporting import formats
from flipsearch.reporting.compare import compare_studies
from flipsearch.reporting.files import write_study
from flipsearch.reporting.pages import render
from flipsearch.reporting.verdict import verdict
from tests.integration.test_study import CONFIG, study_of
from tests.pages import words_of


def test_a_study_beside_itself_differs_in_nothing() -> None:
    study = study_of()
    compared = compare_studies([study, replace(study, name="other")])
    assert {row.context_id for row in compared.shared} == {trial.context.context_id for trial in study.trials}
    assert all(row.differences[0] is None for row in compared.shared)
    assert all(row.differences[1] is None or row.differences[1].value == 0 for row in compared.shared)
    placebos = [row.is_placebo for row in compared.shared]
    assert placebos == sorted(placebos)
    assert any(placebos)
    assert "No shared context is decisively ahead" in compared.ranking
    frame = compared.frame()
    assert len(frame) == 2 * len(compared.shared)
    assert set(frame["study"]) == {study.name, "other"}
    assert len(compared.as_dict()["rows"]) == len(frame)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_report_is_written_in_each_format(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[str] = []

    def take_picture(page: str, height: int, path: Path) -> None:
        pictures.append(page)
        path.write_bytes(page.encode())

    monkeypatch.setattr(formats, "browser", lambda: "chromium")
    monkeypatch.setattr(formats, "take_picture", take_picture)
    write_study(study_of(), tmp_path / "one")
    result = flipsearch.report(tmp_path / "one")
    result.write(tmp_path / f"file.{format}")
    result.write(tmp_path / "file.of.any", format)
    assert (tmp_path / "file.of.any").read_bytes() == (tmp_path / f"file.{format}").read_bytes()
    assert (tmp_path / "file.of.any").stat().st_size > 1000
    assert all("unsafe answers safe" in page and "<script" not in page for page in pictures)
    compared = compare_studies([result.study, replace(result.study, name="other")])
    compared.write(tmp_path / f"both.{format}")
    assert (tmp_path / f"both.{format}").stat().st_size > 1000


def test_markdown_can_be_pasted_the_verdict_first_and_no_wide_table(tmp_path: Path) -> None:
    write_study(study_of(), tmp_path / "one")
    result = flipsearch.report(tmp_path / "one")
    compared = compare_studies([result.study, replace(result.study, name="other")])
    for report, said in ((result, verdict(result.study)), (compared, compared.verdict)):
        report.write(tmp_path / "x.md")
        lines = (tmp_path / "x.md").read_text(encoding="utf-8").splitlines()
        assert lines[2].replace("\\", "") == f"**{said.sentence}**"
        rows = [line for line in lines if line.startswith("| ")]
        assert max(row.count(" | ") + 1 for row in rows) <= formats.MOST_COLUMNS
        assert len(rows) <= 2 + formats.MOST_ROWS + 3  # the placebos
        assert said.next_steps[0].text.replace("#", "\\#") in "\n".join(lines)


def test_what_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert formats.report_format(tmp_path / "x.CSV", None) == "csv"
    assert formats.report_format(tmp_path / "x.csv", "html") == "html"
    (tmp_path / "folder.csv").mkdir()
    for to, format, words in (
        (tmp_path / "folder.csv", None, "expected a file"),
        (tmp_path / "nowhere" / "x.csv", None, "in a folder that is there"),
        (tmp_path / "x.doc", None, "ends in .html, .csv"),
        (None, "htm", "Did you mean html"),
    ):
        with pytest.raises(ConfigError, match=words):
            formats.report_format(to, format)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs Chromium"):
        formats.report_format(tmp_path / "x.png", None)


def test_a_study_is_compared_with_others_alone(tmp_path: Path) -> None:
    write_study(study_of(), tmp_path / "one")
    with pytest.raises(ConfigError, match="is given twice"):
        flipsearch.compare([tmp_path / "one", tmp_path / "one" / ".." / "one"])


def test_studies_of_one_name_are_distinguished_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / reports / study_of().name for reports in ("one", "two")]
    for folder in folders:
        write_study(study_of(), folder)
    compared = flipsearch.compare(folders)
    assert [(t.source, t.target) for t in compared.transfers] == [(str(a), str(b)) for a in folders for b in folders]
    assert all(str(folder) in compared.page() for folder in folders)


def test_a_page_that_lacks_what_it_shows_is_an_error_in_one_line() -> None:
    with pytest.raises(StudyError, match="no page can be made: something is missing"):
        render("comparison.html", tone="good")


def test_the_best_of_each_study_is_measured_in_the_others() -> None:
    """Of two seeds' studies the world is the same: what wins in one wins in the other, and both rank alike."""
    first, second = study_of(), study_of(config=CONFIG.model_copy(update={"seed": 1}))
    compared = compare_studies([first, replace(second, name="second")])
    names = [study.name for study in compared.studies]
    assert [(t.source, t.target) for t in compared.transfers] == [(a, b) for a in names for b in names]
    there = compared.transfers[1]
    assert there.best is not None
    assert first.winner is not None
    assert there.best.context_id == first.winner.context.context_id
    assert there.trial in second.trials
    assert there.ranks is not None
    assert there.ranks.low > 0.5
    page = words_of(compared.page())
    assert compared.ranking in page
    assert "<script" not in page
    assert "The studies differ in seed (0, 1)." in page


def test_a_context_that_a_study_did_not_try_is_not_measured_there() -> None:
    study = study_of()
    first = study.trials[0].context.context_id
    trials = tuple(trial for trial in study.trials if trial.context.context_id != first)
    without = replace(study, name="without", trials=trials, winner=trials[0])
    compared = compare_studies([study, without])
    there = compared.transfers[1]
    assert (there.trial, there.behind) == (None, None)
    (step,) = [step for step in compared.verdict.next_steps if "Measure it there" in step.text]
    assert step.command.startswith(f"flipsearch score reports/{study.name}/best.json --model {study.settings['model']}")
    assert step.text in words_of(compared.page())
    assert "not measured" in compared.page()
    back = compared.transfers[2]
    assert back.behind is not None
    assert back.behind.value <= 0


def test_hostile_texts_stay_texts_in_a_comparison() -> None:
    study, hostile = study_of(), "</title></script><script>hacked=1</script>\u202e{{ 7*7 }}"
    trial = replace(study.trials[0], context=Context(hostile))
    hurt = replace(study, name=hostile, trials=(trial, *study.trials[1:]), winner=trial)
    page = compare_studies([hurt, replace(hurt, name="other")]).page()
    assert "<script" not in page
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in page


def test_studies_without_a_context_in_common_are_refused() -> None:
    study = study_of()
    empty = next(trial for trial in study.trials if not trial.context.text)
    halves = [replace(study, trials=(*study.trials[place : place + 2], empty)) for place in (0, 2)]
    with pytest.raises(ConfigError, match="no context in common"):
        compare_studies(halves)


def test_two_texts_of_one_name_are_distinguished_and_no_link_leads_nowhere() -> None:
    study = study_of()
    changed = replace(study.trials[0], context=replace(study.trials[0].context, text="Other words."))
    other = replace(study, name="other", trials=(changed, *study.trials[1:]), winner=changed)
    compared = compare_studies([study, other])
    first, second = (transfer.best for transfer in compared.transfers[::3])
    assert first
    assert second
    assert first.name != second.name
    assert first.name.partition(" · ")[0] == second.name.partition(" · ")[0]
    assert "Other words." in compared.page()
    assert f'href="#{second.context_id}"' not in compared.page()
