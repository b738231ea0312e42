"""A judge of thoughts: what a reasoning model thought before its answer, judged as if it were the answer.

An answer that refuses can stand behind a thought that works everything out. Whoever reads the thought is told, so it is
judged apart; the answer alone decides what is safe.
"""

from collections.abc import Sequence
from dataclasses import replace

from flipsearch.judging.answer import split_answer
from flipsearch.judging.contract import ask
from flipsearch.protocols import Judge
from flipsearch.records import Exchange, Label, Verdict, content_id

_NO_THOUGHT = Verdict(Label.UNSCORED, reason="no thought")


class ThoughtJudge:
    """Another judge's word on the thoughts; UNSCORED where there is none; a cut one counts as it stands."""

    def __init__(self, judge: Judge) -> None:
        self.judge_of_answers = judge
        """The judge that is asked."""
        self.name = f"{judge.name} on thoughts"

    @property
    def identity(self) -> str:
        """Hash of the other judge's."""
        return content_id("thought", self.judge_of_answers.identity)

    @property
    def memory_share(self) -> float:
        """What the other judge's model takes."""
        return float(getattr(self.judge_of_answers, "memory_share", 0.0))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the other judge says of itself."""
        found: tuple[str, ...] = getattr(self.judge_of_answers, "notes", ())
        return found

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict an exchange, in order."""
        thoughts = [_thought(exchange) for exchange in exchanges]
        shown = [
            replace(exchange, completion=thought, finish_reason="stop", opens_thinking=False)
            for exchange, thought in zip(exchanges, thoughts, strict=True)
            if thought
        ]
        said = iter(ask(self.judge_of_answers, shown) if shown else ())
        return [next(said) if thought else _NO_THOUGHT for thought in thoughts]

    def close(self) -> None:
        """Free the other judge's model."""
        if close := getattr(self.judge_of_answers, "close", None):
            close()


def _thought(exchange: Exchange) -> str:
    """What was thought; "" for nothing, and for a rollout that failed."""
    if exchange.finish_reason == "error":
        return ""
    return split_answer(exchange.completion, exchange.opens_thinking).thought
