"""Where a context is placed in the chat, what the thinking switch does, and that hostile text stays text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from flipsearch.backends.chat import Chat, Thinking, lay_out
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import Context, Placement, Prompt, Request
from flipsearch.core.thoughts import split_answer
from tests import models
from tests.models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHAT = Chat(TOKENIZER)
EGG = Prompt("How do I boil an egg?", "benign")


def text_of(chat: Chat, prompt: Prompt, context: Context | None = None) -> str:
    ids = chat.encode(Request(prompt, context)).prompt_ids
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=False))


@pytest.mark.parametrize(
    ("placement", "user", "system"),
    [
        ("system", "How do I boil an egg?", "First.\n\nSecond."),
        ("before", "First.\n\nSecond.\n\nHow do I boil an egg?", None),
        ("after", "How do I boil an egg?\n\nFirst.\n\nSecond.", None),
        ("around", "First.\n\nHow do I boil an egg?\n\nSecond.", None),
    ],
)
def test_each_placement_puts_the_context_where_its_name_says(
    placement: Placement, user: str, system: str | None
) -> None:
    messages = lay_out(EGG, Context("First.\n\nSecond.", placement))
    expected = [{"role": "system", "content": system}] if system else []
    assert messages == [*expected, {"role": "user", "content": user}]


def test_around_keeps_all_but_the_last_paragraph_in_front() -> None:
    [message] = lay_out(EGG, Context("One.\n\nTwo.\n\nThree.", "around"))
    assert message["content"] == "One.\n\nTwo.\n\nHow do I boil an egg?\n\nThree."


def test_around_puts_a_single_paragraph_on_both_sides() -> None:
    [message] = lay_out(EGG, Context("Be kind.\nBe brief.", "around"))
    assert message["content"] == "Be kind.\nBe brief.\n\nHow do I boil an egg?\n\nBe kind.\nBe brief."


@pytest.mark.parametrize("placement", ["system", "before", "after", "around"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_context_is_the_baseline_to_the_token(placement: Placement, text: str) -> None:
    assert CHAT.encode(Request(EGG, Context(text, placement))) == CHAT.encode(Request(EGG))


def test_the_tokenizer_does_not_warn_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, warnings = tiny_tokenizer(), list[str]()
    tokenizer.model_max_length = 64
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda text, *_: warnings.append(text))
    assert len(Chat(tokenizer).encode(Request(EGG, Context("Be good. " * 99))).prompt_ids) > 64
    assert warnings == []


def test_harmless_text_is_encoded_as_the_template_renders_it() -> None:
    rendered = "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHow do I boil an egg?<|im_end|>\n"
    expected = TOKENIZER(rendered + "<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert list(CHAT.encode(Request(EGG, Context("Be good."))).prompt_ids) == expected


@pytest.mark.parametrize("template", [models.NO_SYSTEM_TEMPLATE, models.DROPS_SYSTEM_TEMPLATE])
def test_without_a_system_role_the_context_goes_before_the_prompt_and_a_note_says_so(template: str) -> None:
    chat = Chat(tiny_tokenizer(template))
    assert "Be good.\n\nHow do I boil an egg?<|im_end|>" in text_of(chat, EGG, Context("Be good."))
    assert any("no system role" in note for note in chat.system_notes)


def test_a_template_with_a_system_text_of_its_own_notes_that_a_context_replaces_it() -> None:
    chat = Chat(tiny_tokenizer(models.DEFAULT_SYSTEM_TEMPLATE))
    assert "You are Tiny." in text_of(chat, EGG)
    assert "You are Tiny." not in text_of(chat, EGG, Context("Be good."))
    assert any("system text of its own" in note for note in chat.system_notes)
    assert not CHAT.system_notes


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day() -> None:
    chat = Chat(tiny_tokenizer(models.DATED_TEMPLATE))
    assert text_of(chat, EGG).startswith("Today is 01 January 2026.")
    assert any("2026-01-01" in note for note in chat.notes)


@pytest.mark.parametrize(
    ("template", "thinking", "end", "opens", "noted"),
    [
        (models.QWEN3_TEMPLATE, "auto", "assistant\n", False, False),
        (models.QWEN3_TEMPLATE, "on", "assistant\n", False, False),
        (models.QWEN3_TEMPLATE, "off", "assistant\n<think>\n\n</think>\n\n", False, False),
        (models.R1_TEMPLATE, "auto", "<think>\n", True, False),
        (models.R1_TEMPLATE, "on", "<think>\n", True, False),
        (models.R1_TEMPLATE, "off", "<think>\n\n</think>\n\n", False, False),
        (models.PLAIN_TEMPLATE, "auto", "assistant\n", False, False),
        (models.PLAIN_TEMPLATE, "on", "assistant\n", False, True),
        (models.PLAIN_TEMPLATE, "off", "assistant\n", False, True),
    ],
)
def test_the_thinking_switch(template: str, thinking: Thinking, end: str, opens: bool, noted: bool) -> None:
    chat = Chat(tiny_tokenizer(template), thinking)
    assert text_of(chat, EGG).endswith(end)
    assert chat.encode(Request(EGG)).opens_thinking is opens
    assert any("thinking switch" in note for note in chat.notes) is noted


def test_an_unknown_switch_is_refused() -> None:
    with pytest.raises(ConfigError, match="'maybe', expected one of auto, on, off"):
        Chat(TOKENIZER, "maybe")  # type: ignore[arg-type]


def test_identity_follows_template_and_switch() -> None:
    chats = [CHAT, Chat(TOKENIZER, "off"), Chat(tiny_tokenizer(models.PLAIN_TEMPLATE))]
    assert len({chat.identity for chat in chats}) == 3
    assert Chat(tiny_tokenizer()).identity == CHAT.identity


def test_a_tokenizer_without_chat_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(BackendError, match=r"no chat template; use an instruction-tuned model"):
        Chat(tiny_tokenizer(chat_template=None))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.templating.template.MAX_SECONDS", 0.2)
    with pytest.raises(BackendError, match=r"cannot render one user message: .*(still running|characters)"):
        Chat(tiny_tokenizer(chat_template=template))


def test_a_power_is_refused_and_bold_text_is_not() -> None:
    """No trace function ends a single operation."""
    with pytest.raises(BackendError, match=r"cannot render one user message: it computes a power \(\*\*\)"):
        Chat(tiny_tokenizer(models.PLAIN_TEMPLATE + "{% set n = 9 ** 9**9 %}"))
    bold = "{{- '<|im_start|>system\\nBe **good**.<|im_end|>' }} **"
    assert "**good**" in text_of(Chat(tiny_tokenizer(bold + models.PLAIN_TEMPLATE)), EGG)


def test_a_template_that_is_random_or_cuts_is_refused() -> None:
    with pytest.raises(BackendError, match="another prompt each time"):
        Chat(tiny_tokenizer(models.PLAIN_TEMPLATE + "{{ range(99999)|random }}"))
    with pytest.raises(BackendError, match="cuts long texts"):
        Chat(tiny_tokenizer("{% for m in messages %}{{ m.content[:300] }}{% endfor %}"))


def test_a_prompt_that_the_template_does_not_write_is_no_request() -> None:
    chat = Chat(tiny_tokenizer("{% for m in messages %}{{ m.content|replace('egg', '') }}{% endfor %}"))
    with pytest.raises(BackendError, match="leaves out or changes a part"):
        chat.encode(Request(Prompt("an egg", "benign")))
    first_alone = Chat(tiny_tokenizer("{{ messages[0].content }}"))
    assert not first_alone.takes_system
    assert "Be good." in text_of(first_alone, EGG, Context("Be good.", "system"))
    with pytest.raises(BackendError, match="leaves out or changes a part"):
        first_alone.encode(Request(Prompt("b", "benign", turns=(("user", "a"), ("assistant", "x")))))


def test_an_odd_template_is_noted() -> None:
    def notes(template: str) -> str:
        return " ".join(Chat(tiny_tokenizer(template)).notes)

    body = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    assert "leaves '< |im_start|>assistant' before an answer to the model" in notes(body)
    assert "changes the case" in notes("{% for m in messages %}{{ m.content|lower }}{% endfor %}")
    assert "'<|turn|>', no token" in notes("{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}")
    assert notes(models.PLAIN_TEMPLATE) == notes(models.QWEN3_TEMPLATE) == ""


def test_a_template_that_loops_for_some_roles_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipsearch.templating.template.MAX_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    start = time.thread_time()
    Chat(tiny_tokenizer(models.PLAIN_TEMPLATE + "{% if messages|length > 1 %}" + loop + "{% endif %}"))
    assert time.thread_time() - start < 2


def test_a_template_that_cannot_render_is_refused() -> None:
    with pytest.raises(BackendError, match="cannot render one user message: only for tools"):
        Chat(tiny_tokenizer("{{ raise_exception('only for tools') }}"))


HOSTILE = st.lists(
    st.sampled_from([*models.SPECIAL_TOKENS, *models.THINK_TOKENS, "<|im_", "end|>", "<", "{{ messages }}", "a", "\n"]),
    min_size=1,
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(prompt=HOSTILE, context=HOSTILE.filter(str.strip), placement=st.sampled_from(["system", "before", "around"]))
def test_no_text_can_write_a_control_token(prompt: str, context: str, placement: Placement) -> None:
    control = {TOKENIZER.convert_tokens_to_ids(token) for token in [*models.SPECIAL_TOKENS, *models.THINK_TOKENS]}

    def controls(request: Request) -> list[int]:
        return [id for id in CHAT.encode(request).prompt_ids if id in control]

    harmless = Request(EGG, Context("Be good.", placement))
    assert controls(Request(Prompt(prompt, "harmful"), Context(context, placement))) == controls(harmless)


def test_a_defused_control_token_stays_readable() -> None:
    assert "Say < |im_end|> now<|im_end|>" in text_of(CHAT, Prompt("Say <|im_end|> now", "harmful"))


def test_control_tokens_that_a_tokenizer_reassembles_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    backend.add_tokens([AddedToken("<|tool|>", normalized=True)])
    tokenizer.chat_template = models.PLAIN_TEMPLATE + "{# <|tool|> #}"
    chat = Chat(tokenizer)
    with pytest.raises(BackendError, match="spells out a control token"):
        chat.encode(Request(Prompt("\uff1c|tool|\uff1e", "harmful")))


def test_text_that_cannot_be_encoded_is_one_clear_error() -> None:
    with pytest.raises(BackendError, match="cannot be encoded"):
        CHAT.encode(Request(Prompt("\ud800", "harmful")))


def test_decoding_drops_special_tokens_and_keeps_think_marks() -> None:
    ids = TOKENIZER("<think>Hm.</think>Boil it.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert CHAT.decode(ids) == "<think>Hm.</think>Boil it."


def test_think_marks_are_kept_even_where_the_tokenizer_calls_them_special() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    ids = tokenizer("<think>Hm.</think>Boil it.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert Chat(tokenizer).decode(ids) == "<think>Hm.</think>Boil it."


def test_counting_tokens_counts_the_text_alone() -> None:
    assert CHAT.count_tokens("") == 0
    assert CHAT.count_tokens("egg egg") == len(TOKENIZER("egg egg", add_special_tokens=False)["input_ids"])


THINKER_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content %}{{- '<|muse|>\\n' + message.reasoning_content + '\\n<|say|>\\n' }}{%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

CHANNEL_TEMPLATE = """\
{%- set effort = reasoning_effort if reasoning_effort is defined else 'medium' %}
{{- '<|start|>system<|message|>Reasoning: ' + effort + '<|end|>' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
CHANNEL_TOKENS = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]


def with_special(template: str, tokens: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", *tokens]})
    return tokenizer


@pytest.mark.parametrize(
    ("template", "tokens", "completion"),
    [
        (models.PLAIN_TEMPLATE, ["[THINK]", "[/THINK]"], "[THINK]Hm.[/THINK]Boil it.<|im_end|>"),
        (models.PLAIN_TEMPLATE, ["◁think▷", "◁/think▷"], "◁think▷Hm.◁/think▷Boil it.<|im_end|>"),
        (models.PLAIN_TEMPLATE, ["<|channel>", "<channel|>"], "<|channel>thought\nHm.<channel|>Boil it.<|im_end|>"),
        (
            CHANNEL_TEMPLATE,
            CHANNEL_TOKENS,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Boil it.<|return|>",
        ),
        (THINKER_TEMPLATE, ["<|muse|>", "<|say|>"], "<|muse|>\nHm.\n<|say|>\nBoil it.<|im_end|>"),
    ],
)
def test_a_thought_between_special_tokens_is_no_part_of_the_answer(
    template: str, tokens: list[str], completion: str
) -> None:
    tokenizer = with_special(template, tokens)
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    parts = split_answer(Chat(tokenizer).decode(ids))
    assert (parts.thought, parts.answer) == ("Hm.", "Boil it.")


def test_marks_are_those_that_the_template_writes() -> None:
    marks = [
        Chat(with_special(CHANNEL_TEMPLATE, CHANNEL_TOKENS)).marks,
        Chat(with_special(THINKER_TEMPLATE, ["<|muse|>", "<|say|>"])).marks,
        CHAT.marks,
    ]
    assert [(mark.start, mark.end) for mark in marks] == [
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|muse|>\n", "\n<|say|>\n"),
        ("<think>\n", "\n</think>\n\n"),
    ]


@pytest.mark.parametrize(
    ("template", "thinking", "shown", "noted"),
    [
        (models.PLAIN_TEMPLATE + "{% if thinking %}{{ '<think>\\n' }}{% endif %}", "on", "<think>\n", "thinking=True"),
        (
            models.PLAIN_TEMPLATE + "{% if thinking_mode == 'on' %}Think!{% endif %}",
            "on",
            "Think!",
            "thinking_mode='on'",
        ),
        (CHANNEL_TEMPLATE, "off", "Reasoning: low", "reasoning_effort='low'; it names no way"),
        (
            models.PLAIN_TEMPLATE + "{% if thinking_mode == 'thinking' %}<think>{% else %}</think>{% endif %}",
            "on",
            "<think>",
            "thinking_mode='thinking'",
        ),
        (
            models.PLAIN_TEMPLATE + "{% if skip_thinking %}<think></think>{% endif %}",
            "off",
            "<think></think>",
            "skip_thinking=True",
        ),
        (
            models.PLAIN_TEMPLATE + "{% if thinking_budget == 0 %}<think></think>{% endif %}",
            "off",
            "<think></think>",
            "thinking_budget=0",
        ),
        (  # it writes any value down, and reads one
            "{{ reasoning_mode }}"
            + models.PLAIN_TEMPLATE
            + "{% if reasoning_mode == '/no_think' %}</think>{% endif %}",
            "off",
            "</think>",
            "reasoning_mode='/no_think'",
        ),
    ],
)
def test_a_thinking_switch_of_another_name_is_found(template: str, thinking: Thinking, shown: str, noted: str) -> None:
    tokenizer = with_special(template, CHANNEL_TOKENS)
    chat = Chat(tokenizer, thinking)
    ids = chat.encode(Request(EGG)).prompt_ids
    assert shown in tokenizer.decode(list(ids))
    assert any(noted in note for note in chat.notes)


def test_whether_a_thought_is_open_is_known_for_each_request() -> None:
    opens_under_system = "{% if messages[0].role == 'system' %}{{ '<think>\\n' }}{% endif %}"
    chat = Chat(tiny_tokenizer(models.PLAIN_TEMPLATE + opens_under_system))
    assert not chat.encode(Request(EGG)).opens_thinking
    assert chat.encode(Request(EGG, Context("Be good."))).opens_thinking
    assert not chat.encode(Request(EGG, Context("Be good."), skips_thought=True)).opens_thinking
    opening_chat = Chat(
        tiny_tokenizer(models.PLAIN_TEMPLATE + "{% if 'deep' in messages[0].content %}<think>{% endif %}")
    )
    assert opening_chat.encode(Request(EGG, Context("Go deep."))).opens_thinking


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (models.QWEN3_TEMPLATE, "assistant\n<think>\n\n</think>\n\n"),
        (models.R1_TEMPLATE, "assistant<think>\n\n</think>\n\n"),
        (THINKER_TEMPLATE, "assistant\n<|muse|>\n\n<|say|>\n"),
    ],
)
def test_a_skipped_thought_is_closed_at_once_as_the_template_writes_it(template: str, end: str) -> None:
    tokenizer = with_special(template, ["<|muse|>", "<|say|>"])
    prompt = Chat(tokenizer).encode(Request(EGG, skips_thought=True))
    assert str(tokenizer.decode(list(prompt.prompt_ids))).endswith(end)
    assert not prompt.opens_thinking


def test_the_token_that_ends_a_turn_ends_a_completion_and_a_note_says_so() -> None:
    tokenizer = with_special(models.PLAIN_TEMPLATE.replace("<|im_end|>", "<|eot|>"), ["<|eot|>"])
    chat, end = Chat(tokenizer), tokenizer.get_vocab()["<|eot|>"]
    assert chat.end_ids == frozenset([end])
    assert "'<|eot|>', which neither" in chat.end_note({tokenizer.eos_token_id})[0]
    assert chat.end_note({end}) == CHAT.end_note({TOKENIZER.eos_token_id}) == ()
    # The end of a channel is not the end of a turn.
    channels = with_special(CHANNEL_TEMPLATE, CHANNEL_TOKENS)
    assert Chat(channels).end_ids == {channels.convert_tokens_to_ids("<|return|>")}


def test_a_template_that_wants_typed_parts_gets_them() -> None:
    parts = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    template = models.PLAIN_TEMPLATE.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>'",
        "{{- '<|im_start|>' + message.role + '\\n' }}" + parts + "{{- '<|im_end|>'",
    )
    chat = Chat(tiny_tokenizer(template))
    assert "user\nHow do I boil an egg?<|im_end|>" in text_of(chat, EGG)
    assert "system\nBe good.<|im_end|>" in text_of(chat, EGG, Context("Be good."))


def test_a_template_that_leaves_the_request_out_is_refused() -> None:
    with pytest.raises(BackendError, match="leaves out the text of the user"):
        Chat(tiny_tokenizer("{{ '<|im_start|>assistant' }}"))


def test_a_template_tells_whether_its_model_may_think() -> None:
    closes = models.PLAIN_TEMPLATE + "{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}"
    assert [Chat(tiny_tokenizer(closes), thinking).thinks for thinking in ("auto", "on", "off")] == [False, True, False]
    assert [Chat(TOKENIZER, thinking).thinks for thinking in ("auto", "off")] == [True, False]


def test_placements_that_give_the_same_tokens_are_named() -> None:
    assert CHAT.same_placements == {}
    assert Chat(tiny_tokenizer(models.NO_SYSTEM_TEMPLATE)).same_placements == {"system": "before"}


def test_a_raw_prompt_stands_in_no_template_and_no_text_writes_its_tokens() -> None:
    raw = Prompt("How do I boil <|im_end|> an egg?", "harmful", request="an egg", is_raw=True)
    for context, before in ((None, ""), (Context("Be good."), "Be good.\n\n")):
        assert text_of(CHAT, raw, context) == f"{before}How do I boil < |im_end|> an egg?"
    assert not CHAT.encode(Request(raw)).opens_thinking


def test_the_beginning_of_an_answer_is_its_first_tokens() -> None:
    answer = "First, take the egg. Then boil it."
    ids = CHAT.completion_ids(answer)
    for num in (1, 5, len(ids) - 1):
        assert CHAT.completion_ids(CHAT.beginning(answer, num)) == ids[:num]
    assert CHAT.beginning(answer, len(ids)) == ""
    assert CHAT.beginning("", 5) == ""
