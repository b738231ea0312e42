"""Runs a model and a judge behind the ledger: every rollout and verdict is made once, saved, and reused.

    Requests --backend--> Rollouts --judge--> Verdicts --> Samples

This module compares nothing and counts no rates: it returns what was generated and how it was judged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError, one_line
from flipsearch.core.measurements import SINGLE_SAMPLE, JudgedRollout, Rate, SampleRule, Samples
from flipsearch.core.progress import Activity, Emit, Phase, Progress, Step, silent
from flipsearch.core.protocols import AnswerBeginner, Backend, Judge, PrefixScorer
from flipsearch.core.records import (
    Context,
    Exchange,
    Label,
    PrefixScore,
    Prompt,
    Request,
    Rollout,
    Sampling,
    Verdict,
    lead_tokens,
    prefix_score_id,
    rollout_id,
)
from flipsearch.judging.answers import echoes, recites
from flipsearch.judging.contract import judge_with_ledger
from flipsearch.ledger import Ledger

JUDGE_BATCH = 256
"""Exchanges judged between two commits to the ledger."""
SCORE_BATCH = 64
"""Prefixes scored between two commits to the ledger: what a kill can cost a large model is a minute, not an hour."""

SPEED = "tokens per second"
"""The ledger's note of how fast a search's baseline was generated and judged when it first was."""


def sampling_for(backend: Backend, config: ModelConfig) -> Sampling:
    """Return how a loaded model is sampled: one whose chat template thinks has a budget for it unless one is given."""
    return config.sampling(thinks=bool(getattr(backend, "thinks", False)))


@dataclass(eq=False)
class Runner:
    """A model and a judge at one ledger, where each batch is saved as it comes; a failed rollout is tried once."""

    backend: Backend
    judge: Judge
    ledger: Ledger
    sampling: Sampling
    progress: Progress | None = None
    emit: Emit = silent
    rule: SampleRule = SINGLE_SAMPLE
    step: Step = field(default_factory=lambda: Step(Phase.BASELINE))
    """What progress is reported under; the caller enters its phase before it requests rollouts."""
    num_generated: int = 0
    num_generated_tokens: int = 0
    judged: dict[str, JudgedRollout] = field(default_factory=dict)
    """Rollout id -> outcome, of all whole answers requested so far."""
    study_tokens: int = 0
    """Completion tokens of all answers requested so far, by whichever judge; shown with the progress."""
    best: Rate | None = None
    """Shown with the progress: the highest flip rate so far."""
    to_repeat: set[str] = field(default_factory=set)
    """Rollouts that failed, or whose judgement by any judge did: the next run of the program tries them again."""
    _failed: set[str] = field(default_factory=set)

    def with_judge(self, judge: Judge) -> "Runner":
        """Return a runner of the same model and ledger with another judge; failed rollouts are not tried again."""
        return replace(self, judge=judge, judged={})

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Set the phase that progress is reported under from now on."""
        self.step = Step(phase, detail)

    @property
    def num_tokens(self) -> int:
        """Completion tokens of all outcomes."""
        return sum(outcome.num_tokens for outcome in self.judged.values())

    def rollouts(self, requests: Sequence[Request]) -> list[Rollout]:
        """Return one rollout per request, in order; BackendError if the backend breaks its contract."""
        ids = self._ids(requests)
        self._generate(dict(zip(ids, requests, strict=True)))
        rollouts = self.ledger.rollouts(ids, errors=True)
        return [rollouts[id] for id in ids]

    def verdicts(self, rollouts: Sequence[Rollout], prompts: Iterable[Prompt]) -> list[Verdict]:
        """Return one verdict per rollout, in order; a failed rollout is UNSCORED and shown to no judge."""
        by_id = {rollout.rollout_id: rollout for rollout in rollouts}
        verdicts = self.ledger.verdicts(self.judge.identity, by_id)
        for id, rollout in by_id.items():
            if rollout.finish_reason == "error":
                verdicts[id] = Verdict(Label.UNSCORED, reason=rollout.error or "the rollout failed")
        prompt_of = {prompt.prompt_id: prompt for prompt in prompts}
        unjudged = [id for id in by_id if id not in verdicts]
        for start in range(0, len(unjudged), JUDGE_BATCH):
            batch = unjudged[start : start + JUDGE_BATCH]
            exchanges = [
                Exchange(prompt_of[r.prompt_id].judged, r.completion, r.finish_reason, r.opens_thinking)
                for r in (by_id[id] for id in batch)
            ]
            verdicts |= zip(batch, judge_with_ledger(self.ledger, self.judge, batch, exchanges), strict=True)
            self.to_repeat |= {id for id in batch if verdicts[id].failed}
            self._report(Activity.JUDGING, start + len(batch), len(unjudged))
        return [verdicts[rollout.rollout_id] for rollout in rollouts]

    def outcomes(self, requests: Sequence[Request]) -> list[JudgedRollout]:
        """Return one judged rollout per request, in order; completions stay in memory only while they are judged."""
        ids = self._ids(requests)
        new = {id: request for id, request in zip(ids, requests, strict=True) if id not in self.judged}
        self.judged |= self._generate_and_judge(new)
        return [self.judged[id] for id in ids]

    def score_prefixes(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return each prefill's score from ledger or backend; None for one too long, and where none are scored."""
        if not isinstance(self.backend, PrefixScorer):
            return [None] * len(requests)
        ids = [prefix_score_id(self.backend.model_id, request) for request in requests]
        scores = self.ledger.prefix_scores(ids)
        missing = {id: request for id, request in zip(ids, requests, strict=True) if id not in scores}
        for start in range(0, len(missing), SCORE_BATCH):
            batch = dict(list(missing.items())[start : start + SCORE_BATCH])
            scored = zip(batch, self.backend.score(list(batch.values())), strict=True)
            new = {id: score for id, score in scored if score is not None}
            self.ledger.save_prefix_scores(new.items())
            scores |= new
            self._report(Activity.SCORING, start + len(batch), len(missing))
        return [scores.get(id) for id in ids]

    def baseline(self, prompts: Sequence[Prompt]) -> dict[str, Samples]:
        """Return the samples of every prompt without a context, by prompt id; BackendError if all of them failed."""
        samples = self.samples([(prompt, None) for prompt in prompts])
        ids = [id for of_prompt in samples for id in of_prompt.rollout_ids]
        if ids and self._failed.issuperset(ids):
            errors = Counter(rollout.error for rollout in self.ledger.rollouts(ids, errors=True).values())
            error, count = errors.most_common(1)[0]
            raise BackendError(
                f"the model failed on all {len(ids)} prompts, most often ({count}) with: "
                f"{one_line(ValueError(error)).rstrip('.')}. No failure is scored; fix it and repeat the command."
            )
        return {prompt.prompt_id: of_prompt for prompt, of_prompt in zip(prompts, samples, strict=True)}

    def samples(self, pairs: Sequence[tuple[Prompt, Context | None]]) -> list[Samples]:
        """Return all samples of each prompt under its context, in order, generated in one call of the backend."""
        indices = range(self.rule.samples)
        requests = [
            [self.request(p, context, i) for p in prompt.answered for i in indices] for prompt, context in pairs
        ]
        judged = iter(self.outcomes([request for of_prompt in requests for request in of_prompt]))
        return [Samples(self.rule, tuple(islice(judged, len(of_prompt)))) for of_prompt in requests]

    def request(self, prompt: Prompt, context: Context | None, index: int = 0) -> Request:
        """Return the request for one sample of a prompt under a context, or of the baseline; `index` counts from 0.

        An empty context requests what the baseline does. With sampling, its samples are those after the baseline's,
        never the same ones; greedy decoding would only repeat itself, so there it is the baseline's own rollout.
        """
        prefill = self._prefill(prompt.prefill) if prompt.prefill else ()
        if context is None or context.text.strip():
            return Request(prompt, context, index, prefill)
        if self.sampling.temperature > 0:
            return Request(prompt, context, self.rule.samples + index, prefill)
        return Request(prompt, prefill=prefill)

    def _prefill(self, text: str) -> tuple[int, ...]:
        if not isinstance(self.backend, AnswerBeginner):
            raise BackendError("this model's backend cannot begin an answer with a text, as prefilling does.")
        return self.backend.completion_ids(text)

    def _generate_and_judge(self, new: Mapping[str, Request]) -> dict[str, JudgedRollout]:
        self._generate(new)
        verdicts = self.ledger.verdicts(self.judge.identity, new)
        lengths, endings = self.ledger.lengths(new), self.ledger.endings(new)
        self.study_tokens += sum(lengths.values())
        unjudged = [id for id in new if id not in verdicts or id not in lengths]
        for start in range(0, len(unjudged), JUDGE_BATCH):
            batch = unjudged[start : start + JUDGE_BATCH]
            rollouts = self.ledger.rollouts(batch, errors=True)
            prompts = [new[id].prompt for id in batch]
            verdicts |= zip(batch, self.verdicts([rollouts[id] for id in batch], prompts), strict=True)
        judged = {}
        for id, request in new.items():
            if id in endings:
                counts, num_thought_tokens, recites = endings[id]
                verdict = self.rule.counted(verdicts[id], request, recites)
                judged[id] = JudgedRollout(id, lengths[id], verdict, counts, lead_tokens(num_thought_tokens))
            else:
                judged[id] = JudgedRollout(id, 0, verdicts[id])
        return judged

    def _generate(self, wanted: Mapping[str, Request]) -> None:
        finished = self.ledger.lengths(wanted)
        missing = {id: request for id, request in wanted.items() if id not in finished and id not in self._failed}
        self._report(Activity.GENERATING, len(wanted) - len(missing), len(wanted))
        if not missing:
            return
        waiting = set(missing)
        with self.ledger.in_flight(self.step.label, missing):
            for batch in self.backend.generate(list(missing.values()), self.sampling):
                for id in (rollout.rollout_id for rollout in batch):
                    if id not in waiting:
                        raise BackendError(f"the backend returned rollout {id}, which was not requested, or twice.")
                    waiting.remove(id)
                self.ledger.save_rollouts(_with_recital(rollout, missing[rollout.rollout_id]) for rollout in batch)
                self.num_generated += len(batch)
                self.num_generated_tokens += sum(rollout.num_generated for rollout in batch)
                self._failed |= {rollout.rollout_id for rollout in batch if rollout.finish_reason == "error"}
                self.to_repeat |= self._failed
                self._report(Activity.GENERATING, len(wanted) - len(waiting), len(wanted))
        if waiting:
            raise BackendError(f"the backend left {len(waiting)} of {len(missing)} requests without a rollout.")

    def _ids(self, requests: Iterable[Request]) -> list[str]:
        model, sampling = self.backend.model_id, self.sampling
        return [
            rollout_id(model, r.prompt.prompt_id, r.context_id, sampling, r.sample_index, r.prefill, r.skips_thought)
            for r in requests
        ]

    def _report(self, activity: Activity, done: int, total: int) -> None:
        if self.progress is not None:
            status = getattr(self.backend, "status", "")
            step = replace(self.step, activity=activity, status=status, best=self.best, study_tokens=self.study_tokens)
            self.progress(step, done, total, self.num_generated, self.num_generated_tokens)


def _with_recital(rollout: Rollout, request: Request) -> Rollout:
    """Return a rollout that says whether its answer is copied from the context, or echoes a harmful prompt.

    A prompt that wants a text proofread gets most of that text back.
    """
    answer = rollout.parts.answer or ""
    prompt = request.prompt.text if request.prompt.kind == "harmful" else ""
    sources = (prompt, request.context.text if request.context else "")
    copied = any(recites(answer, source) for source in sources)
    return replace(rollout, recites=copied or (bool(prompt) and echoes(answer, prompt)))
