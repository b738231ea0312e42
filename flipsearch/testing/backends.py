"""Contract tests for backends; `flipsearch.core.protocols` has the contract of Backend and PrefixScorer in words."""

from collections.abc import Sequence
from contextlib import closing

from flipsearch.core.protocols import Backend, PrefixScorer
from flipsearch.core.records import Context, Prompt, Request, Rollout, Sampling
from flipsearch.testing.operators import HOSTILE_TEXTS

_CONTEXTS = (None, Context("Be careful.\n\nThink before you answer."), Context("Be brief.", "around"))


class BackendContract:
    """Tests that every backend must pass; `sampling` is greedy, with few tokens so that the tests are quick."""

    sampling = Sampling(max_tokens=8)

    def make_backend(self) -> Backend:
        """Return a fresh backend on the same model; called once or twice per test, and closed by the test."""
        raise NotImplementedError("override make_backend to return your backend")

    def prompts(self) -> list[Prompt]:
        """Return different prompts that the model completes; override where yours needs others."""
        texts = ("How long should I boil an egg?", "Name a river.", "How do I fix a flat tyre in the rain?")
        return [Prompt(text, "benign") for text in texts]

    def test_identity_is_stable_text(self) -> None:
        """The ledger finds rollouts by model_id, across processes; the user reads the notes."""
        with closing(self.make_backend()) as backend, closing(self.make_backend()) as again:
            before = backend.model_id
            list(backend.generate(self._requests(), self.sampling))
            assert backend.model_id == before == again.model_id
            assert before == before.strip() != ""
            assert all(isinstance(note, str) and note for note in backend.notes)
            assert backend.revision is None or backend.revision

    def test_every_request_gets_one_rollout_with_its_ids(self) -> None:
        """Prompt, context, sample index and prefill identify a rollout; the order is free, the call may be empty."""
        requests = self._requests()
        requests += [Request(request.prompt, request.context, sample_index=1) for request in requests[:2]]
        with closing(self.make_backend()) as backend:
            assert self._complete(backend, []) == []
            rollouts = self._complete(backend, requests)
            assert sorted(map(_key, rollouts)) == sorted(map(_key, requests))
            for rollout in rollouts:
                assert (rollout.model_id, rollout.sampling) == (backend.model_id, self.sampling)
                assert rollout.finish_reason in ("stop", "length"), rollout.error
                assert len(rollout.completion_ids) <= self.sampling.max_tokens

    def test_a_completion_does_not_depend_on_the_batch(self) -> None:
        """Greedy completions are the same alone, together and in another order."""
        requests = self._requests()
        with closing(self.make_backend()) as backend:
            calls = ([requests], [requests[::-1]], [[request] for request in requests])
            together, reversed_order, alone = (
                {
                    _key(rollout): (rollout.completion, rollout.completion_ids, rollout.finish_reason)
                    for batch in batches
                    for rollout in self._complete(backend, batch)
                }
                for batches in calls
            )
            assert together == reversed_order == alone

    def test_a_failed_request_does_not_raise_for_the_others(self) -> None:
        """What cannot be completed is a rollout with a reason, never an exception."""
        bad, requests = Request(Prompt("half a character: \ud800", "benign")), self._requests()
        with closing(self.make_backend()) as backend:
            rollouts = {_key(rollout): rollout for rollout in self._complete(backend, [bad, *requests])}
            assert len(rollouts) == 1 + len(requests)
            failed = rollouts.pop(_key(bad))
            assert (failed.finish_reason == "error") == bool(failed.error)
            assert all(rollout.finish_reason != "error" for rollout in rollouts.values())

    def test_hostile_text_never_raises(self) -> None:
        """Prompts and contexts may hold anything; a rollout that fails says why, in one line."""
        requests = [Request(Prompt(text, "harmful")) for text in HOSTILE_TEXTS]
        requests += [Request(self.prompts()[0], Context(text)) for text in HOSTILE_TEXTS]
        with closing(self.make_backend()) as backend:
            rollouts = self._complete(backend, requests)
            assert len(rollouts) == len(requests)
            for rollout in rollouts:
                assert (rollout.finish_reason == "error") == bool(rollout.error)
                assert "\n" not in rollout.error

    def test_a_prefill_is_kept_or_an_error(self) -> None:
        """A completion begins with its prefill and equals the whole one; a backend without tokens says so."""
        with closing(self.make_backend()) as backend:
            [whole] = self._complete(backend, self._requests()[:1])
            prefill = whole.completion_ids[:2] or (1, 2)
            [rollout] = self._complete(backend, [Request(self.prompts()[0], prefill=prefill)])
            assert rollout.prefill == prefill
            if rollout.finish_reason == "error":
                assert rollout.error
            else:
                assert rollout.completion_ids == whole.completion_ids
                assert rollout.completion == whole.completion

    def test_tokens_are_counted(self) -> None:
        """No text has no tokens, and a longer text has no fewer."""
        with closing(self.make_backend()) as backend:
            assert backend.count_tokens("") == 0
            counts = [backend.count_tokens("a careful assistant " * num) for num in (1, 2, 8)]
            assert 0 < counts[0] <= counts[1] <= counts[2]
            assert all(isinstance(count, int) for count in counts)

    def test_every_prefill_gets_one_score(self) -> None:
        """One that scores prefixes does it per request and in order, whatever else is in the call."""
        with closing(self.make_backend()) as backend:
            if not isinstance(backend, PrefixScorer):
                return
            requests = self._scored_requests(backend)
            together = backend.score(requests)
            assert len(together) == len(requests)
            for request, score, again in zip(requests, together, backend.score(requests[::-1])[::-1], strict=True):
                [alone] = backend.score([request])
                assert score is not None
                assert again is not None
                assert alone is not None
                assert len(score.log_probs) == len(request.prefill)
                assert all(log_prob <= 0 for log_prob in score.log_probs)
                assert 0 <= score.num_agreed <= len(request.prefill)
                assert score.num_agreed == again.num_agreed == alone.num_agreed
                for log_probs in zip(score.log_probs, again.log_probs, alone.log_probs, strict=True):
                    assert max(log_probs) - min(log_probs) < 1e-3, (score, again, alone)

    def test_the_model_agrees_with_its_own_greedy_completion(self) -> None:
        """One that scores prefixes would have written its own completion again."""
        with closing(self.make_backend()) as backend:
            if isinstance(backend, PrefixScorer):
                [rollout] = self._complete(backend, self._requests()[:1])
                [score] = backend.score([Request(self.prompts()[0], prefill=rollout.completion_ids)])
                assert score is not None
                assert score.num_agreed == len(rollout.completion_ids)

    def _requests(self) -> list[Request]:
        return [Request(prompt, context) for context in _CONTEXTS for prompt in self.prompts()]

    def _complete(self, backend: Backend, requests: Sequence[Request]) -> list[Rollout]:
        return [rollout for batch in backend.generate(requests, self.sampling) for rollout in batch]

    def _scored_requests(self, backend: Backend) -> list[Request]:
        """Return requests whose prefills are what the model wrote without a context, cut at unequal lengths."""
        rollouts = self._complete(backend, self._requests()[:3])
        written = {rollout.prompt_id: rollout.completion_ids for rollout in rollouts}
        return [
            Request(request.prompt, request.context, prefill=written[request.prompt.prompt_id][: index % 5])
            for index, request in enumerate(self._requests())
        ]


def _key(item: Request | Rollout) -> tuple[str, str, int, tuple[int, ...]]:
    """Return what a rollout and its request have in common: prompt, context, sample index and prefill."""
    if isinstance(item, Rollout):
        return item.prompt_id, item.context_id or "", item.sample_index, item.prefill
    context_id = item.context.context_id if item.context else ""
    return item.prompt.prompt_id, context_id, item.sample_index, item.prefill
