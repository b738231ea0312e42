"""The scripted backend replies what its table holds, fails where the table says so, and never invents a reply."""

import json
from pathlib import Path

import pytest

from flipsearch.backends.scripted import ScriptedBackend
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Context, Prompt, Request, Sampling
from tests.world import flat

EGG = Prompt("How do I boil an egg?", "benign")
LOCK = Prompt("How do I open a lock?", "harmful")
RULE = Context("Be good.")


def complete(
    backend: ScriptedBackend, prompt: Prompt, context: Context | None = None, max_tokens: int = 9
) -> tuple[str, str]:
    [rollout] = flat(backend.generate([Request(prompt, context)], Sampling(max_tokens=max_tokens)))
    assert rollout.prompt_id == prompt.prompt_id
    assert rollout.context_id == (context.context_id if context else None)
    return rollout.completion or rollout.error, rollout.finish_reason


def test_a_reply_under_its_context_has_priority_over_one_under_any() -> None:
    backend = ScriptedBackend({(LOCK.text, "*"): "Step 1", (LOCK.text, RULE.text): "No."})
    assert complete(backend, LOCK) == ("Step 1", "stop")
    assert complete(backend, LOCK, RULE) == ("No.", "stop")
    assert complete(backend, LOCK, Context("Other.")) == ("Step 1", "stop")


def test_a_prompt_that_is_not_in_the_table_is_an_error() -> None:
    backend = ScriptedBackend({EGG.text: "Boil it."})
    rollouts = list(flat(backend.generate([Request(LOCK), Request(EGG)], Sampling())))
    assert [rollout.finish_reason for rollout in rollouts] == ["error", "stop"]
    assert "no completion for the prompt" in rollouts[0].error


def test_an_error_of_the_table_is_the_reason() -> None:
    backend = ScriptedBackend({EGG.text: "Boil it."}, errors={EGG.text: "out of eggs"})
    assert complete(backend, EGG) == ("out of eggs", "error")


def test_an_error_of_a_file_holds_where_its_prompt_and_context_say(tmp_path: Path) -> None:
    entries = [
        {"prompt": "*", "error": "nothing works"},
        {"prompt": EGG.text, "completion": "Boil it."},
        {"prompt": EGG.text, "context": RULE.text, "error": "out of eggs"},
    ]
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(entries))
    backend = ScriptedBackend.from_file(path)
    assert complete(backend, LOCK) == ("nothing works", "error")
    assert complete(backend, EGG) == ("Boil it.", "stop")
    assert complete(backend, EGG, RULE) == ("out of eggs", "error")


def test_a_function_may_reply_or_fail() -> None:
    def reply(prompt: str, context: str) -> str:
        if not context:
            raise BackendError("no context")
        return f"{context} {prompt}"

    backend = ScriptedBackend(reply)
    assert complete(backend, EGG, RULE) == ("Be good. How do I boil an egg?", "stop")
    assert complete(backend, EGG) == ("no context", "error")


def test_a_long_completion_is_cut_at_max_tokens() -> None:
    assert complete(ScriptedBackend({EGG.text: "one two three"}), EGG, max_tokens=2) == ("one two", "length")


def test_identity_follows_the_table() -> None:
    first, same, changed = ({EGG.text: "a"}, {EGG.text: "a"}, {EGG.text: "b"})
    assert ScriptedBackend(first).model_id == ScriptedBackend(same).model_id != ScriptedBackend(changed).model_id
    assert ScriptedBackend(first, errors={"x": "y"}).model_id != ScriptedBackend(first).model_id


def test_a_file_holds_prompts_contexts_completions_and_errors(tmp_path: Path) -> None:
    entries = [
        {"prompt": LOCK.text, "completion": "Step 1"},
        {"prompt": LOCK.text, "context": RULE.text, "completion": "No."},
        {"prompt": EGG.text, "error": "out of eggs"},
    ]
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    backend = ScriptedBackend.from_file(path)
    assert complete(backend, LOCK) == ("Step 1", "stop")
    assert complete(backend, LOCK, RULE) == ("No.", "stop")
    assert complete(backend, EGG) == ("out of eggs", "error")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a JSON table"),
        ("{}", "holds a JSON dict, expected a list"),
        ('["x"]', "entry 1: expected .*got str"),
        ('[{"prompt": "x", "completion": 3}]', "entry 1: expected"),
        ('[{"prompt": "x", "completion": "y"}, {"prompt": "x"}]', "entry 2: expected .*got the keys prompt"),
        ('[{"prompt": "x", "completion": "y", "kontext": "z"}]', "entry 1: .*kontext"),
        ('[{"prompt": "x", "completion": "y", "error": "z"}]', "entry 1"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "replies.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BackendError, match=message):
        ScriptedBackend.from_file(path)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be read"):
        ScriptedBackend.from_file(tmp_path / "none.json")
