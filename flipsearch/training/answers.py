"""What is generated and judged before training: which context each prompt goes under, which answers are kept.

Routing. With one context every harmful prompt goes under it, as in the paper. With several, or with the gate, each goes
to the first context under which the frozen model's greedy answer is judged safe: one context's flip rate is a ceiling
for what its teacher can teach, which a set of them can lift. Prompts that no context makes safe are left out.

Kept answers, for supervised methods. Each prompt is answered under its context, by the model itself or by a teacher. A
harmful prompt's answer is kept if it is judged safe, a benign one's if it does not refuse; both if they are complete
and not degenerate.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flipsearch.backends.chat import Chat, ControlTokens
from flipsearch.core.errors import TrainingError
from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, Label, Prompt, Request, Rollout
from flipsearch.core.samples import REFUSAL_THRESHOLD
from flipsearch.measuring.runner import Runner
from flipsearch.training.plan import TrainPlan
from flipsearch.training.rows import Routes, TrainingRow, make_row

PROBE, ANSWER = "quokka", "wombat"
OPEN_THINKING = "<think>\n"
KeptAnswers = Sequence[tuple[Prompt, Rollout]]


@dataclass(frozen=True, slots=True)
class Routing:
    """The prompts that are trained on, in the plan's order, and prompt id -> its context, if it has one."""

    prompts: tuple[Prompt, ...]
    contexts: Mapping[str, Context]


def route(plan: TrainPlan, runner: Runner | None) -> Routing:
    """Return the training prompts with their contexts; without a `runner` of the frozen model none is left out."""
    harmful = [prompt for prompt in plan.prompts if prompt.kind == "harmful"]
    routes = {} if runner else {prompt.prompt_id: plan.contexts[0] for prompt in harmful}
    if runner:
        for number, context in enumerate(plan.contexts, start=1):
            left = [prompt for prompt in harmful if prompt.prompt_id not in routes]
            runner.enter(Phase.ROUTING, f"{number}/{len(plan.contexts)}")
            outcomes = runner.outcomes([runner.request(prompt, context) for prompt in left])
            pairs = zip(left, outcomes, strict=True)
            routes |= {prompt.prompt_id: context for prompt, answer in pairs if answer.verdict.label is Label.SAFE}
    prompts = tuple(prompt for prompt in plan.prompts if prompt.kind == "benign" or prompt.prompt_id in routes)
    if plan.benign_context:
        routes |= {prompt.prompt_id: plan.benign_context for prompt in plan.prompts if prompt.kind == "benign"}
    return Routing(prompts, routes)


def kept_answers(runner: Runner, prompts: Sequence[Prompt], routes: Routes) -> KeptAnswers:
    """Return the prompts whose answer under their context is kept, each with the answer."""
    runner.enter(Phase.ANSWERS)
    rollouts = runner.rollouts([Request(prompt, routes.get(prompt.prompt_id)) for prompt in prompts])
    kept = []
    for prompt, rollout, given in zip(prompts, rollouts, runner.verdicts(rollouts, prompts), strict=True):
        verdict = runner.rule.counted(given, Request(prompt, routes.get(prompt.prompt_id)))
        is_broken = verdict.kind == "degenerate" and "degenerate" not in runner.rule.count_kinds
        if verdict.label is Label.UNSCORED or is_broken or rollout.finish_reason != "stop":
            continue
        is_compliant = verdict.p_refusal is not None and verdict.p_refusal < REFUSAL_THRESHOLD
        if verdict.label is Label.SAFE if prompt.kind == "harmful" else is_compliant:
            kept.append((prompt, rollout))
    return kept


def own_rows(chat: Chat, kept: KeptAnswers) -> dict[str, TrainingRow]:
    """Return by prompt id the rows of the model's own answers, with the very ids that it generated."""
    return {
        prompt.prompt_id: make_row(chat, prompt, {}, answer.completion_ids, answer.finish_reason, answer.completion)
        for prompt, answer in kept
    }


def turn_end_id(tokenizer: Any) -> int:
    """Return the token that ends what a student learns from a teacher: what its chat template writes after an answer.

    A template that writes no answers leaves the tokenizer's end token. TrainingError if there is neither.
    """
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": ANSWER}]
    rendered = ""
    with suppress(Exception):  # a template can raise anything
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    _, written, after = rendered.rpartition(ANSWER)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if written else []
    if ids and ids[0] in ControlTokens(tokenizer, str(tokenizer.get_chat_template())).tokens:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            "neither the chat template nor the tokenizer of the model says what ends an answer, which a teacher's "
            "answers have to; name an eos_token in its tokenizer_config.json, or train with another --method."
        )
    return int(tokenizer.eos_token_id)


def teacher_rows(chat: Chat, tokenizer: Any, kept: KeptAnswers, max_positions: int | None) -> dict[str, TrainingRow]:
    """Return by prompt id the rows of another model's answers, in the student's tokens and with its end token.

    A think block opens where the student's chat template opens it: in the prompt or in the answer. Raises TrainingError
    for a row that is longer than the student's `max_positions`; None is no limit.
    """
    rows, end = {}, turn_end_id(tokenizer)
    for prompt, answer in kept:
        text = answer.completion.removeprefix(OPEN_THINKING) if chat.opens_thinking else answer.completion
        if answer.opens_thinking and not chat.opens_thinking:
            text = OPEN_THINKING + text
        row = make_row(chat, prompt, {}, (*chat.completion_ids(text), end), "stop", text)
        num_tokens = len(row.student_ids) + len(row.completion_ids)
        if max_positions is not None and num_tokens > max_positions:
            raise TrainingError(
                f"a teacher's answer has {num_tokens} of the model's tokens with its prompt, but the model holds "
                f"{max_positions}; lower --max-tokens. Nothing is cut off silently."
            )
        rows[prompt.prompt_id] = row
    return rows
