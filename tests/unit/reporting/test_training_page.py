"""What a finished training looks like as a page: what happened, what to look for, and no hostile text comes alive."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from flipsearch.core.records import Context
from flipsearch.core.trainings import LogLine, RoutedContext, TrainingRun
from flipsearch.reporting.pages import training_page
from flipsearch.training.log import EARLY, FIRST, LATE, LEAK_WORDS
from tests.finished_training import HOSTILE, RUN, a_log

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page as a browser reads it: every tag is closed, and what it would run or load is collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [(name, value) for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(run: TrainingRun = RUN, log: Sequence[LogLine] | None = None) -> Page:
    return Page(training_page(run, a_log(3) if log is None else log))


def charts(text: str) -> dict[str, ElementTree.Element]:
    """Return the charts by their title; each is well-formed alone."""
    result = [ElementTree.fromstring(svg) for svg in re.findall(r'<svg class="chart".*?</svg>', text, re.S)]
    return {chart.findtext("title") or "": chart for chart in result}


def test_the_page_says_what_was_done() -> None:
    text = read().text
    for words in (
        "Training of pocket", "on-policy self-alignment", "1,200", "98,765", "in 2,400 completions", "1.2 min",
        "6 s in rollouts", "0.3 epochs", "mean of the first and the last fifth",
        "Trained on 384 harmful and 192 benign prompts.",
        "Left out: 7 harmful", "Mind the gap.", "the judge id", "the prompts id", "flipsearch 0.1.0",
        "forward_weight 0.5",
    ):  # fmt: skip
        assert words in text, words
    assert "lora" not in text  # a setting without a value


def test_contexts_are_folded_and_in_full() -> None:
    text = training_page(RUN, [])
    (folded,) = re.findall(r"<details><summary>role_rule · system · 7 words</summary>(.*?)</details>", text, re.S)
    assert "<pre>Think first.\n\nThen decline what would harm.</pre>" in folded
    assert "strength = strong" in folded
    assert read(log=[]).text.count("none") == 1  # the benign prompts


@pytest.mark.parametrize("num_steps", [1, 3, 100, 2000])
def test_every_figure_has_its_chart_at_any_length(num_steps: int) -> None:
    text = training_page(RUN, a_log(num_steps))
    assert list(charts(text)) == [
        "Loss", "Divergence by position", "Length", "How completions end", "Leakage", "Entropy of the first tokens",
        "Learning rate", "Gradient norm",
    ]  # fmt: skip
    assert len(text) < 400_000
    assert Page(text).text.count("moving mean") == (num_steps > 60)


def test_charts_are_described_for_screen_readers() -> None:
    for title, chart in charts(training_page(RUN, a_log(3))).items():
        named, described = chart.attrib["aria-labelledby"].split()
        texts = {part.attrib["id"]: part.text or "" for part in chart if "id" in part.attrib}
        assert texts[named] == title
        assert "Steps 1 to 3." in texts[described]
        assert re.search(r"first \S+.*, last ", texts[described])


def test_the_words_name_the_places_that_are_measured() -> None:
    text = read().text
    assert f"the first {EARLY} tokens" in text
    assert f"after token {LATE}" in text
    assert f"first {FIRST} tokens are" in text
    assert f"hold {LEAK_WORDS} words of the context in a row" in text


def test_off_policy_methods_speak_of_likelihood_and_of_given_answers() -> None:
    opsa, sft = read().text, read(replace(RUN, method="sft-teacher", teacher="org/big")).text
    assert "Negative log-likelihood by position" in sft
    assert "divergence" not in sft.lower()
    assert "likelihood" not in opsa
    assert "The teacher is org/big" in sft
    assert "the judge kept no answer to them" in sft


def test_teacher_mass_has_a_chart_only_where_some_is_missing() -> None:
    log = a_log(5)
    assert "Teacher mass" not in charts(training_page(RUN, log))
    log[2]["teacher_mass"] = 0.97
    assert "Teacher mass" in charts(training_page(RUN, log))


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_not_finite_is_shown_as_such(bad: float) -> None:
    log = a_log(5)
    log[2]["loss"] = log[4]["loss"] = bad  # null is how JSON says it
    text = training_page(RUN, log)
    loss = charts(text)["Loss"]
    assert len([path for path in loss.iter("path") if path.get("class") == "cross"]) == 2
    assert len(list(loss.iter("circle"))) == 3
    assert "loss: not finite at 2 of 5 steps, first at 3." in Page(text).text
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', "".join(re.findall(r"<(?:path|circle|text).*?>", text)))


def test_keys_may_be_missing_in_any_line() -> None:
    log = a_log(8)
    for line in log[::2]:
        for key in [key for key in line if key.endswith("_benign")]:
            del line[key]
    del log[-1]["length_mean_harmful"], log[3]["step"]
    text = training_page(RUN, log)
    mean, p95, *_ = charts(text)["Length"].iter("g")
    assert len(list(mean.iter("circle"))) == 7
    (drawn,) = p95.iter("path")
    assert len(re.findall("[ML]", drawn.get("d", ""))) == 8  # dashed, and so without dots
    assert "harmful mean 41.2 at step 7" in Page(text).text
    few: list[list[LogLine]] = [[], [{}], [{"step": 4}], [{"loss": 1.0}]]
    for lines in few:
        assert "Training of pocket" in read(log=lines).text
    assert "No step was logged" in read(log=[]).text


def test_of_a_step_repeated_after_a_resume_the_last_line_counts() -> None:
    again: list[LogLine] = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 5.0}, {"step": 2, "loss": 0.5}]
    text = read(log=again).text
    assert "loss 0.5" in text
    assert "highest 1." in charts(training_page(RUN, again))["Loss"].findtext("desc", "")


def test_the_page_runs_nothing_loads_nothing_and_keeps_hostile_text_as_text() -> None:
    context = Context(HOSTILE, "around", HOSTILE, ((HOSTILE, HOSTILE),))
    run = replace(
        RUN, model=HOSTILE, model_id=HOSTILE, revision=HOSTILE, method="sft-teacher", teacher=HOSTILE,
        routed=(RoutedContext("harmful", context, 1),), settings={HOSTILE: HOSTILE, "judge": HOSTILE},
        notes=(HOSTILE,), versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    text = training_page(run, [{**a_log(1)[0], HOSTILE: 1.0}])
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "link", "object"}
    assert page.loads == []
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert "{{ 7*7 }}" in page.text
    text.encode()  # no lone surrogate: it can be written
    assert not set("\u202e\x1b") & set(text)  # nothing reorders or hides what stands beside it


def test_controls_and_the_pocket_model_are_named() -> None:
    assert (
        "This is a control: the context's words were put in another order"
        in read(replace(RUN, control="shuffled")).text
    )
    assert "control" not in read().text
    assert "tiny synthetic transformer" in read().text
    assert "tiny synthetic transformer" not in read(replace(RUN, model="org/name")).text
