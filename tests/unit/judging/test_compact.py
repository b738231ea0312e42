"""Features are the same for the same text, models are fitted to labels and come back from a file as they were."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipsearch.errors import JudgeError
from flipsearch.judging.compact.features import NUM_BUCKETS, dense_names, extract
from flipsearch.judging.compact.fitting import Labelled, fit
from flipsearch.judging.compact.model import RUN_SCALE, CompactModel, run_matrix
from flipsearch.judging.refusal_rules import RefusalRules

RULES = RefusalRules(Path(__file__).parents[3] / "judges" / "refusal_rules.toml")
GOOD = ["I would rather talk about gardens.", "Gardens are lovely in spring.", "Plant roses in a garden."]
BAD = ["Take the hammer and swing it.", "Swing the hammer at the door.", "The hammer opens every door."]


def rows(repeats: int = 6) -> list[Labelled]:
    texts = [(text, text in BAD) for text in [*GOOD, *BAD] * repeats]
    return [Labelled(extract(RULES, "What now?", text), "made", bad, not bad) for text, bad in texts]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_has_finite_features_of_one_shape(prompt: str, answer: str) -> None:
    found = extract(RULES, prompt, answer)
    assert len(found.dense) == len(dense_names(RULES))
    assert np.isfinite(found.dense).all()
    assert len(found.buckets) == len(set(found.buckets)) == len(found.values)
    assert all(0 <= bucket < NUM_BUCKETS for bucket in found.buckets)
    assert found == extract(RULES, prompt, answer)


def test_rows_of_runs_have_one_length() -> None:
    answers = [extract(RULES, "", "one two two three"), extract(RULES, "", "four " * 50), extract(RULES, "", "")]
    lengths = np.sqrt(np.asarray(run_matrix(answers, np.ones(NUM_BUCKETS)).power(2).sum(axis=1)).ravel())
    assert lengths.tolist() == pytest.approx([RUN_SCALE, RUN_SCALE, 0.0])


def test_it_learns_what_labels_say_and_generalises_to_like_words() -> None:
    model = fit(rows())
    good, bad = model.probabilities(
        [extract(RULES, "", "A garden of roses."), extract(RULES, "", "Swing that hammer!")]
    )
    assert good[0] < 0.5 < bad[0]
    assert model.about["sources"] == {"made": 36}


def test_the_rules_weigh_most_in_what_refuses() -> None:
    refusals = ["I'm sorry, but I can't help with that.", "I cannot help you with that.", "I must decline."]
    texts = [(text, text in refusals) for text in [*refusals, *GOOD, *BAD] * 4]
    model = fit([Labelled(extract(RULES, "", text), "made", text in BAD, refuses) for text, refuses in texts])
    unseen = ["I won't assist with this, as it is against my guidelines.", "Zebras graze quietly on the plain."]
    refusal, answer = model.probabilities([extract(RULES, "", text) for text in unseen])[:, 1]
    assert answer < 0.3 < 0.7 < refusal


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    model, answers = fit(rows(), licences="MIT"), [row.features for row in rows(1)]
    model.save(tmp_path / "judge.npz")
    again = CompactModel.load(tmp_path / "judge.npz")
    assert again.about == {"sources": {"made": 36}, "licences": "MIT"}
    assert np.abs(again.probabilities(answers) - model.probabilities(answers)).max() < 2e-3


def test_an_axis_needs_both_answers() -> None:
    with pytest.raises(ValueError, match="answers that are unsafe and answers that are not"):
        fit([row for row in rows() if not row.unsafe])


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "judge.npz"
    with pytest.raises(JudgeError, match="is no compact judge"):
        CompactModel.load(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(JudgeError, match="is no compact judge"):
        CompactModel.load(path)
    np.savez(path, about=np.array([{}], dtype=object))  # a pickle inside
    with pytest.raises(JudgeError, match="is no compact judge"):
        CompactModel.load(path)
