"""What the compact judge sees of an answer: the refusal rules, what it takes up of the prompt, masked runs of words.

Fitted to transfer: the words of a topic tell apart the sets that a model is fitted to, and mislead on any other. So
only words that stand in answers to most prompts are read, and every other is the same blank: "to _ the _, first _",
as in authorship attribution across topics (Stamatatos 2018, doi:10.1002/asi.23968). Runs are hashed, so that a fitted
model holds weights and no text.
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flipsearch.judging.refusal_rules import PLAIN_MARKS, RefusalRules

_BITS = 16
NUM_BUCKETS = 2**_BITS
LONGEST_RUN = 4
"""Words and marks of a run."""
READ_CHARACTERS = 1500
"""Of an answer's beginning, and of its end, for the runs: long answers shall not drown the rest."""
RULES_CHARACTERS = 6000
"""Of an answer, for the rules and for what it takes up."""
PROMPT_WORDS = 60
"""Last words of a prompt that an answer may take up: a jailbreak stands before the request."""
MOST_POINTS = 8.0
"""The rules' points are held within these."""

_MARKS = '\n.!?:;,"()'
_TOKEN = re.compile(rf"[a-z']+|\d+|[{re.escape(_MARKS)}]")
_WORD = re.compile(r"[a-z']+")
_NUMBER = "0"
_STOP_WORDS = """
the a an of to in and or for on with is are was were be it this that i you he she they we my your his her their me
him them us as at by from how do does did can could would should what why who when where which if not no so but
about into some any there here have has had will just
"""
_STOP = frozenset(_STOP_WORDS.split())
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(64 - _BITS)

Codes = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Features:
    """One answer, as numbers."""

    dense: tuple[float, float]
    """The points of the refusal rules, within MOST_POINTS, and the share of the prompt's words that the answer has."""
    codes: tuple[int, ...]
    """The words and marks of its beginning and its end, in order, each as its `code_of`."""
    foreign: bool = False
    """Most of what it shows is no letter of English: another script, numbers, marks, pictures."""
    mark: int = 0
    """32 bits that stand for the prompt and the answer, whatever their white space and case: what a fitted model keeps
    of what it was fitted to."""


def code_of(token: str) -> int:
    """Return the 32 bits that stand for a word or a mark."""
    return zlib.crc32(token.encode())


_BLANK = np.uint32(code_of("_"))
SIGNS = frozenset(map(code_of, (*_MARKS, _NUMBER)))
"""Codes that are no words: always read. A number is any number."""


def extract(rules: RefusalRules, prompt: str, answer: str) -> Features:
    """Return the features of an answer; the texts are hostile, and time is linear in their length."""
    text = answer[:RULES_CHARACTERS]
    points, _ = rules.points(text)
    read = answer[:READ_CHARACTERS] + answer[READ_CHARACTERS:][-READ_CHARACTERS:]
    shown = [sign for sign in read if not sign.isspace()]
    num_letters = sum(sign.isascii() and sign.isalpha() for sign in shown)
    foreign = num_letters < len(shown) / 2
    tokens = _TOKEN.findall(_plain(read))
    codes = tuple(code_of(_NUMBER if token[0].isdigit() else token) for token in tokens)
    clipped = min(max(points, -MOST_POINTS), MOST_POINTS)
    mark = zlib.crc32("\0".join(" ".join(one.lower().split()) for one in (prompt, answer)).encode(errors="replace"))
    return Features((clipped, _taken_up(_plain(prompt), _plain(text))), codes, foreign, mark)


def buckets(codes: Codes, common: Codes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the buckets of all runs of one answer, each once, and how often; what is not in `common` is a blank."""
    masked = np.where(np.isin(codes, common), codes, _BLANK).astype(np.uint64)
    found, runs = [masked], masked
    for length in range(2, LONGEST_RUN + 1):
        runs = runs[:-1] * _BASE + masked[length - 1 :]
        found.append(runs)
    places, counts = np.unique((np.concatenate(found) * _MIX) >> _SHIFT, return_counts=True)
    return places.astype(np.int64), counts.astype(np.float64)


def _plain(text: str) -> str:
    return text.translate(PLAIN_MARKS).lower()


def _taken_up(prompt: str, answer: str) -> float:
    asked = set(_WORD.findall(prompt)[-PROMPT_WORDS:]) - _STOP
    return len(asked.intersection(_WORD.findall(answer))) / max(1, len(asked))
