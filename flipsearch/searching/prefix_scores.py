"""What a model that scores prefixes thinks of its known answers under a context; nothing is generated.

The first tokens of the known unsafe answer to a harmful prompt, or of the known helpful answer to a benign one, are
scored under the context. The score of a context is the share of answers that are expected to change: by how much less
likely their beginnings became, and whether greedy decoding would say something else. It is one more feature of the
surrogate (searching.surrogate), which finds out from whole answers how much it tells. An answer that comes after a long
thought is scored without it, behind a thought that is closed at once: the thought's first tokens say nothing of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit

from flipsearch.core.measurements import Samples
from flipsearch.core.progress import Phase
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, Kind, Label, Prompt, Request
from flipsearch.measuring.runner import Runner
from flipsearch.searching.baseline import SplitBaseline

PREFILL_TOKENS = 24
"""Tokens of a known answer that are scored. Teacher and student differ most in the first ten (OPSA, Figure 2)."""
MOST_DROP, DROP_UNIT = 30.0, 10.0
"""A drop of log-probability counts at most this much, in units that are of size 1."""
INTERCEPT, PER_DROP, IF_LEFT = -3.0, 1.0, 3.0
"""Log-odds of a changed answer; the surrogate uses the order and the spacing of scores, not their level."""


class KnownAnswers:
    """The scores of contexts on `prompts`; none where the model cannot score prefixes, or no known answer."""

    def __init__(self, runner: Runner, base: SplitBaseline, prompts: Sequence[Prompt]) -> None:
        self._runner = runner
        requests: dict[str, Request] = {}
        if isinstance(runner.backend, PrefixScorer):
            known = {prompt: _known_answer(prompt.kind, base.outcomes[prompt.prompt_id]) for prompt in prompts}
            rollouts = runner.ledger.rollouts(id for id in known.values() if id)
            for prompt, id in known.items():
                if id in rollouts and rollouts[id].completion_ids:
                    lead = rollouts[id].num_lead_tokens
                    prefill = rollouts[id].completion_ids[lead : lead + PREFILL_TOKENS]
                    requests[prompt.prompt_id] = Request(prompt, prefill=prefill, skips_thought=lead > 0)
        scores = zip(requests, runner.score_prefixes(list(requests.values())), strict=True)
        self._without_context = {id: sum(score.log_probs) for id, score in scores if score is not None}
        self._requests = {id: requests[id] for id in self._without_context}
        self._known: dict[str, dict[Kind, float]] = {}

    @property
    def num_prompts(self) -> int:
        """Known answers that can be scored; 0: there are no scores."""
        return len(self._requests)

    @property
    def num_contexts(self) -> int:
        """Contexts that were scored."""
        return len(self._known)

    def add(self, contexts: Sequence[Context]) -> None:
        """Score the known answers under the contexts that were not scored before."""
        new = [context for context in contexts if context.context_id not in self._known]
        if not (new and self._requests):
            return
        self._runner.enter(Phase.SCREEN)
        pairs = [(context, request) for context in new for request in self._requests.values()]
        requests = [replace(request, context=context) for context, request in pairs]
        shares_of: dict[str, dict[Kind, list[float]]] = {context.context_id: {} for context in new}
        for (context, request), score in zip(pairs, self._runner.score_prefixes(requests), strict=True):
            if score is not None:
                drop = self._without_context[request.prompt.prompt_id] - sum(score.log_probs)
                is_left = score.num_agreed < len(score.log_probs)
                odds = INTERCEPT + PER_DROP * min(max(drop, 0.0), MOST_DROP) / DROP_UNIT + IF_LEFT * is_left
                shares_of[context.context_id].setdefault(request.prompt.kind, []).append(float(expit(odds)))
        for id, shares in shares_of.items():
            self._known[id] = {kind: float(np.mean(of_kind)) for kind, of_kind in shares.items()}

    def of(self, contexts: Sequence[Context], kind: Kind) -> list[float]:
        """Return the scores of contexts on one kind of prompt, nan for those without one."""
        return [self._known.get(context.context_id, {}).get(kind, float("nan")) for context in contexts]


def _known_answer(kind: Kind, samples: Samples) -> str:
    """The rollout id of the first sample that shows what the prompt counts as; "" for a prompt that is not scored."""
    if kind == "harmful":
        return samples.shown.rollout_id if samples.shown and samples.label is Label.UNSAFE else ""
    helpful = [judged for judged in samples.judged if judged.refused is False and samples.refused is False]
    return helpful[0].rollout_id if helpful else ""
