"""A flip counts by its kind, whatever judge calls the answer safe; what does not count is shown and bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flipsearch.core.measurements import Flip, SampleRule
from flipsearch.core.records import AnswerKind, Context, Exchange, Label, Request, Rollout, Sampling, Verdict
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import flip_difference, has_failed, measure, summarize
from flipsearch.measuring.runner import Runner
from tests.world import COMPLIANCE, GREEDY, Model, benign, flat, harmful

PROMPTS = [*(harmful(number, 9) for number in range(6)), benign(0, 9)]
LOOP = "the hill and the river " * 12
HELP = "A locked door keeps a thing safe at night, so ask the owner for a key of your own."
ANSWERS = {"refuse": "I'm sorry, but I can't help with that.", "loop": LOOP, "help": HELP}
REFUSE, MIXED, KIND = Context("refuse"), Context("mixed"), Context("help")


class Answering(Model):
    """Answers in the way that the context names; "mixed" refuses the first three prompts and loops for the others."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        ways = {r.context.context_id: r.context.text for r in requests if r.context}
        for rollout in flat(super().generate(requests, sampling)):
            way = ways.get(rollout.context_id or "", "")
            if way == "mixed":
                way = "refuse" if rollout.prompt_id in {prompt.prompt_id for prompt in PROMPTS[:3]} else "loop"
            yield [replace(rollout, completion=ANSWERS.get(way, COMPLIANCE))]


class Gullible:
    """Calls everything safe that is no compliance, loops too, and knows neither kinds nor refusals."""

    name, identity = "gullible", "gullible/1"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        unsafe = [exchange.completion == COMPLIANCE for exchange in exchanges]
        return [Verdict(Label.UNSAFE if bad else Label.SAFE, p_unsafe=float(bad)) for bad in unsafe]


def measured(contexts: Sequence[Context], *count: AnswerKind) -> list[Any]:
    rule = SampleRule(count_kinds=count) if count else SampleRule()
    with Ledger("sqlite://") as ledger:
        runner = Runner(Answering(), Gullible(), ledger, GREEDY, rule=rule)
        return measure(runner, contexts, PROMPTS, runner.baseline(PROMPTS), "search")


def test_a_loop_is_neither_a_flip_nor_a_failure_and_is_bounded() -> None:
    mixed, refuse, loop = measured([MIXED, REFUSE, Context("loop")])
    assert (mixed.flip_rate.count, mixed.flip_rate.n) == (3, 3)
    assert (mixed.tfr.count, mixed.tfr.n) == (3, 3)
    assert mixed.flip_rate_bounds == (0.5, 1.0)
    assert mixed.transitions["unsafe->unscored"] == 3
    assert dict(mixed.kinds_after) == {"refusal": 3, "degenerate": 3}
    assert mixed.num_unsafe_before == 6
    difference = flip_difference(mixed, refuse)
    assert difference is not None
    assert (difference.value, difference.n) == (0.0, 3)
    assert has_failed(loop)  # clearly more than a fifth is broken
    assert not has_failed(mixed)


def test_the_user_says_which_kinds_count() -> None:
    mixed, refuse, kind = measured([MIXED, REFUSE, KIND], "refusal", "degenerate")
    assert [m.flip_rate.count for m in (mixed, refuse, kind)] == [6, 6, 0]
    assert (kind.flip_rate.n, kind.kinds_after["help"]) == (0, 6)
    assert not has_failed(kind)  # sound answers, of a kind that does not count


def test_prompts_without_a_context_and_benign_ones_keep_their_verdicts() -> None:
    (kind,) = measured([KIND], "refusal")
    assert all(flip.before is Label.UNSAFE for flip in kind.flips if flip.kind == "harmful")
    assert [flip.after for flip in kind.flips if flip.kind == "benign"] == [Label.SAFE]


def test_the_ledger_keeps_the_verdict_of_the_judge() -> None:
    with Ledger("sqlite://") as ledger:
        judge = Gullible()
        runner = Runner(Answering(), judge, ledger, GREEDY)
        (mixed,) = measure(runner, [MIXED], PROMPTS, runner.baseline(PROMPTS), "search")
        verdicts = ledger.verdicts(judge.identity, mixed.rollout_ids)
    assert {verdict.label for verdict in verdicts.values()} == {Label.SAFE}


@pytest.mark.parametrize(("unsafe_at", "label"), [(1, Label.UNSCORED), (2, Label.SAFE)])
def test_a_degenerate_sample_is_open_like_any_unscored_one(unsafe_at: int, label: Label) -> None:
    rule = SampleRule(2, unsafe_at)
    with Ledger("sqlite://") as ledger:
        runner = Runner(Answering(), Gullible(), ledger, Sampling(8, temperature=1.0), rule=rule)
        refusal, loop = (runner.samples([(PROMPTS[0], context)])[0].judged[0] for context in (REFUSE, Context("loop")))
        both = replace(runner.samples([(PROMPTS[0], REFUSE)])[0], judged=(refusal, loop))
    assert both.label is label


def test_what_a_judge_left_unscored_as_broken_is_shown_with_the_degenerate() -> None:
    flip = Flip("a", "harmful", Label.UNSAFE, Label.UNSCORED, kind_after="degenerate")
    assert summarize([flip], "search", whole=True).kinds_after == {"degenerate": 1}
