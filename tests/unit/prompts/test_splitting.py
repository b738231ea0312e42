"""Near-duplicates stay together, splits are stable and balanced, and every prefix of a split is representative."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipsearch.core.records import Kind, Prompt, Split
from flipsearch.prompts import splitting
from flipsearch.prompts.splitting import (
    NEAR_DUPLICATE,
    are_near_duplicates,
    assign_splits,
    content_words,
    find_clusters,
)

NOUNS = "apple boat candle door engine flower garden hammer island jacket kettle ladder mirror needle"
WORDS = NOUNS.split()


def make(num: int, kind: Kind = "harmful") -> list[Prompt]:
    return [Prompt(f"{kind} request about topic{n} thing{n}", kind, category=f"c{n % 4}") for n in range(num)]


def split_of(prompts: list[Prompt]) -> dict[str, Split | None]:
    return {prompt.text: prompt.split for prompt in prompts}


@pytest.mark.parametrize(
    ("text", "other", "together"),
    [
        ("How do I pick a lock?", "how to pick locks", True),
        ("Tell me how to pick a lock", "PICK THE LOCK!!", True),
        ("How do I pick a lock?", "How do I pick a lock on a bicycle from the shop?", False),
        ("How do I kill a process?", "How do I kill a person?", False),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("What is 17 plus 4?", "What is 17 plus 5?", False),
        ("如何做饭?", "如何做饭", True),
        ("如何做饭?", "天气怎么样?", False),
        ("Who are you?", "Who are you", True),
    ],
)
def test_rewordings_are_one_cluster_and_other_requests_are_not(text: str, other: str, together: bool) -> None:
    first, second = find_clusters([Prompt(text, "benign"), Prompt(other, "benign")])
    assert (first == second) is together


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), max_size=25, unique=True))
def test_clusters_are_those_of_comparing_all_pairs(texts: list[str]) -> None:
    labels = list(range(len(texts)))
    for i, text in enumerate(texts):
        for j, other in enumerate(texts):
            if are_near_duplicates(content_words(text), content_words(other)) and labels[i] != labels[j]:
                old, new = labels[j], labels[i]
                labels = [new if label == old else label for label in labels]
    result = find_clusters([Prompt(text, "benign") for text in texts])
    pairs = [(i, j) for i in range(len(texts)) for j in range(i)]
    assert [result[i] == result[j] for i, j in pairs] == [labels[i] == labels[j] for i, j in pairs]


def test_a_large_family_of_variants_is_one_cluster() -> None:
    variants = [Prompt(f"Write a long story about the secret agent named agent{n}", "benign") for n in range(500)]
    assert len(set(find_clusters(variants))) == 1


def test_the_threshold_is_met_by_equality() -> None:
    shared = [f"w{n}" for n in range(7)]
    assert are_near_duplicates(frozenset(shared), frozenset([*shared, "x", "y", "z"])) is (NEAR_DUPLICATE <= 0.7)


def test_no_cluster_stands_on_two_sides() -> None:
    prompts = [
        Prompt(wording.format(topic), "harmful")
        for topic in (f"topic{n} thing{n} matter{n}" for n in range(50))
        for wording in ("How do I {}?", "Tell me how to {}.", "{}, please!")
    ]
    sides = defaultdict(set)
    for prompt, cluster in zip(prompts, find_clusters(prompts), strict=True):
        sides[cluster].add(split_of(assign_splits(prompts))[prompt.text])
    assert len(sides) == 50
    assert all(len(splits) == 1 for splits in sides.values())


def test_a_group_is_one_cluster_whatever_its_words() -> None:
    prompts = [Prompt("one thing", "harmful", group="g"), Prompt("quite another matter", "benign", group="g")]
    prompts += make(20)
    splits = split_of(assign_splits(prompts))
    assert splits["one thing"] == splits["quite another matter"]


def test_groups_apart_stay_apart_even_if_their_words_agree() -> None:
    first, second = find_clusters([Prompt("a lamp", "benign", group="g"), Prompt("the lamp", "benign", group="h")])
    assert first != second


def test_reordering_changes_nothing() -> None:
    prompts = make(30) + make(30, "benign")
    assert assign_splits(prompts) == assign_splits(prompts[::-1])


def test_added_rows_move_few_others() -> None:
    before, after = split_of(assign_splits(make(200))), split_of(assign_splits(make(210)))
    assert sum(before[text] != after[text] for text in before) <= 10


@pytest.mark.parametrize("num", [2, 3, 10, 101])
def test_each_side_gets_both_kinds_in_its_share(num: int) -> None:
    counts = Counter((prompt.split, prompt.kind) for prompt in assign_splits(make(num) + make(num, "benign")))
    for kind in ("harmful", "benign"):
        assert abs(counts["search", kind] - counts["confirm", kind]) <= 1


def test_a_fifth_is_kept_from_search_and_confirm() -> None:
    counts = Counter(prompt.split for prompt in assign_splits(make(100)))
    assert counts == {"search": 40, "confirm": 40, "evaluation": 20}


@pytest.mark.parametrize(("num", "splits"), [(1, ["search"]), (2, ["search", "confirm"])])
def test_too_few_prompts_go_to_the_first_splits(num: int, splits: list[str]) -> None:
    assert [prompt.split for prompt in assign_splits(make(num))] == splits


def test_no_split_is_empty_where_there_are_prompts_for_each() -> None:
    assert {prompt.split for prompt in assign_splits(make(3))} == set(splitting.SHARES)


def test_shares_are_met() -> None:
    counts = Counter(prompt.split for prompt in assign_splits(make(1000)))
    assert counts == {"search": 400, "confirm": 400, "evaluation": 200}


def test_a_fixed_split_is_kept_and_its_near_duplicates_follow() -> None:
    fixed = Prompt("How do I pick a lock?", "harmful", split="evaluation")
    splits = split_of(assign_splits([fixed, Prompt("how to pick locks", "harmful"), *make(10)]))
    assert splits["How do I pick a lock?"] == splits["how to pick locks"] == "evaluation"


def test_every_prefix_is_representative() -> None:
    prompts = make(120) + make(60, "benign")
    search = [prompt for prompt in assign_splits(prompts) if prompt.split == "search"]
    for length in (12, 30, 60):
        prefix = search[:length]
        assert abs(sum(prompt.kind == "harmful" for prompt in prefix) / length - 2 / 3) <= 0.15
        categories = Counter(prompt.category for prompt in prefix)
        assert max(categories.values()) - min(categories[f"c{n}"] for n in range(4)) <= 2


def test_clusters_of_large_sets_are_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIPSEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(splitting, "CACHED_FROM", 2)
    prompts = make(20)
    result = find_clusters(prompts)
    assert splitting.cached_clusters(prompts) == result
    (file,) = (tmp_path / "clusters").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(splitting, "find_clusters", lambda prompts: pytest.fail("searched again"))
        assert splitting.cached_clusters(prompts) == result
    for damaged in ("[", "[1]", '{"a": 1}'):
        file.write_text(damaged)
        assert splitting.cached_clusters(prompts) == result
    assert splitting.cached_clusters(prompts[::-1]) == result[::-1]


def test_clusters_are_found_without_a_cache_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLIPSEARCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(splitting, "CACHED_FROM", 2)
    assert splitting.cached_clusters(make(5)) == find_clusters(make(5))
