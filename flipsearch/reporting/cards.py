"""The cards: of a context, as JSON, and of a trained model, as its README.md, with its scorecard once there is one.

A context card has all that is needed to use, repeat or doubt a context that a study found; the winner's comes with
those of the portfolio and of the context for benign prompts. Its rates carry value, count, n and a 95 % interval.

A model card says what was done to the model, with which texts, and how to use it. Rates of a scorecard are in percent,
changes in points, each with its 95 % interval and n; its rows are plain text, for a terminal too. In Markdown hostile
text is escaped or in fences that it cannot close, and folders of the machine are left out. Knows records only.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_args

from flipsearch.backends.models import POCKET_MODEL
from flipsearch.core.measurements import Estimate, Measurement, json_value
from flipsearch.core.records import ANSWER_KINDS, Kind
from flipsearch.core.studies import BenignContext, Portfolio, Study, Trial
from flipsearch.core.trainings import ATTACK_DETAILS, METHODS, Control, Measured, Metric, Score, Scorecard, TrainingRun
from flipsearch.reporting.columns import columns_of
from flipsearch.reporting.format import (
    SHARED_ERRORS,
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
from flipsearch.templating.library import CARD_VERSION, sealed

ORACLE = (
    "A prompt counts as flipped if any of the contexts flips it. Nothing says beforehand which one will; a training "
    "finds out by trying the teacher under each of them, in this order."
)
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTROLS: Mapping[Control, str] = {
    "empty": "the context was replaced by nothing",
    "neutral": "the context was replaced by a text without any word of safety",
    "shuffled": "the context's words were put in another order",
}
PROMPT_SETTINGS = ("prompts", "harmful", "benign", "prompts_id")
SAMPLING_SETTINGS = ("max_tokens", "think_tokens", "temperature", "top_p", "top_k", "seed", "thinking")


def context_card(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the card of a trial of a study, best.json for the winner; columns.py adds the figures it marks for it."""
    context, settings = trial.context, study.settings
    judge: dict[str, Any] = {"name": settings["judge"], "identity": study.judge_id}
    if study.confirm_judge_id:
        judge["confirm"] = {"name": settings["confirm_judge"], "identity": study.confirm_judge_id}
    shared = {"note": SHARED_ERRORS} if study.judge_error else {}
    sampling = {key: settings[key] for key in SAMPLING_SETTINGS}
    card = {
        "card_version": CARD_VERSION,
        "text": context.text,
        "context_id": context.context_id,
        "placement": context.placement,
        "template": context.template,
        "params": dict(context.params),
        "axes": list(context.axes),
        "lineage": {"operator": context.operator, "parents": list(context.parents)},
        "study": study.name,
        "model": settings["model"],
        "model_id": study.model_id,
        "revision": study.revision,
        "backend": settings["backend"],
        "dtype": settings["dtype"],
        "prompts": {key: settings.get(key) for key in PROMPT_SETTINGS},
        "judge": judge | {"agreement_with_people": json_value(study.judge_error)} | shared,
        "sampling": sampling | {key: settings.get(key, 1) for key in ("samples", "unsafe_at")},
        "max_over_refusal": settings.get("max_over_refusal"),
        "over_refusal": settings.get("over_refusal"),
        "max_contraction": settings.get("max_contraction"),
        "count_flips": settings.get("count_flips"),
        "metrics": {"search": metrics(trial.search), "confirm": metrics(trial.confirm)},
        **{column.name: json_value(column.value(study, trial)) for column in columns_of(study, "card")},
        "second_judgements": json_value(trial.late.second_judgements),
        "depth": [{"num_tokens": num_tokens, "flip_rate": json_value(rate)} for num_tokens, rate in trial.late.depth],
        "portfolio": portfolio_metrics(study.portfolio) if study.portfolio else None,
        "benign_context": benign_metrics(study.benign) if study.benign else None,
        "search_tie_set": list(study.search_ties),
        "tie_set": [finalist.context.context_id for finalist in study.trials if finalist.ties_winner],
        "placebo": [
            _brief_card(placebo) | {"confirm": metrics(placebo.confirm)}
            for placebo in study.trials
            if placebo.role == "placebo"
        ],
        "base_unsafe_rate": json_value(study.base_unsafe),
        "base_over_refusal_rate": json_value(study.base_over_refusal),
        "base_endings": json_value(study.base_endings),
        "versions": dict(study.versions),
        "notes": list(study.notes),
    }
    return sealed(card)


def portfolio_card(study: Study, portfolio: Portfolio) -> dict[str, Any]:
    """Return best.portfolio.json: the cards of its contexts in routing order, and what they flip together."""
    card = {
        "card_version": CARD_VERSION,
        "study": study.name,
        "metrics": portfolio_metrics(portfolio),
        "contexts": [context_card(study, trial) for trial in study.trials_of(portfolio)],
    }
    return sealed(card)


def benign_card(study: Study, benign: BenignContext) -> dict[str, Any]:
    """Return best.benign.json: the card of the context for benign prompts; there must be one."""
    chosen = next(candidate for candidate in benign.candidates if candidate.context == benign.context)
    return sealed({**context_card(study, chosen), "role": chosen.role})


def metrics(measurement: Measurement | None) -> dict[str, Any] | None:
    """Return the rates of a measurement for JSON, or None if it was not made."""
    names = (
        *("flip_rate", "flip_rate_bounds", "tfr", "over_refusal_rate", "added_refusals", "transitions"),
        *("kinds_after", "contraction", "coverage", "unsafe_share", "endings"),
    )
    return {name: json_value(getattr(measurement, name)) for name in names} if measurement else None


def portfolio_metrics(portfolio: Portfolio) -> dict[str, Any]:
    """Return what the contexts of a portfolio flip together, beside the winner alone, for JSON."""
    return {
        "context_ids": list(portfolio.context_ids),
        "union_flip_rate": {"search": json_value(portfolio.search), "confirm": json_value(portfolio.confirm)},
        "winner_flip_rate": {"confirm": json_value(portfolio.winner)},
        "union_minus_winner": json_value(portfolio.gain),
        "note": ORACLE,
    }


def benign_metrics(benign: BenignContext) -> dict[str, Any]:
    """Return which context is for benign prompts, why, and both ways of misrouting, for JSON."""
    return {
        "context_id": benign.context.context_id if benign.context else None,
        "reason": benign.reason,
        "over_refusal_rate": json_value(benign.over_refusal_rate),
        "regression_rate": json_value(benign.regression_rate),
        "misrouted": {
            "harmful_under_benign_context_unsafe_rate": json_value(benign.misrouted_harmful_rate),
            "benign_under_winner_over_refusal_rate": json_value(benign.misrouted_benign_rate),
        },
        "candidates": [_brief_card(candidate) for candidate in benign.candidates],
    }


def _brief_card(trial: Trial) -> dict[str, Any]:
    """Return what a card holds of a placebo or a candidate for benign prompts."""
    context = trial.context
    return {
        "template": context.template,
        "text": context.text,
        "placement": context.placement,
        "search": metrics(trial.search),
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
    "`flipsearch evaluate <this folder>` measures it and writes the result here."
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
            counts = "; ".join(f"{name} {_kinds(side)}" for name, side in sides)
            remarks.append(f"Answers to harmful prompts by kind ({score.set_name}): {counts}.")
        if score.metric == "attack_success_rate":
            forms = [
                (row.set_name.removeprefix(f"{score.set_name}, "), row)
                for row in card.scores
                if row.metric == "attack_variant_rate" and row.set_name.startswith(f"{score.set_name}, ")
            ]
            shown = "; ".join(f"{name} {_from_to(row)}" for name, row in forms if not name.isdigit())
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


def _kinds(side: Measured) -> str:
    """Return how many answers are of each kind; degenerate ones make a low harmful rate worth nothing."""
    return ", ".join(f"{side.kinds[kind]} {kind}" for kind in ANSWER_KINDS if side.kinds.get(kind)) or "none known"


def _from_to(score: Score) -> str:
    base = f"{percent(score.base.rate.value)} to " if score.base else ""
    return f"{base}{percent(score.new.rate.value)} of {score.new.rate.n:,}"


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
