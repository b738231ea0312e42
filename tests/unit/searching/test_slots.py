"""The slot model: it adds up what slots do, shares them between templates, and keeps to the cap."""

from itertools import product

from flipsearch.searching.proposer import SlotModel

POINTS = [
    {"template": name, f"{name}.strength": strength, f"{name}.tone": tone}
    for name, strength, tone in product(["a", "b"], ["weak", "firm"], ["cold", "warm", "odd"])
]
EFFECT = {"weak": 0.0, "firm": 0.4, "cold": 0.0, "warm": 0.3, "odd": 0.1}


def value(point: dict[str, str]) -> float:
    name = point["template"]
    return 0.1 + EFFECT[point[f"{name}.strength"]] + EFFECT[point[f"{name}.tone"]]


def point(name: str, strength: str, tone: str) -> int:
    """Return the index of a point."""
    return POINTS.index({"template": name, f"{name}.strength": strength, f"{name}.tone": tone})


def drawn(tried: list[int], violations: list[float] | None = None, seed: int = 0) -> list[int]:
    none = [-0.1] * len(tried)
    told = [(POINTS[index], value(POINTS[index]), by) for index, by in zip(tried, violations or none, strict=True)]
    model = SlotModel(POINTS)
    return [model.draw(told, range(len(POINTS)), 1, seed + 1000 * repeat)[0] for repeat in range(200)]


def test_two_good_slots_are_joined_though_never_seen_together() -> None:
    tried = [
        point("a", "weak", "cold"),
        point("a", "firm", "cold"),
        point("a", "weak", "warm"),
        point("a", "weak", "odd"),
    ]
    found = drawn(tried)
    assert max(set(found), key=found.count) in (point("a", "firm", "warm"), point("b", "firm", "warm"))


def test_a_slot_of_the_same_name_is_known_in_another_template() -> None:
    tried = [index for index, one in enumerate(POINTS) if one["template"] == "a"] + [point("b", "weak", "cold")]
    of_b = [index for index in drawn(tried) if POINTS[index]["template"] == "b"]
    assert of_b.count(point("b", "firm", "warm")) > len(of_b) / 2


def test_what_refuses_too_much_is_avoided() -> None:
    tried = list(range(len(POINTS)))
    firm = [0.3 if "firm" in one.values() else -0.1 for one in POINTS]
    assert sum("firm" in POINTS[index].values() for index in drawn(tried, firm)) <= 10
    assert sum("firm" in POINTS[index].values() for index in drawn(tried)) >= 190


def test_what_was_tried_is_not_drawn() -> None:
    told = [(POINTS[0], 0.5, -0.1)]
    assert sorted(SlotModel(POINTS).draw(told, range(1, len(POINTS)), 100, 0)) == list(range(1, len(POINTS)))


def test_draws_differ_while_little_is_known_and_repeat_with_the_seed() -> None:
    assert len(set(drawn([0]))) > 4
    assert drawn([0], seed=1) == drawn([0], seed=1) != drawn([0], seed=2)
