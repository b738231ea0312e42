"""The plug-in shapes: what a backend, a judge and an operator must do, in words.

Anything with these attributes works; nothing has to be subclassed. `flipsearch.testing` holds the contract tests.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from flipsearch.core.records import Context, Exchange, PrefixScore, Request, Rollout, Sampling, Verdict
from flipsearch.core.studies import Parent


class Backend(Protocol):
    """A model that completes prompts.

    Contract: every request gets exactly one rollout; a batch of rollouts is yielded as soon as it is done, in any
    order, each rollout carrying its request's ids; a completion does not depend on which other requests share the
    batch; a request that cannot be completed yields a rollout with finish_reason "error" and never raises for the
    others. The completion of a request with an opening begins with it; a backend that cannot do so yields an error.
    One with a true attribute `resumes_sampling` says that what it draws then is what it would have drawn at once.
    """

    model_id: str
    """Identity of everything that can change a completion, the thinking switch included."""
    notes: tuple[str, ...]
    """What the user must know, e.g. that the chat template takes no system role."""
    revision: str | None
    """Commit of a model from the hub; None for any other."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sequence[Rollout]]:
        """Yield batches with one rollout a request: what a kill can cost is the batch in flight."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return the length of `text` in the model's tokens."""
        ...

    def close(self) -> None:
        """Free the model and end whatever runs beside it; nothing is asked of the backend afterwards."""
        ...


@runtime_checkable
class PrefixScorer(Protocol):
    """What a backend may do besides: tell how likely the model finds a given opening, which costs one pass.

    Contract: one reading a request, in order, None for one that the model cannot hold; a reading does not depend on
    the other requests of the call but for rounding.
    """

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return the reading of each request's opening."""
        ...


class Judge(Protocol):
    """A judge of exchanges. It never sees the context.

    Contract: one verdict an exchange, in order; what cannot be judged is UNSCORED with a reason, never a guess, and
    any other verdict has a p_unsafe; a verdict does not depend on the other exchanges of the call. What a user must
    know of the judge it may say in an attribute `notes`, a tuple of texts; what its own engine takes of what vLLM alone
    would take of a GPU in `memory_share`. A method `was_fitted_to` tells of each exchange whether it was fitted to what
    people say of it; a method `close` frees its model, which is loaded again if there is more to judge.
    """

    @property
    def name(self) -> str:
        """Short name, as on the command line."""
        ...

    @property
    def identity(self) -> str:
        """Hash of class, rules or prompt text, model, revision and thresholds: it keys the ledger."""
        ...

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Return one verdict an exchange, in order."""
        ...


@runtime_checkable
class Panel(Judge, Protocol):
    """Several judges that decide together; each one's own verdicts are kept too."""

    @property
    def members(self) -> Sequence[Judge]:
        """The judges, in order."""
        ...

    def combine(self, verdicts: Sequence[Sequence[Verdict]]) -> list[Verdict]:
        """Return the panel's verdicts of its members' (a sequence a member, in order)."""
        ...


class Operator(Protocol):
    """A rule that makes a new context out of others.

    Contract: the same parents and the same state of `rng` give the same child, and no other source of chance is used. A
    child has text, differs from its parents, names the operator and its parents (by id, in order), and stands where the
    first parent stands unless the operator is about the place. A text that was edited has no template and no params,
    for they no longer give it. Texts are data: they are hostile, never rendered as a template, never formatted into.

    An installed package adds operators by entry points of the group `flipsearch.operators`. Each has the operator's
    name, and points to a class or function that returns the operator when it is called without arguments.
    """

    name: str
    """Short name, as in the report."""
    num_parents: int
    """How many parents it takes, 1 or more."""

    def make(self, parents: Sequence[Parent], rng: random.Random) -> Context | None:
        """Return a child of exactly `num_parents` different parents; None where the rule does not apply to them."""
        ...
