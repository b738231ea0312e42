"""A backend without a model: completions from a table or a function, for demonstrations and tests."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flipsearch.backends.chat import EncodedPrompt
from flipsearch.backends.rollouts import completed, failed
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Request, Rollout, Sampling, content_id

Reply = Callable[[str, str], str]
"""(prompt text, context text or "") -> completion; a BackendError makes the rollout an error."""
ANY = "*"
"""In a table: any prompt, or any context."""
ENTRY = '{"prompt": …, "context": … or "*", "completion": …} or {…, "error": …}'


class ScriptedBackend:
    """A backend that looks its completions up.

    `replies` is a function of prompt and context text, or a table of prompt text -> completion, or of
    (prompt text, context text) -> completion, where "*" matches any. `errors` are the rollouts that fail, with the
    same keys, and why; so does a prompt that is not in the table. The closest entry counts. Tokens are words; longer
    completions are cut off at max_tokens. `identity` distinguishes functions, whose content cannot be hashed.
    """

    notes: tuple[str, ...] = ()
    revision: str | None = None

    def __init__(
        self,
        replies: Reply | Mapping[str, str] | Mapping[tuple[str, str], str],
        *,
        errors: Mapping[str, str] | Mapping[tuple[str, str], str] | None = None,
        identity: str = "",
    ) -> None:
        self._errors = _by_prompt_and_context(errors or {})
        self._table: dict[tuple[str, str], str] = {}
        if callable(replies):
            self._reply = replies
            content: object = getattr(replies, "__qualname__", type(replies).__qualname__)
        else:
            self._table = _by_prompt_and_context(replies)
            self._reply = self._look_up
            content = sorted([*key, text] for key, text in self._table.items())
        failing = sorted([*key, text] for key, text in self._errors.items())
        self.model_id = content_id("scripted", identity, content, failing or {})

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise BackendError if the model is not a file."""
        if not Path(config.model).is_file():
            raise BackendError(f"--backend scripted reads its replies from a JSON file; '{config.model}' is none.")
        if config.think_tokens:
            raise BackendError("--think-tokens is for models; a table of replies has no thoughts to close.")

    @classmethod
    def from_config(cls, config: ModelConfig, memory_share: float = 1.0) -> "ScriptedBackend":
        """Return the backend of the table that --model names."""
        return cls.from_file(config.model)

    @classmethod
    def from_file(cls, path: str | Path) -> "ScriptedBackend":
        """Return the backend of a JSON list of {"prompt", "context", "completion" or "error"}.

        "prompt" is its text or "*" for any; "context" is its text, "" for none, or "*" (the default) for any. Raises
        BackendError with the entry's number for anything else.
        """
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise BackendError(f"'{path}' cannot be read as a JSON table of replies: {error}.") from error
        if not isinstance(entries, list):
            raise BackendError(f"'{path}' holds a JSON {type(entries).__name__}, expected a list of {ENTRY}.")
        table: dict[tuple[str, str], str] = {}
        errors: dict[tuple[str, str], str] = {}
        for number, entry in enumerate(entries, start=1):
            where = f"{path}, entry {number}"
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise BackendError(f"{where}: expected {ENTRY}, got {type(entry).__name__}.")
            unknown = set(entry) - {"prompt", "context", "completion", "error"}
            if unknown or "prompt" not in entry or ("completion" in entry) == ("error" in entry):
                raise BackendError(f"{where}: expected {ENTRY}, got the keys {', '.join(sorted(entry)) or 'none'}.")
            key = entry["prompt"], entry.get("context", ANY)
            if "error" in entry:
                errors[key] = entry["error"]
            else:
                table[key] = entry["completion"]
        return cls(table, errors=errors)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request, in order."""
        for request in requests:
            yield [self._rollout(request, sampling)]

    def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def close(self) -> None:
        """There is nothing to unload."""

    def _rollout(self, request: Request, sampling: Sampling) -> Rollout:
        prompt, context = request.prompt.text, request.context.text if request.context else ""
        if request.prefill:
            return failed(request, self.model_id, sampling, "a table has no tokens, so no completion can be continued")
        try:
            self._fail_where_listed(prompt, context)
            text = self._reply(prompt, context)
        except BackendError as error:
            return failed(request, self.model_id, sampling, str(error))
        words = text.split()
        stopped = len(words) <= sampling.max_tokens
        shown = text if stopped else " ".join(words[: sampling.max_tokens])
        # No real ids: a table has no tokenizer. The prompt's length still counts, in words.
        prompt_words = EncodedPrompt(tuple(range(self.count_tokens(f"{context} {prompt}"))), opens_thinking=False)
        return completed(request, self.model_id, sampling, prompt_words, shown, (), stopped)

    def _fail_where_listed(self, prompt: str, context: str) -> None:
        """Raise BackendError where the closest entry is an error."""
        for key in _keys(prompt, context):
            if key in self._errors:
                raise BackendError(self._errors[key])
            if key in self._table:
                return

    def _look_up(self, prompt: str, context: str) -> str:
        """Return the completion of the closest entry; BackendError if there is none."""
        for key in _keys(prompt, context):
            if key in self._table:
                return self._table[key]
        raise BackendError(f"the table has no completion for the prompt '{prompt[:60]}' under this context.")


def _keys(prompt: str, context: str) -> tuple[tuple[str, str], ...]:
    """Return the entries that match, the closest first."""
    return (prompt, context), (prompt, ANY), (ANY, context), (ANY, ANY)


def _by_prompt_and_context(entries: Mapping[str, str] | Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    return {key if isinstance(key, tuple) else (key, ANY): text for key, text in entries.items()}
