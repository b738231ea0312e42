"""Credit: counts, paired gains with their interval, and a choice that follows what pays."""

import random

import pytest

from flipsearch.core.records import Flip, Kind, Label, Measurement
from flipsearch.measuring.measure import summarize
from flipsearch.searching.breeder import Credit, paired_gain

LABELS = {"f": Label.SAFE, "-": Label.UNSAFE, "?": Label.UNSCORED}


def measured(marks: str, kind: Kind = "harmful", before: Label = Label.UNSAFE) -> Measurement:
    """One prompt a mark: f flipped, - not, ? unscored, blank not seen."""
    flips = [Flip(f"p{i}", kind, before, LABELS[mark]) for i, mark in enumerate(marks) if mark != " "]
    return summarize(flips, "search", whole=False)


@pytest.mark.parametrize(
    ("child", "parent", "gain"),
    [
        ("ff--", "f---", 0.25),
        ("----", "ffff", -1.0),
        ("ff", "-f--", 0.5),  # a child that was cut is compared on what it has seen
        ("f?-", "-ff", 0.0),  # unscored pairs are in no rate
        ("  ff", "ff", None),
        ("", "ff", None),
        ("??", "ff", None),
    ],
)
def test_gain_is_paired(child: str, parent: str, gain: float | None) -> None:
    assert paired_gain(measured(child), measured(parent)) == gain


def test_benign_and_safe_prompts_are_no_gain() -> None:
    assert paired_gain(measured("ff", "benign"), measured("--", "benign")) is None
    assert paired_gain(measured("ff", before=Label.SAFE), measured("--", before=Label.SAFE)) is None


def test_rows() -> None:
    credit = Credit(["drop", "swap", "new"])
    for gain in (0.1, -0.2, 0.4):
        credit.count_child("drop")
        credit.add_gain("drop", gain)
    credit.count_child("swap")
    credit.count_filtered("swap")
    credit.add_gain("swap", 0.3)
    first, second, third = credit.rows()
    assert (first.operator, first.num_children, first.num_filtered, first.num_raced) == ("swap", 1, 1, 1)
    assert (second.operator, second.num_raced, second.num_better) == ("drop", 3, 2)
    assert second.mean_gain == pytest.approx(0.1)
    assert -1 <= second.low < 0.1 < second.high <= 1
    assert second.high - 0.1 == pytest.approx(4.3027 * 0.3 / 3**0.5, rel=1e-4)  # Student's t with 2 degrees of freedom
    assert (third.operator, third.mean_gain, third.low, third.high) == ("new", None, -1.0, 1.0)


@pytest.mark.parametrize("gain", [-1.1, 1.1, float("nan")])
def test_a_gain_is_a_difference_of_rates(gain: float) -> None:
    with pytest.raises(ValueError, match=r"gain in \[-1, 1\]"):
        Credit(["drop"]).add_gain("drop", gain)


def chosen(gains: dict[str, list[float]], num: int = 300) -> dict[str, int]:
    credit, rng = Credit(list(gains)), random.Random(0)
    for name, values in gains.items():
        for value in values:
            credit.add_gain(name, value)
    picks = [credit.choose(list(gains), rng) for _ in range(num)]
    return {name: picks.count(name) for name in gains}


def test_what_pays_is_chosen_most() -> None:
    picks = chosen({"good": [0.3, 0.2] * 10, "same": [0.0] * 20, "bad": [-0.3] * 20})
    assert picks["good"] > 280


def test_rare_improvement_is_worth_more_than_no_change() -> None:
    picks = chosen({"rare": [-0.3, -0.3, -0.3, 0.4] * 10, "same": [0.0] * 40})
    assert picks["rare"] > 0.8 * 300


def test_what_breaks_the_cap_improves_nothing() -> None:
    credit, rng = Credit(["blunt", "fair"]), random.Random(0)
    for _ in range(20):
        credit.add_gain("blunt", 0.5, admissible=False)
        credit.add_gain("fair", 0.1)
    assert [credit.choose(["blunt", "fair"], rng) for _ in range(50)].count("fair") >= 48
    rows = {row.operator: row for row in credit.rows()}
    assert (rows["blunt"].num_better, rows["fair"].num_better) == (0, 20)
    assert rows["blunt"].mean_gain == pytest.approx(0.5)


def test_what_was_not_tried_gets_its_turn() -> None:
    picks = chosen({"new": [], "fair": [0.05] * 20, "useless": [0.0] * 20})
    assert picks["new"] > 75
    assert picks["useless"] < picks["new"]


def test_the_choice_follows_the_generator() -> None:
    credit = Credit(["a", "b", "c"])
    picks = [[credit.choose(["a", "b", "c"], rng) for _ in range(20)] for rng in map(random.Random, (1, 1, 2))]
    assert picks[0] == picks[1] != picks[2]
