"""Guard prompts: a template filled with hostile text, encoded, and scored with the loaded model.

Prompt and answer are hostile. The slots of the file are filled in one pass, so a slot's name in the content stays what
it is. Where content spells out one of the template's markers or lines, or a control token, a space is put inside.

The whole prompt is encoded at once, as the original implementations do, with the prefill that the guard continues; its
possible answers are scored as the tokens that come next. What the scores mean is for judging.guard.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flipsearch.backends.chat import ControlTokens
from flipsearch.backends.transformers import TokenScorer
from flipsearch.core.errors import JudgeError, PluginError, one_line
from flipsearch.core.files import read_text
from flipsearch.core.records import Label, Verdict

Ids = tuple[int, ...]
LogProbs = tuple[float, ...]
"""Natural log probabilities of the tokens of one answer."""
SLOT = re.compile(r"\{([a-z]+)\}")
_LINE_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LINE_END = f"[{_LINE_ENDS}]"
"""Everything that begins a new line to a reader, not only the line feed."""
_BLANKS = r"\t\x1f \xa0\xad\u1680\u180e\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_BLANK = f"[{_BLANKS}]*+"
"""Any number of characters that a reader sees as blank or not at all."""
_INSIDE = re.compile(f"(?<=[^{_BLANKS}])(?=[^{_BLANKS}])")
_LINE = rf"(?:\A|(?<={_LINE_END})){_BLANK}"
_MARKS = rf"(?:(?:_|[^\w{_LINE_ENDS}{_BLANKS}]){_BLANK}){{0,8}}"
"""What can precede a role without hiding it, e.g. a list's dash; few, so that a long line costs no more."""
_PROBE = {"prompt": "quokka", "answer": "quokka"}
"""Content that spells out nothing."""


class GuardTemplate:
    """The text of a template file, without the line break at its very end.

    Defused in content: `markers` anywhere; `roles` ("Agent:") and the template's own lines without a slot where a line
    begins, also behind marks ("- Agent :"), in any case and with any blanks; lines without a letter ("---") only if the
    whole line matches. Raises PluginError for a file that cannot be read or lacks the slots {prompt} and {answer}.
    """

    def __init__(self, file: Path, markers: Iterable[str] = (), roles: Iterable[str] = ()) -> None:
        try:
            self.text = read_text(file).removesuffix("\n")
        except (OSError, UnicodeError) as error:
            raise PluginError(f"cannot read the guard's template '{file}': {error}.") from error
        if missing := sorted(set(_PROBE) - set(SLOT.findall(self.text))):
            raise PluginError(f"the guard's template '{file}' lacks the slot {{{missing[0]}}}.")
        lines = [line.strip() for line in self.text.split("\n") if not SLOT.search(line)]
        worded = [line for line in lines if any(map(str.isalpha, line))]
        bare = [line for line in lines if line and line not in worded]  # ordinary where more follows, as in a table
        # In this order: a line that is matched whole could hold another marker.
        self._patterns = (
            _pattern_of(markers),
            _pattern_of([*roles, *worded], _LINE + _MARKS),
            _pattern_of(bare, _LINE, rf"(?={_BLANK}(?:{_LINE_END}|\Z))"),
        )

    def render(self, content: Mapping[str, str], defuse: Callable[[str], str]) -> str:
        """Return the text with its slots filled; `defuse` puts a space into control tokens, which come last."""
        shown = {}
        for name, text in content.items():
            for pattern in self._patterns:
                text = pattern.sub(lambda hit: hit[0].removesuffix(hit[1]) + _INSIDE.sub(" ", hit[1], count=1), text)
            shown[name] = defuse(text)
        return SLOT.sub(lambda slot: shown.get(slot[1], slot[0]), self.text)


def _pattern_of(texts: Iterable[str], before: str = "", after: str = "") -> re.Pattern[str]:
    """Return a pattern for any of the texts, with blanks of any kind and number for theirs and before their colons."""
    patterns = []
    for text in texts:
        words = [re.escape(word).replace(":", f"{_BLANK}:") for word in re.split(r"\s+", text)]
        patterns.append(f"[{_BLANKS}]++".join(words))
    patterns.sort(key=len, reverse=True)
    return re.compile(rf"{before}({'|'.join(patterns) or '(?!)'}){after}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GuardInput:
    """What a guard is shown of one exchange: texts for the template's slots, and the prefill after it."""

    content: Mapping[str, str]
    prefill: str = ""
    group: int = 0
    """Inputs of one group have a long common prefix."""


class GuardScorer:
    """Scores a guard's possible answers with its template on a loaded model; JudgeError without a begin token."""

    def __init__(self, scorer: TokenScorer, template: GuardTemplate, adds_begin_token: bool) -> None:
        self._scorer, self._template, self._tokenizer = scorer, template, scorer.tokenizer
        self._begin: Ids = ()
        if adds_begin_token:
            if (begin := getattr(self._tokenizer, "bos_token_id", None)) is None:
                raise _wrong_tokenizer("the guard's prompt begins with a begin token, but there is none")
            self._begin = (begin,)
        self._control = ControlTokens(self._tokenizer, template.text)
        self._expected_control = self._control.among(self._encode(GuardInput(_PROBE)))
        self._answer_ids: dict[tuple[str, tuple[str, ...]], list[Ids]] = {}

    def score(self, inputs: Sequence[GuardInput], answers: tuple[str, ...]) -> list[list[LogProbs] | Verdict]:
        """Return the log probabilities of each answer after each input, or the UNSCORED verdict that says why not.

        The verdict of an input that the model cannot score has `failed` set: on another machine it may fit.
        """
        prompts = [self._prompt_ids(item, answers) for item in inputs]
        pairs = [
            (i, ids, answer)
            for i, ids in enumerate(prompts)
            if not isinstance(ids, Verdict)
            for answer in self._ids_of_answers(inputs[i].prefill, answers)
        ]
        scores = self._scorer.score(
            [ids for _, ids, _ in pairs], [answer for *_, answer in pairs], [inputs[i].group for i, *_ in pairs]
        )
        results: list[list[LogProbs] | Verdict] = [ids if isinstance(ids, Verdict) else [] for ids in prompts]
        for (i, ids, _), score in zip(pairs, scores, strict=True):
            result = results[i]
            if score is None:
                reason = f"no memory is left for this exchange alone ({len(ids)} tokens), or its logits are no numbers"
                results[i] = Verdict(Label.UNSCORED, reason=reason, failed=True)
            elif not isinstance(result, Verdict):
                result.append(score.log_probs)
        return results

    def _prompt_ids(self, item: GuardInput, answers: tuple[str, ...]) -> Ids | Verdict:
        """Return the tokens of a prompt, or the verdict that says why it cannot be scored; nothing is truncated."""
        try:
            ids = self._encode(item)
        except Exception as error:  # lone surrogates, and whatever else a tokenizer may reject
            return Verdict(Label.UNSCORED, reason=f"the exchange cannot be encoded: {one_line(error)}")
        if self._control.among(ids) != self._expected_control:
            return Verdict(Label.UNSCORED, reason="the exchange spells out a control token of the guard")
        length = len(ids) + max(map(len, self._ids_of_answers(item.prefill, answers)), default=0)
        limit = self._scorer.max_tokens
        if limit is not None and length > limit:
            return Verdict(Label.UNSCORED, reason=f"too long for the guard: {length} tokens, and it holds {limit}")
        return ids

    def _ids_of_answers(self, prefill: str, answers: tuple[str, ...]) -> list[Ids]:
        """Return the tokens of each answer after a prompt and `prefill`.

        Raises JudgeError for answers that are not alternatives in this tokenizer, which then is not the guard's own.
        """
        key = (prefill, answers)
        if key not in self._answer_ids:
            quoted = ", ".join(map(repr, answers))
            before = self._encode(GuardInput(_PROBE, prefill))
            after = [self._encode(GuardInput(_PROBE, prefill + answer)) for answer in answers]
            if any(ids[: len(before)] != before or len(ids) == len(before) for ids in after):
                raise _wrong_tokenizer(f"the answers {quoted} are not separate tokens after '{prefill}'")
            tails = [ids[len(before) :] for ids in after]
            if any(tail[: len(rest)] == rest for i, tail in enumerate(tails) for rest in tails[:i] + tails[i + 1 :]):
                raise _wrong_tokenizer(f"the answers {quoted} begin with each other")
            self._answer_ids[key] = tails
        return self._answer_ids[key]

    def _encode(self, item: GuardInput) -> Ids:
        text = self._template.render(item.content, self._control.defuse) + item.prefill
        # The template spells out the special tokens, so the tokenizer must not add its own; nor may it warn of a long
        # text, which becomes a verdict.
        return (*self._begin, *self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _wrong_tokenizer(what: str) -> JudgeError:
    return JudgeError(f"{what} in the model's tokenizer; is it this guard's model?")
