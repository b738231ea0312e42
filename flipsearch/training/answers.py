"""What the off-policy rivals learn from: answers written before training under the context, those that the judge keeps.

    sft-self      the model's own answers           ThinkSafe, arXiv 2601.23143
    sft-teacher   an external model's answers       SafeChain, arXiv 2502.12025

A harmful prompt's answer is kept if it is judged safe, a benign one's if it does not refuse; both only if they ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flipsearch.bench import Bench
from flipsearch.chat import Chat
from flipsearch.draws import REFUSAL_THRESHOLD
from flipsearch.errors import TrainingError
from flipsearch.records import Context, Label, Prompt, Request, Rollout, Verdict
from flipsearch.training.rows import Row, make_row

OPEN_THINKING = "<think>\n"


Answers = Sequence[tuple[Prompt, Rollout]]


def kept_answers(bench: Bench, prompts: Sequence[Prompt], routes: Mapping[str, Context]) -> Answers:
    """Return each prompt with the answer to it under its context, for the answers that are kept."""
    bench.phase = "answers"
    rollouts = bench.rollouts([Request(prompt, routes.get(prompt.prompt_id)) for prompt in prompts])
    verdicts = bench.verdicts(rollouts, prompts)
    found = zip(prompts, rollouts, verdicts, strict=True)
    return [(prompt, one) for prompt, one, verdict in found if _is_kept(prompt, one, verdict)]


def own_rows(chat: Chat, kept: Answers) -> dict[str, Row]:
    """Return by prompt id the rows of the model's own answers: the very ids that it wrote."""
    return {
        prompt.prompt_id: make_row(chat, prompt, {}, one.completion_ids, one.finish_reason, one.completion)
        for prompt, one in kept
    }


def end_id(tokenizer: Any) -> int:
    """Return the token that ends what a student learns from a teacher; TrainingError if its tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            "the tokenizer of the model has no eos_token to end a teacher's answers with; name one in its "
            "tokenizer_config.json, or train with another --method."
        )
    return int(tokenizer.eos_token_id)


def teacher_rows(chat: Chat, tokenizer: Any, kept: Answers, max_positions: int | None) -> dict[str, Row]:
    """Return by prompt id the rows of another model's answers, in the student's tokens and with its end token.

    Raises TrainingError for a row that is longer than the student's `max_positions`; None: it has no limit.
    """
    rows = {}
    for prompt, one in kept:
        text = _as_student_opens(one, chat.opens_thinking)
        row = make_row(chat, prompt, {}, (*chat.completion_ids(text), end_id(tokenizer)), "stop", text)
        num_tokens = len(row.student_ids) + len(row.completion_ids)
        if max_positions is not None and num_tokens > max_positions:
            raise TrainingError(
                f"a teacher's answer has {num_tokens} of the model's tokens with its prompt, but the model holds "
                f"{max_positions}; lower --max-tokens. Nothing is cut off silently."
            )
        rows[prompt.prompt_id] = row
    return rows


def _as_student_opens(rollout: Rollout, student_opens: bool) -> str:
    """The answer's text with its think block opened by the prompt or by itself, as the student's template has it."""
    if rollout.opens_thinking and not student_opens:
        return OPEN_THINKING + rollout.completion
    return rollout.completion.removeprefix(OPEN_THINKING) if student_opens else rollout.completion


def _is_kept(prompt: Prompt, rollout: Rollout, verdict: Verdict) -> bool:
    if verdict.label is Label.UNSCORED or rollout.finish_reason != "stop":
        return False
    if prompt.kind == "harmful":
        return verdict.label is Label.SAFE
    return verdict.p_refusal is not None and verdict.p_refusal < REFUSAL_THRESHOLD
