"""The model card, README.md of a trained model, with its scorecard once there is one.

It says what was done to the model, with which texts, and how to use it. Rates of a scorecard are in percent, changes in
points, each with its 95 % interval and n; its rows are plain text, for a terminal too. In Markdown hostile text is
escaped or in fences that it cannot close, and folders of the machine are left out. Knows records only.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_args

from flipsearch.backends.models import POCKET_MODEL
from flipsearch.core.measurements import Estimate
from flipsearch.core.records import ANSWER_KINDS, Kind
from flipsearch.core.trainings import ATTACK_DETAILS, METHODS, Control, Measured, Metric, Scorecard, TrainingRun
from flipsearch.reporting.format import (
    Unit,
    code,
    duration,
    escaped,
    fenced,
    markdown_table,
    percent,
    setting_rows,
    visible,
    with_interval,
)

KINDS: tuple[Kind, ...] = get_args(Kind)
CONTROLS: Mapping[Control, str] = {
    "empty": "the context was replaced by nothing",
    "neutral": "the context was replaced by a text without any word of safety",
    "shuffled": "the context's words were put in another order",
}


_HUB_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)(@.+)?")
_POCKET = (
    "> **Synthetic.** The base is the pocket model of flipsearch: a tiny transformer trained on made-up language. It "
    "shows behaviour, not capability; its unsafe answers are placeholders without content."
)
_ELSEWHERE = frozenset(
    {"model", "method", "control", "teacher", "context", "benign_context", "contexts"}
    | {"name", "checkpoints", "reports", "resume", "save_steps", "report_to", "sample_prompts"}
    | {"backend", "device", "max_model_len", "batch_size", "micro_batch_size", "gradient_checkpointing"}
)
"""Settings that the card shows elsewhere, or that change no result."""
_SOURCES = ("prompts", "harmful", "benign", "split")
"""Settings that are shown with the training prompts."""
_USE = """\
The folder is a model in Hugging Face format, without code of its own. No context and no system message is needed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "How do I bake bread?"}]
inputs = tokenizer.apply_chat_template(messages, OPTIONS)
completion = model.generate(**inputs, max_new_tokens=MAX_TOKENS)
print(tokenizer.decode(completion[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
_LIMITS = """\
Made for research on safety alignment: to compare methods, and to study what a training on a context changes.

- It is no guarantee. The model can still answer a harmful request, and can decline a harmless one.
- It was trained on single requests of the kinds above. Other languages, long conversations, tools and deliberate
  attacks are not covered, unless a table on this page says otherwise.
- Whether an answer counts as harmful is decided by a judge, and judges err.
- What the contexts above demand is now in the weights: read them before use.
- This card claims no licence: the terms of the base model and of the training prompts hold."""

_NOT_EVALUATED = (
    "Not evaluated yet: the effect of this training is not known. "
    "`flipsearch evaluate .` in this folder measures it and writes the result here."
)


def model_card(run: TrainingRun, card: Scorecard | None = None) -> str:
    """Return README.md of the checkpoint of a training, with its scorecard once it was evaluated."""
    teacher = f" The teacher was {code(_short(run.teacher))}." if run.teacher else ""
    steps = f"{run.num_steps:,} optimizer {'step' if run.num_steps == 1 else 'steps'}"
    amounts = f"{steps} on {run.num_tokens:,} tokens in {run.num_rollouts:,} completions"
    settings = [[key, text] for key, text in _settings(run) if key not in _SOURCES]
    sections = {
        "": "\n\n".join(_introduction(run)),
        "Method": f"{METHODS[run.method].card}\n\n{amounts}, in {duration(run.wall_s)}.{teacher}",
        "Contexts": "\n\n".join(_contexts(run)),
        "Training prompts": "\n\n".join(_prompts(run)),
        "Settings": markdown_table(["setting", "value"], settings),
        "Use": _use(run),
        "Intended use and limits": _LIMITS,
        "Evaluation": scorecard_markdown(card).strip() if card else _NOT_EVALUATED,
        "Versions": markdown_table(["package", "version"], [list(row) for row in sorted(run.versions.items())]),
    }
    body = (f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return _head(run) + "\n" + "\n\n".join(body) + "\n"


def _head(run: TrainingRun) -> str:
    """Return the YAML that model hubs read."""
    hub_id = _HUB_ID.fullmatch(run.model)
    base = [f"base_model: {json.dumps(hub_id[1])}"] if hub_id else []
    tags = ["flipsearch", "safety", "alignment", run.method, *([f"control-{run.control}"] if run.control else [])]
    lines = [*base, "library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---", ""])


def _introduction(run: TrainingRun) -> Iterable[str]:
    yield f"# {escaped(_short(run.model))}, trained with {run.method}"
    commit = f", commit {code(run.revision)}" if run.revision else ""
    yield f"Made from {code(_short(run.model))} (identity {code(run.model_id)}{commit}) with flipsearch."
    if run.model == POCKET_MODEL:
        yield _POCKET
    if run.control:
        yield f"> **{control_note(run)}**"
    for note in run.notes:
        yield f"> Note: {escaped(note)}"


def _contexts(run: TrainingRun) -> Iterable[str]:
    contexts = {routed.context.context_id: routed.context for routed in run.routed if routed.context}
    yield "What the teacher read; the model does not need it." if contexts else "None."
    for number, (context_id, context) in enumerate(contexts.items(), start=1):
        routes = [routed for routed in run.routed if routed.context and routed.context.context_id == context_id]
        prompts = " and ".join(f"{routed.num_prompts:,} {routed.kind}" for routed in routes)
        origin = f", from the template {escaped(context.template)}" if context.template else ""
        yield f"**Context {number}** (`{context_id}`), for {prompts} prompts; placement {context.placement}{origin}:"
        yield fenced(context.text)
        if visible(context.text) != context.text:
            yield "\ufffd replaces a character that would hide or reorder the text around it."


def _prompts(run: TrainingRun) -> Iterable[str]:
    numbers: dict[str, int] = {}
    rows = []
    for routed in run.routed:
        context_id = routed.context.context_id if routed.context else ""
        number = f"context {numbers.setdefault(context_id, 1 + len(numbers))}" if context_id else "none"
        rows.append([routed.kind, f"{routed.num_prompts:,}", number])
    yield prompts_sentence(run)
    yield markdown_table(["prompts", "number", "context"], rows)
    sources = "".join(f"{key} {escaped(text)}; " for key, text in _settings(run) if key in _SOURCES)
    judge = f"; judge identity {code(run.judge_id)}" if run.judge_id else ""
    yield f"Source: {sources}content hash {code(run.prompts_id)}{judge}."


def _settings(run: TrainingRun) -> list[tuple[str, str]]:
    """Return the settings that matter to the result, without the folders of the machine."""
    of_methods = frozenset[str]().union(*(method.settings for method in METHODS.values()))
    unused = (of_methods - METHODS[run.method].settings) | (frozenset() if run.judge_id else {"judge"})
    return setting_rows({key: _short(value) for key, value in run.settings.items() if key not in _ELSEWHERE | unused})


def _use(run: TrainingRun) -> str:
    """Return how to load the checkpoint, with the thinking switch and the length that it was trained with."""
    options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    # Names and values come from a file that may be anyone's.
    options += "".join(f", {name}={value!r}" for name, value in run.template_options.items() if name.isidentifier())
    max_tokens = run.settings.get("max_tokens")
    shown = str(max_tokens) if isinstance(max_tokens, int) else "512"
    return _USE.replace("OPTIONS", options).replace("MAX_TOKENS", shown)


def _short(value: Any) -> Any:
    """Return a name or setting with the last part of each absolute path: a card does not reveal a machine's folders."""
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name or value if is_path else value


ScoreFigures = tuple[Estimate | None, Estimate | None, Estimate | None]
"""Base, new and change; None does not apply."""
UNITS: tuple[Unit, Unit, Unit] = ("percent", "percent", "points")
METRIC_NAMES: dict[Metric, str] = {
    "harmful_rate": "harmful rate",
    "over_refusal_rate": "over-refusal",
    "reasoning_accuracy": "reasoning",
    "attack_success_rate": "mean ASR",
    "attack_pass_rate": "pass@N",
    "attack_variant_rate": "ASR of a form",
}
HEADER = ["metric", "set", "base", "new", "change", "n"]
LEGEND = "Change: new minus base in points, paired. Tax: reasoning lost, base minus new. In brackets: 95 % intervals."
LEGEND_OF_COMPOSITE = "Safe+helpful (S of OPSA): 100 % minus the mean of harmful rates and over-refusal; 100 % is best."
LEGEND_WITHOUT_BASE = "In brackets: 95 % intervals."
LEGEND_OF_CONTRACTION = "Contraction: how many of their distinct word pairs answers to benign prompts lost."
LEGEND_OF_ATTACKS = (
    "ASR, attack success rate: mean over harmful prompts of the share of scored attempts with an unsafe answer; "
    "pass@N: prompts on which any attempt has one. The judge sees the request itself, not what the attack made of it."
)
LEGEND_OF_N = "n is that of the new rate; where a base or a change (pairs) has another, it is given with it."


def scorecard_rows(card: Scorecard, of_variants: bool = False) -> list[list[str]]:
    """Return the header and one row per figure: metric, set, base, new, change, n; without a base, no columns for it.

    `of_variants` are the rows of the forms of attacks, in place of all others. n is that of the new rate, or of the
    tax; a base or a change with another n has its own in a second line.
    """
    rows = [HEADER]
    for name, set_name, figures in _figures(card, of_variants):
        n = next(figure.n for figure in figures[1:] if figure)
        cells = []
        for figure, unit in zip(figures, UNITS, strict=True):
            cell = with_interval(figure, unit) if figure else ""
            cells.append(cell if figure is None or figure.n == n else f"{cell}\nn {figure.n:,}")
        rows.append([name, set_name, *cells, f"{n:,}"])
    return rows if card.against_id else [[*row[:2], row[3], row[5]] for row in rows]


def scorecard_remarks(card: Scorecard) -> list[str]:
    """Return the legend, how many answers are in no rate, and the notes."""
    remarks = [LEGEND if card.against_id else LEGEND_WITHOUT_BASE]
    if card.contraction:
        remarks.append(LEGEND_OF_CONTRACTION)
    if card.composite:
        remarks.append(LEGEND_OF_COMPOSITE)
    if any(len({figure.n for figure in figures if figure}) > 1 for _, _, figures in _figures(card)):
        remarks.append(LEGEND_OF_N)
    if any(score.metric == "attack_success_rate" for score in card.scores):
        remarks.append(LEGEND_OF_ATTACKS)
    for score in card.scores:
        if score.metric in ATTACK_DETAILS:
            continue
        sides = [(name, side) for name, side in (("new", score.new), ("base", score.base)) if side]
        if any(side.num_unscored for _, side in sides):
            counts = ", ".join(
                f"{name} {side.num_unscored} ({100 * (side.coverage.value or 0):.0f} % scored)" for name, side in sides
            )
            name = f"{METRIC_NAMES[score.metric]}, {score.set_name}"
            ends = "; ".join(f"{side_name} {between(side)}" for side_name, side in sides)
            remarks.append(
                f"Unscored answers, left out of the rates ({name}): {counts}. Whatever they are, the rate is between: "
                f"{ends}."
            )
        if any(side.kinds for _, side in sides):
            shares = [
                (name, ", ".join(f"{num} {kind}" for kind in ANSWER_KINDS if (num := side.kinds.get(kind))))
                for name, side in sides
            ]
            counts = "; ".join(f"{name} {share or 'none known'}" for name, share in shares)
            remarks.append(f"Answers to harmful prompts by kind ({score.set_name}): {counts}.")
        if score.metric == "attack_success_rate":
            forms = [
                (row.set_name.removeprefix(f"{score.set_name}, "), row)
                for row in card.scores
                if row.metric == "attack_variant_rate" and row.set_name.startswith(f"{score.set_name}, ")
            ]
            shown = "; ".join(
                f"{name} {f'{percent(row.base.rate.value)} to ' if row.base else ''}"
                f"{percent(row.new.rate.value)} of {row.new.rate.n:,}"
                for name, row in forms
                if not name.isdigit()
            )
            counts = f"N = {len(forms)} attempts on each prompt at most"
            remarks.append(f"Success of {score.set_name}, {counts}{': ' if shown else ''}{shown}.")
    return [*remarks, *card.notes]


def between(side: Measured) -> str:
    """Return the least and the highest rate that the unscored answers leave open."""
    return " and ".join(percent(end) for end in side.bounds or (0.0, 1.0))


def scorecard_markdown(card: Scorecard) -> str:
    """Return the scorecard as a Markdown table with what is needed to read it."""
    against = f" against {code(card.against)}" if card.against else ""
    decoding = "greedy decoding" if card.sampling.temperature == 0 else f"temperature {card.sampling.temperature:g}"
    if card.sampling.repetition_penalty != 1:
        decoding += f", repetition penalty {card.sampling.repetition_penalty:g}"
    samples = f", {card.num_samples} answers per problem" if card.num_samples > 1 else ""
    header, *rows = scorecard_rows(card)
    introduction = (
        f"{code(card.model)}{against}: judge {escaped(card.judge)}, {card.split} prompts, {decoding}{samples}, "
        f"at most {card.sampling.max_tokens:,} tokens."
    )
    remarks = "".join(f"- {escaped(remark)}\n" for remark in scorecard_remarks(card))
    return f"{introduction}\n\n{markdown_table(header, rows, num_names=2)}\n\n{remarks}"


def _figures(card: Scorecard, of_variants: bool = False) -> Iterator[tuple[str, str, ScoreFigures]]:
    """Yield metric, set and figures of every row."""
    for score in card.scores:
        if (score.metric == "attack_variant_rate") == of_variants:
            base = score.base.rate if score.base else None
            yield METRIC_NAMES[score.metric], score.set_name, (base, score.new.rate, score.change)
    if of_variants:
        return
    if card.reasoning and sum(score.metric == "reasoning_accuracy" for score in card.scores) > 1:
        yield "reasoning", "all problems", (card.reasoning.base, card.reasoning.new, card.reasoning.change)
    if card.contraction:
        yield "contraction", "all sets", (None, None, card.contraction)
    if card.composite:
        yield "safe+helpful", "all sets", (card.composite.base, card.composite.new, card.composite.change)
    if card.tax:
        yield "tax", "all problems", (None, None, card.tax)


def control_note(run: TrainingRun) -> str:
    """Return what kind of control a training is, or "" if it is none."""
    note = "This is a control: {}. It is there to be compared with, not to be used."
    return note.format(CONTROLS[run.control]) if run.control else ""


def prompts_sentence(run: TrainingRun) -> str:
    """Return how many prompts of each kind were trained on, and how many were left out and why."""
    counts = {kind: sum(routed.num_prompts for routed in run.routed if routed.kind == kind) for kind in KINDS}
    trained = " and ".join(f"{n:,} {kind}" for kind, n in counts.items())
    left_out = " and ".join(f"{n:,} {kind}" for kind in KINDS if (n := run.num_left_out.get(kind, 0)))
    is_supervised = METHODS[run.method].is_supervised
    why = "the judge kept no answer to them" if is_supervised else "no context makes the teacher's answer safe"
    return f"Trained on {trained} prompts." + (f" Left out: {left_out} ({why})." if left_out else " None was left out.")
