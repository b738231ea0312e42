"""Attacks: what can be done to a harmful request so that a model answers it. A prompt becomes a prompt.

An attacked prompt has the text, the earlier turns, the beginning of the answer or the missing chat template of an
attack, and the request itself, which is what judges see. The texts are in attacks.toml: general ones, in words of our
own. To add a variant, or an attack made of variants, write it there; an attack that has to be computed or that adapts
to answers is a row there and a branch in evaluation/attacks.py. Requests are hostile: they are put into texts as they
are, and nothing is formatted.
"""

import base64
import codecs
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from flipsearch.config import ModelConfig, is_endpoint
from flipsearch.core.errors import ConfigError, unknown_name
from flipsearch.core.records import Prompt, Turn, content_id
from flipsearch.core.studies import AttackScore
from flipsearch.prompts.sets import PromptSet

SLOT = "REQUEST"
ALL = "all"
CAPITALS, SCRAMBLED, REPLACED = 0.3, 0.25, 0.02
"""Shares of letters in capitals, of words whose inner letters are shuffled, and of letters replaced by a neighbour."""
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")


@dataclass(frozen=True, slots=True)
class AttackVariant:
    """One form of an attack; what its fields mean is said in attacks.toml."""

    text: str = SLOT
    turns: tuple[str, ...] = ()
    prefill: str = ""
    is_raw: bool = False
    encoding: Literal["", "base64", "rot13"] = ""
    technique: str = ""

    def attacked(self, prompt: Prompt) -> Prompt:
        """Return the prompt that this makes of another."""
        roles = ("user", "assistant") * len(self.turns)
        turns: list[Turn] = [
            (role, self._filled(text, prompt.text)) for role, text in zip(roles, self.turns, strict=False)
        ]
        return replace(
            reworded(prompt, self._filled(self.text, prompt.text)),
            turns=(*prompt.turns, *turns),
            prefill=self.prefill,
            is_raw=self.is_raw,
        )

    def _filled(self, text: str, request: str) -> str:
        before, slot, after = text.partition(SLOT)
        if slot and self.encoding == "base64":
            request = base64.b64encode(request.encode()).decode()
        elif slot and self.encoding == "rot13":
            request = codecs.encode(request, "rot13")
        return before + (request if slot else "") + after


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack, and its variants as far as they are texts."""

    summary: str
    needs: Literal["", "tokens", "attacker"] = ""
    variants: dict[str, AttackVariant] = field(default_factory=dict)


def _read(row: dict[str, object]) -> Attack:
    variants = row.pop("variants", {})
    assert isinstance(variants, dict)
    forms = {name: AttackVariant(**form | {"turns": tuple(form.get("turns", ()))}) for name, form in variants.items()}
    return Attack(**row, variants=forms)  # type: ignore[arg-type]


_ROWS = tomllib.loads(Path(__file__).with_name("attacks.toml").read_text(encoding="utf-8"))
ATTACKS = {name: _read(row) for name, row in _ROWS.items()}


def list_attacks() -> dict[str, str]:
    """Return what each attack does, and what it needs."""
    needs = {"": "", "tokens": "; needs a model on this machine", "attacker": "; needs --attacker MODEL"}
    return {name: attack.summary + needs[attack.needs] for name, attack in ATTACKS.items()}


def attack_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return the named attacks in the order of the table, "all" being every one; ConfigError for any other name."""
    for name in given:
        if name not in ATTACKS and name != ALL:
            raise ConfigError(f"--attacks: {unknown_name('attack', name, [ALL, *ATTACKS])}")
    return tuple(name for name in ATTACKS if name in given or ALL in given)


def gives_tokens(config: ModelConfig, model: str) -> bool:
    """Return whether a model takes tokens, which some attacks need: those behind an endpoint and tables do not."""
    return not is_endpoint(model) and config.backend not in ("http", "scripted")


def attacked_prompts(
    prompts: PromptSet, given: Sequence[str], config: ModelConfig, score: AttackScore = "mean"
) -> PromptSet:
    """Return a set whose harmful prompts of search and confirm have each form of some attacks, and the plain one.

    Still in nested order: of k forms, a prompt comes in another one in each of k rounds, and prompts that follow each
    other in different ones; where the worst form counts, it stays one prompt that has them. ConfigError for an attack
    that is made by more than texts.
    """
    able = [name for name, attack in ATTACKS.items() if attack.variants and attack.needs != "attacker"]
    names = able if ALL in given else attack_names(given)
    if odd := [name for name in names if name not in able]:
        raise ConfigError(f"--attacks {odd[0]} is for evaluate: a search takes {', '.join(able)}.")
    remote = [] if gives_tokens(config, config.model) else [name for name in names if ATTACKS[name].needs == "tokens"]
    if remote:
        others = ",".join(name for name in able if not ATTACKS[name].needs)
        raise ConfigError(
            f"--attacks {remote[0]} needs the tokens of a model, and '{config.model}' gives none; give {others}."
        )
    variants = [form for name in names for form in ATTACKS[name].variants.values()]
    note = f"harmful prompts of search and confirm have {len(variants) + 1} forms: as they are, and in "
    note += ", ".join(names)
    rows = [(prompt, _forms_of(prompt, variants)) for prompt in prompts.prompts]
    if score == "worst":
        note += "; a prompt counts by the worst of its forms, under a context by the worst that is unsafe without one"
        attacked = [replace(prompt, forms=tuple(forms)) if forms else prompt for prompt, forms in rows]
    else:
        attacked = list(_in_turn(rows, len(variants) + 1))
    return PromptSet(prompts.name, tuple(attacked), (*prompts.notes, note))


def _forms_of(prompt: Prompt, variants: Sequence[AttackVariant]) -> list[Prompt]:
    """Return a harmful prompt of search or confirm as it is and under attack; [] for any other prompt."""
    is_attacked = prompt.kind == "harmful" and prompt.split in ("search", "confirm")
    return [prompt, *(form.attacked(prompt) for form in variants)] if is_attacked else []


def _in_turn(rows: Sequence[tuple[Prompt, list[Prompt]]], num_forms: int) -> Iterator[Prompt]:
    for number in range(num_forms):
        places: Counter[str | None] = Counter()
        for prompt, forms in rows:
            if forms:
                yield forms[(places[prompt.split] + number) % num_forms]
                places[prompt.split] += 1
            elif number == 0:
                yield prompt


def reworded(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt with another text for the same request, in the same group."""
    return replace(prompt, text=text, request=prompt.request or prompt.text, group=prompt.group or prompt.prompt_id)


def respelled_request(prompt: Prompt, number: int) -> Prompt:
    """Return one of many spellings of a request, as best-of-N jailbreaking makes them (arXiv 2412.03556)."""
    rng = random.Random(int(content_id("spelling", prompt.prompt_id, number), 16))

    def scrambled(match: re.Match[str]) -> str:
        word = match[0]
        inner = "".join(rng.sample(word[1:-1], len(word) - 2))
        return word[0] + inner + word[-1] if rng.random() < SCRAMBLED else word

    def changed(letter: str) -> str:
        if not (letter.isascii() and letter.isalpha()):
            return letter
        if rng.random() < REPLACED:
            letter = chr(ord(letter) + rng.choice((-1, 1)))
        return letter.upper() if rng.random() < CAPITALS else letter

    return reworded(prompt, "".join(map(changed, _LONG_WORD.sub(scrambled, prompt.text))))
