"""The model card of a checkpoint: README.md with what was done to the model, with which texts, and how to use it.

Hostile text is escaped or in fences that it cannot close; folders of the machine are left out. Knows records only.
"""

import json
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from flipsearch.backends.models import POCKET_MODEL
from flipsearch.core.scorecards import Scorecard
from flipsearch.core.trainings import METHODS, TrainingRun
from flipsearch.reporting.format import code, duration, escaped, fenced, markdown_table, setting_rows, visible
from flipsearch.reporting.scorecard import scorecard_markdown
from flipsearch.reporting.training_page import control_note, prompts_sentence

_HUB_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)(@.+)?")
_POCKET = (
    "> **Synthetic.** The base is the pocket model of flipsearch: a tiny transformer trained on made-up language. It "
    "shows behaviour, not capability; its unsafe answers are placeholders without content."
)
_ELSEWHERE = frozenset(
    {"model", "method", "control", "teacher", "context", "benign_context", "contexts"}
    | {"name", "checkpoints", "reports", "resume", "save_steps", "report_to"}
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
