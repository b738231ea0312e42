"""Harmful rate and over-refusal of one model, set by set.

Harm is asked of harmful prompts alone and refusal of benign ones alone: a refused harmful prompt is no over-refusal.

The evaluation from first to last: one model, then the other, then the scorecard.

Only one model is in memory at a time. Every answer and verdict is in the ledger before anything is computed from it,
under the model's identity: a base is asked once for all checkpoints, and a run that was stopped goes on.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from flipsearch.backends.base import make_backend
from flipsearch.core.package import package_versions
from flipsearch.core.progress import Phase, Progress
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Kind, Label, Prompt
from flipsearch.core.samples import Samples
from flipsearch.core.scorecards import Metric, Score, Scorecard
from flipsearch.evaluation.answers import Algebra
from flipsearch.evaluation.plan import EvaluationPlan
from flipsearch.evaluation.reasoning import Mark, Marks, collect, mark_problems
from flipsearch.evaluation.scorecard import composite, make_score, pooled
from flipsearch.judging.library import remaining_memory_share
from flipsearch.ledger import Ledger
from flipsearch.measuring.measure import MAX_UNSCORED_RATE
from flipsearch.measuring.runner import Runner

METRIC_OF_KIND: dict[Kind, Metric] = {"harmful": "harmful_rate", "benign": "over_refusal_rate"}


def mark_prompts(runner: Runner, prompts: Sequence[Prompt]) -> list[Marks]:
    """Ask every prompt once, without a context; return the marks of every set that has prompts of the kind."""
    outcomes = runner.baseline(prompts)
    found = []
    for kind, metric in METRIC_OF_KIND.items():
        for set_name in dict.fromkeys(prompt.source for prompt in prompts if prompt.kind == kind):
            ids = [prompt.prompt_id for prompt in prompts if (prompt.kind, prompt.source) == (kind, set_name)]
            found.append(collect(metric, set_name, ((id, _mark_of(kind, outcomes[id])) for id in ids)))
    return found


def _mark_of(kind: Kind, samples: Samples) -> Mark:
    label = samples.label
    if label is Label.UNSCORED:
        return Mark(None, samples.unscored[0].verdict.reason)
    if kind == "harmful":
        return Mark(float(label is Label.UNSAFE))
    return Mark(None, "the judge tells no refusals") if samples.refused is None else Mark(float(samples.refused))


PACKAGES = ("flipsearch", "torch", "transformers", "vllm", "math-verify")
"""What a result can depend on; those that are not installed are left out."""


@dataclass(frozen=True, slots=True)
class ModelMarks:
    """Everything that one model was marked on."""

    model: str
    """As the user named it."""
    model_id: str
    """Its identity."""
    revision: str | None
    """Its commit on the hub."""
    notes: tuple[str, ...]
    """What its backend has to say."""
    marks: tuple[Marks, ...]
    """Set by set, in the order of the scorecard."""


def run_evaluation(
    plan: EvaluationPlan, judge: Judge, ledger: Ledger, progress: Progress | None = None
) -> Scorecard:
    """Return the scorecard of a plan; one model is loaded, evaluated and unloaded after the other.

    Raises BackendError, JudgeError and LedgerError as they come; what was finished before stays in the ledger.
    """
    share = remaining_memory_share(judge)
    backend = make_backend(plan.config, memory_share=share)
    with Algebra() as algebra:
        new = _mark(plan, Runner(backend, judge, ledger, plan.config.sampling(), progress), "new", algebra)
        base = None
        if plan.base_config is not None:
            backend = make_backend(plan.base_config, memory_share=share)
            base = _mark(plan, Runner(backend, judge, ledger, plan.config.sampling(), progress), "base", algebra)
    return make_scorecard(plan, judge, new, base)


def _mark(plan: EvaluationPlan, runner: Runner, side: str, algebra: Algebra) -> ModelMarks:
    backend = runner.backend
    with closing(backend):
        runner.enter(Phase.EVALUATION, f"{side} model: prompts")
        marks = mark_prompts(runner, plan.prompts)
        for problems in plan.problem_sets:
            runner.enter(Phase.EVALUATION, f"{side} model: {problems.name}")
            marks.append(mark_problems(runner, problems, plan.config.samples, algebra))
        model = plan.config.model if side == "new" else plan.config.against or ""
        return ModelMarks(model, backend.model_id, backend.revision, tuple(backend.notes), tuple(marks))


def make_scorecard(plan: EvaluationPlan, judge: Judge, new: ModelMarks, base: ModelMarks | None) -> Scorecard:
    """Return the scorecard of a plan from the marks of both models; `base` is None if there is nothing to compare."""
    config = plan.config
    bases: Sequence[Marks | None] = base.marks if base else [None] * len(new.marks)
    scores = tuple(make_score(one, other) for one, other in zip(new.marks, bases, strict=True))
    reasoning, tax = pooled(new.marks, base.marks if base else ())
    return Scorecard(
        model=config.model,
        model_id=new.model_id,
        revision=new.revision,
        against=config.against,
        against_id=base.model_id if base else None,
        against_revision=base.revision if base else None,
        scores=scores,
        composite=composite(scores),
        reasoning=reasoning,
        tax=tax,
        judge=judge.name,
        judge_id=judge.identity,
        sampling=config.sampling(),
        num_samples=config.samples,
        split=config.split,
        settings=config.model_dump(mode="json"),
        prompts_id=plan.prompts_id,
        problems_id=plan.problems_id,
        num_unscored=sum(score.new.num_unscored for score in scores),
        notes=tuple(dict.fromkeys([*getattr(judge, "notes", ()), *_notes(plan, scores, new, base)])),
        versions=package_versions(PACKAGES),
    )


def _notes(plan: EvaluationPlan, scores: Sequence[Score], new: ModelMarks, base: ModelMarks | None) -> list[str]:
    models = (new, base) if base else (new,)
    notes = [*plan.notes, *(note for model in models for note in model.notes)]
    if base is None:
        notes.append("There is no base: changes and tax were not measured. Give one: --against MODEL.")
    if not plan.problem_sets:
        notes.append(
            "Reasoning and tax were not measured. Name problems: --reasoning arithmetic (built in), "
            "or --reasoning FILE with questions and answers, such as GSM8K or MATH-500."
        )
    if composite(scores) is None:
        notes.append("S is not given: it needs harmful and benign prompts, and a judge that could score some of each.")
    if repeats := _num_repeats(plan):
        notes.append(f"Problems that stand in more than one set, and count in each: {repeats}.")
    if plan.config.split == "all":
        notes.append("All prompts were asked: the rates are fair only if neither search nor training saw them.")
    return notes + [note for model in models for marks in model.marks for note in _mark_notes(plan, model, marks)]


def _num_repeats(plan: EvaluationPlan) -> int:
    counts = Counter(problem.question for problems in plan.problem_sets for problem in problems.problems)
    return sum(count > 1 for count in counts.values())


def _mark_notes(plan: EvaluationPlan, model: ModelMarks, marks: Marks) -> list[str]:
    where = f"of {marks.num_answers} answers of {model.model} to {marks.set_name}"
    notes = []
    if marks.num_unscored > MAX_UNSCORED_RATE * marks.num_answers:
        notes.append(f"Poor coverage: {marks.num_unscored} {where} are unscored, most often: {marks.reason}.")
    if marks.num_truncated:
        tokens = plan.config.sampling().max_tokens
        notes.append(
            f"{marks.num_truncated} {where} did not finish within {tokens:,} tokens and count as wrong; "
            "a larger --max-tokens may change that."
        )
    if marks.num_incomparable:
        notes.append(
            f"{marks.num_incomparable} {where} could not be compared in time or memory and count as wrong: "
            "math-verify gave up on what the model wrote."
        )
    return notes
