"""Which answers people are given to label: drawn with the chances that stand beside them, and told as they were."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flipsearch.core.errors import JudgeError, StudyError
from flipsearch.core.records import Exchange, Prompt, Sampling
from flipsearch.core.studies import Study
from flipsearch.judging.labelling import (
    Drawn,
    StudyLabel,
    base_rollout_id,
    draw_answers,
    joined,
    load_labels,
    save_labels,
    study_labels,
)
from flipsearch.judging.labels import HumanLabel, LabelledAnswer, Place, read_labels
from flipsearch.ledger import Ledger
from flipsearch.reporting.files import write_labels
from tests.labelled import PROMPTS, MistakenJudge, best_of, draw, mistaken_study, renamed
from tests.world import prompt_set


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def study(ledger: Ledger) -> Study:
    return mistaken_study(ledger)


def ids(drawn: list[Drawn]) -> list[str]:
    return list(dict.fromkeys(one.place.prompt_id for one in drawn))


def chances(study: Study, ledger: Ledger, num: int) -> dict[str, float]:
    """Prompt id -> its probability, gathered over many draws."""
    return {
        one.place.prompt_id: one.place.probability
        for number in range(300)
        for one in draw(renamed(study, number), ledger, num)
    }


@pytest.mark.parametrize("num", [12, 30, 55])
def test_a_prompt_is_drawn_as_often_as_its_probability_says(study: Study, ledger: Ledger, num: int) -> None:
    draws = [draw(renamed(study, number), ledger, num) for number in range(400)]
    probability = {one.place.prompt_id: one.place.probability for drawn in draws for one in drawn}
    seen = Counter(id for drawn in draws for id in ids(drawn))
    assert len(probability) == 60
    assert sum(probability.values()) == pytest.approx(num)
    for id, chance in probability.items():
        assert seen[id] / 400 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 400) ** 0.5 + 1e-9)


def test_doubtful_answers_are_likelier(study: Study, ledger: Ledger) -> None:
    probability = chances(study, ledger, 12)
    judge, text = MistakenJudge(), {prompt.prompt_id: prompt for prompt in PROMPTS}
    doubt = {}
    for id in probability:
        [base], flips = judge.judge([Exchange(text[id], "Here are the steps .")]), best_of(study).final
        assert flips is not None
        assert base.p_unsafe is not None
        doubt[id] = min(base.p_unsafe, 1 - base.p_unsafe)
    surest, least_sure = (
        sorted(probability, key=doubt.__getitem__)[:10],
        sorted(probability, key=doubt.__getitem__)[-10:],
    )
    assert max(probability[id] for id in surest) < min(probability[id] for id in least_sure)


def test_more_than_there_are_takes_all_of_them(study: Study, ledger: Ledger) -> None:
    drawn = draw(study, ledger, 1000)
    assert len(ids(drawn)) == 60
    assert {one.place.probability for one in drawn} == {1.0}


def test_the_same_call_draws_the_same_and_a_larger_one_more(study: Study, ledger: Ledger) -> None:
    before: list[str] = []
    for num in (5, 10, 20, 40, 60):
        drawn = draw(study, ledger, num)
        assert drawn == draw(study, ledger, num)
        assert set(before) <= set(ids(drawn))
        before = ids(drawn)


def test_who_stops_early_has_labelled_a_smaller_draw(study: Study, ledger: Ledger) -> None:
    """While no chance is 1 a smaller draw is the beginning of a larger one."""
    large = ids(draw(study, ledger, 20))
    small = ids(draw(study, ledger, 10))
    assert large[: len(small)] == small


def test_each_prompt_has_its_answer_without_context_and_those_under_the_best(study: Study, ledger: Ledger) -> None:
    drawn = draw(study, ledger, 10, num_contexts=2)
    finalists = [trial.context.context_id for trial in study.trials[:2]]
    by_prompt: dict[str, list[str]] = {}
    for one in drawn:
        by_prompt.setdefault(one.place.prompt_id, []).append(one.place.context_id)
    assert {tuple(found) for found in by_prompt.values()} == {("", *finalists)}
    confirm = {prompt.prompt_id for prompt in PROMPTS if prompt.split == "confirm" and prompt.kind == "harmful"}
    assert set(by_prompt) <= confirm


def test_what_people_said_before_is_filled_in(study: Study, ledger: Ledger) -> None:
    first = draw(study, ledger, 5)
    known = [StudyLabel(one.place, "unsafe") for one in first]
    again = draw_answers(study, ledger, PROMPTS, 20, 1, known)
    assert {one.place.prompt_id: one.label for one in again if one.label} == dict.fromkeys(ids(first), "unsafe")


def test_what_cannot_be_labelled_is_one_line(study: Study, ledger: Ledger) -> None:
    several = replace(study, settings={**study.settings, "samples": 4})
    with pytest.raises(StudyError, match="draws each prompt several times"):
        draw(several, ledger, 5)
    with pytest.raises(StudyError, match="has confirmed no context"):
        draw(replace(study, trials=tuple(replace(trial, confirmed=None) for trial in study.trials)), ledger, 5)
    with pytest.raises(
        StudyError, match="60 of 60 scored harmful prompts of study 'world' are no longer in its prompt"
    ):
        draw_answers(study, ledger, prompt_set(4, 4)[:8], 5)
    with Ledger("sqlite://") as empty, pytest.raises(StudyError, match="lacks 120 of its answers"):
        draw(study, empty, 5)
    with pytest.raises(StudyError, match=r"of the 60 scored .* none is drawn; give a larger --num"):
        _ = [draw(renamed(study, number), ledger, 1) for number in range(200)]  # in a third of the draws


HOSTILE = [
    "=HYPERLINK(1)",
    "'=1+1",
    "''-2",
    "a\rb",
    "one\r\ntwo\n\nthree",
    "\u2028\u202e \U0001f512 ünï",
    '"quoted", and; more',
    "@sum",
    "-",
    "'",
    "",
    "x" * 200_000,
    "NA",
    "007",
    "<script>{{ 7*7 }}</script>",
]


@pytest.mark.parametrize("prompt_id", ["0123456789abcdef", "1234567890123456", "12345678e1234567"])
def test_hostile_answers_come_back_as_they_went_out(tmp_path: Path, prompt_id: str) -> None:
    drawn = [
        Drawn(f"{text} ?".strip(), text, Place("=study", prompt_id, "", "r", 1 / 3), "unsafe" if index % 2 else None)
        for index, text in enumerate(HOSTILE)
    ]
    write_labels(drawn, tmp_path / "l.csv")
    found = read_labels([str(tmp_path / "l.csv")])
    assert [(row.prompt, row.answer, row.label, row.place) for row in found] == [
        (one.prompt, one.response, one.label, one.place) for one in drawn
    ]
    assert {row.source for row in found} == {"=study"}


def test_no_cell_is_run_or_taken_for_a_number_and_the_verdict_is_not_told(tmp_path: Path) -> None:
    write_labels([Drawn("+1", "=1", Place("@s", "12345678e1234567", "1234567890123456", "r", 0.5))], tmp_path / "l.csv")
    content = (tmp_path / "l.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    header, row = content.decode("utf-8-sig").splitlines()
    assert header == '"label","prompt","response","study","prompt_id","context_id","rollout_id","probability"'
    assert row == """"","'+1","'=1","'@s","'12345678e1234567","'1234567890123456","r","0.5\""""


def test_what_no_text_file_holds_is_marked(tmp_path: Path) -> None:
    write_labels([Drawn("p", "a\0b\ud800c", Place("s", "i", "", "r", 1.0))], tmp_path / "l.csv")
    assert read_labels([str(tmp_path / "l.csv")])[0].answer == "a\ufffdb\ufffdc"


def test_the_written_answer_is_judged_as_the_rollout_was(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    write_labels(draw(study, ledger, 40), tmp_path / "l.csv")
    judge, flips = MistakenJudge(), {flip.prompt_id: flip for flip in best_of(study).final.flips}
    for row in read_labels([str(tmp_path / "l.csv")]):
        assert row.place is not None
        flip = flips[row.place.prompt_id]
        [said] = judge.judge([Exchange(Prompt(row.prompt, "harmful"), row.answer)])
        assert said.label == (flip.after if row.place.context_id else flip.before)


def test_the_columns_of_a_study_may_be_in_any_case_and_the_label_in_any(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        "Label,Prompt,Response,Study,Prompt_ID,Context_Id,ROLLOUT_ID,PROBABILITY\n"
        " UNSAFE ,q,a,s,p,,r,0.5\n,q,a,s,p,c,r,0.5\n"
    )
    first, second = read_labels([str(tmp_path / "l.csv")])
    assert (first.label, first.place) == ("unsafe", Place("s", "p", "", "r", 0.5))
    assert (second.label, second.place) == (None, Place("s", "p", "c", "r", 0.5))


# What people said is kept in the study's folder.


def row(
    study: Study, prompt_id: str, label: HumanLabel | None, context_id: str = "", chance: float = 0.5
) -> LabelledAnswer:
    rollout = rollout_of(study, prompt_id, context_id)
    return LabelledAnswer("p", "a", label, study.name, Place(study.name, prompt_id, context_id, rollout, chance))


def rollout_of(study: Study, prompt_id: str, context_id: str) -> str:
    if not context_id:
        return base_rollout_id(study, prompt_id)
    flips = best_of(study).final.flips
    return next(flip.rollout_ids[0] for flip in flips if flip.prompt_id == prompt_id)


def test_labels_are_kept(study: Study, tmp_path: Path) -> None:
    id = best_of(study).final.flips[0].prompt_id
    labels = study_labels(study, [row(study, id, "unsafe"), LabelledAnswer("p", "a", "safe", "another set")])
    assert [(one.place.prompt_id, one.label) for one in labels] == [(id, "unsafe")]
    assert load_labels(tmp_path) == []
    save_labels(labels, tmp_path)
    assert load_labels(tmp_path) == labels
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("torn", ["", "[", "{}", '[{"place": 1}]', "\x00"])
def test_a_torn_file_of_labels_is_one_line(tmp_path: Path, torn: str) -> None:
    (tmp_path / "labels.json").write_text(torn)
    with pytest.raises(JudgeError, match=r"labels\.json' cannot be read; delete it and run"):
        load_labels(tmp_path)


def test_answers_that_the_study_does_not_have_are_refused(study: Study) -> None:
    id = best_of(study).final.flips[0].prompt_id
    renamed = replace(study, model_id="another model")  # the same prompts and contexts, and other answers
    for bad in (row(study, "another", "safe"), row(study, id, "safe", "another"), row(renamed, id, "safe")):
        with pytest.raises(JudgeError, match=r"that study 'world' does not have; is it another study of that name\?"):
            study_labels(study, [bad])


def test_labels_that_contradict_each_other_are_refused(study: Study) -> None:
    id = best_of(study).final.flips[0].prompt_id
    with pytest.raises(JudgeError, match="is labelled both safe and unsafe; settle it"):
        study_labels(study, [row(study, id, "safe"), row(study, id, None), row(study, id, "unsafe")])
    same = study_labels(study, [row(study, id, "safe", chance=0.2), row(study, id, "safe", chance=0.6)])
    assert same == [StudyLabel(Place(study.name, id, "", base_rollout_id(study, id), 0.6), "safe")]


def test_several_draws_are_one_and_lose_no_label() -> None:
    old = [StudyLabel(Place("s", "a", "", "r", 0.5), "safe"), StudyLabel(Place("s", "b", "", "r", 0.4), "unsafe")]
    new = [StudyLabel(Place("s", "a", "", "r", 0.3), None), StudyLabel(Place("s", "c", "", "r", 0.2), "safe")]
    found = {one.place.prompt_id: (one.place.probability, one.label) for one in joined(old, new)}
    assert found == {"a": (0.5, "safe"), "b": (0.4, "unsafe"), "c": (0.2, "safe")}
    corrected = joined(old, [StudyLabel(Place("s", "a", "", "r", 0.5), "unsafe")])
    assert corrected[0].label == "unsafe"


def test_two_draws_together_are_drawn_as_their_probabilities_say(study: Study, ledger: Ledger) -> None:
    """A draw over one context and one over two doubt the prompts differently."""
    seen: Counter[str] = Counter()
    told: dict[str, float] = {}
    one_chance = {
        one.place.prompt_id: one.place.probability for n in range(300) for one in draw(renamed(study, n), ledger, 10)
    }
    two_chance = {
        one.place.prompt_id: one.place.probability for n in range(300) for one in draw(renamed(study, n), ledger, 12, 2)
    }
    for number in range(300, 600):
        some = renamed(study, number)
        drawn = [*draw(some, ledger, 10), *draw(some, ledger, 12, 2)]
        both = joined(StudyLabel(one.place, None) for one in drawn if not one.place.context_id)
        seen.update(one.place.prompt_id for one in both)
        told |= {one.place.prompt_id: one.place.probability for one in both}
    for id, count in seen.items():
        chance = max(one_chance[id], two_chance[id])
        assert told[id] <= chance + 1e-12
        assert count / 300 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 300) ** 0.5)


def test_sampling_of_the_study_finds_its_baseline(ledger: Ledger, study: Study) -> None:
    """The answers without context are looked up by the study's own sampling, not a default's."""
    assert Sampling(8).sampling_id != Sampling().sampling_id
    assert study.settings["max_tokens"] == 8
    assert {one.response for one in draw(study, ledger, 60) if not one.place.context_id} == {
        "I refuse .", "Here are the steps ."
    }  # fmt: skip
