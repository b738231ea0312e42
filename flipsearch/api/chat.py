"""chat: prompts by hand, each answered with and without a context."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from flipsearch.backends.base import check_model, make_backend
from flipsearch.config import ChatConfig
from flipsearch.core.protocols import Backend
from flipsearch.core.records import Context, Prompt, Request, Rollout, Sampling
from flipsearch.measuring.runner import sampling_for
from flipsearch.settings import Given, takes, with_one_context


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """What a model answers to one prompt without a context and under one."""

    prompt: str
    without: str
    under: str

    def as_dict(self) -> dict[str, str]:
        """Return what `--json` prints."""
        return {"prompt": self.prompt, "without_context": self.without, "with_context": self.under}


class ChatSession(ExitStack):
    """A loaded model and a context; each prompt is a conversation of its own. Closed by `with` or `close`."""

    def __init__(self, context: Context, backend: Backend, sampling: Sampling) -> None:
        super().__init__()
        self.context, self._backend, self._sampling = context, backend, sampling
        self.callback(backend.close)

    def ask(self, prompt: str) -> AnswerPair:
        """Return the model's answers to a prompt; one that failed says why in brackets."""
        sent = Prompt(prompt, "harmful")
        rollouts = self._answers([Request(sent), Request(sent, self.context)])
        without, under = (f"[{rollout.error}]" if rollout.error else rollout.completion for rollout in rollouts)
        return AnswerPair(prompt, without, under)

    def _answers(self, requests: Sequence[Request]) -> list[Rollout]:
        made = [rollout for batch in self._backend.generate(requests, self._sampling) for rollout in batch]
        return sorted(made, key=lambda rollout: rollout.context_id is not None)


@takes(ChatConfig)
def chat(given: Given[ChatConfig]) -> ChatSession:
    """Load a model to try by hand, with and without a context; a card says which model it is for.

    with flipsearch.chat(context="best.txt") as chat:
        answers = chat.ask("How do I pick a lock?")
        print(answers.without, answers.under)
    """
    config, context = with_one_context(given)
    check_model(config)
    backend = make_backend(config)
    return ChatSession(context, backend, sampling_for(backend, config))
