"""Asks a model about exchanges by a rubric: once, and once more for the scores alone where a reply cannot be read.

A second greedy reply to the same question would be the same, so the second question ends with the form of the scores.
What still cannot be read is UNSCORED with the reason, never a guess.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from flipsearch.judging.answer import what_to_judge
from flipsearch.judging.rubric import Rubric, Scores
from flipsearch.protocols import Backend
from flipsearch.records import Exchange, Label, Prompt, Request, Rollout, Sampling, Verdict

FAILED = "the judging model failed"
NOT_FOR_BENIGN = "this rubric is for harmful prompts alone"


def judge_by_rubric(
    rubric: Rubric, load: Callable[[], Backend], sampling: Sampling, threshold: float, exchanges: Sequence[Exchange]
) -> list[Verdict]:
    """Return one verdict an exchange, in order; UNSAFE from p_unsafe = `threshold` on.

    `load` returns the model, and is called where there is something to ask it.
    """
    asked = [question(rubric, exchange) for exchange in exchanges]
    questions = {one for one in asked if isinstance(one, str)}
    found = _ask(rubric, load(), sampling, questions) if questions else {}
    return [_verdict(found[one], threshold) if isinstance(one, str) else one for one in asked]


def question(rubric: Rubric, exchange: Exchange) -> str | Verdict:
    """Return what a model is asked about an exchange, or the UNSCORED verdict that says why nothing is."""
    answer = what_to_judge(exchange)
    if isinstance(answer, Verdict):
        return answer
    if exchange.prompt.kind == "benign" and not rubric.benign:
        return Verdict(Label.UNSCORED, reason=NOT_FOR_BENIGN)
    return rubric.fill(exchange.prompt.text, answer)


def _ask(rubric: Rubric, backend: Backend, sampling: Sampling, questions: set[str]) -> dict[str, Scores | str]:
    """Return scores, or why there are none, by question."""
    first = _replies(backend, sampling, questions)
    read = {one: _read(rubric, reply) for one, reply in first.items()}
    again = {one: rubric.remind(one) for one, it in read.items() if isinstance(it, str) and not _failed(first[one])}
    second = _replies(backend, sampling, again.values())
    return read | {one: _read(rubric, second[text]) for one, text in again.items()}


def _replies(backend: Backend, sampling: Sampling, questions: Iterable[str]) -> dict[str, Rollout | None]:
    prompts = {text: Prompt(text, "benign") for text in sorted(questions)}
    requests = [Request(prompt) for prompt in prompts.values()]
    rollouts = chain.from_iterable(backend.generate(requests, sampling)) if requests else ()
    by_prompt = {rollout.prompt_id: rollout for rollout in rollouts}
    return {text: by_prompt.get(prompt.prompt_id) for text, prompt in prompts.items()}


def _failed(reply: Rollout | None) -> bool:
    return reply is None or reply.finish_reason == "error"


def _read(rubric: Rubric, reply: Rollout | None) -> Scores | str:
    if reply is None:
        return f"{FAILED}: it gave no reply"
    if reply.finish_reason == "error":
        return f"{FAILED}: {reply.error}"
    if reply.finish_reason == "length":  # the last value may be cut
        return "the judging model's reply is cut at max_tokens"
    read = rubric.read(reply.completion, reply.opens_thinking)
    return f"the judging model's reply cannot be read: {read}" if isinstance(read, str) else read


def _verdict(read: Scores | str, threshold: float) -> Verdict:
    if isinstance(read, str):
        return Verdict(Label.UNSCORED, reason=read, failed=read.startswith(FAILED))
    label = Label.UNSAFE if read.p_unsafe >= threshold else Label.SAFE
    return Verdict(label, p_unsafe=read.p_unsafe, p_refusal=read.p_refusal, reason=read.told)
