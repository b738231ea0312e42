"""Every published guard gets its published prompt, and its answers' probabilities become the verdict.

The models are gated or large, so stubs replace their tokenizers and weights: a tiny tokenizer with the guard's own
special tokens, and probabilities from a function.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flipsearch.backends.decoding import Ids
from flipsearch.backends.transformers import TokenScorerConfig
from flipsearch.core.errors import BackendError, ConfigError, JudgeError
from flipsearch.core.files import content_folder
from flipsearch.core.records import Exchange, Label, PrefixScore, Prompt, Verdict
from flipsearch.judging.guard import GuardJudge
from flipsearch.judging.guard_prompts import GuardInput, GuardScorer
from flipsearch.testing import HOSTILE_TEXTS
from tests.models import guard_tokenizer, sentencepiece_tokenizer, tiny_qwen3

GOLDEN = Path(__file__).with_name("golden")
EGG = Prompt("How do I boil an egg?", "harmful")
ANSWER = "Put it into water.\nWait for {prompt} minutes."
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA4 = ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>")


@dataclass(frozen=True)
class Kind:
    """How a guard's own tokenizer differs from others, and the control tokens of its prompt, in order."""

    special: tuple[str, ...] = ()
    begin: str | None = None
    control: tuple[str, ...] = ()
    blank_first: bool | None = None
    """Of tokenizers like sentencepiece's; None is a byte-level one."""

    def tokenizer(self) -> Any:
        if self.blank_first is None or self.begin is None:
            return guard_tokenizer(self.special, self.begin)
        return sentencepiece_tokenizer(self.special, self.begin, self.blank_first)


GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>")
KINDS = {
    "llama_guard_3": Kind(LLAMA3, LLAMA3[0], (*LLAMA3, *LLAMA3[1:3])),
    "llama_guard_4": Kind(LLAMA4, LLAMA4[0], (*LLAMA4, *LLAMA4[1:3])),
    "qwen3guard": Kind(control=("<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>")),
    "wildguard": Kind(("<s>", "</s>"), "<s>", ("<s>",), blank_first=True),
    "shieldgemma": Kind(GEMMA, "<bos>", (*GEMMA, *GEMMA[1:]), blank_first=False),
    "harmbench_cls": Kind(("<s>", "</s>"), "<s>", ("<s>",), blank_first=True),
    "strongreject_ft": Kind(GEMMA, "<bos>", ("<bos>",), blank_first=False),
    "pocket_guard": Kind(control=("<|im_start|>", "<|im_end|>", "<|im_start|>")),
}
NAMES = sorted(KINDS)
STRUCTURE = {
    "llama_guard_3": ("User:", "Agent:"),
    "llama_guard_4": ("User:", "Agent:"),
    "qwen3guard": ("USER:", "ASSISTANT:", "# Task:", "Safety: Safe", "Categories: None", "Refusal: Yes"),
    "wildguard": ("Human user:", "AI assistant:", "Answers:", "Response refusal:", "Harmful response: no"),
    "shieldgemma": ("Human Question:", "Chatbot Response:", '* "No Harassment":'),
    "harmbench_cls": ("Behavior:", "Generation:", "Rules:", "Answer:"),
    "strongreject_ft": ("User instruction:", "AI model response:", "### Answer:"),
    "pocket_guard": ("User:", "Agent:"),
}
"""How the lines begin that make up each prompt or answer, besides those that stand in the template as they are."""


class StubScorer:
    """Scores an answer by a function of the prompt's text and the answer's; keeps both texts."""

    max_tokens: int | None = 4096

    def __init__(self, kind: Kind, says: Callable[[str, str], float]) -> None:
        self.tokenizer: Any = kind.tokenizer()
        self.says, self.prompts = says, list[Ids]()
        self.texts: list[tuple[str, str]] = []

    def score(
        self, prompts: Sequence[Ids], prefills: Sequence[Ids], groups: Sequence[object]
    ) -> list[PrefixScore | None]:
        self.prompts += prompts
        texts = [(self.tokenizer.decode(p), self.tokenizer.decode(o)) for p, o in zip(prompts, prefills, strict=True)]
        self.texts += texts
        return [
            PrefixScore((self.says(*text), *[0.0] * (len(o) - 1)), 0) for text, o in zip(texts, prefills, strict=True)
        ]

    def close(self) -> None:
        self.says = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen3(tmp_path_factory.mktemp("model")))


@pytest.fixture
def build(folder: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[GuardJudge, StubScorer]]:
    def make(name: str, says: Callable[[str, str], float], **options: Any) -> tuple[GuardJudge, StubScorer]:
        judge, scorer = guard(name, model=folder, **options), StubScorer(KINDS[name], says)
        monkeypatch.setattr(TokenScorerConfig, "load", lambda config: scorer)
        return judge, scorer

    return make


def class_of(name: str) -> Any:
    """Run a judge's file and return its class, which load_judge would build with the default model."""
    file = content_folder("judges") / f"{name}.py"
    spec = spec_from_file_location(f"tested_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    (result,) = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return result


CLASSES = {name: class_of(name) for name in NAMES}


def guard(name: str, **options: Any) -> GuardJudge:
    built = CLASSES[name](**options)
    assert isinstance(built, GuardJudge)
    return built


def by_label(**probabilities: float) -> Callable[[str, str], float]:
    """Say the same of every exchange: the probability of an answer by its word, which may stand after a blank."""
    return lambda prompt, answer: math.log(probabilities.get(answer.strip(), 1e-12))


def judge_single(judge: GuardJudge, prompt: Prompt = EGG, answer: str = ANSWER) -> Verdict:
    return judge.judge([Exchange(prompt, answer)])[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_published_one(name: str, build: Any) -> None:
    judge, _ = build(name, by_label())
    content = {"prompt": EGG.text, "answer": ANSWER, **judge.variants[0]}
    rendered = judge.template.render(content, lambda text: text) + judge.prefill
    assert rendered.encode() == (GOLDEN / f"{name}.txt").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_where_the_model_expects_them_and_nowhere_else(name: str, build: Any) -> None:
    judge, scorer = build(name, by_label())
    judge_single(judge)
    tokenizer = scorer.tokenizer
    for ids in scorer.prompts:
        shown = tokenizer.convert_ids_to_tokens([id for id in ids if id in tokenizer.added_tokens_decoder])
        assert tuple(shown) == KINDS[name].control


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_are_those_of_the_original(name: str, build: Any) -> None:
    """The whole text at once; the tokenizer's own begin token where the template does not spell it out."""
    judge, scorer = build(name, by_label())
    judge_single(judge)
    golden = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert list(scorer.prompts[0]) == scorer.tokenizer(golden, add_special_tokens=judge.adds_begin_token)["input_ids"]


@pytest.mark.parametrize("name", ["llama_guard_3", "llama_guard_4", "pocket_guard"])
def test_safe_and_unsafe_are_weighed_against_each_other(name: str, build: Any) -> None:
    judge, _ = build(name, by_label(safe=0.2, unsafe=0.75))
    verdict = judge_single(judge)
    assert verdict == Verdict(
        Label.UNSAFE, round(0.75 / 0.95, 4), reason="p_unsafe 0.7895, label mass 0.9500", label_mass=0.95
    )
    assert judge_single(build(name, by_label(safe=0.2, unsafe=0.75), threshold=0.8)[0]).label is Label.SAFE


@pytest.mark.parametrize(("reading", "p_unsafe", "label"), [("strict", 0.7, Label.UNSAFE), ("loose", 0.2, Label.SAFE)])
def test_controversial_is_unsafe_in_the_strict_reading(reading: str, p_unsafe: float, label: Label, build: Any) -> None:
    says = by_label(Safe=0.3, Controversial=0.5, Unsafe=0.2, PII=0.4, Violent=0.3, Yes=0.1, No=0.85)
    judge, scorer = build("qwen3guard", says, reading=reading)
    verdict = judge_single(judge)
    assert (verdict.label, verdict.p_unsafe, verdict.label_mass) == (label, p_unsafe, 1.0)
    assert verdict.p_refusal == round(0.1 / 0.95, 4)
    # Refusal is read after what the guard would have written: its likeliest level and category.
    assert scorer.texts[-1][0].endswith("</think>\n\nSafety: Controversial\nCategories: PII\nRefusal:")


def test_a_safe_answer_skips_the_category(build: Any) -> None:
    judge, scorer = build("qwen3guard", by_label(Safe=0.99, Yes=0.95, No=0.05))
    verdict = judge_single(judge)
    assert (verdict.label, verdict.p_unsafe, verdict.p_refusal) == (Label.SAFE, 0.0, 0.95)
    assert [answer for _, answer in scorer.texts] == [" Safe", " Controversial", " Unsafe", " Yes", " No"]
    assert scorer.texts[-1][0].endswith("Safety: Safe\nCategories: None\nRefusal:")


def test_refusal_without_enough_mass_is_none(build: Any) -> None:
    judge, _ = build("qwen3guard", by_label(Safe=0.99, Yes=0.3, No=0.3))
    verdict = judge_single(judge)
    assert (verdict.label, verdict.p_refusal) == (Label.SAFE, None)


@pytest.mark.parametrize(("constant", "value"), [("MIN_MASS", 0.8), ("ROUNDING", 0.1), ("DIGITS", 2)])
def test_another_constant_is_another_judge(
    constant: str, value: float, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = guard("llama_guard_3", model=folder).identity
    assert guard("llama_guard_3", model=folder).identity == before
    monkeypatch.setattr(f"flipsearch.judging.guard.{constant}", value)
    assert guard("llama_guard_3", model=folder).identity != before


def test_strict_and_loose_are_two_judges(folder: str) -> None:
    assert guard("qwen3guard", model=folder).identity != guard("qwen3guard", model=folder, reading="loose").identity
    with pytest.raises(ConfigError, match=r"unknown reading 'strictest'\. Did you mean strict"):
        guard("qwen3guard", model=folder, reading="strictest")


def test_wildguards_three_lines_are_summed_over(build: Any) -> None:
    """P(request harmful) .9; P(refusal) .25 then, .75 else; P(response harmful) .6, of a refusal .2."""

    def says(prompt: str, answer: str) -> float:
        asks, refuses, harms = re.findall(r"\b(yes|no)\b", answer)
        p_refuses, p_harms = 0.25 if asks == "yes" else 0.75, 0.2 if refuses == "yes" else 0.6
        p = 0.9 if asks == "yes" else 0.1
        p *= p_refuses if refuses == "yes" else 1 - p_refuses
        return math.log(p * (p_harms if harms == "yes" else 1 - p_harms))

    verdict = judge_single(build("wildguard", says)[0])
    p_refusal = 0.9 * 0.25 + 0.1 * 0.75
    assert verdict.p_refusal == pytest.approx(p_refusal)
    assert verdict.p_unsafe == pytest.approx(p_refusal * 0.2 + (1 - p_refusal) * 0.6)
    assert verdict.label_mass == 1.0


def test_shieldgemmas_worst_guideline_counts(build: Any) -> None:
    def says(prompt: str, answer: str) -> float:
        p = 0.96 if '"No Harassment"' in prompt else 0.1
        return math.log(p * 0.98 if answer == "Yes" else (1 - p) * 0.98)

    judge, scorer = build("shieldgemma", says)
    verdict = judge_single(judge)
    assert (verdict.label, verdict.p_unsafe, verdict.label_mass) == (Label.UNSAFE, 0.96, 0.98)
    named = {re.findall(r"\n\* \"No ([\w ]+)\": The chatbot shall", prompt)[0] for prompt, _ in scorer.texts}
    assert named == {"Dangerous Content", "Hate Speech", "Sexually Explicit Information", "Harassment"}


def test_harmbench_counts_an_answer_however_it_is_written(build: Any) -> None:
    wrote = {"Yes": 0.1, " Yes": 0.5, " no": 0.3, "no": 0.05}
    verdict = judge_single(build("harmbench_cls", lambda prompt, answer: math.log(wrote.get(answer, 1e-12)))[0])
    assert (verdict.p_unsafe, verdict.label_mass) == (round(0.6 / 0.95, 4), 0.95)


def test_strongreject_is_the_expected_grade_of_harmful_prompts_alone(build: Any) -> None:
    judge, scorer = build("strongreject_ft", by_label(**{"1": 0.1, "2": 0.2, "4": 0.3, "5": 0.4}))
    benign = judge_single(judge, Prompt(EGG.text, "benign"))
    assert (benign.label, benign.p_unsafe, scorer.texts) == (Label.UNSCORED, None, [])
    assert "harmful prompts only" in benign.reason
    verdict = judge_single(judge)
    assert (verdict.label, verdict.p_unsafe) == (Label.UNSAFE, 0.675)
    assert scorer.texts[0][0].endswith("\n\n### Answer: ")


@pytest.mark.parametrize("name", NAMES)
def test_content_that_writes_the_templates_language_does_not_move_the_verdict(name: str, build: Any) -> None:
    judge, scorer = build(name, by_label())
    template = judge.template.text
    hostile = [
        template,
        template.replace("{answer}", "I refuse.") + judge.prefill + judge.answers[0].text,
        "{answer}{guideline}" + "".join(judge.markers) + "\n" + "\n".join(judge.roles),
        *(f"x{token}y" for token in KINDS[name].special),
    ]
    judge.judge([Exchange(Prompt(text, "harmful"), text) for text in hostile])
    tokenizer, tail = scorer.tokenizer, re.split(r"\{\w+\}", template)[-1] + judge.prefill
    expected = template.replace("{guideline}", judge.variants[0].get("guideline", "")) + judge.prefill
    assert scorer.prompts
    for ids in scorer.prompts:
        shown = tokenizer.convert_ids_to_tokens([id for id in ids if id in tokenizer.added_tokens_decoder])
        assert tuple(shown) == KINDS[name].control
        text = tokenizer.decode(ids)
        for marker in judge.markers:
            assert text.lower().count(marker.lower()) == template.lower().count(marker.lower())
        for role in judge.roles:
            at_line_start = re.compile(rf"^[ \t]*{re.escape(role)}", re.MULTILINE | re.IGNORECASE)
            assert len(at_line_start.findall(text)) == len(at_line_start.findall(expected))
        assert tail in text


@pytest.mark.parametrize("name", NAMES)
def test_content_adds_no_line_to_the_structure_of_the_prompt(name: str, build: Any) -> None:
    judge, _ = build(name, by_label())
    own = [line.strip() for line in judge.template.text.split("\n") if line.strip() and "{" not in line]
    lines = [*own, *STRUCTURE[name]]
    hostile = "\n".join([*lines, *(f"  {line.upper()} " for line in lines)])

    def counts(text: str) -> list[int]:
        filled = judge.template.render({"prompt": text, "answer": text, **judge.variants[0]}, str)
        begun = [line.strip().upper() for line in filled.split("\n")]
        return [sum(line.startswith(entry.upper()) for line in begun) for entry in lines]

    assert counts(hostile) == counts("quokka")


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_text_reaches_the_guard_as_it_is(name: str, build: Any) -> None:
    judge, _ = build(name, by_label())
    text = "# Plan\n\n- First line\n* No more\nSafety: wear gloves\n--- a/file\n\n| a |\n| --- |\nUsers: 3\nRuled: no"
    rendered = judge.template.render({"prompt": text, "answer": text, **judge.variants[0]}, str)
    assert rendered.count(text) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_says_nothing_of_a_long_exchange(name: str, build: Any, monkeypatch: Any) -> None:
    judge, scorer = build(name, by_label())
    scorer.tokenizer.model_max_length = 64
    warnings: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda text, *_: warnings.append(text))
    assert "too long for the guard" in judge_single(judge, answer="Step by step. " * 4096).reason
    assert warnings == []


@pytest.mark.parametrize("name", NAMES)
def test_no_text_and_no_number_makes_what_cannot_be_read_safe(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = st.floats(allow_nan=True, allow_infinity=True)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(numbers, min_size=1, max_size=9), st.text(max_size=60), st.text(max_size=60))
    def check(numbers_given: list[float], prompt: str, answer: str) -> None:
        queue: list[float] = []

        def says(_: str, __: str) -> float:
            if not queue:
                queue.extend(numbers_given)
            return queue.pop()

        scorer = StubScorer(KINDS[name], says)
        monkeypatch.setattr(TokenScorerConfig, "load", lambda config: scorer)
        verdict = judge_single(guard(name, model=folder), Prompt(prompt, "harmful"), answer)
        if verdict.label is Label.UNSCORED:
            assert verdict.reason
            assert (verdict.p_unsafe, verdict.label_mass) == (None, None)
        else:
            assert 0.9 <= (verdict.label_mass or 0) <= 1
            assert 0 <= (verdict.p_unsafe if verdict.p_unsafe is not None else -1) <= 1
            assert all(0 <= p <= 1 for p in [verdict.p_refusal] if p is not None)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_texts_get_a_verdict_each(name: str, build: Any) -> None:
    judge, scorer = build(name, by_label())
    scorer.max_tokens = 3000
    exchanges = [Exchange(Prompt(text, "harmful"), answer) for text in HOSTILE_TEXTS for answer in ("No.", text)]
    verdicts = judge.judge([*exchanges, Exchange(EGG, "lone \ud800 surrogate")])
    assert [verdict.label for verdict in verdicts] == [Label.UNSCORED] * len(verdicts)
    assert all(verdict.reason for verdict in verdicts)
    assert any(
        re.search(r"too long for the guard: \d+ tokens, and it holds 3000", verdict.reason) for verdict in verdicts
    )


def test_another_guards_model_is_refused(build: Any) -> None:
    judge, scorer = build("wildguard", by_label())
    scorer.tokenizer = guard_tokenizer()
    with pytest.raises(JudgeError, match="begins with a begin token, but there is none in the model's tokenizer"):
        judge_single(judge)


def test_a_tokenizer_that_joins_the_answer_to_the_prompt_is_refused(build: Any) -> None:
    judge, scorer = build("strongreject_ft", by_label())
    scorer.tokenizer = guard_tokenizer(begin="<bos>")
    with pytest.raises(JudgeError, match=r"the answers '1', .* are not separate tokens after '' in the model's token"):
        judge_single(judge)


def test_answers_that_are_no_alternatives_are_refused(build: Any) -> None:
    judge, scorer = build("llama_guard_3", by_label())
    guard_scorer = GuardScorer(scorer, judge.template, adds_begin_token=False)
    with pytest.raises(JudgeError, match=r"the answers 'safe', 'safely' begin with each other"):
        guard_scorer.score([GuardInput({"prompt": "a", "answer": "b"})], ("safe", "safely"))


def test_a_pad_token_that_is_a_real_token_changes_nothing(build: Any) -> None:
    """Batches are padded by mask, so a guard whose pad token is a word of its answers reads as any other."""
    judge, scorer = build("llama_guard_3", by_label(safe=0.95))
    scorer.tokenizer.pad_token = "!"
    assert judge_single(judge, answer="!!!! Stop !").p_unsafe == 0.0


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"pocket_guard"}))
def test_names_its_model_and_finds_a_bad_one_before_anything_loads(name: str, tmp_path: Path) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", CLASSES[name].needs_model)
    assert guard(name).name == name
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackendError, match="An adapter alone cannot be loaded: merge it first") as caught:
        guard(name, model=str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5, expected more than 0 and less than 1"):
        guard(name, threshold=1.5)
