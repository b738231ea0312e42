"""What decides before a training: what is known of a context, what a small sample shows here, and what it would take.

study of the context, or a sample --> flips, net flips, depth, added refusals
a sample, always                  --> answers that quote the context, teacher mass within --support
cost.py                           --> steps and tokens beside the paper's, hours, memory
all of it --preflight_checks.py--> go, think again, or no
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from flipsearch.backends.base import make_backend
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import TrainConfig
from flipsearch.core.files import RESULT_PACKAGES, package_versions
from flipsearch.core.measurements import Estimate, Rate, SampleRule, Samples
from flipsearch.core.progress import Phase, Progress
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Label, Prompt, Request
from flipsearch.defaults import library_for
from flipsearch.judging.library import unload
from flipsearch.ledger import Ledger
from flipsearch.measuring.depth import depths_within, rates_by_depth
from flipsearch.measuring.measure import flip_difference, measure
from flipsearch.measuring.runner import Runner, sampling_for
from flipsearch.prompts.splitting import first_of_each_kind
from flipsearch.statistics.intervals import clustered_rate, mean_interval
from flipsearch.templating.library import control_context
from flipsearch.training.anatomy import completions_of, row_batches
from flipsearch.training.cost import TrainingCost
from flipsearch.training.divergence import Divergence, divergence_sum
from flipsearch.training.log import is_leak
from flipsearch.training.model import completion_hidden, head_getter
from flipsearch.training.plan import TrainPlan
from flipsearch.training.preflight_checks import DEPTHS, PREFLIGHT_FORMAT, ContextFigures, Preflight, checks_of
from flipsearch.training.rows import TrainingRow, lay_out

SAMPLE_TOKENS = 512
"""Longest answer of a sample."""


def run_preflight(
    plan: TrainPlan,
    judge: Judge,
    ledger: Ledger,
    known: ContextFigures | None,
    sample_size: int,
    make_cost: Callable[[], TrainingCost],
    progress: Progress | None = None,
) -> Preflight:
    """Return the preflight of a plan's first context, on up to `sample_size` prompts of each kind.

    `known` are the figures of the context's study; without one they are measured on the sample. What the training
    takes is result when the model is closed again: it may be loaded for that.
    """
    config, context = plan.config, plan.contexts[0]
    rule = SampleRule(count_kinds=config.count_flips)
    sample = first_of_each_kind(plan.prompts, sample_size)
    with closing(make_backend(config)) as model:
        assert isinstance(model, TransformersBackend)  # by plan
        sampling = sampling_for(model, config)
        sampling = replace(sampling, temperature=0.0, max_tokens=min(sampling.max_tokens, SAMPLE_TOKENS))
        runner = Runner(model, judge, ledger, sampling, progress, rule=rule)
        base = runner.baseline(sample)
        runner.enter(Phase.SCORE)
        neutral = control_context(library_for(config.model, config.contexts), "neutral", context)
        contexts = [context] if known else [context, neutral]
        measured, *placebos = measure(runner, contexts, sample, base, "all")
        figures = known or ContextFigures(
            measured, flip_difference(measured, placebos[0]), _depths(runner, sample, base, context), None
        )
        unload(judge)
        answers = ledger.rollouts(measured.rollout_ids)
        quotes = [is_leak(answer.completion, context.text) for answer in answers.values()]
        num_showing = sum(_holds(model, prompt, context) for prompt in sample)
        mass = None
        if config.support:
            routes = {prompt.prompt_id: c for prompt in sample if (c := plan.routes[0].get(prompt.prompt_id))}
            mass = _teacher_mass(config, model, completions_of(ledger, sample, routes, base, model)[0])
        notes = (*plan.notes, *model.notes, *getattr(judge, "notes", ()))
        model_id = model.model_id
    others = f"Of {len(plan.contexts)} contexts the first was looked at." if len(plan.contexts) > 1 else ""
    whole = Preflight(
        format=PREFLIGHT_FORMAT,
        model=config.model,
        model_id=model_id,
        judge_id=judge.identity,
        context=context,
        figures=figures,
        sample_size=len(sample),
        num_showing=num_showing,
        quoted=clustered_rate(quotes, list(answers)),
        teacher_mass=mass,
        cost=make_cost(),
        checks=(),
        settings=config.model_dump(mode="json"),
        notes=tuple(dict.fromkeys(filter(None, (others, *notes)))),
        versions=package_versions(RESULT_PACKAGES),
    )
    return replace(whole, checks=tuple(checks_of(whole)))


def _depths(
    runner: Runner, sample: Sequence[Prompt], base: Mapping[str, Samples], context: Context
) -> tuple[tuple[int, Rate], ...]:
    """Return the flip rate by depth of the sample's unsafe answers."""
    harmful = [(prompt, base[prompt.prompt_id]) for prompt in sample if prompt.kind == "harmful"]
    unsafe = [(prompt, samples.judged[0]) for prompt, samples in harmful if samples.label is Label.UNSAFE]
    rates, _ = rates_by_depth(runner, unsafe, [context], depths_within(DEPTHS, runner.sampling.max_tokens))
    return tuple(rates[0])


def _holds(model: TransformersBackend, prompt: Prompt, context: Context) -> bool:
    """Return whether the student's own prompt holds the whole text of the context, as a template's default may."""
    read = model.tokenizer.decode(model.chat.encode(Request(prompt)).prompt_ids)
    text = " ".join(context.text.split())
    return bool(text) and text in " ".join(read.split())


@torch.no_grad()
def _teacher_mass(config: TrainConfig, model: TransformersBackend, rows: Mapping[str, TrainingRow]) -> Estimate:
    """Return the mean share of the teacher's probability on the tokens of --support, behind the student's answers."""
    spec = Divergence(top_k=config.support, tail=config.tail, temperature=config.loss_temperature)
    head, shares = head_getter(model.model)(model.model), list[float]()
    for batch in row_batches(rows):
        completions = [row.completion_ids for row in batch.values()]
        layout = lay_out([row.teacher_ids for row in batch.values()], completions)
        hidden = completion_hidden(model.model, layout.to(model.model.device))
        weights = torch.ones(len(hidden), device=hidden.device)
        _, per_token = divergence_sum(hidden, head, hidden, head, weights, spec)
        shares += [float(part.mean()) for part in per_token.teacher_mass.split(list(map(len, completions)))]
    return mean_interval(shares)
