"""Several tests at once: p-values adjusted so that any false claim among them is as rare as one test promises."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order (Holm 1979, Scandinavian Journal of Statistics 6:65-70).

    Rejecting what lies below alpha after adjustment makes any false rejection with probability at most alpha, however
    the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
