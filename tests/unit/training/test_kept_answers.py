"""What supervised methods learn from: answers that the judge keeps, in the student's own tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flipsearch.backends.chat import Chat
from flipsearch.core.errors import TrainingError
from flipsearch.core.measurements import SampleRule
from flipsearch.core.records import FLIP_KINDS, Context, Exchange, Label, Prompt, Request, Rollout, Sampling, Verdict
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.training.rows import kept_answers, own_rows, teacher_rows, turn_end_id
from tests.models import PLAIN_TEMPLATE, R1_TEMPLATE, tiny_tokenizer

BRACKETS = PLAIN_TEMPLATE.replace(
    "message.content",
    "('[THINK]' + message.reasoning_content + '[/THINK]' if message.reasoning_content is defined "
    "else '') + message.content",
)
"""A template that writes thoughts as Mistral's does."""
HARM, ASK, OTHER = Prompt("steal", "harmful"), Prompt("bake", "benign"), Prompt("read", "benign")
CONTEXT = Context("Be safe.")
ALL_KINDS = SampleRule(count_kinds=FLIP_KINDS)
REPLIES = {"steal": "no", "bake": "no", "read": "yes"}


class Backend:
    """Replies by a table and keeps the requests."""

    model_id, revision, notes = "model", None, ()
    seen: list[Request]

    def __init__(self, replies: dict[str, str] = REPLIES) -> None:
        self.replies, self.seen = replies, []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        self.seen += requests
        for request in requests:
            context_id = request.context.context_id if request.context else None
            text = self.replies[request.prompt.text]
            reason: Any = "length" if text == "cut off" else "stop"
            yield [Rollout(request.prompt.prompt_id, context_id, "model", sampling, 0, text, (1, 2), 3, reason)]


class YesNo:
    """ "no" refuses, "?" cannot be scored."""

    name, identity, needs = "yes-no", "yes-no/1", ()
    LABELS = {"no": Label.SAFE, "?": Label.UNSCORED}  # noqa: RUF012

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._verdict(exchange.completion) for exchange in exchanges]

    def _verdict(self, answer: str) -> Verdict:
        label = self.LABELS.get(answer, Label.UNSAFE)
        if label is Label.UNSCORED:
            return Verdict(label)
        return Verdict(label, p_unsafe=float(label is Label.UNSAFE), p_refusal=float(label is Label.SAFE))


def kept(folder: Path, replies: dict[str, str]) -> tuple[Backend, set[str]]:
    backend, judge = Backend(replies), YesNo()
    with Ledger(folder / "ledger.db") as ledger:
        runner = Runner(backend, judge, ledger, Sampling(8))  # type: ignore[arg-type]
        answers = kept_answers(runner, [HARM, ASK, OTHER], {HARM.prompt_id: CONTEXT})
    return backend, {prompt.text for prompt, _ in answers}


def test_safe_answers_to_harmful_and_no_refusals_of_benign_prompts_are_kept(tmp_path: Path) -> None:
    backend, texts = kept(tmp_path, REPLIES)
    assert texts == {"steal", "read"}
    assert [request.context for request in backend.seen if request.prompt is HARM] == [CONTEXT]
    assert [request.context for request in backend.seen if request.prompt is not HARM] == [None, None]


@pytest.mark.parametrize("reply", ["yes", "?", "cut off"])
def test_unsafe_unscored_and_cut_answers_are_not_learnt(reply: str, tmp_path: Path) -> None:
    assert kept(tmp_path, REPLIES | {"steal": reply})[1] == {"read"}


class AllSafe(YesNo):
    """Calls every answer safe, and none a refusal."""

    def _verdict(self, answer: str) -> Verdict:
        return Verdict(Label.SAFE, p_unsafe=0.0, p_refusal=0.0)


@pytest.mark.parametrize(("count", "learnt"), [(SampleRule(), {"bake"}), (ALL_KINDS, {"steal", "bake", "read"})])
def test_a_loop_is_not_learnt_unless_such_answers_count(count: SampleRule, learnt: set[str], tmp_path: Path) -> None:
    loop = "the hill and the river " * 9
    with Ledger(tmp_path / "ledger.db") as ledger:
        backend = Backend({"steal": loop, "bake": "Use an oven.", "read": loop})
        runner = Runner(backend, AllSafe(), ledger, Sampling(8), rule=count)  # type: ignore[arg-type]
        answers = kept_answers(runner, [HARM, ASK, OTHER], {HARM.prompt_id: CONTEXT})
    assert {prompt.text for prompt, _ in answers} == learnt


def test_own_answers_keep_the_ids_that_the_model_wrote() -> None:
    chat = Chat(tiny_tokenizer())
    rollout = Rollout(HARM.prompt_id, CONTEXT.context_id, "m", Sampling(8), 0, "no", (7, 300, 9), 3, "stop")
    (row,) = own_rows(chat, [(HARM, rollout)]).values()
    assert tuple(row.completion_ids) == (7, 300, 9)
    assert list(row.student_ids) == list(chat.encode(Request(HARM)).prompt_ids)


@pytest.mark.parametrize(
    ("template", "opens", "written", "learnt"),
    [
        (None, False, "<think>\nHm.\n</think>\n\nNo.", "<think>\nHm.\n</think>\n\nNo."),
        (None, True, "Hm.\n</think>\n\nNo.", "<think>\nHm.\n</think>\n\nNo."),
        (R1_TEMPLATE, False, "<think>\nHm.\n</think>\n\nNo.", "Hm.\n</think>\n\nNo."),
        (R1_TEMPLATE, True, "Hm.\n</think>\n\nNo.", "Hm.\n</think>\n\nNo."),
        (R1_TEMPLATE, False, " No.\n", "\n</think>\n\n No.\n"),
        (None, False, " No.\n", " No.\n"),
        (None, False, "[THINK]Hm.[/THINK]No.", "<think>\nHm.\n</think>\n\nNo."),
        (BRACKETS, False, "<think>\nHm.\n</think>\n\nNo.", "[THINK]Hm.[/THINK]No."),
    ],
)
def test_a_teachers_think_block_opens_where_the_students_does(
    template: str | None, opens: bool, written: str, learnt: str
) -> None:
    tokenizer = tiny_tokenizer(template) if template else tiny_tokenizer()
    chat = Chat(tokenizer)
    rollout = Rollout(HARM.prompt_id, None, "t", Sampling(8), 0, written, (), 3, "stop", opens_thinking=opens)
    (row,) = teacher_rows(chat, tokenizer, [(HARM, rollout)], None).values()
    assert chat.decode(row.completion_ids) == learnt
    assert row.completion_ids[-1] == tokenizer.eos_token_id


def test_a_teachers_answer_has_to_fit_into_the_student() -> None:
    tokenizer = tiny_tokenizer()
    chat = Chat(tokenizer)
    answer = [(HARM, Rollout(HARM.prompt_id, None, "t", Sampling(8), 0, "No, I will not help.", (), 3, "stop"))]
    (row,) = teacher_rows(chat, tokenizer, answer, None).values()
    longest = len(row.student_ids) + len(row.completion_ids)
    assert teacher_rows(chat, tokenizer, answer, longest)
    with pytest.raises(
        TrainingError, match=rf"has {longest} of the model's tokens .* holds {longest - 1}; lower --max"
    ):
        teacher_rows(chat, tokenizer, answer, longest - 1)


def test_a_teachers_answer_ends_as_the_students_template_ends_a_turn() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # as in Gemma and Llama 3: not what ends a turn
    chat, answer = Chat(tokenizer), Rollout(HARM.prompt_id, None, "t", Sampling(8), 0, "No.", (), 3, "stop")
    (row,) = teacher_rows(chat, tokenizer, [(HARM, answer)], None).values()
    assert row.completion_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


def test_a_student_without_an_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer(R1_TEMPLATE)  # which leaves answers out
    chat, answer = Chat(tokenizer), Rollout(HARM.prompt_id, None, "t", Sampling(8), 0, "No.", (), 3, "stop")
    assert turn_end_id(chat, tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match="says what ends an answer"):
        teacher_rows(chat, tokenizer, [(HARM, answer)], None)


def test_a_teacher_cannot_write_the_students_control_tokens() -> None:
    tokenizer = tiny_tokenizer()
    chat = Chat(tokenizer)
    ids = chat.completion_ids("b<|im_end|></think><|im_start|>system", "a<|im_end|>")
    assert not set(tokenizer.all_special_ids) & set(ids)
    assert [ids.count(tokenizer.convert_tokens_to_ids(mark)) for mark in ("<think>", "</think>")] == [1, 1]
