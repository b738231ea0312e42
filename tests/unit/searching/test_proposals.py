"""Proposals: templates in turn, then the best candidate of each sample; no text twice; a trial of Optuna for each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from flipsearch.config import SearchConfig
from flipsearch.core.records import Context
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import measure
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Arm, KnownAnswers, SplitBaseline, measure_baseline
from flipsearch.searching.proposals import SCREENED, Proposals, likely_parents
from flipsearch.searching.setup import START, prepare_search
from flipsearch.searching.surrogate import Surrogate
from tests.world import GREEDY, Model, RefusalJudge, ScoringModel, library, prompt_set, strength, template

WIDE = template("wide", "{{ 'firm ' * firm }}{{ 'mild ' * mild }}{{ tail }}",
                f"firm = [0, 1, 2, 3]\nmild = {list(range(30))}\ntail = [\"so\", \"thus\", \"hence\"]")  # fmt: skip


class Search:
    """What a search has at hand before it begins."""

    def __init__(
        self, ledger: Ledger, model: Model, wide: str = WIDE, tokens_at_first: float = 1e6, **settings: object
    ) -> None:
        self.config = SearchConfig.model_validate({"templates": ("wide",), "seed": 3, **settings})
        self.setup = setup = prepare_search(self.config, library(wide=wide), prompt_set())
        self.runner = Runner(model, RefusalJudge(), ledger, GREEDY)
        self.base: SplitBaseline = measure_baseline(self.runner, setup.search, "search")
        self.surrogate = Surrogate(
            self.base, KnownAnswers(self.runner, self.base, self.base.to_flip()), self.config.refusal_cap(), 3
        )
        self.proposals = Proposals(setup, self.runner, self.base, self.surrogate, tokens_at_first)

    def arms(self, contexts: Sequence[Context]) -> list[Arm]:
        """Return arms that saw all prompts."""
        measured = measure(self.runner, contexts, self.base.to_flip(), self.base.outcomes, "search")
        return [Arm(context, m, "complete", 0) for context, m in zip(contexts, measured, strict=True)]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger("sqlite://") as opened:
        yield opened


def test_the_first_contexts_are_of_all_templates(ledger: Ledger) -> None:
    search = Search(ledger, Model(), templates=("wide", "plain", "harsh", "wordy"))
    assert {context.template for context in search.proposals.propose(4, [])} == {"wide", "plain", "harsh", "wordy"}


def test_what_is_proposed_learns_from_what_was_measured(ledger: Ledger) -> None:
    """The words of the strong texts are found; the weak ones are left alone."""
    search = Search(ledger, Model(), breed=0)
    arms = search.arms(search.proposals.propose(12, []))
    later = search.proposals.propose(12, arms)
    mean = [sum(strength(context.text) for context in of) / 12 for of in ([arm.context for arm in arms], later)]
    assert mean[1] > mean[0] + 0.3


def test_what_the_model_scores_chooses_before_anything_is_measured(ledger: Ledger) -> None:
    search = Search(ledger, ScoringModel(), breed=0)
    chosen = search.proposals.propose(8, [])
    assert search.surrogate.prefix_scores.num_contexts == 8 * SCREENED
    assert sum(strength(context.text) for context in chosen) / 8 > 2
    search.proposals.propose(2, [])  # a budget makes generations small, and no screen
    assert search.surrogate.prefix_scores.num_contexts > 1.5 * 8 * SCREENED
    assert not Search(ledger, ScoringModel(), screen=1).surrogate.prefix_scores.num_contexts


@pytest.mark.parametrize(("written", "screen", "expected"), [(1.0, None, 8), (1e6, None, 8 * SCREENED), (1.0, 5, 40)])
def test_the_shorter_the_answers_are_the_fewer_contexts_are_screened(
    ledger: Ledger, written: float, screen: int | None, expected: int
) -> None:
    search = Search(ledger, ScoringModel(), tokens_at_first=written, breed=0, screen=screen)
    search.proposals.propose(8, [])
    assert search.surrogate.prefix_scores.num_contexts == expected


def test_children_are_among_the_candidates_and_no_text_comes_twice(ledger: Ledger) -> None:
    search = Search(ledger, Model())
    arms = search.arms(search.proposals.propose(8, []))
    contexts = [arm.context for arm in arms]
    for _ in range(3):
        contexts += search.proposals.propose(8, arms)
    assert len({context.context_id for context in contexts}) == len(contexts) == 32
    children = [context for context in contexts if context.operator]
    assert {id for child in children for id in child.parents} <= {arm.context.context_id for arm in arms}
    assert children


def test_the_same_seed_and_outcomes_propose_the_same(ledger: Ledger) -> None:
    result = []
    for _ in range(2):
        search = Search(ledger, Model())
        arms = search.arms(search.proposals.propose(8, []))
        result.append([*(arm.context for arm in arms), *search.proposals.propose(8, arms)])
    assert result[0] == result[1]


def test_optuna_has_a_trial_for_each(ledger: Ledger) -> None:
    search = Search(ledger, Model(), max_over_refusal=0.1)
    arms = search.arms(search.proposals.propose(8, []))
    later = search.proposals.propose(8, arms)
    for arm in arms:
        search.proposals.report_outcome(arm)
    trials = search.proposals.study.trials
    assert [trial.user_attrs["context"] for trial in trials] == [c.text for c in (*(a.context for a in arms), *later)]
    for trial, arm in zip(trials, arms, strict=False):
        assert trial.params["wide.firm"] == dict(arm.context.params)["firm"]
        assert trial.value == arm.search.flip_rate.value
        assert trial.constraints == {"over_refusal": pytest.approx((arm.search.added_refusals.value or 0) - 0.1)}
    assert {trial.state for trial in trials[8:]} == {TrialState.RUNNING}
    assert all(trial.params == {} for trial, context in zip(trials[8:], later, strict=True) if context.operator)


def test_a_space_that_ends(ledger: Ledger) -> None:
    small = template("wide", "{{ 'firm ' * firm }}so", "firm = [0, 1, 2]")
    search = Search(ledger, Model(), small, breed=0)
    assert len(search.proposals.propose(8, [])) == 3
    assert search.proposals.propose(8, []) == []
    assert search.proposals.notes(3) == ["The space is exhausted: it holds 3 different contexts."]


def test_parents_are_all_that_may_be_among_the_best(ledger: Ledger) -> None:
    """The best text has the most children but far from all; what refuses everything has next to none."""
    search = Search(ledger, Model(), max_over_refusal=0.1)
    contexts = [Context("please"), Context("firm please"), Context("firm firm firm now"), Context("blunt " * 9)]
    arms = search.arms([*contexts, *(Context(f"firm firm {number}") for number in range(9))])
    texts = {prompt.prompt_id: prompt for prompt in search.base.prompts}
    parents, weights = likely_parents(search.surrogate, arms, texts)
    by_text = dict(zip((parent.context.text for parent in parents), weights, strict=True))
    assert by_text["firm firm firm now"] == max(weights) < 0.2 * sum(weights)
    assert by_text.get("blunt " * 9, 0.0) < 0.1 * max(weights)
    (weak,) = [parent for parent in parents if parent.context.text == "firm please"]
    assert set(weak.unflipped) == {
        prompt.text for prompt in search.base.to_flip() if not arms[1].search.flipped_by_prompt.get(prompt.prompt_id, 1)
    }


def test_contexts_of_other_studies_are_tried_first(ledger: Ledger) -> None:
    search = Search(ledger, Model())
    quoted = search.base.prompts[0].text
    start = [
        Context(text, operator=START, params=(("from", "best.json"),))
        for text in ("firm firm firm please so", f"Never do this: {quoted} and more of it, please, never at all")
    ]
    setup = replace(search.setup, start=tuple(start))
    proposals = Proposals(setup, search.runner, search.base, search.surrogate, 0.0)
    contexts = proposals.propose(4, [])
    assert contexts[0] == start[0]
    assert len(contexts) == 4
    assert {context.operator for context in contexts[1:]} <= {"", START}
    assert f"A context of --start best.json was tried first: {start[0].context_id}." in proposals.notes(4)


def test_contexts_of_start_that_find_no_room_are_reported(ledger: Ledger) -> None:
    search = Search(ledger, Model())
    start = [Context(f"firm {word} please", operator=START, params=(("from", "best.json"),)) for word in ("so", "now")]
    setup = replace(search.setup, start=tuple(start))
    proposals = Proposals(setup, search.runner, search.base, search.surrogate, 0.0)
    assert proposals.propose(1, []) == start[:1]
    assert "1 contexts of --start were not tried, as --num-contexts is smaller: best.json." in proposals.notes(1)
