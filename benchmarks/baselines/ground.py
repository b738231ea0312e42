"""The ground that methods of search are compared on: the pocket model, its prompts and judge, at one ledger.

A ledger is a cache over all runs, so a benchmark generates nothing twice; each run still pays in full for every
distinct rollout that it rests on, through an `Account` of its own.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flipsearch.backends.base import make_backend
from flipsearch.config import StudyConfig
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import Backend, Judge
from flipsearch.core.records import Context, Kind, Label, PrefixScore, Prompt, Request, Rollout, Sampling, Split
from flipsearch.core.samples import JudgedRollout
from flipsearch.defaults import resolve
from flipsearch.judging.library import load_judge
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.prompts.sets import prompts_of
from flipsearch.searching.setup import Space
from flipsearch.templating.library import TemplateLibrary, load_library
from pocket_model.truth import CAP


@dataclass
class Account:
    """What a run rests on: completion tokens by rollout id, each charged once, generated now or long ago."""

    lengths: dict[str, int] = field(default_factory=dict)
    """Of what the choice of a context rests on."""
    sealed: dict[str, int] = field(default_factory=dict)
    """Of what is measured beside it: confirm split and placebos."""
    prefix_scores: dict[tuple[str, str | None], int] = field(default_factory=dict)
    """Tokens read to tell how likely an opening is, by prompt and context; nothing is generated for these."""

    @property
    def num_read_tokens(self) -> int:
        """Tokens of prompts, contexts and openings in the readings."""
        return sum(self.prefix_scores.values())

    @property
    def num_tokens(self) -> int:
        """Completion tokens that the choice rests on."""
        return sum(self.lengths.values())

    @property
    def num_all_tokens(self) -> int:
        """Completion tokens in all."""
        return sum((self.lengths | self.sealed).values())

    def cost(self, judged: Iterable[JudgedRollout]) -> int:
        """Return the tokens that these rollouts would add to the choice."""
        return sum({one.rollout_id: one.num_tokens for one in judged if one.rollout_id not in self.lengths}.values())

    def charge(self, judged: Iterable[JudgedRollout]) -> None:
        """Take these rollouts on the account."""
        self.lengths |= {one.rollout_id: one.num_tokens for one in judged}


class MeteredRunner(Runner):
    """A bench that keeps an account of everything it is asked for; what the search never sees goes to `sealed`."""

    def __init__(self, backend: Backend, judge: Judge, ledger: Ledger, sampling: Sampling) -> None:
        super().__init__(backend, judge, ledger, sampling)
        self.account = Account()

    def outcomes(self, requests: Sequence[Request]) -> list[JudgedRollout]:
        """Charge what is asked for."""
        found = super().outcomes(requests)
        beside = self.step.phase in (Phase.PLACEBO, Phase.FINALISTS, Phase.CONFIRM_BASELINE)
        if beside:
            self.account.sealed |= {one.rollout_id: one.num_tokens for one in found}
        else:
            self.account.charge(found)
        return found

    def rollouts(self, requests: Sequence[Request]) -> list[Rollout]:
        """Charge what is asked for without a verdict."""
        found = super().rollouts(requests)
        self.account.lengths |= {one.rollout_id: len(one.completion_ids) for one in found}
        return found

    def score_prefixes(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Note what is read."""
        count = self.backend.count_tokens
        lengths = {text: count(text) for text in {r.context.text for r in requests if r.context}}
        for one in requests:
            text = one.context.text if one.context else ""
            key = one.prompt.prompt_id, one.context.context_id if one.context else None
            # A few tokens of the chat template are left out.
            self.account.prefix_scores[key] = lengths.get(text, 0) + count(one.prompt.text) + len(one.prefill)
        return super().score_prefixes(requests)


class Ground:
    """The pocket model, its default search space and its search and confirm prompts."""

    def __init__(self, ledger_path: Path) -> None:
        self.config = resolve(StudyConfig())
        self.library: TemplateLibrary = load_library()
        self.space = Space(self.library.select())
        self.all_prompts = prompts_of(self.config).prompts
        self.backend = make_backend(self.config)
        self.judge = load_judge(self.config.judge)
        self.ledger = Ledger(ledger_path)
        self._cache = Runner(self.backend, self.judge, self.ledger, self.config.sampling())

    def metered(self) -> MeteredRunner:
        """Return a bench of one run."""
        return MeteredRunner(self.backend, self.judge, self.ledger, self.config.sampling())

    def look(self, context: Context | None, prompts: Sequence[Prompt]) -> list[JudgedRollout]:
        """Return the outcomes of a context, or of none, without charging anybody."""
        return self._cache.outcomes([Request(prompt, context) for prompt in prompts])

    def look_ahead(self, items: Iterable[tuple[Context, Sequence[Prompt]]]) -> None:
        """Generate for several contexts in one call, which makes full batches: what `look` then finds."""
        self._cache.outcomes([Request(prompt, context) for context, prompts in items for prompt in prompts])

    def prompts(self, kind: Kind, splits: Sequence[Split]) -> list[Prompt]:
        """Return the prompts of a kind."""
        return [one for one in self.all_prompts if one.kind == kind and one.split in splits]

    def num_prompt_tokens(self, account: Account) -> int:
        """Return the tokens of prompt and context that were read for the rollouts of an account."""
        ids = account.lengths.keys() | account.sealed.keys()
        return sum(one.num_prompt_tokens for one in self.ledger.rollouts(ids).values())


@dataclass(frozen=True)
class Rates:
    """What a context does on the prompts that a method looked at."""

    flip_rate: float
    over_refusal_rate: float

    @property
    def in_cap(self) -> bool:
        """Whether it may win."""
        return self.over_refusal_rate <= CAP


class SearchSplit:
    """The search split as a rival without rungs sees it: the prompts to flip, and the benign ones."""

    def __init__(self, ground: Ground, account: Account) -> None:
        self.ground, self.account = ground, account
        harmful = ground.prompts("harmful", ["search"])
        base = ground.look(None, harmful)
        account.charge(base)
        self.harmful = [p for p, one in zip(harmful, base, strict=True) if one.verdict.label is Label.UNSAFE]
        self.benign = ground.prompts("benign", ["search"])

    @property
    def asked(self) -> list[Prompt]:
        """All that a context is asked."""
        return [*self.harmful, *self.benign]

    def rates(self, judged: Sequence[JudgedRollout]) -> Rates:
        """Return the rates of outcomes on all harmful prompts, then all benign ones."""
        harmful, benign = judged[: len(self.harmful)], judged[len(self.harmful) :]
        return Rates(flip_share(harmful), refusal_share(benign))


def flip_share(judged: Sequence[JudgedRollout]) -> float:
    """Return the share of safe answers to prompts that are unsafe without a context."""
    return sum(one.verdict.label is Label.SAFE for one in judged) / len(judged)


def refusal_share(judged: Sequence[JudgedRollout]) -> float:
    """Return the share of refusals."""
    return sum(one.refused is True for one in judged) / len(judged)


def random_contexts(ground: Ground, seed: int, draw: str) -> Iterator[Context]:
    """Yield different contexts of the search space, without end while there are any.

    `draw` "template" takes any template first, then its parameters and place; "text" takes any point of the space, and
    so mostly the template with the most parameters, which is also the best one here.
    """
    rng, seen = random.Random(seed), set[str]()
    points = [ground.space.point(index) for index in range(len(ground.space))]
    by_template = {name: [p for p in points if p["template"] == name] for name in ground.space.names}
    for _ in range(100 * len(points)):
        pool = points if draw == "text" else by_template[rng.choice(ground.space.names)]
        context = ground.space.context(rng.choice(pool))
        if context.text and context.context_id not in seen:
            seen.add(context.context_id)
            yield context
