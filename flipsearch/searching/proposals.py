"""Where the next contexts come from: points of the space and children of the best arms, chosen by what they promise.

    templates ------ points ----┐
                                ├─ candidates --surrogate (searching.surrogate)--> samples --> the contexts that race
    arms --breeder-- children --┘

Each context is the best candidate in one sample from the posterior (Thompson sampling): what is likely to be good is
tried, and what might be, as often as it might. It is a trial of an Optuna study, with the parameters of its point. The
same seed, arms and outcomes give the same contexts: nothing is stored, and a search is rebuilt by proposing again, with
every outcome taken from the ledger.

The breeder's operators, chosen at random, make children of parents that are sampled by weight. It measures nothing, and
calls no model but through an operator. The filter keeps out of the race what copies prompts, names benchmarks, is too
long, or repeats a known text. A context that quotes the prompts it is measured on is fitted to them; one that names a
benchmark knows that it is tested. Both would score well in the search and mean nothing.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from flipsearch.core.errors import PluginError
from flipsearch.core.measurements import Measurement
from flipsearch.core.protocols import Operator
from flipsearch.core.records import Context, Label, Placement, Prompt
from flipsearch.core.studies import OperatorGain, Parent
from flipsearch.judging.contract import plugin_errors_as
from flipsearch.measuring.measure import flip_difference
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import Arm, SplitBaseline
from flipsearch.searching.setup import SearchSetup
from flipsearch.searching.surrogate import Array, Surrogate
from flipsearch.statistics.intervals import mean_interval
from flipsearch.templating.template import normalised

CANDIDATES, MOST_CANDIDATES = 12, 512
"""Candidates for each context that races, or for each of a cohort; the most there are, unless more race."""
SCREENED = 4
"""Candidates that are screened for each context that races, or for each of a cohort."""
ENCODED_PER_TOKEN = 24
"""Screening encodes at most this many tokens per completion token that the contexts generate in their first rung. A GPU
encodes prompts many times faster than it generates; a CPU does not, and would screen for longer than it answers."""
MEASURED = 32
"""Candidates whose length is measured, for the mean."""
ATTEMPTS = 8
"""Points sampled for each that is needed, before all are enumerated."""
NUM_PARENTS = 8
"""A text is a parent as often as it is one of this many best in a sample."""
PER_COSTLY = 24
"""Children for each one that a model makes: few, and all of those race."""
PATIENCE = 6
"""Failures (not applicable, or filtered) after which an operator rests for the rest of a call."""
COPY_WORDS = 8
"""Words in a row that count as a copy of a prompt that holds them; a shorter prompt is copied by its whole text."""
SHORTEST_COPY = 5
"""A prompt with fewer words says nothing of its own, and may be in a context."""
BENCHMARKS = (
    "Adv Bench", "AgentHarm", "AI Luminate", "Beaver Tails", "Do-Not-Answer", "Harm Bench", "HarmfulQA", "HEx-PHI",
    "Jailbreak Bench", "Malicious Instruct", "OR-Bench", "Real Toxicity Prompts", "SALAD-Bench", "Safe Chain",
    "SafeRLHF", "Safety Bench", "Simple Safety Tests", "SORRY-Bench", "Strong REJECT", "Toxic Chat", "Wild Guard",
    "Wild Jailbreak", "Wild Teaming", "XS Test",
)  # fmt: skip
"""A blank in a name matches a blank, a hyphen or nothing; a hyphen matches a hyphen or nothing."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BENCHMARK = re.compile(
    "(?<![^\\W_])(?:"
    + "|".join(f"({re.escape(name)})".replace(r"\ ", r"[-_\s]?").replace(r"\-", "[-_]?") for name in BENCHMARKS)
    + ")(?![^\\W\\d_])",
    re.IGNORECASE,
)
"""Each name is a group of its own."""


class Proposals:
    """Proposes contexts that were not proposed before."""

    def __init__(
        self, setup: SearchSetup, runner: Runner, base: SplitBaseline, surrogate: Surrogate, tokens_at_first: float
    ) -> None:
        """`tokens_at_first`: completion tokens that a context is expected to take in its first rung, 0 if unknown."""
        config, prompts = setup.config, [prompt.text for prompt in base.prompts]
        count_tokens, same = runner.backend.count_tokens, setup.same_placements
        self._filter = ContextFilter(prompts, count_tokens, config.max_context_tokens, same)
        self.breeder = Breeder(setup.operators, self._filter, config.seed)
        self._space, self._config, self._surrogate = setup.space, config, surrogate
        self._tokens_at_first = tokens_at_first
        self._prompts = {prompt.prompt_id: prompt for prompt in base.prompts}
        self._random = random.Random(config.seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(direction="maximize")
        """A trial for every context that was proposed, in order, at the point that was chosen for it."""
        self._trials: dict[str, optuna.Trial] = {}
        """Context id -> its trial; every context that was proposed."""
        self._is_exhausted = False
        self._start = list(setup.start)
        """Contexts that are still to be tried before all others."""
        self._notes: list[str] = []

    def propose(self, num: int, arms: Sequence[Arm]) -> list[Context]:
        """Return up to `num` new contexts; fewer only if neither templates nor operators give more.

        The candidates are points of the space and, once there are parents, as many children as `--breed` says.
        """
        contexts = self._from_start(num)
        able, num = [arm for arm in arms if arm.state in ("running", "complete")], num - len(contexts)
        if not num:
            return contexts
        # Where a budget makes generations small, candidates are still weighed by the cohort: no answer is generated.
        width = max(num, self._config.cohort_size)
        num_candidates = max(num, min(CANDIDATES * width, MOST_CANDIDATES))
        parents, weights = likely_parents(self._surrogate, able, self._prompts)
        children = self.breeder.breed(parents, int(num_candidates * self._config.breed), weights) if parents else []
        candidates = [*self._points(num_candidates - len(children)), *children]
        written = [context for context in candidates if self.breeder.is_costly(context.operator)][:num]
        candidates, num = [context for context in candidates if context not in written], num - len(written)
        if num and self._surrogate.prefix_scores.num_prompts and self._config.screen != 1:
            candidates = self._chosen(self._num_screened(num, width, candidates), able, candidates)
            self._surrogate.prefix_scores.add([*(arm.context for arm in able), *candidates])
        chosen = [*written, *self._chosen(num, able, candidates)]
        for context in chosen:
            self._begin_trial(context)
        return [*contexts, *chosen]

    def _num_screened(self, num: int, width: int, candidates: Sequence[Context]) -> int:
        """How many candidates are screened for `num` contexts that race."""
        most = (self._config.screen or SCREENED) * width
        if self._config.screen or not self._tokens_at_first:
            return most
        costs = [self._surrogate.prefix_scores.num_encoded(context) for context in candidates[:MEASURED]]
        return max(num, min(most, int(ENCODED_PER_TOKEN * num * self._tokens_at_first * len(costs) / sum(costs))))

    def report_outcome(self, arm: Arm) -> None:
        """Give Optuna the outcome of an arm that will not be promoted any more."""
        trial, search = self._trials[arm.context.context_id], arm.search
        if arm.state == "failed" or search.flip_rate.value is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        cap = self._config.refusal_cap()
        trial.set_constraint("over_refusal", (cap.rate(search).value or 0.0) - cap.most)
        self.study.tell(trial, search.flip_rate.value)

    def notes(self, num_arms: int) -> list[str]:
        """Return what the reader must know of where the contexts came from."""
        notes = self._notes.copy()
        if self._start:
            sources = ", ".join(dict.fromkeys(str(dict(context.params)["from"]) for context in self._start))
            why = "as --num-contexts is smaller"
            notes.append(f"{len(self._start)} contexts of --start were not tried, {why}: {sources}.")
        if self._is_exhausted and num_arms < self._config.num_contexts:
            notes.append(f"The space is exhausted: it holds {num_arms} different contexts.")
        return notes

    def _from_start(self, num: int) -> list[Context]:
        """Up to `num` of the contexts that are tried first; one that must not race is in the notes."""
        able: list[Context] = []
        while self._start and len(able) < num:
            context = self._start.pop(0)
            source = dict(context.params)["from"]
            if objection := self._filter.objection(context):
                self._notes.append(f"A context of --start {source} was left out: {objection}.")
                continue
            self._notes.append(f"A context of --start {source} was tried first: {context.context_id}.")
            self._begin_trial(context)
            able.append(context)
        return able

    def _points(self, num: int) -> list[Context]:
        """New contexts of the space, the templates in turn; all that are left if there are fewer."""
        contexts: dict[str, Context] = {}
        names = self._space.names.copy()
        self._random.shuffle(names)
        for turn in range(ATTEMPTS * num):
            if len(contexts) >= num:
                break
            self._take(self._space.sample(names[turn % len(names)], self._random), contexts)
        if len(contexts) < num:
            size = len(self._space)
            start = self._random.randrange(size)
            for step in range(size):
                if len(contexts) >= num:
                    break
                self._take(self._space.point((start + step) % size), contexts)
            self._is_exhausted = len(contexts) < num
        return list(contexts.values())

    def _take(self, point: Mapping[str, Any], contexts: dict[str, Context]) -> None:
        context = self._space.context(point)
        if context.text and context.context_id not in self._trials and context.context_id not in contexts:
            contexts[context.context_id] = context

    def _chosen(self, num: int, arms: Sequence[Arm], candidates: Sequence[Context]) -> list[Context]:
        """Return the best candidate of each sample, `num` different ones; the first ones while nothing is known."""
        if len(candidates) <= num:
            return list(candidates)
        if not arms and not self._surrogate.prefix_scores.num_contexts:
            return list(candidates[:num])
        worth = self._surrogate.sample(arms, candidates).worth[:, len(arms) :]
        return [candidates[index] for index in best_of_samples(worth, num)]

    def _begin_trial(self, context: Context) -> None:
        point = None if context.operator else self._space.point_of(context)
        if point:
            self.study.enqueue_trial(point)
        trial = self.study.ask()
        if point:
            self._space.suggest(trial)
        trial.set_user_attr("context", context.text)
        self._trials[context.context_id] = trial
        self._filter.add(context)


def best_of_samples(worth: Array, num: int) -> list[int]:
    """Return `num` different columns, each the best one of a sample (row) not taken yet; then by their mean."""
    chosen: list[int] = []
    for sample in worth:
        if len(chosen) == min(num, worth.shape[1]):
            break
        left = np.delete(np.arange(len(sample)), chosen)
        chosen.append(int(left[np.argmax(sample[left])]))
    chosen += [int(index) for index in np.argsort(-worth.mean(axis=0)) if index not in chosen]
    return chosen[:num]


def likely_parents(
    surrogate: Surrogate, arms: Sequence[Arm], prompts: Mapping[str, Prompt]
) -> tuple[list[Parent], list[float]]:
    """Return the arms that may be among the NUM_PARENTS best, with how often they are as weights.

    Not by the best alone: children of one text are soon all known, and crossed with itself it gives nothing new.
    """
    if not arms:
        return [], []
    worth = surrogate.sample(arms).worth
    best = np.argsort(-worth, axis=1, kind="stable")[:, :NUM_PARENTS]
    weights = np.bincount(best[np.take_along_axis(worth, best, axis=1) > 0], minlength=len(arms))
    return [_parent(arms[i], prompts) for i in np.flatnonzero(weights).tolist()], [float(w) for w in weights if w]


def _parent(arm: Arm, prompts: Mapping[str, Prompt]) -> Parent:
    """The arm with the texts of the prompts that it failed on."""
    flips = arm.search.flips
    unflipped = [flip for flip in flips if flip.kind == "harmful" and flip.after is Label.UNSAFE]
    refused = [flip for flip in flips if flip.kind == "benign" and flip.refused_after and not flip.refused_before]
    broken = [flip for flip in flips if flip.kind_after == "degenerate"]
    texts = [tuple(prompts[flip.prompt_id].text for flip in failures) for failures in (unflipped, refused, broken)]
    return Parent(arm.context, arm.search.flip_rate, *texts)


class Breeder:
    """Makes contexts that did not race before, and counts by how much each operator's children are better.

    Raises PluginError if two operators have one name.
    """

    def __init__(self, operators: Sequence[Operator], context_filter: "ContextFilter", seed: int) -> None:
        self._operators = {operator.name: operator for operator in operators}
        if len(self._operators) < len(operators):
            raise PluginError(f"two operators have one name: {', '.join(sorted(o.name for o in operators))}.")
        self._filter = context_filter
        self._random = random.Random(seed)
        self.gains = OperatorGains(list(self._operators))

    def breed(self, parents: Sequence[Parent], num: int, weights: Sequence[float] = ()) -> list[Context]:
        """Return up to `num` different children; fewer if all operators run dry.

        Parents are sampled by `weights`, () is all alike. A child that is not chosen to race may come again.

        Raises PluginError for an operator that fails.
        """
        for parent in parents:
            self._filter.add(parent.context)
        children: dict[str, Context] = {}
        failures = {name: 0 for name, operator in self._operators.items() if operator.num_parents <= len(parents)}
        num_costly = 0
        while len(children) < num:
            able = [name for name, count in failures.items() if count < PATIENCE]
            if num_costly >= max(1, num // PER_COSTLY):
                able = [name for name in able if not self.is_costly(name)]
            if not able:
                break
            name = self._random.choice(able)
            num_costly += self.is_costly(name)
            child = self._make_child(self._operators[name], parents, weights or [1.0] * len(parents))
            if child is None or child.context_id in children or self._filter.objection(child) is not None:
                failures[name] += 1
            else:
                children[child.context_id] = child
        return list(children.values())

    def is_costly(self, operator: str) -> bool:
        """Return whether the operator of this name calls a model for each child."""
        return bool(getattr(self._operators.get(operator), "is_costly", False))

    def _make_child(self, operator: Operator, able: Sequence[Parent], weights: Sequence[float]) -> Context | None:
        """One child by one operator, of different parents; None if it does not apply."""
        left, parents = list(range(len(able))), []
        for _ in range(operator.num_parents):
            position = self._random.choices(range(len(left)), [weights[index] for index in left])[0]
            parents.append(able[left.pop(position)])
        # A generator of its own: what one operator samples does not change what the next ones do.
        rng = random.Random(self._random.getrandbits(64))
        with plugin_errors_as(PluginError, f"operator '{operator.name}' failed"):
            return operator.make(parents, rng)


class OperatorGains:
    """Counts, per operator, the gains in flip rate of its children."""

    def __init__(self, names: Sequence[str]) -> None:
        self._gains: dict[str, list[float]] = {name: [] for name in names}
        self._num_better = Counter[str]()

    def learn(self, child: Context, measured: Measurement, parents: Sequence[Measurement], *, admissible: bool) -> None:
        """Count the gain of a child that raced over the better of its parents.

        `admissible` says whether the child is within the caps. Contexts that no operator made, and those without a
        prompt in common with a parent, are skipped.
        """
        # Parents are the best so far on these very prompts: gains are too low, for all operators alike.
        gains = [gain.value for parent in parents if (gain := flip_difference(measured, parent)) is not None]
        if child.operator in self._gains and gains:
            self._gains[child.operator].append(min(gains))
            self._num_better[child.operator] += admissible and min(gains) > 0

    def rows(self) -> tuple[OperatorGain, ...]:
        """Return one row per operator, the largest mean gain first, those without a raced child last."""
        rows = []
        for name, gains in self._gains.items():
            mean = mean_interval(gains, -1.0, 1.0)
            rows.append(OperatorGain(name, len(gains), self._num_better[name], mean.value, mean.low, mean.high))
        return tuple(sorted(rows, key=lambda row: (row.mean_gain is None, -(row.mean_gain or 0.0), row.operator)))


class ContextFilter:
    """Says what may race. `add` every context that was proposed, so that no child repeats it.

    `prompts` are the texts of all search prompts; `count_tokens` counts as the model does; placements that are `same`
    as another make no difference.
    """

    def __init__(
        self,
        prompts: Iterable[str],
        count_tokens: Callable[[str], int],
        max_tokens: int,
        same: Mapping[Placement, Placement] | None = None,
    ) -> None:
        self._same = same or {}
        self._copies: set[tuple[str, ...]] = set()
        for text in prompts:
            prompt = normalised(text).split()
            if len(prompt) >= SHORTEST_COPY:
                last = max(1, len(prompt) - COPY_WORDS + 1)
                self._copies |= {tuple(prompt[start : start + COPY_WORDS]) for start in range(last)}
        self._lengths = sorted({len(run) for run in self._copies})
        self._starts = {run[:SHORTEST_COPY] for run in self._copies}
        """No copy begins otherwise: this alone rules out most places in a text."""
        self._count_tokens, self._max_tokens = count_tokens, max_tokens
        self._known: set[tuple[str, ...]] = set()

    def add(self, context: Context) -> None:
        """Remember a context: from now on it is a duplicate."""
        self._known.add(self._key(context))

    def objection(self, context: Context) -> str | None:
        """Return why a context must not race, in a few words; None if it may."""
        text_words = normalised(context.text).split()
        if not text_words:
            return "no words"
        if _CONTROL.search(context.text):
            return "a control character or half a character in it"
        if self._key(context) in self._known:
            return "a duplicate of a known context"
        if (named := _BENCHMARK.search(context.text)) and named.lastindex:
            return f"the name of a benchmark: {BENCHMARKS[named.lastindex - 1].replace(' ', '')}"
        for start in range(len(text_words) - SHORTEST_COPY + 1):
            if tuple(text_words[start : start + SHORTEST_COPY]) in self._starts:
                runs = [tuple(text_words[start : start + length]) for length in self._lengths]
                if run := next((run for run in runs if run in self._copies), None):
                    return f"copied from a prompt: '{' '.join(run)}'"
        num_tokens = self._count_tokens(context.text)
        return f"{num_tokens} tokens, {self._max_tokens} at most" if num_tokens > self._max_tokens else None

    def _key(self, context: Context) -> tuple[str, ...]:
        """The same for contexts that differ in nothing that matters."""
        # Around the prompt it matters which paragraph is the last: it alone comes after the prompt.
        parts = context.text.strip().rpartition("\n\n") if context.placement == "around" else (context.text,)
        return self._same.get(context.placement, context.placement), *map(normalised, parts)
