"""Anatomy of a context: at which tokens it changes what a model would write, and whether that lasts.

    prompts --no context--> completions --scored with and without the context--> divergence by position and token
            --the context--> answers    --judged--> flips, over-refusal, contraction; flips by depth

What OPSA minimises is the divergence between a model that sees the context and the same model that does not, behind the
model's own completions (arXiv 2605.15239, Eq. 2, with the symmetric divergence of its runs). Here it is measured, token
by token, before a training or, of a trained checkpoint, after it: behind the very same completions, so that the two
compare in pairs. Rollouts and verdicts are in the ledger, divergences in a file of lines beside it: a run that was
stopped continues.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from flipsearch.backends.base import check_model, make_backend, notes_for
from flipsearch.backends.models import base_model
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import AnatomyConfig, ModelConfig, is_endpoint
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.files import RESULT_PACKAGES, package_versions
from flipsearch.core.measurements import Estimate, Rate, SampleRule, Samples
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Kind, Label, Prompt, content_id
from flipsearch.core.trainings import (
    ANATOMY_FORMAT,
    EARLY,
    Anatomy,
    CompletionDivergence,
    PositionDivergence,
    TokenDivergence,
)
from flipsearch.judging.library import unload
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import (
    clusters_of,
    compare,
    depths_within,
    measure,
    measure_contractions,
    rates_by_depth,
)
from flipsearch.measuring.runner import Runner, sampling_for
from flipsearch.statistics.intervals import mean_interval, ratio_interval
from flipsearch.training.divergence import Divergence, divergence_sum, position_divergences
from flipsearch.training.model import HeadGetter, completion_hidden, head_getter
from flipsearch.training.rows import TrainingRow, lay_out, make_row

BATCH_TOKENS = 4096
"""Tokens of a batch with their padding."""
NUM_TOKENS_SHOWN = 20
MOST_NATS = 1e6
"""Above any divergence of two distributions that a model can have."""
KINDS: tuple[Kind, ...] = ("harmful", "benign")


@dataclass(frozen=True, slots=True)
class AnatomyPlan:
    """One anatomy, checked."""

    config: AnatomyConfig
    context: Context
    prompts: tuple[Prompt, ...]
    """At least one harmful one."""
    notes: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Content hash of settings, context and prompts."""
        ids = [prompt.prompt_id for prompt in self.prompts]
        return self.config.identity(self.context.context_id, ids)

    @property
    def student_config(self) -> AnatomyConfig | None:
        """The settings that load the trained checkpoint; None without one."""
        student = self.config.student
        return self.config.model_copy(update={"model": student, "omit": ()}) if student else None


def check_anatomy(config: AnatomyConfig) -> None:
    """Raise ConfigError for models whose next-token distributions cannot be read, or that do not belong together."""
    if is_endpoint(config.model) or config.backend != "transformers":
        got = config.model if is_endpoint(config.model) else f"--backend {config.backend}"
        raise ConfigError(f"anatomy reads a model's whole next-token distributions, got {got}; give a local --model.")
    check_model(config)
    if config.student:
        check_model(config.model_copy(update={"model": config.student}))
        if base_model(config.student) != base_model(config.model):
            raise ConfigError(
                f"--student '{config.student}' was made from '{base_model(config.student)}', expected a checkpoint of "
                f"'{config.model}'; name its base as --model."
            )


Nats = Annotated[float, Field(ge=-0.1, le=MOST_NATS, strict=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


@dataclass(frozen=True, slots=True)
class TokenValues:
    """The divergences at the tokens of one completion, in nats."""

    forward: list[Nats]
    """KL(p || q)"""
    reverse: list[Nats]
    """KL(q || p)"""
    instead: list[TokenId]
    """The likeliest token of p."""

    @property
    def symmetric(self) -> list[float]:
        """Half of both."""
        return [(a + b) / 2 for a, b in zip(self.forward, self.reverse, strict=True)]


@dataclass(frozen=True, slots=True)
class DivergenceLine:
    """A line of the file of divergences: between which models, under which context, and behind which completion."""

    models: str
    rollout: str
    values: TokenValues


LINE = TypeAdapter(DivergenceLine)


class DivergenceFile:
    """Divergences that were measured, one completion a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, models: str, lengths: Mapping[str, int]) -> dict[str, TokenValues]:
        """Return rollout -> its values, for those of `lengths` (rollout -> its tokens) that were measured.

        A line that a kill tore, or that somebody edited into something else, counts for nothing.
        """
        known = {}
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            if models.encode() not in line:
                continue
            with suppress(ValidationError):
                row = LINE.validate_json(line)
                sizes = {len(values) for values in (row.values.forward, row.values.reverse, row.values.instead)}
                if row.models == models and sizes == {lengths.get(row.rollout)}:
                    known[row.rollout] = row.values
        return known

    def add(self, models: str, values: Mapping[str, TokenValues]) -> None:
        """Keep the values of rollouts, by id."""
        lines = [LINE.dump_json(DivergenceLine(models, id, of_one)) + b"\n" for id, of_one in values.items()]
        with self.path.open("ab") as file:
            file.write(b"\n" + b"".join(lines))


def run_anatomy(
    plan: AnatomyPlan, judge: Judge, ledger: Ledger, folder: Path, progress: Progress | None = None
) -> Anatomy:
    """Return the anatomy of a plan; rollouts go to the ledger, divergences to a file in `folder`."""
    config, rule = plan.config, SampleRule(count_kinds=plan.config.count_flips)
    by_id = {prompt.prompt_id: prompt for prompt in plan.prompts}
    student_config, file = plan.student_config, DivergenceFile(folder / "divergences.jsonl")
    with closing(load_local(config)) as model:
        runner = Runner(model, judge, ledger, sampling_for(model, config), progress, rule=rule)
        base = runner.baseline(plan.prompts)
        runner.enter(Phase.SCORE)
        (measurement,) = measure(runner, [plan.context], plan.prompts, base, config.split)
        rates = flips_by_depth(runner, plan.prompts, base, plan.context, config.depths)
        unload(judge)
        routes = dict.fromkeys(by_id, plan.context)
        read, left_out = completions_of(ledger, plan.prompts, routes, base, model)
        own = _divergences(model, model, plan.context, read, file, progress)
        parts, tokens = _by_kind(read, own, config.critical_tokens), _by_token(read, own, model.tokenizer)
        student_measurement, student_parts = None, tuple[CompletionDivergence, ...]()
        if student_config:
            with closing(load_local(student_config)) as student:
                if student.tokenizer.get_vocab() != model.tokenizer.get_vocab():
                    raise ConfigError(f"--student '{config.student}' has other tokens than '{config.model}'.")
                rule = replace(rule, counts_without_context=True)
                trained = Runner(student, judge, ledger, runner.sampling, progress, rule=rule)
                trained.enter(Phase.EVALUATION, "checkpoint")
                answers = trained.baseline(plan.prompts)
                measured = compare(by_id, base, [answers[id] for id in by_id], config.split)
                contraction = measure_contractions(ledger, [measured.flips], base)[0]
                student_measurement = replace(measured, contraction=contraction)
                unload(judge)
                after = _divergences(model, student, plan.context, read, file, progress)
                student_parts = _by_kind(read, after, config.critical_tokens)
        notes = (*plan.notes, *left_out, *notes_for(model, {plan.context.placement}), *getattr(judge, "notes", ()))
        model_id = model.model_id
    return Anatomy(
        format=ANATOMY_FORMAT,
        context=plan.context,
        model=config.model,
        model_id=model_id,
        judge_id=judge.identity,
        critical_tokens=config.critical_tokens,
        measurement=measurement,
        depth=((0, measurement.flip_rate), *rates),
        divergences=parts,
        tokens=tokens,
        student=config.student,
        student_measurement=student_measurement,
        student_divergences=student_parts,
        settings=config.model_dump(mode="json"),
        notes=notes,
        versions=package_versions(RESULT_PACKAGES),
    )


def load_local(config: ModelConfig) -> TransformersBackend:
    """Return a model whose next-token distributions can be read."""
    backend = make_backend(config)
    assert isinstance(backend, TransformersBackend)  # by the plan
    return backend


def flips_by_depth(
    runner: Runner, prompts: Sequence[Prompt], base: Mapping[str, Samples], context: Context, depths: Sequence[int]
) -> tuple[tuple[int, Rate], ...]:
    """Return the flip rate behind so many tokens of the unsafe answers of `base`, for each depth that fits."""
    harmful = [(prompt, base[prompt.prompt_id]) for prompt in prompts if prompt.kind == "harmful"]
    unsafe = [(prompt, samples.judged[0]) for prompt, samples in harmful if samples.label is Label.UNSAFE]
    rates, _ = rates_by_depth(runner, unsafe, [context], depths_within(depths, runner.sampling.max_tokens))
    return tuple(rates[0])


Completions = Mapping[str, TrainingRow]
"""Rollout -> its completion behind the prompt, under the context for the teacher and without it for the student."""


def completions_of(
    ledger: Ledger,
    prompts: Sequence[Prompt],
    routes: Mapping[str, Context],
    base: Mapping[str, Samples],
    model: TransformersBackend,
) -> tuple[Completions, list[str]]:
    """Return the completions without a context that can be compared, and a note on the others."""
    rollouts = ledger.rollouts(id for samples in base.values() for id in samples.rollout_ids)
    rows: dict[str, TrainingRow] = {}
    for prompt in prompts:
        rollout = rollouts.get(base[prompt.prompt_id].rollout_ids[0])
        if rollout and rollout.completion_ids:
            ids, ended = rollout.completion_ids, rollout.finish_reason
            with suppress(BackendError):  # a prompt that cannot be encoded under the context
                row = make_row(model.chat, prompt, routes, ids, ended, rollout.completion)
                if model.max_positions is None or _length(row) <= model.max_positions:
                    rows[rollout.rollout_id] = row
    num = len(prompts) - len(rows)
    why = "they failed, are empty, or do not fit into the model behind the context"
    return rows, [f"{num} of {len(prompts)} completions are not compared: {why}."] if num else []


def _divergences(
    teacher: TransformersBackend,
    student: TransformersBackend,
    context: Context,
    completions: Completions,
    file: DivergenceFile,
    progress: Progress | None,
) -> list[TokenValues]:
    """Return the divergences of `student` without the context from `teacher` under it, one per completion."""
    models = content_id("divergences", teacher.model_id, student.model_id, context.context_id)
    known = file.read(models, {id: len(row.completion_ids) for id, row in completions.items()})
    rows = {id: row for id, row in completions.items() if id not in known}
    heads = head_getter(teacher.model), head_getter(student.model)
    step = Step(Phase.ANATOMY, activity=Activity.SCORING)
    for batch in _row_batches(rows):
        measured = dict(zip(batch, _values(teacher, student, heads, list(batch.values())), strict=True))
        file.add(models, measured)
        known |= measured
        if progress:
            progress(step, len(known), len(completions), 0, 0)
    return [known[id] for id in completions]


def _row_batches(rows: Mapping[str, TrainingRow]) -> Iterator[dict[str, TrainingRow]]:
    """Yield rows in batches of similar length."""
    batch: dict[str, TrainingRow] = {}
    for id, row in sorted(rows.items(), key=lambda pair: (_length(pair[1]), pair[0])):
        if batch and (len(batch) + 1) * _length(row) > BATCH_TOKENS:
            yield batch
            batch = {}
        batch[id] = row
    if batch:
        yield batch


def _length(row: TrainingRow) -> int:
    return max(len(row.teacher_ids), len(row.student_ids)) + len(row.completion_ids)


@torch.no_grad()
def _values(
    teacher: TransformersBackend,
    student: TransformersBackend,
    heads: tuple[HeadGetter, HeadGetter],
    rows: Sequence[TrainingRow],
) -> list[TokenValues]:
    completions = [row.completion_ids for row in rows]
    sides = [
        (teacher.model, [row.teacher_ids for row in rows]),
        (student.model, [row.student_ids for row in rows]),
    ]
    hidden = [completion_hidden(m, lay_out(prompts, completions).to(m.device)) for m, prompts in sides]
    teacher_head, student_head = heads
    forward, reverse, instead = position_divergences(
        hidden[0], teacher_head(teacher.model), hidden[1], student_head(student.model)
    )
    if not (forward.isfinite() & reverse.isfinite()).all():
        raise BackendError("some next-token distributions are not finite; give --dtype float32, or another --model.")
    values, start = [], 0
    for ids in completions:
        part = slice(start, start := start + len(ids))
        values.append(TokenValues(forward[part].tolist(), reverse[part].tolist(), instead[part].tolist()))
    return values


def _by_kind(
    completions: Completions, values: Sequence[TokenValues], critical: int
) -> tuple[CompletionDivergence, ...]:
    parts = []
    for kind in KINDS:
        rows = zip(completions.values(), values, strict=True)
        chosen = [(row.prompt, of_one) for row, of_one in rows if row.prompt.kind == kind]
        if chosen:
            clusters = clusters_of(prompt for prompt, _ in chosen)
            parts.append(_completion_divergence(kind, [v for _, v in chosen], clusters, critical))
    return tuple(parts)


def _completion_divergence(
    kind: Kind, values: Sequence[TokenValues], clusters: Sequence[str], critical: int
) -> CompletionDivergence:
    symmetric, ones = [v.symmetric for v in values], [1.0] * len(values)
    sums = [sum(v) for v in symmetric]
    positions = []
    for position in range(max(map(len, symmetric))):
        reaching = [index for index, v in enumerate(symmetric) if len(v) > position]
        at = [symmetric[index][position] for index in reaching]
        mean = ratio_interval(at, ones[: len(at)], [clusters[index] for index in reaching], MOST_NATS)
        positions.append(PositionDivergence(position, mean.value or 0.0, mean.low, mean.high, len(at)))
    deltas = [sum(v.forward[:critical]) for v in values]
    return CompletionDivergence(
        kind=kind,
        num=len(values),
        total=ratio_interval(sums, ones, clusters, MOST_NATS),
        early={num: ratio_interval([sum(v[:num]) for v in symmetric], sums, clusters, 1.0) for num in EARLY},
        delta_safety=ratio_interval(deltas, ones, clusters, MOST_NATS),
        by_position=tuple(positions),
    )


def _by_token(completions: Completions, values: Sequence[TokenValues], tokenizer: Any) -> tuple[TokenDivergence, ...]:
    """Return the tokens of completions to harmful prompts that have the largest shares of the divergence."""
    sums, counts, instead = Counter[int](), Counter[int](), dict[int, Counter[int]]()
    for row, of_one in zip(completions.values(), values, strict=True):
        if row.prompt.kind == "harmful":
            for id, value, likeliest in zip(row.completion_ids, of_one.symmetric, of_one.instead, strict=True):
                sums[id] += value  # type: ignore[assignment]
                counts[id] += 1
                instead.setdefault(id, Counter())[likeliest] += value  # type: ignore[assignment]
    total = sum(sums.values()) or 1.0
    return tuple(
        TokenDivergence(
            token=tokenizer.decode([id]),
            num=counts[id],
            mean=value / counts[id],
            share=value / total,
            instead=tokenizer.decode([instead[id].most_common(1)[0][0]]),
        )
        for id, value in sums.most_common(NUM_TOKENS_SHOWN)
    )


@torch.no_grad()
def teacher_mass(spec: Divergence, model: TransformersBackend, rows: Completions) -> Estimate:
    """Return the mean share of the teacher's probability on the tokens that `spec` compares, behind the completions."""
    head, shares = head_getter(model.model)(model.model), list[float]()
    for batch in _row_batches(rows):
        completions = [row.completion_ids for row in batch.values()]
        layout = lay_out([row.teacher_ids for row in batch.values()], completions)
        hidden = completion_hidden(model.model, layout.to(model.model.device))
        weights = torch.ones(len(hidden), device=hidden.device)
        _, per_token = divergence_sum(hidden, head, hidden, head, weights, spec)
        shares += [float(part.mean()) for part in per_token.teacher_mass.split(list(map(len, completions)))]
    return mean_interval(shares)
