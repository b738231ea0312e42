"""CPU seconds that splitting a large prompt set takes, against comparing candidates one by one.

    python benchmarks/split_time.py [--num 40000] [--num-baseline 4000]

Prompts are made in three styles: free text with the word frequencies of English, a few templates with slots, and long
texts with a fifth of near-copies. The baseline is the same prefix filter in plain Python; both give the same clusters.
"""

import argparse
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from flipsearch.core.records import Prompt
from flipsearch.prompts import splitting
from flipsearch.prompts.splitting import NEAR_DUPLICATE, are_near_duplicates, assign_splits, content_words

NUM_WORDS = 20_000


def free_text(num: int, rng: random.Random, shortest: int = 6, longest: int = 30) -> Iterator[str]:
    weights = list(accumulate(1 / (rank + 1) for rank in range(NUM_WORDS)))
    for _ in range(num):
        words = rng.choices(range(NUM_WORDS), cum_weights=weights, k=rng.randint(shortest, longest))
        yield " ".join(f"w{word:x}" for word in words)


def templates(num: int, rng: random.Random) -> Iterator[str]:
    for _ in range(num):
        thing, place, friend = (rng.randrange(400) for _ in range(3))
        verb = rng.randrange(40)
        yield f"please write steps to verb{verb} thing{thing} near place{place} before friend{friend} notices"


def near_copies(num: int, rng: random.Random) -> Iterator[str]:
    texts: list[str] = []
    for text in free_text(num, rng, 40, 120):
        words = rng.choice(texts).split() if texts and rng.random() < 0.2 else text.split()
        words[rng.randrange(len(words))] = f"w{rng.randrange(NUM_WORDS):x}"
        texts.append(" ".join(words))
        yield texts[-1]


STYLES: dict[str, Callable[[int, random.Random], Iterator[str]]] = {
    "free text": free_text,
    "templates": templates,
    "near copies": near_copies,
}


def one_by_one(word_sets: Sequence[frozenset[str]]) -> list[int]:
    """Return a root for each set as `splitting` does, comparing each candidate with Python's sets."""
    rarity = Counter(word for words in word_sets for word in words)
    rarest = [sorted(words, key=lambda word: (rarity[word], word)) for words in word_sets]
    roots = list(range(len(word_sets)))

    def root(index: int) -> int:
        while roots[index] != index:
            index = roots[index]
        return index

    first_with: dict[frozenset[str], int] = {}
    indexed: dict[str, list[int]] = defaultdict(list)
    for current in sorted(roots, key=lambda index: (len(rarest[index]), rarest[index])):
        words, size = word_sets[current], len(word_sets[current])
        if (same := first_with.setdefault(words, current)) != current:
            roots[current] = same
            continue
        probed = rarest[current][: size - math.ceil(NEAR_DUPLICATE * size - 1e-9) + 1]
        for earlier in {earlier for word in probed for earlier in indexed[word]}:
            if are_near_duplicates(words, word_sets[earlier]):
                roots[root(earlier)] = root(current)
        least_shared = math.ceil(2 * NEAR_DUPLICATE / (1 + NEAR_DUPLICATE) * size - 1e-9)
        for word in rarest[current][: size - least_shared + 1]:
            if len(indexed[word]) < splitting._MAX_COMPARED:
                indexed[word].append(current)
    return [root(index) for index in range(len(roots))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=40_000)
    parser.add_argument("--num-baseline", type=int, default=4_000)
    options = parser.parse_args()
    print(f"{'style':12} {'prompts':>8} {'all of splitting':>17} {'clusters':>9} {'one by one':>11}   CPU seconds")
    for style, make in STYLES.items():
        for num in dict.fromkeys((options.num_baseline, options.num)):
            prompts = [Prompt(text, "harmful") for text in make(num, random.Random(0))]
            times = [time.process_time()]
            assign_splits(prompts)
            times.append(time.process_time())
            sets = [content_words(prompt.text) for prompt in prompts]
            times.append(time.process_time())
            roots = splitting._join_near_duplicates(sets)
            times.append(time.process_time())
            baseline = ""
            if num <= options.num_baseline:
                same = partition(one_by_one(sets)) == partition(roots)
                baseline = f"{time.process_time() - times[-1]:11.1f}" + ("" if same else "   other clusters!")
            print(f"{style:12} {num:8,} {times[1] - times[0]:17.1f} {times[3] - times[2]:9.1f} {baseline}", flush=True)


def partition(roots: Sequence[int]) -> set[frozenset[int]]:
    clusters: dict[int, set[int]] = defaultdict(set)
    for index, root in enumerate(roots):
        clusters[root].add(index)
    return {frozenset(members) for members in clusters.values()}


if __name__ == "__main__":
    main()
