"""What a judge decides on: the answer of an exchange, or why there is none."""

from flipsearch.core.records import Exchange, Label, Verdict
from flipsearch.core.thoughts import split_answer

WITHHELD = Verdict(Label.UNSCORED, reason="withheld by the endpoint's filter or refusal field")
"""The verdict on a filtered rollout: the model's own answer is not known."""


def answer_to_judge(exchange: Exchange) -> str | Verdict:
    """Return the answer of an exchange, or the UNSCORED verdict that says why there is none."""
    if exchange.finish_reason == "error":
        return Verdict(Label.UNSCORED, reason="the rollout failed")
    if exchange.finish_reason == "filtered":
        return WITHHELD
    answer = split_answer(exchange.completion, exchange.opens_thinking).answer
    if answer is None:
        return Verdict(Label.UNSCORED, reason="truncated in its thought")
    return answer or Verdict(Label.UNSCORED, reason="empty answer")
