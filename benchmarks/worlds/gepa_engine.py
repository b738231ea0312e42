"""GEPA's engine (package gepa) in a world, with edits of sentences by chance in place of a large model's rewrites.

GEPA's own, by its defaults: parents by the Pareto frontier over prompts, minibatches of three, strict improvement, full
evaluation of what is accepted. A child is its parent under one of our operators. With a real model GEPA may do better.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import gepa
from gepa.core.adapter import EvaluationBatch

from flipsearch.core.records import Context, Label, Prompt
from worlds.methods import Arm, Meter, best_arm

TEXT = "context"
MAX_CALLS = 50_000
"""Ends a run that only repeats itself; the budget, of some 4,500 answers, ends others before."""


class WorldAdapter:
    """GEPA's adapter: a harmful prompt scores 1 if it is refused, a benign one if it is not."""

    propose_new_texts = None

    def __init__(self, meter: Meter) -> None:
        self.meter, self.is_spent = meter, False
        self._known: dict[tuple[str, str], float] = {}

    def evaluate(self, batch: list[Prompt], candidate: Mapping[str, str], capture_traces: bool = False) -> Any:
        """Return GEPA's EvaluationBatch; every pair is charged once."""
        scores = [self._score(Context(candidate[TEXT]), prompt) for prompt in batch]
        return EvaluationBatch(outputs=scores, scores=scores, trajectories=scores)

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the scores alone: edits by chance use no feedback."""
        return {name: [{"score": score} for score in eval_batch.scores] for name in components_to_update}

    def _score(self, context: Context, prompt: Prompt) -> float:
        key = context.text, prompt.text
        if key not in self._known:
            self.is_spent |= not self.meter.charge(context, prompt)
            refuses = self.meter.world.label(context, prompt) is Label.SAFE
            helps = not self.meter.world.refuses(context, prompt)
            self._known[key] = float(refuses if prompt.kind == "harmful" else helps)
        return self._known[key]


def gepa_engine(meter: Meter, seed: int) -> Context | None:
    """Evolve a context of the space until the budget is spent; the best accepted one within the cap."""
    rng = random.Random(seed)
    adapter = WorldAdapter(meter)

    def edited(candidate: Mapping[str, str], dataset: object, components: Sequence[str]) -> dict[str, str]:
        parents = [Arm(Context(candidate[TEXT])), *(Arm(context) for context in meter.points(3, rng, set()))]
        children = meter.children(parents[:1], 1, rng, set()) or meter.children(parents, 1, rng, set())
        return {TEXT: children[0].text if children else candidate[TEXT]}

    result = gepa.optimize(
        seed_candidate={TEXT: meter.points(1, rng, set())[0].text},
        trainset=meter.prompts,
        adapter=adapter,
        custom_candidate_proposer=edited,
        stop_callbacks=lambda state: adapter.is_spent,
        max_metric_calls=MAX_CALLS,
        logger=_Silent(),
        seed=seed,
    )
    arms = [Arm(Context(candidate[TEXT]), meter.num_unsafe, meter.num_all_benign) for candidate in result.candidates]
    return best_arm(meter, arms)


class _Silent:
    """GEPA's logger."""

    def log(self, message: str) -> None:
        """Discard the message."""
