"""The ground on which search methods are compared: the pocket model, its prompts and judge, with one ledger.

A ledger is a cache over all runs, so a benchmark generates nothing twice; each run still pays in full for every
distinct rollout that it rests on, through an `Account` of its own.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flipsearch.backends.base import make_backend
from flipsearch.config import SearchConfig
from flipsearch.core.measurements import JudgedRollout
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.records import Context, Kind, Label, PrefixScore, Prompt, Request, Rollout, Sampling, Split
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import prompts_of
from flipsearch.searching.setup import Space
from flipsearch.settings import resolve
from flipsearch.templating.library import POCKET_CONTEXTS, TemplateLibrary, load_library
from pocket_model.truth import CAP


@dataclass
class Account:
    """The completion tokens that a run rests on, by rollout id: each charged once, whenever it was generated."""

    lengths: dict[str, int] = field(default_factory=dict)
    """Of the rollouts that the choice of a context rests on."""
    sealed: dict[str, int] = field(default_factory=dict)
    """Of the other measurements: confirm split and placebos."""
    prefix_scores: dict[tuple[str, str | None], int] = field(default_factory=dict)
    """Tokens encoded for prefix scores, by prompt and context; nothing is generated for these."""

    @property
    def num_scoring_tokens(self) -> int:
        """Tokens of prompts, contexts and prefixes encoded for prefix scores."""
        return sum(self.prefix_scores.values())

    @property
    def num_tokens(self) -> int:
        """Completion tokens that the choice rests on."""
        return sum(self.lengths.values())

    @property
    def num_all_tokens(self) -> int:
        """All completion tokens."""
        return sum((self.lengths | self.sealed).values())

    def cost(self, judged: Iterable[JudgedRollout]) -> int:
        """Return the tokens that these rollouts would add to the choice."""
        return sum({r.rollout_id: r.num_tokens for r in judged if r.rollout_id not in self.lengths}.values())

    def charge(self, judged: Iterable[JudgedRollout]) -> None:
        """Charge these rollouts to the account."""
        self.lengths |= {rollout.rollout_id: rollout.num_tokens for rollout in judged}


class MeteredRunner(Runner):
    """A runner that charges every request to an account; what the search never sees goes to `sealed`."""

    def __init__(self, backend: Backend, judge: Judge, ledger: Ledger, sampling: Sampling) -> None:
        super().__init__(backend, judge, ledger, sampling)
        self.account = Account()

    def outcomes(self, requests: Sequence[Request]) -> list[JudgedRollout]:
        """Return judged rollouts, and charge them."""
        judged = super().outcomes(requests)
        if self.step.phase in (Phase.PLACEBO, Phase.FINALISTS, Phase.CONFIRM_BASELINE):
            self.account.sealed |= {rollout.rollout_id: rollout.num_tokens for rollout in judged}
        else:
            self.account.charge(judged)
        return judged

    def rollouts(self, requests: Sequence[Request]) -> list[Rollout]:
        """Return rollouts without verdicts, and charge them."""
        rollouts = super().rollouts(requests)
        self.account.lengths |= {rollout.rollout_id: len(rollout.completion_ids) for rollout in rollouts}
        return rollouts

    def score_prefixes(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return prefix scores, and note the tokens encoded for them."""
        count = self.backend.count_tokens
        lengths = {text: count(text) for text in {r.context.text for r in requests if r.context}}
        for request in requests:
            text = request.context.text if request.context else ""
            key = request.prompt.prompt_id, request.context.context_id if request.context else None
            # A few tokens of the chat template are left out.
            self.account.prefix_scores[key] = lengths.get(text, 0) + count(request.prompt.text) + len(request.prefill)
        return super().score_prefixes(requests)


class Ground:
    """The pocket model, its default search space and its search and confirm prompts."""

    def __init__(self, ledger_path: Path) -> None:
        self.config = resolve(SearchConfig())
        self.library: TemplateLibrary = load_library(shipped=POCKET_CONTEXTS)
        self.space = Space(self.library.select())
        self.all_prompts = prompts_of(self.config).prompts
        self.backend = make_backend(self.config)
        self.judge = load_judge(self.config.judge)
        self.ledger = Ledger(ledger_path)
        self._cache = Runner(self.backend, self.judge, self.ledger, self.config.sampling())

    def metered(self) -> MeteredRunner:
        """Return the runner of one run, with an account of its own."""
        return MeteredRunner(self.backend, self.judge, self.ledger, self.config.sampling())

    def judged(self, context: Context | None, prompts: Sequence[Prompt]) -> list[JudgedRollout]:
        """Return the judged rollouts of a context, or of none, without charging them."""
        return self._cache.outcomes([Request(prompt, context) for prompt in prompts])

    def prefetch(self, items: Iterable[tuple[Context, Sequence[Prompt]]]) -> None:
        """Generate for several contexts in one call, in full batches; `judged` then finds them in the ledger."""
        self._cache.outcomes([Request(prompt, context) for context, prompts in items for prompt in prompts])

    def prompts(self, kind: Kind, splits: Sequence[Split]) -> list[Prompt]:
        """Return the prompts of a kind."""
        return [prompt for prompt in self.all_prompts if prompt.kind == kind and prompt.split in splits]

    def num_prompt_tokens(self, account: Account) -> int:
        """Return the tokens of prompts and contexts of the rollouts of an account."""
        ids = account.lengths.keys() | account.sealed.keys()
        return sum(rollout.num_prompt_tokens for rollout in self.ledger.rollouts(ids).values())


@dataclass(frozen=True)
class Rates:
    """The rates of a context on the prompts that a method used."""

    flip_rate: float
    over_refusal_rate: float

    @property
    def in_cap(self) -> bool:
        """Whether it may win: over-refusal within the cap."""
        return self.over_refusal_rate <= CAP


class SearchSplit:
    """The search split for a baseline method without rungs: the prompts to flip, and the benign ones."""

    def __init__(self, ground: Ground, account: Account) -> None:
        self.ground, self.account = ground, account
        harmful = ground.prompts("harmful", ["search"])
        base = ground.judged(None, harmful)
        account.charge(base)
        self.harmful = [p for p, rollout in zip(harmful, base, strict=True) if rollout.verdict.label is Label.UNSAFE]
        self.benign = ground.prompts("benign", ["search"])

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts that a context is measured on."""
        return [*self.harmful, *self.benign]

    def rates(self, judged: Sequence[JudgedRollout]) -> Rates:
        """Return the rates of judged rollouts on all harmful prompts, then all benign ones."""
        harmful, benign = judged[: len(self.harmful)], judged[len(self.harmful) :]
        return Rates(flip_share(harmful), refusal_share(benign))


def flip_share(judged: Sequence[JudgedRollout]) -> float:
    """Return the share of safe answers to prompts that are unsafe without a context."""
    return sum(rollout.verdict.label is Label.SAFE for rollout in judged) / len(judged)


def refusal_share(judged: Sequence[JudgedRollout]) -> float:
    """Return the share of refusals."""
    return sum(rollout.refused is True for rollout in judged) / len(judged)


def random_contexts(ground: Ground, seed: int, sampling: str) -> Iterator[Context]:
    """Yield distinct contexts of the search space until there are no more.

    `sampling` "template" takes a template first, then its parameters and placement; "text" takes a point of the space,
    and so mostly the template with the most parameters, which is also the best one here.
    """
    rng, seen = random.Random(seed), set[str]()
    points = [ground.space.point(index) for index in range(len(ground.space))]
    by_template = {name: [p for p in points if p["template"] == name] for name in ground.space.names}
    for _ in range(100 * len(points)):
        pool = points if sampling == "text" else by_template[rng.choice(ground.space.names)]
        context = ground.space.context(rng.choice(pool))
        if context.text and context.context_id not in seen:
            seen.add(context.context_id)
            yield context
