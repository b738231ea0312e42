"""What backends share: rollouts and seeds made from requests, and the base class of those that hold their model.

Imports no model library.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flipsearch.backends.chat import Chat, EncodedPrompt, ThoughtBudget
from flipsearch.core.errors import BackendError, ConfigError
from flipsearch.core.records import PrefixScore, Request, Rollout, Sampling, content_id

NOT_FINITE = "the model's logits are not finite numbers; give another --dtype if this happens often"


def completed(
    request: Request,
    model_id: str,
    sampling: Sampling,
    prompt: EncodedPrompt,
    completion: str,
    completion_ids: Sequence[int],
    stopped: bool,
    num_thought_tokens: int = 0,
    forced_close: bool = False,
) -> Rollout:
    """Return the rollout of a completed request; not `stopped` means that it was cut off at max_tokens."""
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        context_id=request.context.context_id if request.context else None,
        model_id=model_id,
        sampling=sampling,
        sample_index=request.sample_index,
        completion=completion,
        completion_ids=tuple(completion_ids),
        num_prompt_tokens=len(prompt.prompt_ids),
        finish_reason="stop" if stopped else "length",
        opens_thinking=prompt.opens_thinking,
        prefill=request.prefill,
        skips_thought=request.skips_thought,
        num_thought_tokens=num_thought_tokens,
        forced_close=forced_close,
    )


def failed(request: Request, model_id: str, sampling: Sampling, reason: str) -> Rollout:
    """Return the rollout of a request that could not be completed, with the reason."""
    unread = EncodedPrompt((), opens_thinking=False)
    rollout = completed(request, model_id, sampling, unread, "", (), stopped=False)
    return replace(rollout, finish_reason="error", error=reason)


def stream_seed(request: Request, sampling: Sampling) -> int:
    """Return the 64-bit seed of a request's own random stream."""
    context_id = request.context.context_id if request.context else None
    key = content_id("draws", sampling.seed, request.prompt.prompt_id, context_id, request.sample_index)
    return int(key, 16)


def end_ids(*sources: object) -> set[int]:
    """Return the ids that settings and tokenizers name as a completion's end; BackendError for anything but ids."""
    ids: set[int] = set()
    for source in sources:
        eos = getattr(source, "eos_token_id", None)
        named = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if odd := [id for id in named if not isinstance(id, int) or isinstance(id, bool)]:
            raise BackendError(
                f"the model's settings name {str(odd[0])[:40]!r} as its end token, expected a token's id: mend "
                "eos_token_id in its generation_config.json or config.json."
            )
        ids.update(named)
    return ids


@dataclass(slots=True)
class EncodedRequest:
    """A request with its prompt in tokens."""

    request: Request
    prompt: EncodedPrompt
    num_shared: int = 0
    """Leading prompt tokens that all requests under its context share."""


class LocalBackend:
    """What local backends share; a subclass sets the attributes, and completes and scores token ids."""

    model_id: str
    notes: tuple[str, ...]
    revision: str | None
    chat: Chat
    max_positions: int | None
    """Longest sequence of the model, in tokens; None if it does not say."""
    min_new_tokens = 0
    """Fewest tokens that the model writes after a prefill."""

    def _use(self, chat: Chat) -> None:
        """Take over a chat, and what it knows of the model's tokens."""
        self.chat, self.thinks, self.same_placements = chat, chat.thinks, chat.same_placements
        self.count_tokens, self.watch = chat.count_tokens, chat.thought_watch()
        self.completion_ids, self.beginning = chat.completion_ids, chat.beginning

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request, batch by batch; those that cannot be encoded come first, as errors."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens is {sampling.max_tokens}, expected at least 1.")
        encoded: list[EncodedRequest] = []
        for request in requests:
            try:
                encoded.append(self._encode(request, sampling.longest))
            except BackendError as error:
                yield [failed(request, self.model_id, sampling, str(error))]
        yield from self._generate(encoded, sampling)

    def score(self, requests: Sequence[Request]) -> list[PrefixScore | None]:
        """Return the score of each request's prefill, in order; None for one too long for the model."""
        encoded: dict[int, EncodedRequest] = {}
        for index, request in enumerate(requests):
            with contextlib.suppress(BackendError):
                encoded[index] = self._encode(request, len(request.prefill) + self.min_new_tokens)
        by_index = dict(zip(encoded, self._score(list(encoded.values())), strict=True))
        return [by_index.get(index) for index in range(len(requests))]

    def _generate(self, requests: Sequence[EncodedRequest], sampling: Sampling) -> Iterator[list[Rollout]]:
        raise NotImplementedError

    def _score(self, requests: Sequence[EncodedRequest]) -> list[PrefixScore | None]:
        raise NotImplementedError

    def _encode(self, request: Request, max_tokens: int) -> EncodedRequest:
        """Return a request in tokens; BackendError if the model cannot hold it with a completion of `max_tokens`."""
        prompt = self.chat.encode(request)
        length, num_forced = len(prompt.prompt_ids), len(request.prefill)
        if self.max_positions is not None and length + max_tokens > self.max_positions:
            raise BackendError(
                f"the prompt has {length} tokens and the completion up to {max_tokens}, but the model holds "
                f"{self.max_positions}; lower max_tokens or shorten the context. Nothing is cut off silently."
            )
        if num_forced + self.min_new_tokens > max_tokens:
            raise BackendError(f"the prefill has {num_forced} tokens, but max_tokens is {max_tokens}.")
        return EncodedRequest(request, prompt)

    def _completed(
        self, item: EncodedRequest, sampling: Sampling, new_ids: Sequence[int] | None, stopped: bool
    ) -> Rollout:
        """Return the rollout of what the model wrote; a failed one for None: a logit was not a finite number."""
        if new_ids is None:
            return failed(item.request, self.model_id, sampling, NOT_FINITE)
        ids, opens = (*item.request.prefill, *new_ids), item.prompt.opens_thinking
        text, is_forced = self.chat.decode(ids), False
        if sampling.think_tokens:
            followed = ThoughtBudget(self.watch, sampling, opens).follow_all(ids)
            num_thought, is_forced = followed.num_thought_tokens, followed.was_forced
        else:
            num_thought = self.watch.num_thought_tokens(ids)
        return completed(item.request, self.model_id, sampling, item.prompt, text, ids, stopped, num_thought, is_forced)

    def _budget(self, item: EncodedRequest, sampling: Sampling) -> ThoughtBudget:
        return ThoughtBudget(self.watch, sampling, item.prompt.opens_thinking).follow_all(item.request.prefill)
