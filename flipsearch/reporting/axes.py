"""Axes of a chart: which numbers stand at it, and where a value lies on it. Pure arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NUM_TICKS = 4
"""About so many steps from one end of an axis to the other."""
LOG_FROM = 50
"""An axis that may be logarithmic is where the largest value is so many times the smallest."""
LARGEST = 1e100
"""A value beyond it is not drawn: no axis could be read."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How values are read."""

    unit: str
    """Shown above the axis."""
    is_rate: bool = False
    """Fractions, shown as per cent."""
    low: float | None = 0.0
    """The axis begins at it or lower; None lets the values decide."""
    high: float | None = None
    """The axis ends at it or higher; None lets the values decide."""
    may_be_log: bool = False
    """Logarithmic where the values span that much."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis."""

    at: float
    """In the drawing's units."""
    label: str
    """As read."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """An axis laid out over a length of the drawing."""

    place: Callable[[float], float]
    """Value -> where it lies, in the drawing's units."""
    ticks: tuple[Tick, ...]
    """The numbers that stand at it."""
    is_log: bool = False
    """Equal distances are equal ratios."""


def value_ruler(axis: Axis, values: Sequence[float], start: float, end: float) -> Ruler:
    """Return an axis from `start` to `end` that holds all drawable `values`; without any it has no ticks."""
    if not values:
        return Ruler(_linear(0, 1, start, end), ())
    lowest = min((value for value in values if value > 0), default=math.inf)
    if axis.may_be_log and min(values) >= 0 and max(values) / LOG_FROM > lowest:
        return _log_ruler(values, start, end)
    ticks = _linear_ticks(axis, values)
    place = _linear(ticks[0], ticks[-1], start, end)
    return Ruler(
        place, tuple(Tick(place(tick), label) for tick, label in zip(ticks, _labels(axis, ticks), strict=True))
    )


def step_ruler(first: float, last: float, start: float, end: float) -> Ruler:
    """Return an axis of whole steps from `first` to `last`."""
    place, step = _linear(first, last, start, end), max(1.0, _nice(last - first))
    ticks = [index * step for index in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return Ruler(place, tuple(Tick(place(tick), f"{tick:,.0f}") for tick in ticks))


def is_drawable(value: float) -> bool:
    """Return whether a value can stand on an axis."""
    return math.isfinite(value) and abs(value) < LARGEST


def number(value: float, is_rate: bool = False) -> str:
    """Return a figure with three digits, as per cent if it is a rate; one that is not finite in words."""
    if not math.isfinite(value):
        return "not finite" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    if is_rate and abs(value) < LARGEST:
        return f"{_tidy(f'{100 * value:.3g}')} %"
    if value and abs(value) < 1e-3:
        return _tidy(f"{value:.2e}")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else _tidy(f"{value:.3g}")


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.5)


def _log_ruler(values: Sequence[float], start: float, end: float) -> Ruler:
    """Return an axis of powers of ten; where some values are zero, its foot is zero."""
    positive = [value for value in values if value > 0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    every, has_zero = math.ceil((last - first) / NUM_TICKS), min(values) <= 0
    powers = range(first - every * has_zero, last + every, every)
    inner = _linear(powers[0], powers[-1], start, end)
    labels = [f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}" for power in powers]
    if has_zero:
        labels[0] = "0"
    ticks = tuple(Tick(inner(power), label) for power, label in zip(powers, labels, strict=True))
    return Ruler(lambda value: inner(max(powers[0], math.log10(value))) if value > 0 else start, ticks, is_log=True)


def _linear_ticks(axis: Axis, values: Sequence[float]) -> list[float]:
    low = min(values if axis.low is None else [axis.low, *values])
    high = max(values if axis.high is None else [axis.high, *values])
    # Nearly equal values: a span that rounding makes would have ticks that are all the same.
    if high - low <= 1e-6 * max(abs(high), abs(low)) or high - low < 1 / LARGEST:
        high = low + (abs(low) if abs(low) > 1 / LARGEST else 1.0)
    step = _nice(high - low)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _nice(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, about NUM_TICKS of which make the span."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= 0.8 * span / NUM_TICKS)


def _labels(axis: Axis, ticks: Sequence[float]) -> list[str]:
    factor, unit = (100, " %") if axis.is_rate else (1, "")
    step, largest = factor * (ticks[1] - ticks[0]), factor * max(map(abs, ticks))
    return [_label(factor * tick, step, largest) + unit for tick in ticks]


def _label(value: float, step: float, largest: float) -> str:
    """Return a number with the digits that tell it from the next one."""
    if 1e-2 <= largest < 1e6:
        # + 0.0: there is no minus zero on an axis.
        return f"{value + 0.0:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return _tidy(f"{value:.{max(0, math.ceil(math.log10(largest / step)))}e}") if value else "0"


def _tidy(text: str) -> str:
    """Return a number without the padding of its mantissa and exponent."""
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}" if exponent else text
