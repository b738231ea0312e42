"""Follows a completion token by token: where its thought begins and ends, and when its budget closes it.

    before --opening mark--> thought --closing mark, the model's own or forced--> answer --max_tokens--> full

A thought that has taken its budget is closed as the chat template closes it; the answer then has `max_tokens` of its
own. What is forced depends on nothing but the tokens before it, so a completion that is continued from any of its
prefixes is the same. Knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from flipsearch.core.records import Sampling

TAIL = 16
"""Last tokens in which a mark of several tokens is looked for."""
OPENING_TOKENS = 8
"""A thought begins within so many tokens, or the model answers at once."""


@dataclass(frozen=True, slots=True)
class ThoughtWatch:
    """The marks of a thought, and how to find them in tokens: by one id each, or by their text."""

    open_mark: str
    close_mark: str
    open_id: int | None
    close_id: int | None
    closing_ids: tuple[int, ...]
    """What is forced."""
    decode: Callable[[Sequence[int]], str]

    def opens(self, ids: Sequence[int]) -> bool:
        """Return whether the last token completes the mark that opens a thought."""
        return self._completes(ids, self.open_id, self.open_mark)

    def closes(self, ids: Sequence[int]) -> bool:
        """Return whether the last token completes the mark that closes a thought."""
        return self._completes(ids, self.close_id, self.close_mark)

    def num_thought_tokens(self, ids: Sequence[int]) -> int:
        """Return how many of a completion's tokens come up to the end of its first closing mark; 0 without one."""
        if self.close_id is not None:
            return list(ids).index(self.close_id) + 1 if self.close_id in ids else 0
        if self.close_mark not in self.decode(ids):
            return 0
        low, high = 0, len(ids)  # the shortest prefix with the mark is longer than `low`, and `high` at most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.close_mark in self.decode(ids[:middle]) else (middle, high)
        return high

    def _completes(self, ids: Sequence[int], id: int | None, mark: str) -> bool:
        if id is not None:
            return ids[-1] == id
        tail = ids[-TAIL:]
        return mark in self.decode(tail) and mark not in self.decode(tail[:-1])


@dataclass(slots=True)
class ThoughtBudget:
    """One completion as far as it is written, and what its budget says of the next token."""

    watch: ThoughtWatch
    sampling: Sampling
    in_thought: bool
    """At first: the prompt opened a thought."""
    ids: list[int] = field(default_factory=list)
    num_thought: int = 0
    """Tokens of the thought so far, without its marks."""
    num_answer: int = 0
    """Tokens of the answer so far."""
    num_thought_tokens: int = 0
    """Tokens up to the end of the closing mark; 0 while the thought is open, or without one."""
    was_forced: bool = False
    _forced: list[int] = field(default_factory=list)

    @property
    def next_id(self) -> int | None:
        """The token that must come next; None leaves it to the model."""
        return self._forced[0] if self._forced else None

    @property
    def is_full(self) -> bool:
        """Whether the answer has all its tokens."""
        return not self.in_thought and self.num_answer >= self.sampling.max_tokens

    @property
    def num_left(self) -> int:
        """Most tokens that the model may write before the budget has to be asked again."""
        if self.in_thought:
            return self.sampling.think_tokens - self.num_thought
        may_open = not self.num_thought_tokens and self.num_answer < OPENING_TOKENS
        left = self.sampling.max_tokens - self.num_answer
        return min(left, self.sampling.think_tokens) if may_open else left

    def follow_all(self, ids: Sequence[int]) -> Self:
        """Take several tokens, and return the budget."""
        for id in ids:
            self.follow(id)
        return self

    def follow(self, id: int) -> None:
        """Take the next token."""
        self.ids.append(id)
        if self._forced:
            self._forced = self._forced[1:] if id == self._forced[0] else []
            if not self._forced:
                self._close(was_forced=True)
        elif self.in_thought:
            self.num_thought += 1
            if self.watch.closes(self.ids):
                self._close(was_forced=False)
            elif self.num_thought == self.sampling.think_tokens:
                self._forced = list(self.watch.closing_ids)
        else:
            self.num_answer += 1
            is_first = not self.num_thought_tokens and self.num_answer <= OPENING_TOKENS
            if is_first and self.watch.opens(self.ids):
                self.in_thought, self.num_answer = True, 0

    def _close(self, *, was_forced: bool) -> None:
        self.in_thought, self.was_forced = False, was_forced
        self.num_thought_tokens, self.num_answer = len(self.ids), 0
