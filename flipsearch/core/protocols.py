"""The protocols of plug-ins: what a backend, a judge and an operator must do.

Anything with these attributes works; nothing has to be subclassed. `flipsearch.testing` holds the contract tests.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from flipsearch.core.records import Context, Exchange, PrefixScore, Request, Rollout, Sampling, Verdict
from flipsearch.core.studies import Parent


class Backend(Protocol):
    """A model that completes prompts.

    Contract: every request gets exactly one rollout, which carries its ids; batches of rollouts are yielded as soon as
    they are done, in any order, and an empty one where only an optional text `status`, what the backend waits for, has
    changed; a completion does not depend on which other requests share the batch; a request that
    cannot be completed yields a rollout with finish_reason "error" and never raises for the others. The completion of
    a request with a prefill begins with it; a backend that cannot do so yields an error.
    Sampling with `think_tokens` and requests that skip a thought are for backends that know the marks of their model:
    one with an optional true attribute `thinks` gets a budget where the user gives none, and reports
    `num_thought_tokens`, without which no request skips a thought; `same_placements` names placements that give the
    same tokens, and `system_notes` are notes on system contexts alone. A backend that cannot keep a budget refuses it
    in `check`.
    How a backend is loaded and checked is described in `flipsearch.backends.base`.
    """

    model_id: str
    """Identity of everything that can change a completion, the thinking switch included."""
    notes: tuple[str, ...]
    """What the user must know, e.g. that the chat template takes no system role."""
    revision: str | None
    """Commit of a model from the hub; None for any other."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sequence[Rollout]]:
        """Yield batches with one rollout per request; a kill costs at most the batch in flight."""

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in the model's tokens."""

    def close(self) -> None:
        """Unload the model and end whatever runs beside it; the backend is not used afterwards."""


@runtime_checkable
class PrefixScorer(Protocol):
    """A backend that can also score prefills: their teacher-forced log-probabilities, in one pass.

    Contract: one score per request, in order, None for one that the model cannot hold; a score depends on the other
    requests of the call by rounding alone.
    """

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return the score of each request's prefill."""


@runtime_checkable
class AnswerBeginner(Protocol):
    """A backend that can begin completions with a given text, because it knows the tokens of its model."""

    def completion_ids(self, answer: str) -> tuple[int, ...]:
        """Return the tokens that a completion begins with if its answer begins with a text."""

    def beginning(self, answer: str, num_tokens: int) -> str:
        """Return the first tokens of an answer as text; "" if it has no more than these."""


class Judge(Protocol):
    """Judges exchanges; it never sees the context.

    Contract: one verdict per exchange, in order; what cannot be judged is UNSCORED with a reason, never a guess, and
    any other verdict has a p_unsafe; a verdict does not depend on the other exchanges of the call.

    Optional attributes: `notes`, a tuple of texts that users must know; `memory_share`, the share of vLLM's GPU memory
    that the judge's own engine takes; `was_fitted_to(exchanges)`, which says of each exchange whether the judge was
    fitted to its human label; `close()`, which unloads the model until there is more to judge.
    """

    @property
    def name(self) -> str:
        """Short name, as on the command line."""

    @property
    def identity(self) -> str:
        """Hash of class, rules or prompt text, model, revision and thresholds: it keys the ledger."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict per exchange, in order."""


@runtime_checkable
class Panel(Judge, Protocol):
    """Several judges that decide together; the verdicts of each are kept too."""

    @property
    def members(self) -> Sequence[Judge]:
        """The judges, in order."""

    def combine(self, verdicts: Sequence[Sequence[Verdict]]) -> list[Verdict]:
        """Return the panel's verdicts from its members' verdicts: one sequence per member, in order."""


class Operator(Protocol):
    """A rule that makes a new context out of others.

    Contract: the same parents and the same state of `rng` give the same child, and no other source of chance is used. A
    child has text, differs from its parents, names the operator and its parents (by id, in order), and keeps the first
    parent's placement unless the operator changes placements. An optional true attribute `is_costly` says that a child
    costs a model's answer: few are made, and all of them race. An edited text has no template and no params, as they no
    longer give it. Texts are data: they are hostile, never rendered as a template, never formatted into.

    An installed package adds operators by entry points of the group `flipsearch.operators`. Each has the operator's
    name, and points to a class or function that returns the operator when it is called without arguments.
    """

    name: str
    """Short name, as in the report."""
    num_parents: int
    """How many parents it takes, 1 or more."""

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return a child of exactly `num_parents` different parents; None where the rule does not apply to them."""
