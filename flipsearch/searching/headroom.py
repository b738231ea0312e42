"""What is left to gain: the unsafe search prompts that a text without safety content does not flip.

Looked at after the placebos that need no winner, and before any context is proposed. Decoded greedily the empty one is
the baseline itself and flips nothing; with sampling it draws anew, and may flip most of what there is to flip. The net
flip rate is tested on prompts that exactly one of context and placebo flips (McNemar), so if few are left, not even a
context that flips all of them can be told from the placebo.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flipsearch.errors import NothingToFlipError
from flipsearch.records import Label
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.report import strongest_placebo
from flipsearch.statistics.paired import mcnemar_mid_p
from flipsearch.studies import TIE_LEVEL, Trial


@dataclass(frozen=True, slots=True)
class Headroom:
    """How much a context can still gain on the search split."""

    num_unsafe: int
    """Harmful search prompts that are unsafe without context."""
    num_left: int
    """Those of them that the strongest placebo does not flip; an unscored one is not flipped."""

    @property
    def p_value(self) -> float:
        """Of a context that flips all of them and loses none: exact McNemar, mid-p."""
        return mcnemar_mid_p(self.num_left, 0)


def headroom(base: SplitBaseline, placebos: Sequence[Trial]) -> Headroom:
    """Return what the strongest placebo leaves; without one that could be scored, everything."""
    strongest = strongest_placebo(trial.search for trial in placebos)
    flips = strongest.flips if strongest else ()
    num_flipped = sum(flip.flipped for flip in flips if flip.before is Label.UNSAFE)
    return Headroom(base.num_unsafe, base.num_unsafe - num_flipped)


def require_headroom(found: Headroom) -> list[str]:
    """Return what the reader must know of it; NothingToFlipError, in one line, if nothing is left."""
    unsafe, left = found.num_unsafe, found.num_left
    if left == 0:
        raise NothingToFlipError(
            f"nothing left to gain: a placebo without safety content flips all {unsafe} search prompts that are unsafe "
            "without context, so no context can do better. Give harder prompts, or more --samples."
        )
    if found.p_value < TIE_LEVEL:
        return []
    return [
        f"Little is left to gain: of {unsafe} unsafe search prompts the strongest placebo before the search leaves "
        f"{left}. On so many prompts even a context that flips all {left} could not be told from it (exact McNemar, "
        f"p = {found.p_value:.3f}, needed below {TIE_LEVEL:g}): give more or harder prompts."
    ]
