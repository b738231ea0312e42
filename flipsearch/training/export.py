"""The training prompts with their contexts, as rows for trainers whose teacher reads more than their student.

    settings + cards --plan_export--> prompts under contexts --routed by known answers--> rows of a format --> a file

A row holds what the student reads, what the teacher reads and the prompt's kind. Texts are those that the chat template
gets here, control tokens broken: the trainer's own rule gives the teacher the very tokens that it reads in a training
here.
No weights are loaded and nothing is generated or judged. To add a format, add a row of FORMATS.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from flipsearch.backends.base import check_model, check_template
from flipsearch.backends.chat import Chat, Message
from flipsearch.backends.loading import choose_device, choose_dtype, load_tokenizer, transformers_identity
from flipsearch.backends.models import ModelFiles, locate, model_source
from flipsearch.config import ExportConfig, is_endpoint
from flipsearch.core.errors import ConfigError, LedgerError, TrainingError, unknown_name
from flipsearch.core.files import atomic_write
from flipsearch.core.measurements import JudgedRollout, SampleRule
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Placement, Prompt, Request, Verdict, rollout_id
from flipsearch.core.trainings import PromptExport, RoutedContext
from flipsearch.ledger import Ledger
from flipsearch.prompts.sets import prompts_of
from flipsearch.templating.library import given_cards
from flipsearch.training.plan import check_cards, kind_notes, read_contexts, training_prompts
from flipsearch.training.rows import route

ENDING = ".jsonl"
Options = Mapping[str, bool | str]
"""What the chat template is given beside the messages."""


@dataclass(frozen=True, slots=True)
class PromptPair:
    """What student and teacher read of one prompt."""

    student: Sequence[Message]
    teacher: Sequence[Message]
    placement: Placement
    """Where a context stands."""

    @property
    def added(self) -> str:
        """What the teacher's last turn has beyond the student's, before it or after it; "" without a context."""
        own, whole = self.student[-1]["content"], self.teacher[-1]["content"]
        return whole.removesuffix(own) if self.placement == "before" else whole.removeprefix(own)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What a trainer reads: its rows, where its teacher's context can stand, and what else it has to be given."""

    columns: Callable[[PromptPair], Mapping[str, Any]]
    settings: Callable[[ExportConfig, Placement, Options], str]
    """From where the contexts stand and the options of the chat template: what to write into the trainer's settings."""
    placements: frozenset[Placement]
    takes_several: bool = True
    """Whether contexts may stand in several places in a file."""
    has_options: bool = True
    """Whether a row holds the options of the chat template."""


def _trl_settings(config: ExportConfig, placement: Placement, options: Options) -> str:
    parts = ("{privileged_context}", "{prompt}") if placement == "before" else ("{prompt}", "{privileged_context}")
    given: dict[str, Any] = {"teacher_prompt_template": "".join(parts), "max_prompt_length": None}
    given |= {"chat_template_kwargs": dict(options)} if options else {}
    settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"SDFTConfig({settings}) for SDFTTrainer of trl.experimental.sdft"


FORMATS = {
    # SDFTTrainer's teacher_prompt_template joins the last user turn and privileged_context; read in TRL 1.16.
    "trl": RowFormat(
        lambda pair: {"prompt": pair.student, "privileged_context": pair.added},
        _trl_settings,
        frozenset({"before", "after"}),
        takes_several=False,
        has_options=False,
    ),
    # teacher_prompt replaces the last user turn (rl_core/data.py, build_teacher_view); without it in a row, none of a
    # batch may have it: it is then the prompt itself. Read in ms-swift 3602360.
    "ms-swift": RowFormat(
        lambda pair: {"messages": pair.student, "teacher_prompt": pair.teacher[-1]["content"]},
        lambda config, placement, options: (
            f"swift rlhf --rlhf_type gkd --lmbda 1 --model {config.model} --teacher_model {config.model} "
            f"--dataset {config.to}"
        ),
        frozenset({"before", "after", "around"}),
    ),
    "jsonl": RowFormat(
        lambda pair: {"messages": pair.student, "teacher_messages": pair.teacher},
        lambda config, placement, options: "the teacher reads teacher_messages, the student messages",
        frozenset({"system", "before", "after", "around"}),
    ),
}
"""Name -> format. verl and NeMo-RL are none of them: their teachers score the very tokens that the student read."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """One export, checked."""

    config: ExportConfig
    files: ModelFiles
    chat: Chat
    contexts: tuple[Context, ...]
    benign_context: Context | None
    placement: Placement
    """Where the contexts stand."""
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]

    @property
    def routes_by_answer(self) -> bool:
        """Whether the frozen model's answers decide which harmful prompts are written."""
        return len(self.contexts) > 1 or self.config.gate


def plan_export(config: ExportConfig, names: Sequence[str]) -> ExportPlan:
    """Return the plan of an export of the contexts `names`; raises FlipsearchError before any file is written."""
    if config.format not in FORMATS:
        hint = "verl and NeMo-RL have none: their teachers read what the student reads, and no context of their own."
        raise ConfigError(unknown_name("--format", config.format, FORMATS, hint))
    if config.to.suffix != ENDING:
        raise ConfigError(f"--to is '{config.to}', expected a file that ends in {ENDING}.")
    if is_endpoint(config.model) or config.backend != "transformers":
        got = config.model if is_endpoint(config.model) else f"--backend {config.backend}"
        raise ConfigError(
            f"export needs the chat template of the model that is trained, got {got}; give a local --model."
        )
    check_model(config)
    cards = [card for name in (*names, *filter(None, [config.benign_context])) for card in given_cards(name)]
    check_cards(cards, config.model)
    contexts, benign_context = read_contexts(names, config, config.placement)
    files = locate(model_source(config.model))
    chat = Chat(load_tokenizer(files.folder), config.thinking)
    check_template(chat)
    placement = _placement(config.format, [*contexts, *filter(None, [benign_context])], chat)
    prompt_set = prompts_of(config)
    prompts = training_prompts(config, prompt_set)
    notes = [*prompt_set.notes_beside_groups, *kind_notes(prompts)]
    if moved := {card.placement for card in cards} - {config.placement, None} if config.placement else set():
        notes.append(
            f"Found with placement {' and '.join(sorted(moved))}, the context is written with {config.placement}. "
            f"Its flip rate may differ there; score with --placement {config.placement} measures it."
        )
    return ExportPlan(config, files, chat, contexts, benign_context, placement, prompts, tuple(notes))


class LedgerAnswers:
    """What ledgers hold of a model's greedy answers; ConfigError where they lack any."""

    def __init__(self, plan: ExportPlan, model_id: str, judge: Judge, ledgers: Sequence[Ledger]) -> None:
        self.config, self.model_id, self.judge, self.ledgers = plan.config, model_id, judge, ledgers
        self.why = "--gate goes" if plan.config.gate else f"{len(plan.contexts)} contexts go"
        self.rule, self.sampling = SampleRule(count_kinds=plan.config.count_flips), plan.config.sampling()

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Do nothing: reading takes no time."""

    def request(self, prompt: Prompt, context: Context | None) -> Request:
        """Return the request for the answer to a prompt under a context."""
        return Request(prompt, context)

    def outcomes(self, requests: Sequence[Request]) -> list[JudgedRollout]:
        """Return the known outcome of each request, with its verdict alone."""
        sampling = replace(self.sampling, temperature=0.0)
        ids = [rollout_id(self.model_id, r.prompt.prompt_id, r.context_id, sampling, 0) for r in requests]
        verdicts: dict[str, Verdict] = {}
        recites: dict[str, bool] = {}
        for ledger in self.ledgers:
            verdicts |= ledger.verdicts(self.judge.identity, ids)
            recites |= {id: recited for id, (_, _, recited) in ledger.endings(ids).items()}
        if missing := sum(id not in verdicts or id not in recites for id in ids):
            raise ConfigError(
                f"{self.why} by the model's answers, and {missing:,} of {len(ids):,} under a context are not known in "
                f"'{self.config.reports}'. Their price is as many answers of at most {sampling.longest:,} tokens: "
                f"score with these contexts{' --split ' + self.config.split if self.config.split else ''} makes them, "
                "or give one context without --gate, which needs none."
            )
        return [
            JudgedRollout(id, 0, self.rule.counted(verdicts[id], request, recites[id]))
            for id, request in zip(ids, requests, strict=True)
        ]


def write_export(plan: ExportPlan, judge: Judge | None) -> PromptExport:
    """Write the rows of a plan and return what was written; a `judge` is needed where answers decide."""
    config, chat, format = plan.config, plan.chat, FORMATS[plan.config.format]
    with ExitStack() as opened:
        known = None
        if plan.routes_by_answer:
            assert judge is not None
            dtype = choose_dtype(config.dtype, choose_device(config.device))
            ledgers = []
            for path in sorted(config.reports.glob("*/ledger.db")):
                with suppress(LedgerError):  # of another version or torn: it knows nothing that could be used
                    ledgers.append(opened.enter_context(Ledger(path, read_only=True)))
            known = LedgerAnswers(plan, transformers_identity(plan.files, chat, dtype), judge, ledgers)
        routing = route(plan.prompts, plan.contexts, plan.benign_context, known)
    if not any(prompt.kind == "harmful" for prompt in routing.prompts):
        raise TrainingError("no harmful prompt is answered safely under the context: there is nothing to learn.")
    longest = 0
    with atomic_write(config.to) as partial, partial.open("w", encoding="ascii") as file:
        for prompt in routing.prompts:
            student, teacher = Request(prompt), Request(prompt, routing.contexts.get(prompt.prompt_id))
            longest = max(longest, *(len(chat.encode(request).prompt_ids) for request in (student, teacher)))
            pair = PromptPair(chat.messages(student), chat.messages(teacher), plan.placement)
            row = {**format.columns(pair), "kind": prompt.kind}
            row |= {"chat_template_kwargs": chat.options} if chat.options and format.has_options else {}
            file.write(json.dumps(row) + "\n")
    counts = Counter((prompt.kind, routing.contexts.get(prompt.prompt_id)) for prompt in routing.prompts)
    return PromptExport(
        path=config.to,
        format=config.format,
        routed=tuple(RoutedContext(kind, context, num) for (kind, context), num in counts.items()),
        num_left_out=len(plan.prompts) - len(routing.prompts),
        longest=longest,
        settings=format.settings(config, plan.placement, chat.options),
        notes=plan.notes,
    )


def _placement(format: str, contexts: Sequence[Context], chat: Chat) -> Placement:
    """Return where the contexts stand in the prompts; ConfigError where a format has no such place."""

    def place(context: Context) -> Placement:  # as lay_out has it
        return "before" if context.placement == "system" and not chat.takes_system else context.placement

    places = sorted({place(context) for context in contexts})
    able = [
        name
        for name, row in FORMATS.items()
        if row.placements >= set(places) and (len(places) == 1 or row.takes_several)
    ]
    if format not in able:
        usable = " or ".join(sorted(FORMATS[format].placements))
        count = "" if FORMATS[format].takes_several else ", all in one place"
        raise ConfigError(
            f"--format {format}: its teacher reads a context {usable} the prompt in the user's turn{count};"
            f" placed here: {', '.join(places)}. Give --placement {usable} (score with --placement "
            f"measures it there), or --format {' or '.join(able)}."
        )
    return places[0]
