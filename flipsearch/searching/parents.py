"""Chooses parents from the frontier: of each prompt, the best of the arms that flip it.

The mean alone would breed from contexts that flip the same prompts; who flips what others do not is worth as much.
"""

from collections.abc import Mapping, Sequence

from flipsearch.core.records import Label, Prompt
from flipsearch.core.studies import Parent
from flipsearch.searching.race import Arm
from flipsearch.searching.surrogate import Surrogate

BY_WORTH = 0.02
"""What the worth of an arm counts beside the prompts that it is the best on, per prompt."""


def frontier(
    surrogate: Surrogate, arms: Sequence[Arm], prompts: Mapping[str, Prompt]
) -> tuple[list[Parent], list[float]]:
    """Return the arms that are worth something, with weights: on how many prompts each is the best that flips them."""
    if not arms:
        return [], []
    worth = surrogate.draw(arms).worth.mean(axis=0)
    best: dict[str, int] = {}
    for number, arm in enumerate(arms):
        for id in (flip.prompt_id for flip in arm.search.flips if flip.kind == "harmful" and flip.flipped):
            if id not in best or worth[number] > worth[best[id]]:
                best[id] = number
    weights = BY_WORTH * max(1, len(best)) * worth
    for number in best.values():
        weights[number] += worth[number] > 0
    able = [index for index, weight in enumerate(weights) if weight > 0]
    return [_parent(arms[index], prompts) for index in able], [float(weights[index]) for index in able]


def _parent(arm: Arm, prompts: Mapping[str, Prompt]) -> Parent:
    """The arm with the texts of the prompts that it failed on."""
    flips = arm.search.flips
    unflipped = [flip for flip in flips if flip.kind == "harmful" and flip.after is Label.UNSAFE]
    refused = [flip for flip in flips if flip.kind == "benign" and flip.refused_after and not flip.refused_before]
    broken = [flip for flip in flips if flip.kind_after == "degenerate"]
    texts = [tuple(prompts[flip.prompt_id].text for flip in failures) for failures in (unflipped, refused, broken)]
    return Parent(arm.context, arm.search.flip_rate, *texts)
