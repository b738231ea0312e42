"""The pictures of a study: what templates were filled in with, and what the finalists were made of."""

from dataclasses import replace

from flipsearch.core.studies import Study
from flipsearch.reporting.figures import Figure, figures_of
from flipsearch.reporting.format import names_of
from tests.integration.test_study import study_of


def figure(study: Study, title: str) -> Figure | None:
    return next((figure for figure in figures_of(study, names_of(study)) if figure.title == title), None)


def test_values_of_an_axis_are_compared_on_the_prompts_that_all_contexts_saw() -> None:
    """In the known world each time flips a quarter more, and a harsh text all; those that went on saw other prompts."""
    study = study_of()
    twice = [trial.context.template for trial in study.trials if dict(trial.context.params).get("times") == 2]
    mean = sum(1.0 if template == "harsh" else 0.5 for template in twice) / len(twice)
    axes = figure(study, "What templates were filled in with")
    assert axes is not None
    words = {mark.label: mark.words for mark in axes.marks}
    assert words["times: 1"].startswith("25.0 % (")
    assert words["times: 2"].startswith(f"{100 * mean:.1f} % (")
    assert "on the first 8 search prompts" in axes.caption


def test_ancestors_stand_above_what_was_made_of_them_whatever_a_file_says() -> None:
    study = study_of()
    assert figure(study, "What the finalists were made of") is None
    made = study.trials[0]
    arms = [trial for trial in study.trials if trial.role == "arm" and not trial.confirm]
    parents = [trial for trial in arms if trial.number < made.number][:2]
    ids = [trial.context.context_id for trial in parents]
    circle = replace(parents[0], context=replace(parents[0].context, parents=(made.context.context_id, "nowhere")))
    winner = replace(made, context=replace(made.context, parents=tuple(ids)))
    kept = tuple(trial for trial in study.trials if trial not in (made, *parents))
    ancestry = figure(
        replace(study, trials=(winner, circle, parents[1], *kept), winner=winner), "What the finalists were made of"
    )
    assert ancestry is not None
    above = [mark.y for mark in ancestry.marks if mark.style == "ancestor"]
    assert len(above) == 2
    assert all(mark.y > max(above) for mark in ancestry.marks if mark.style == "winner")
    assert ancestry.path.count("M") == 2
