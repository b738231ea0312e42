"""Splits prompts so that near-duplicates share a split, and lists each split in a fixed nested order.

Nothing here depends on the order of the rows: clusters come from the words, splits and order from hashes.

The clusters of a kind are sorted by hash, interleaved over categories, and the list is divided at the shares: they are
as exact as whole clusters allow, every split gets each kind that has enough clusters and its part of each category, and
added rows move only those next to a boundary.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain
from typing import TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from flipsearch.core.errors import PromptError
from flipsearch.core.files import cache_folder, write_text
from flipsearch.core.records import REMEMBERED, SPLITS, Kind, Prompt, Split

Word = TypeVar("Word", str, int)
SHARES: Mapping[Split, float] = {"search": 0.4, "confirm": 0.4, "evaluation": 0.2}
"""Training uses all but the evaluation split, and so needs no share of its own."""
NEAR_DUPLICATE = 0.7
"""Least Jaccard similarity of the word sets of two prompts of one cluster."""
CACHED_FROM = 5_000
"""Prompts from which on a search takes longer than reading its result."""
CLUSTERS_FORMAT = 1
"""Raised whenever the search gives other clusters."""
# Thousands of prompts made from one template share its words. Comparing with the first of them is enough to join those
# that are near, and keeps the worst case linear.
_MAX_COMPARED = 100
_PAIRS_AT_ONCE = 2**20

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
_SUFFIX = re.compile(r"(?<=\w{3})(ing|ed|es|(?<!s)s)$")
_DOUBLED = re.compile(r"([bdgmnprt])\1$")
# Words that say how something is requested, not what: two wordings of one request differ only in these.
_FORM_WORDS = """
a an and any are as at be been best but by can could did do does explain for from get give had has have he her his
how i if in into is it its just let like make me my need of on one or our please she should show so some somebody
someone something tell that the their them then there these they this those to up us want was way we were what when
where which who whose why will with without would you your s t m re ll ve d
"""
_FORM_SET = frozenset(_FORM_WORDS.split())


def assign_splits(
    prompts: Sequence[Prompt], find: Callable[[Sequence[Prompt]], Sequence[str]] | None = None
) -> list[Prompt]:
    """Return the prompts with a split each, and a group if they have near-duplicates, split by split in nested order.

    A split that the set has fixed is kept, and extends to the other members of the prompt's cluster; SHARES divide
    the rest, stratum by stratum (kind, borderline). Any prefix of a split is representative of it. `find` returns the
    cluster of each prompt, as `find_clusters` does, which is the default.
    """
    cluster_ids = (find or find_clusters)(prompts)
    clusters: dict[str, list[Prompt]] = defaultdict(list)
    for prompt, cluster_id in zip(prompts, cluster_ids, strict=True):
        clusters[cluster_id].append(prompt)
    splits: dict[str, Split] = {}
    strata: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for cluster_id, members in clusters.items():
        fixed = [(prompt.prompt_id, prompt.split) for prompt in members if prompt.split]
        if fixed:
            splits[cluster_id] = min(fixed)[1]
        else:  # the stratum is the most frequent one of its members
            counts = Counter((prompt.kind, prompt.borderline) for prompt in members)
            strata[max(counts, key=lambda key: (counts[key], key))].append(cluster_id)
    for stratum in strata.values():
        splits.update(_divide(stratum, clusters))
    placed = [
        replace(
            prompt,
            split=prompt.split or splits[cluster_id],
            group=prompt.group or (cluster_id if len(clusters[cluster_id]) > 1 else ""),
        )
        for prompt, cluster_id in zip(prompts, cluster_ids, strict=True)
    ]
    return nested_order(placed)


def find_clusters(prompts: Sequence[Prompt]) -> list[str]:
    """Return the cluster id of each prompt: its group if it has one, else the least prompt id of its cluster."""
    ungrouped = [index for index, prompt in enumerate(prompts) if not prompt.group]
    chats = ["\n".join([*(content for _, content in prompt.turns), prompt.text]) for prompt in prompts]
    roots = _join_near_duplicates([content_words(chats[index]) for index in ungrouped])
    least: dict[int, str] = {}
    for index, root in zip(ungrouped, roots, strict=True):
        prompt_id = prompts[index].prompt_id
        least[root] = min(least.get(root, prompt_id), prompt_id)
    ids = [f"group {prompt.group}" for prompt in prompts]
    for index, root in zip(ungrouped, roots, strict=True):
        ids[index] = least[root]
    return ids


def nested_order(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts split by split, each stratum spread evenly by hash: any prefix is representative."""
    listed = list(prompts)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for prompt in listed:
        strata[prompt.split or "", prompt.kind, str(prompt.borderline), prompt.category].append(prompt.prompt_id)
    positions = _positions(strata, "order")
    ranks: dict[Split | None, int] = {split: rank for rank, split in enumerate(SPLITS)}
    return sorted(
        listed, key=lambda prompt: (ranks.get(prompt.split, len(SPLITS)), positions[prompt.prompt_id], prompt.prompt_id)
    )


def first_of_each_kind(prompts: Sequence[Prompt], num: int | None, *, of_each_set: bool = False) -> tuple[Prompt, ...]:
    """Return the first `num` distinct prompts of each kind, per prompt set if `of_each_set`; None takes all."""
    counts: Counter[tuple[Kind, str]] = Counter()
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        key = prompt.kind, prompt.source if of_each_set else ""
        if prompt.prompt_id not in kept and (num is None or counts[key] < num):
            kept[prompt.prompt_id] = prompt
            counts[key] += 1
    return tuple(kept.values())


def share_of_each_kind(prompts: Sequence[Prompt], share: float) -> tuple[Prompt, ...]:
    """Return the first prompts of each kind and split, this share of them and at least one, in their order."""
    counts = Counter((prompt.kind, prompt.split) for prompt in prompts)
    left = {part: math.ceil(share * num) for part, num in counts.items()}
    kept = []
    for prompt in prompts:
        left[prompt.kind, prompt.split] -= 1
        if left[prompt.kind, prompt.split] >= 0:
            kept.append(prompt)
    return tuple(kept)


def _divide(cluster_ids: Iterable[str], clusters: Mapping[str, Sequence[Prompt]]) -> dict[str, Split]:
    """Divide the clusters of one stratum, interleaved over categories, at the shares, each by its middle."""
    categories: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for cluster_id in cluster_ids:
        first = min(clusters[cluster_id], key=lambda prompt: prompt.prompt_id)
        categories[first.kind, str(first.borderline), first.category].append(cluster_id)
    positions = _positions(categories, "split")
    ordered = sorted(positions, key=lambda cluster_id: (positions[cluster_id], cluster_id))
    total = sum(len(clusters[cluster_id]) for cluster_id in ordered)
    names, ends = list(SHARES), list(accumulate(SHARES.values()))
    placed: list[int] = []
    before = 0
    for cluster_id in ordered:
        middle = (before + len(clusters[cluster_id]) / 2) / total
        placed.append(next((index for index, end in enumerate(ends) if middle < end + 1e-9), len(ends) - 1))
        before += len(clusters[cluster_id])
    # Move boundaries until every split has a cluster; too few clusters go to the first splits, one to each.
    for index in range(len(placed)):
        least = min(index, max(0, len(names) - (len(placed) - index)))
        placed[index] = min(max(placed[index], least), (placed[index - 1] if index else -1) + 1)
    return {cluster_id: names[index] for cluster_id, index in zip(ordered, placed, strict=True)}


def _positions(strata: Mapping[tuple[str, ...], Sequence[str]], purpose: str) -> dict[str, float]:
    """Return id -> position in [0, 1): each stratum is sorted by hash and spread evenly."""

    def unit(*parts: str) -> float:
        # The "0" was a seed once: without it every prompt set would be split otherwise.
        digest = hashlib.sha256("\x1f".join(["0", purpose, *parts]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    positions: dict[str, float] = {}
    for key, ids in strata.items():
        # Without a start of its own every small stratum would be at the same position, at the head of the list.
        start = unit(*key)
        for index, id in enumerate(sorted(ids, key=lambda id: (unit(id), id))):
            positions[id] = (index + start) / len(ids)
    return positions


def content_words(text: str) -> frozenset[str]:
    """Return the stems of the words that say what is requested; all words if there are no others."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return frozenset({_stem(word) for word in words if word not in _FORM_SET} or words)


@lru_cache(maxsize=REMEMBERED)
def _stem(word: str) -> str:
    stem = _SUFFIX.sub("", word)
    return _DOUBLED.sub(r"\1", stem).removesuffix("e") if len(stem) > 3 else stem


def are_near_duplicates(left: frozenset[Word], right: frozenset[Word]) -> bool:
    """Return whether the Jaccard similarity of two word sets is at least NEAR_DUPLICATE."""
    shared = len(left & right)
    return shared >= NEAR_DUPLICATE * (len(left) + len(right) - shared)


def _join_near_duplicates(word_sets: Sequence[frozenset[str]]) -> list[int]:
    """Return a number for each set, which the sets of one near-duplicate cluster share.

    Prefix filter (Xiao et al. 2008, doi:10.1145/1367497.1367516): taken from small to large, a set can only be similar
    to an earlier one if its rarest words meet the rarest words of that one, so only such pairs are compared.
    """
    rarity = Counter(word for words in word_sets for word in words)
    by_rarity = sorted(rarity, key=lambda word: (rarity[word], word))
    rank = {word: number for number, word in enumerate(by_rarity)}
    rarest = {words: sorted(words, key=rank.__getitem__) for words in word_sets}
    ordered = sorted(rarest, key=lambda words: (len(words), rarest[words]))
    place = {words: number for number, words in enumerate(ordered)}
    pairs = np.array(list(_similar_pairs([[rank[word] for word in rarest[words]] for words in ordered])), dtype=int)
    edges = (np.ones(len(pairs)), tuple(pairs.reshape(-1, 2).T))
    _, roots = connected_components(coo_array(edges, shape=(len(place), len(place))), directed=False)
    return [int(roots[place[words]]) for words in word_sets]


def _similar_pairs(ranked: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of near-duplicates, as positions, among distinct sets of words from small to large.

    A set is given by its words' ranks, rarest first. Candidates share a word of both prefixes; most of them are ruled
    out by signatures of 256 bits, as two sets that differ in n bits differ in n words or more.
    """
    num, sets = len(ranked), [frozenset(words) for words in ranked]
    sizes = np.array([len(words) for words in ranked], dtype=np.int64)
    words = np.fromiter(chain.from_iterable(ranked), np.int64, sizes.sum())
    owners = np.repeat(np.arange(num), sizes)
    places = np.arange(len(words)) - (np.cumsum(sizes) - sizes)[owners]
    hashes = (words * 2654435761 % 2**32 >> 24).astype(np.uint64)
    bits = np.zeros((num, 4), dtype=np.uint64)
    np.bitwise_or.at(bits, (owners, hashes >> np.uint64(6)), np.left_shift(np.uint64(1), hashes & np.uint64(63)))
    least_shared = np.ceil(2 * NEAR_DUPLICATE / (1 + NEAR_DUPLICATE) * sizes - 1e-9)
    keys = words * num + owners
    probing = np.sort(keys[places <= (sizes - np.ceil(NEAR_DUPLICATE * sizes - 1e-9))[owners]])
    indexed = np.sort(keys[places <= (sizes - least_shared)[owners]])
    nth_with_word = np.arange(len(indexed)) - np.searchsorted(indexed // num, indexed // num)
    indexed = indexed[nth_with_word < _MAX_COMPARED]
    starts = np.searchsorted(probing, indexed, side="right")
    counts = np.searchsorted(probing, (indexed // num + 1) * num) - starts
    most_different = (1 - NEAR_DUPLICATE) / (1 + NEAR_DUPLICATE)
    for chunk in np.split(np.arange(len(indexed)), np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS_AT_ONCE)) + 1):
        ends = np.cumsum(counts[chunk])
        earlier = np.repeat(indexed[chunk] % num, counts[chunk])
        later = probing[np.arange(len(earlier)) + np.repeat(starts[chunk] - ends + counts[chunk], counts[chunk])] % num
        num_different = np.bitwise_count(bits[earlier] ^ bits[later]).sum(axis=1)
        near = num_different <= most_different * (sizes[earlier] + sizes[later]) + 1e-9
        for pair in np.unique(earlier[near] * num + later[near]).tolist():
            first, second = divmod(pair, num)
            if are_near_duplicates(sets[first], sets[second]):
                yield first, second


def cached_clusters(prompts: Sequence[Prompt]) -> list[str]:
    """Return what `find_clusters` returns; for large sets it is kept in the user's cache, which can be deleted."""
    if len(prompts) < CACHED_FROM:
        return find_clusters(prompts)
    key = hashlib.sha256(f"{CLUSTERS_FORMAT} {NEAR_DUPLICATE}".encode())
    for prompt in prompts:
        key.update(f"\x1f{prompt.prompt_id} {prompt.group}".encode())
    file = cache_folder("clusters") / f"{key.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, RecursionError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(known, list) and len(known) == len(prompts) and all(isinstance(id, str) for id in known):
            return known
    clusters = find_clusters(prompts)
    with suppress(PromptError):  # a full or read-only disk: the next command searches again
        write_text(file, json.dumps(clusters), PromptError)
    return clusters
