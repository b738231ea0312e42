"""A model and a judge at one ledger: what is asked of them is made once, and kept.

    Requests --backend--> Rollouts --judge--> Verdicts --> Samples

This module compares nothing and counts no rates: it hands out what was said and how it was judged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flipsearch.core.errors import BackendError
from flipsearch.core.events import Emit, silent
from flipsearch.core.progress import Activity, Phase, Progress, Step
from flipsearch.core.protocols import Backend, Judge, PrefixScorer
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
    prefix_score_id,
    rollout_id,
)
from flipsearch.core.samples import SINGLE_SAMPLE, JudgedRollout, SampleRule, Samples
from flipsearch.judging.caching import judge_with_ledger
from flipsearch.ledger import Ledger

JUDGE_BATCH = 256
"""Exchanges judged between two commits to the ledger."""
READ_BATCH = 1024
"""Openings read between two commits to the ledger."""


class Runner:
    """A model and a judge at one ledger: rollouts and verdicts, each made once.

    Every batch is committed to the ledger the moment the backend yields it. A failed rollout (finish_reason "error")
    is tried once a bench: the next run tries it again.
    """

    def __init__(
        self,
        backend: Backend,
        judge: Judge,
        ledger: Ledger,
        sampling: Sampling,
        progress: Progress | None = None,
        emit: Emit = silent,
        rule: SampleRule = SINGLE_SAMPLE,
    ) -> None:
        self.backend = backend
        self.judge = judge
        self.ledger = ledger
        self.sampling = sampling
        self.progress = progress
        self.emit = emit
        self.rule = rule
        self.step = Step(Phase.BASELINE)
        """What the progress is shown under; whoever asks for rollouts enters its phase."""
        self.num_generated = 0
        self.num_generated_tokens = 0
        self._failed: set[str] = set()
        self._outcomes: dict[str, JudgedRollout] = {}
        self._short_decodes: dict[str, JudgedRollout] = {}

    def with_judge(self, judge: Judge) -> "Runner":
        """Return a bench of the same model at the same ledger with another judge; what failed is not tried again.

        Its progress counts on from here.
        """
        other = Runner(self.backend, judge, self.ledger, self.sampling, self.progress, self.emit, self.rule)
        other.step, other._failed = self.step, self._failed
        other.num_generated, other.num_generated_tokens = self.num_generated, self.num_generated_tokens
        return other

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Say which phase the rollouts asked for next belong to."""
        self.step = Step(phase, detail)

    @property
    def num_outcomes(self) -> int:
        """Rollouts whose outcome was asked of this bench, whenever they were generated."""
        return len(self._outcomes)

    @property
    def mean_length(self) -> float:
        """Completion tokens of a whole answer, on average; 0 before there are any."""
        return sum(outcome.num_tokens for outcome in self._outcomes.values()) / max(1, len(self._outcomes))

    @property
    def can_continue(self) -> bool:
        """Whether an answer that goes on from its beginning is what a whole one is: greedily, or drawn by place."""
        return self.sampling.temperature == 0 or bool(getattr(self.backend, "resumes_sampling", False))

    @property
    def short_decode_ids(self) -> set[str]:
        """The glimpses that no whole answer went on from."""
        return {short_decode.rollout_id for id, short_decode in self._short_decodes.items() if id not in self._outcomes}

    @property
    def num_tokens(self) -> int:
        """Completion tokens in them, and in the glimpses that nothing went on from."""
        return sum(outcome.num_tokens for outcome in {**self._short_decodes, **self._outcomes}.values())

    def rollouts(self, requests: Sequence[Request]) -> list[Rollout]:
        """Return one rollout a request, in order, from the ledger or the backend.

        Raises BackendError if the backend breaks its contract, LedgerError if it cannot be saved.
        """
        ids = self._ids(requests, self.sampling)
        self._generate(dict(zip(ids, requests, strict=True)), self.sampling)
        found = self.ledger.rollouts(ids, errors=True)
        return [found[id] for id in ids]

    def verdicts(self, rollouts: Sequence[Rollout], prompts: Iterable[Prompt]) -> list[Verdict]:
        """Return one verdict a rollout, in order, from the ledger or the judge; `prompts` holds theirs, in any order.

        A failed rollout is UNSCORED with its error as the reason, and is not shown to the judge.
        """
        by_id = {rollout.rollout_id: rollout for rollout in rollouts}
        verdicts = self.ledger.verdicts(self.judge.identity, by_id)
        verdicts |= {id: _failed_verdict(it) for id, it in by_id.items() if it.finish_reason == "error"}
        text_of = {prompt.prompt_id: prompt for prompt in prompts}
        unjudged = [id for id in by_id if id not in verdicts]
        for start in range(0, len(unjudged), JUDGE_BATCH):
            batch = unjudged[start : start + JUDGE_BATCH]
            exchanges = [_exchange(by_id[id], text_of[by_id[id].prompt_id]) for id in batch]
            verdicts |= zip(batch, judge_with_ledger(self.ledger, self.judge, batch, exchanges), strict=True)
            self._report(Activity.JUDGING, start + len(batch), len(unjudged))
        return [verdicts[rollout.rollout_id] for rollout in rollouts]

    def outcomes(self, requests: Sequence[Request]) -> list[JudgedRollout]:
        """Return one judged rollout a request, in order, holding no completion in memory longer than it is judged."""
        ids = self._ids(requests, self.sampling)
        new = {id: request for id, request in zip(ids, requests, strict=True) if id not in self._outcomes}
        self._outcomes |= self._judged(new, self.sampling)
        return [self._outcomes[id] for id in ids]

    def short_decodes(self, requests: Sequence[Request], num_tokens: int) -> list[JudgedRollout]:
        """Return the first `num_tokens` tokens of each request's answer, judged as if they were all of it, in order.

        An answer that is asked for whole later goes on from there where the backend tells its tokens.
        """
        short = replace(self.sampling, max_tokens=num_tokens)
        ids = self._ids(requests, short)
        found = self._judged(dict(zip(ids, requests, strict=True)), short)
        judged = [found[id] for id in ids]
        self._short_decodes |= zip(self._ids(requests, self.sampling), judged, strict=True)
        return judged

    def _judged(self, new: Mapping[str, Request], sampling: Sampling) -> dict[str, JudgedRollout]:
        self._generate(new, sampling)
        verdicts = self.ledger.verdicts(self.judge.identity, new)
        lengths = self.ledger.lengths(new)
        unjudged = [id for id in new if id not in verdicts or id not in lengths]
        for start in range(0, len(unjudged), JUDGE_BATCH):
            batch = unjudged[start : start + JUDGE_BATCH]
            found = self.ledger.rollouts(batch, errors=True)
            prompts = [new[id].prompt for id in batch]
            verdicts |= zip(batch, self.verdicts([found[id] for id in batch], prompts), strict=True)
        return {id: JudgedRollout(id, lengths.get(id, 0), verdicts[id]) for id in new}

    def score_prefixes(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return the reading of each request's opening, in order, from the ledger or the backend; nothing is generated.

        None for one that the model cannot hold, and for all where the backend cannot read.
        """
        if not isinstance(self.backend, PrefixScorer):
            return [None] * len(requests)
        ids = [prefix_score_id(self.backend.model_id, *_asked(request), request.prefill) for request in requests]
        found = self.ledger.prefix_scores(ids)
        missing = {id: request for id, request in zip(ids, requests, strict=True) if id not in found}
        for start in range(0, len(missing), READ_BATCH):
            batch = dict(list(missing.items())[start : start + READ_BATCH])
            prefix_scores = zip(batch, self.backend.score(list(batch.values())), strict=True)
            new = {id: reading for id, reading in prefix_scores if reading is not None}
            self.ledger.save_prefix_scores(new.items())
            found |= new
            self._report(Activity.SCORING, start + len(batch), len(missing))
        return [found.get(id) for id in ids]

    def baseline(self, prompts: Sequence[Prompt]) -> dict[str, Samples]:
        """Return the draws of every prompt without a context, by prompt id."""
        draws = self.draws([(prompt, None) for prompt in prompts])
        return {prompt.prompt_id: one for prompt, one in zip(prompts, draws, strict=True)}

    def draws(self, asked: Sequence[tuple[Prompt, Context | None]]) -> list[Samples]:
        """Return all draws of each prompt under its context, in order, generated in one call of the backend."""
        size = self.rule.samples
        judged = self.outcomes([self.request(*one, draw) for one in asked for draw in range(size)])
        return [Samples(self.rule, tuple(judged[i : i + size])) for i in range(0, len(judged), size)]

    def request(self, prompt: Prompt, context: Context | None, draw: int = 0) -> Request:
        """Return the request for one draw of a prompt under a context, or of the baseline; `draw` counts from 0.

        An empty context asks for what the baseline asked: with sampling its draws are those after the baseline's, and
        never these again; greedy decoding would only repeat itself, so there it is the baseline's own rollout.
        """
        if context is None or context.text.strip():
            return Request(prompt, context, draw)
        return Request(prompt, context, self.rule.samples + draw) if self.sampling.temperature > 0 else Request(prompt)

    def _ids(self, requests: Iterable[Request], sampling: Sampling) -> list[str]:
        model = self.backend.model_id
        return [rollout_id(model, *_asked(one), sampling, one.sample_index, one.prefill) for one in requests]

    def _generate(self, wanted: Mapping[str, Request], sampling: Sampling) -> None:
        finished = self.ledger.lengths(wanted)
        missing = {id: it for id, it in wanted.items() if id not in finished and id not in self._failed}
        missing = self._begun(missing, sampling)
        self._report(Activity.GENERATING, len(wanted) - len(missing), len(wanted))
        waiting = dict(zip(self._ids(missing.values(), sampling), missing, strict=True))  # id as asked -> id as wanted
        for batch in self._ask(missing, sampling):
            ids = [waiting.pop(rollout.rollout_id, None) for rollout in batch]
            if None in ids:
                stray = batch[ids.index(None)].rollout_id
                raise BackendError(f"the backend gave rollout {stray} unasked, or gave it twice.")
            self._save([(rollout, id) for rollout, id in zip(batch, ids, strict=True) if id is not None])
            self._report(Activity.GENERATING, len(wanted) - len(waiting), len(wanted))
        if waiting:
            raise BackendError(f"the backend left {len(waiting)} of {len(missing)} requests without a rollout.")

    def _begun(self, missing: Mapping[str, Request], sampling: Sampling) -> dict[str, Request]:
        """Return the requests that are still to be asked: what was glimpsed goes on, or is whole already.

        Where a drawn answer would begin its draws anew, and not be what a whole one is, all are asked whole.
        """
        if not self.can_continue:
            return dict(missing)
        short = {id: short_decode.rollout_id for id in missing if (short_decode := self._short_decodes.get(id))}
        known = self.ledger.rollouts(short.values())
        begun = {id: known[one] for id, one in short.items() if one in known}
        whole = {id: rollout for id, rollout in begun.items() if rollout.finish_reason == "stop"}
        self.ledger.save_rollouts(replace(rollout, sampling=sampling) for rollout in whole.values())
        prefills = {id: rollout.completion_ids for id, rollout in begun.items()}
        left = {id: request for id, request in missing.items() if id not in whole}
        return {id: replace(one, prefill=prefills[id]) if id in prefills else one for id, one in left.items()}

    def _ask(self, missing: Mapping[str, Request], sampling: Sampling) -> Iterator[Sequence[Rollout]]:
        """Ask the backend; until it has given everything, the ledger says what is in flight."""
        if missing:
            with self.ledger.in_flight(self.step.label, missing):
                yield from self.backend.generate(list(missing.values()), sampling)

    def _save(self, batch: Sequence[tuple[Rollout, str]]) -> None:
        """Save rollouts, each with the id under which it is wanted: one that went on is the same as one made whole."""
        self.ledger.save_rollouts(one if one.rollout_id == id else replace(one, prefill=()) for one, id in batch)
        self.num_generated += len(batch)
        self.num_generated_tokens += sum(rollout.num_generated for rollout, _ in batch)
        self._failed.update(id for rollout, id in batch if rollout.finish_reason == "error")

    def _report(self, activity: Activity, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(
                replace(self.step, activity=activity), done, total, self.num_generated, self.num_generated_tokens
            )


def _asked(request: Request) -> tuple[str, str | None]:
    return request.prompt.prompt_id, request.context.context_id if request.context else None


def _failed_verdict(rollout: Rollout) -> Verdict:
    return Verdict(Label.UNSCORED, reason=rollout.error or "the rollout failed")


def _exchange(rollout: Rollout, prompt: Prompt) -> Exchange:
    return Exchange(prompt, rollout.completion, rollout.finish_reason, rollout.opens_thinking)
