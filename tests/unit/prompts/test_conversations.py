"""Prompts that are chat turns: the last one by the user is the prompt, the turns before it are part of the chat."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from flipsearch.backends.chat import lay_out
from flipsearch.core.errors import PromptError
from flipsearch.core.records import Context, Prompt
from flipsearch.prompts.sets import load_prompts
from flipsearch.prompts.splitting import find_clusters

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How do I open a car?"},
]
SHARED = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}, {"from": "human", "value": "And now?"}]


def load(folder: Path, row: dict[str, Any], ending: str = "jsonl") -> list[Prompt]:
    path = folder / f"a.{ending}"
    if ending == "parquet":
        pandas.DataFrame([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return list(load_prompts(harmful=str(path)).prompts)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "text", "num_turns"),
    [
        ({"messages": CHAT[2:]}, "How do I open a car?", 0),
        ({"prompt": CHAT[2:]}, "How do I open a car?", 0),
        ({"messages": CHAT}, "How do I open a car?", 2),
        ({"conversations": SHARED}, "And now?", 2),
        ({"conversations": SHARED[:2]}, "Hello", 0),
        ({"turns": ["only one"]}, "only one", 0),
        ({"messages": [{"role": "system", "content": "Be brief."}, *CHAT]}, "How do I open a car?", 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}]}, "in parts", 0),
    ],
)
def test_the_last_turn_of_the_user_is_the_prompt(
    tmp_path: Path, row: dict[str, Any], text: str, num_turns: int, ending: str
) -> None:
    prompt = load(tmp_path, row, ending)[0]
    assert (prompt.text, len(prompt.turns)) == (text, num_turns)


@pytest.mark.parametrize("written", [json.dumps(CHAT), str(CHAT)])
def test_turns_in_csv_are_read_as_json_or_as_python_writes_them(tmp_path: Path, written: str) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [written]])
    prompt = load_prompts(harmful=str(tmp_path / "a.csv")).prompts[0]
    assert (prompt.text, prompt.turns) == ("How do I open a car?", (("user", "Hello"), ("assistant", "Hi")))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["one", "two"], "holds 2 texts and does not say whose they are"),
        (CHAT[1:2], "holds no turn of the user"),
        ([CHAT[0], CHAT[2]], "do not alternate"),
        ([{"role": "critic", "content": "x"}], "holds a turn by 'critic', expected"),
        ([CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{}]}], "holds turns of tools"),
        ([CHAT[0], {"from": "observation", "value": "x"}], "holds turns of tools"),
        ([{"role": "user", "content": 3}], "whose content is int"),
        ([{"role": "user", "content": [{"type": "image"}]}], "parts that are no text"),
        ([["x"]], "holds a list with list"),
        (7, "holds int, expected text or a list of chat turns"),
        ([{"role": "user", "content": "\ud800"}], "half a character"),
    ],
)
def test_turns_that_give_no_prompt_are_one_line(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(PromptError, match=rf"a\.jsonl:1: column 'messages' .*{message}"):
        load(tmp_path, {"messages": value})


def test_what_is_left_out_or_added_is_said(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, *CHAT, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    notes = load_prompts(harmful=str(tmp_path / "a.jsonl")).notes
    assert "a.jsonl: 1 rows requested with earlier turns of a chat, which judges are not shown" in notes
    assert "a.jsonl: 1 rows with a system text, which is left out" in notes
    assert "a.jsonl: 1 rows with an answer after the prompt, which is left out" in notes


def test_earlier_turns_are_part_of_what_a_prompt_is() -> None:
    plain, chat = (
        Prompt("And now?", "harmful"),
        Prompt("And now?", "harmful", turns=(("user", "a"), ("assistant", "b"))),
    )
    other = Prompt("And now?", "harmful", turns=(("user", "open a car"), ("assistant", "No.")))
    assert len({plain.prompt_id, chat.prompt_id, other.prompt_id}) == 3
    assert len(set(find_clusters([plain, chat, other]))) == 3


@pytest.mark.parametrize("placement", ["system", "before", "after"])
def test_a_context_stands_with_the_last_turn_or_before_all(placement: Any) -> None:
    prompt = Prompt("now", "harmful", turns=(("user", "a"), ("assistant", "b")))
    roles = [(message["role"], message["content"]) for message in lay_out(prompt, Context("CONTEXT", placement))]
    expected = {
        "system": [("system", "CONTEXT"), ("user", "a"), ("assistant", "b"), ("user", "now")],
        "before": [("user", "a"), ("assistant", "b"), ("user", "CONTEXT\n\nnow")],
        "after": [("user", "a"), ("assistant", "b"), ("user", "now\n\nCONTEXT")],
    }
    assert roles == expected[placement]


HH = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: And now?\n\nHuman: Well?\n\nAssistant: No."


def test_a_transcript_is_read_as_its_turns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"chosen": HH}), encoding="utf-8")
    prompt = load_prompts(harmful=f"{tmp_path / 'a.jsonl'}:chosen").prompts[0]
    assert (prompt.text, prompt.turns) == ("And now?\n\nWell?", (("user", "Hello"), ("assistant", "Hi")))
    assert load(tmp_path, {"prompt": "Human: is this a word?"})[0].text == "Human: is this a word?"


def test_a_transcript_of_user_and_agent_is_read_as_its_turns(tmp_path: Path) -> None:
    prompt = load(tmp_path, {"text": "User: Hello\nAgent: Hi\nstill me\nUser: And now?\nAgent: x"})[0]
    assert (prompt.text, prompt.turns) == ("And now?", (("user", "Hello"), ("assistant", "Hi\nstill me")))
    alone = "User: what does this line of a log mean?\nThe agent: x"
    assert load(tmp_path, {"text": alone})[0].text == alone


def test_a_frame_of_another_model_is_taken_off_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "### Instruction:\nHow?\n### Response:\n"}), "utf-8")
    result = load_prompts(harmful=str(tmp_path / "a.jsonl"))
    assert result.prompts[0].text == "How?"
    assert any("1 rows taken out of the frame '### Instruction:" in note for note in result.notes)
    kept = "### Instruction:\nHow?\n### Response:\nSo.\n### Instruction:\nAnd?\n### Response:"
    assert load(tmp_path, {"prompt": kept})[0].text == kept


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_written_turns_are_turns_in_any_column_or_an_error(tmp_path: Path, column: str) -> None:
    assert load(tmp_path, {column: str(CHAT)})[0].text == "How do I open a car?"
    with pytest.raises(PromptError, match=r"neither JSON nor Python.*parquet"):
        load(tmp_path, {column: str(CHAT).replace("}, {", "}\n {")})


def test_texts_that_only_look_like_lists_stay_texts(tmp_path: Path) -> None:
    assert load(tmp_path, {"prompt": "[{x}] is what?"})[0].text == "[{x}] is what?"


def test_developers_and_one_content_alone_are_known(tmp_path: Path) -> None:
    assert load(tmp_path, {"messages": [{"role": "developer", "content": "x"}, *CHAT[2:]]})[0].turns == ()
    assert load(tmp_path, {"turns": [{"content": "one"}]})[0].text == "one"


def test_an_object_that_is_no_turn_says_which_it_is(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"an object with 0, 1.*records"):
        load(tmp_path, {"prompt": {"0": "a", "1": "b"}})


def test_a_label_beside_an_answered_chat_is_refused(tmp_path: Path) -> None:
    row = {"messages": CHAT[:2], "label": "safe"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(PromptError, match=r"'label' stands beside a chat .* prompt_label"):
        load_prompts(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHAT[:2], "prompt_label": "safe"}), encoding="utf-8")
    assert load_prompts(str(tmp_path / "a.jsonl")).prompts[0].kind == "benign"


def test_a_list_without_commas_is_not_joined(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="spells out a list that is neither JSON nor Python"):
        load(tmp_path, {"turns": "['first thing' 'second thing']"})
    assert load(tmp_path, {"turns": "['first' ]"})[0].text == "first"
