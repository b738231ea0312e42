"""The model card: what hubs and people read of a checkpoint; hostile texts stay texts, and its code runs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from flipsearch.core.records import Context
from flipsearch.core.trainings import METHODS, RoutedContext, TrainingRun
from flipsearch.reporting.cards import model_card, scorecard_markdown
from tests.finished_training import CONTEXT, HOSTILE, RUN
from tests.unit.reporting.test_scorecard_table import CARD

WEIGHTS = Path(__file__).parents[3] / "flipsearch" / "pocket"
SECTIONS = [
    "Method", "Contexts", "Training prompts", "Settings", "Use", "Intended use and limits", "Evaluation", "Versions",
]  # fmt: skip
CHARACTERS = st.text(st.sampled_from("`~ab\n\r\t #>-\u202e\x00"), min_size=1)


def tokens(run: TrainingRun) -> list[Token]:
    """Return what a Markdown reader with tables sees below the YAML head."""
    parsed = MarkdownIt("commonmark").enable("table").parse(body(model_card(run)))
    return [inner for token in parsed for inner in (token, *(token.children or ()))]


def hub_data(run: TrainingRun) -> dict[str, Any]:
    """Return the YAML head as a model hub reads it."""
    return {key: value for key, value in vars(ModelCard(model_card(run)).data).items() if value is not None}


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def headings(run: TrainingRun) -> list[str]:
    result = tokens(run)
    return [
        result[i + 1].content for i, token in enumerate(result) if token.type == "heading_open" and token.tag == "h2"
    ]


def fences(run: TrainingRun) -> list[str]:
    return [token.content for token in tokens(run) if token.type == "fence" and token.info == "text"]


def under(context: str) -> TrainingRun:
    return replace(RUN, routed=(RoutedContext("harmful", Context(context), 1),))


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@c1899de2"])
def test_hubs_read_the_base_model_of_a_hub_id(model: str) -> None:
    data = hub_data(replace(RUN, model=model))
    assert data["base_model"] == "Qwen/Qwen3-0.6B"
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["flipsearch", "safety", "alignment", "opsa"]
    assert "license" not in data


@pytest.mark.parametrize("model", ["pocket", "/home/me/models/mine", "a/b/c", "a/b\nlicense: mit", "../b", HOSTILE])
def test_any_other_base_is_not_claimed_to_hubs(model: str) -> None:
    data = hub_data(replace(RUN, model=model))
    assert "base_model" not in data
    assert "license" not in data


def test_the_pocket_model_is_named_as_synthetic() -> None:
    assert "> **Synthetic.**" in model_card(RUN)
    assert "Synthetic" not in model_card(replace(RUN, model="org/name"))


def test_the_card_shows_method_counts_and_settings() -> None:
    text = model_card(RUN)
    for words in (
        "arXiv 2605.15239", "1,200 optimizer steps on 98,765 tokens in 2,400 completions, in 1.2 min.",
        "Trained on 384 harmful and 192 benign prompts. Left out: 7 harmful", "| harmful | 384 | context 1 |",
        "| benign | 192 | none |", r"| learning\_rate | 0.0003 |", "> Note: Mind the gap.", "| flipsearch | 0.1.0 |",
        "placement system", "`the judge id`", "`the prompts id`",
    ):  # fmt: skip
        assert words in text, words
    assert headings(RUN) == SECTIONS
    assert fences(RUN) == [CONTEXT.text + "\n"]


def test_a_context_for_both_kinds_is_shown_once() -> None:
    run = replace(RUN, routed=(*RUN.routed, RoutedContext("benign", CONTEXT, 3)))
    assert fences(run) == [CONTEXT.text + "\n"]
    assert "for 384 harmful and 3 benign prompts" in model_card(run)


def test_off_policy_cards_name_the_teacher_and_no_setting_of_opsa() -> None:
    settings = {**dict.fromkeys(METHODS["opsa"].settings, 1), "learning_rate": 1e-5}
    opsa = replace(RUN, settings=settings)
    sft = model_card(replace(opsa, method="sft-teacher", teacher="org/big"))
    assert "The teacher was `org/big`." in sft
    assert all(f"| {name.replace('_', chr(92) + '_')} | 1 |" in model_card(opsa) for name in METHODS["opsa"].settings)
    assert not any(f"| {name.replace('_', chr(92) + '_')} |" in sft for name in METHODS["opsa"].settings)
    assert r"learning\_rate" in sft


def test_a_judge_that_was_not_used_is_no_setting() -> None:
    assert "| judge | refusal |" in model_card(RUN)
    assert "judge" not in "".join(model_card(replace(RUN, judge_id=None)).split("## Settings")[1].split("## Use")[0])


def test_a_control_says_so() -> None:
    text = model_card(replace(RUN, control="empty"))
    assert "> **This is a control: the context was replaced by nothing." in text
    assert "control-empty" in hub_data(replace(RUN, control="empty"))["tags"]


def test_folders_of_the_machine_are_not_published() -> None:
    settings = {"judge": "/home/me/judges/strict.py", "harmful": ["/home/me/a.csv:text", "b.csv"], "checkpoints": "/x"}
    text = model_card(replace(RUN, model="/home/me/models/mine", teacher="/home/me/big", settings=settings))
    assert "/home" not in text
    assert "checkpoints" not in text
    assert "# mine, trained with opsa" in text
    assert "| judge | strict.py |" in text
    assert "harmful a.csv:text, b.csv; " in text


def test_without_a_scorecard_nothing_is_claimed() -> None:
    assert "the effect of this training is not known" in model_card(RUN)
    evaluated = model_card(RUN, CARD)
    assert "Not evaluated" not in evaluated
    assert scorecard_markdown(CARD).strip() in evaluated


@given(CHARACTERS)
def test_no_context_can_close_its_fence(text: str) -> None:
    shown = re.sub("[\u202e\x00]", "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert fences(under(text)) == [shown + "\n"]
    assert headings(under(text)) == SECTIONS


def test_replaced_characters_are_admitted() -> None:
    assert "\ufffd replaces" in model_card(under("a\u202eb"))
    assert "\ufffd" not in model_card(RUN)


def test_hostile_texts_stay_texts() -> None:
    context = Context(HOSTILE, "around", HOSTILE, ((HOSTILE, HOSTILE),))
    run = replace(
        RUN, model=HOSTILE, model_id=HOSTILE, revision=HOSTILE, method="sft-teacher", teacher=HOSTILE,
        routed=(RoutedContext("harmful", context, 1),), settings={HOSTILE: HOSTILE, "harmful": [HOSTILE]},
        notes=(HOSTILE,), versions={HOSTILE: HOSTILE}, judge_id=HOSTILE, prompts_id=HOSTILE,
    )  # fmt: skip
    result = tokens(run)
    assert not [token.content for token in result if token.type in ("html_block", "html_inline", "image", "em_open")]
    links = {token.attrs["href"] for token in result if token.type == "link_open"}
    assert links == {"https://arxiv.org/abs/2605.15239"}
    assert headings(run) == SECTIONS
    (table,) = re.findall(r"\| setting \| value \|\n(?:\|.*\n)+", model_card(run))
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table.splitlines())
    model_card(run).encode()  # no lone surrogate: it can be written


@pytest.mark.parametrize("thinking", ["auto", "off"])
def test_the_code_of_the_card_runs(thinking: str, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, bool | str] = {"reasoning": False, "x, y": "z"} if thinking == "off" else {}
    text = model_card(replace(RUN, settings={"max_tokens": 40, "thinking": thinking}, template_options=options))
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(source.replace("path/to/this/folder", str(WEIGHTS)))
    out = capsys.readouterr().out
    assert "how to bake" in out
    assert ('return_tensors="pt", reasoning=False)' in source) == (thinking == "off")
