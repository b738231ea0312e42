"""A loaded guard: exchanges to prompt ids, and what the model would write after them to decisions.

The whole prompt is encoded at once, as the original implementations do, and read together with what the guard is made
to begin with; its answers are the tokens that come next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipsearch.backends.chat import ControlTokens
from flipsearch.backends.scoring import TokenScorer
from flipsearch.core.errors import JudgeError
from flipsearch.judging.guard.prompts import MIN_MASS, PROBE, Answer, Decision, GuardTemplate, decide

Ids = tuple[int, ...]
OUT_OF_MEMORY = "out of memory with this exchange alone"
"""How the reason begins where there is no decision for want of memory: elsewhere there may be one."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a guard is asked about one exchange."""

    content: Mapping[str, str]
    """Texts for the template's slots."""
    begun: str = ""
    """What the guard has already written."""
    group: int = 0
    """Questions of a group begin alike."""


class Asker:
    """A guard's template on a loaded model.

    `begins` puts the tokenizer's begin token in front, for templates that do not spell it out themselves. Raises
    JudgeError for a tokenizer that has none.
    """

    def __init__(self, scorer: TokenScorer, template: GuardTemplate, begins: bool) -> None:
        self._scorer, self._template, self._tokenizer = scorer, template, scorer.tokenizer
        self._begin: Ids = (self._begin_id(),) if begins else ()
        self._control = ControlTokens(self._tokenizer, template.text)
        self._expected = self._control.among(self._encode(Question(PROBE)))
        self._answer_ids: dict[tuple[str, tuple[str, ...]], list[Ids]] = {}

    def ask(
        self, questions: Sequence[Question], answers: Sequence[Answer], min_mass: float = MIN_MASS
    ) -> list[Decision | str]:
        """Return the decision between `answers` for each question, or why there is none."""
        texts = tuple(answer.text for answer in answers)
        prompts = [self.prompt_ids(question, texts) for question in questions]
        asked = {i: ids for i, ids in enumerate(prompts) if not isinstance(ids, str)}
        wanted = [(i, ids) for i in asked for ids in self.answer_ids(questions[i].begun, texts)]
        prefix_scores = self._scorer.score(
            [asked[i] for i, _ in wanted], [ids for _, ids in wanted], [questions[i].group for i, _ in wanted]
        )
        log_probs: dict[int, list[tuple[float, ...]]] = {i: [] for i in asked}
        for (i, _), reading in zip(wanted, prefix_scores, strict=True):
            if reading is not None:
                log_probs[i].append(reading.log_probs)
        return [
            ids if isinstance(ids, str) else self._decide(ids, log_probs[i], len(texts), min_mass)
            for i, ids in enumerate(prompts)
        ]

    def prompt_ids(self, question: Question, texts: tuple[str, ...] = ()) -> Ids | str:
        """Return the tokens that the guard reads before one of `texts`, or why there are none."""
        try:
            ids = self._encode(question)
        except Exception as error:  # lone surrogates and what else a tokenizer may refuse
            return f"the exchange cannot be encoded: {' '.join(str(error).split())[:200] or type(error).__name__}"
        if self._control.among(ids) != self._expected:
            return "the exchange spells out a control token of the guard"
        longest = max(map(len, self.answer_ids(question.begun, texts)), default=0)
        held = self._scorer.max_tokens
        if held is not None and len(ids) + longest > held:
            return f"too long for the guard: {len(ids) + longest} tokens, and it holds {held}"
        return ids

    def answer_ids(self, begun: str, texts: tuple[str, ...]) -> list[Ids]:
        """Return the tokens of each text where a prompt and `begun` stand before it.

        Raises JudgeError for texts that are no alternatives in this tokenizer: then it is not the guard's own.
        """
        key = (begun, texts)
        if key not in self._answer_ids:
            before = self._encode(Question(PROBE, begun))
            after = [self._encode(Question(PROBE, begun + text)) for text in texts]
            if any(ids[: len(before)] != before or len(ids) == len(before) for ids in after):
                raise JudgeError(f"the answers {_quoted(texts)} do not stand apart from '{begun}' in {self._whose()}.")
            found = [ids[len(before) :] for ids in after]
            if any(one[: len(other)] == other for i, one in enumerate(found) for other in found[:i] + found[i + 1 :]):
                raise JudgeError(f"the answers {_quoted(texts)} begin with each other in {self._whose()}.")
            self._answer_ids[key] = found
        return self._answer_ids[key]

    def _encode(self, question: Question) -> Ids:
        text = self._template.render(question.content, self._control.defuse) + question.begun
        # The template spells out the special tokens, so the tokenizer must not add its own; nor shall it warn of a
        # long text, which becomes a verdict.
        return (*self._begin, *self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decide(
        self, ids: Ids, log_probs: Sequence[tuple[float, ...]], num_answers: int, min_mass: float
    ) -> Decision | str:
        if len(log_probs) < num_answers:
            return f"{OUT_OF_MEMORY} ({len(ids)} tokens)"
        return decide(log_probs, min_mass)

    def _begin_id(self) -> int:
        found: int | None = getattr(self._tokenizer, "bos_token_id", None)
        if found is None:
            raise JudgeError(f"the guard's prompt begins with a begin token, but there is none in {self._whose()}.")
        return found

    def _whose(self) -> str:
        return "the model's tokenizer; is it this guard's model?"


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))
