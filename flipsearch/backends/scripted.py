"""A backend without a model: completions from a table or a function, for demonstrations and tests."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flipsearch.backends.base import completed, failed
from flipsearch.backends.chat import EncodedPrompt
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.files import read_text
from flipsearch.core.records import Request, Rollout, Sampling, content_id

Reply = Callable[[str, str], str]
"""(prompt text, context text or "") -> completion; a BackendError makes the rollout an error."""
Key = tuple[str, str]
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
        replies: Reply | Mapping[str, str] | Mapping[Key, str],
        *,
        errors: Mapping[str, str] | Mapping[Key, str] | None = None,
        identity: str = "",
    ) -> None:
        table = replies if isinstance(replies, Mapping) else {}
        self._reply = None if isinstance(replies, Mapping) else replies
        self._outcomes: dict[Key, tuple[str, str | None]] = {_key(key): (text, None) for key, text in table.items()}
        content: object = sorted([*key, text] for key, (text, _) in self._outcomes.items())
        if not isinstance(replies, Mapping):
            content = getattr(replies, "__qualname__", type(replies).__qualname__)
        failing = sorted([*_key(key), why] for key, why in (errors or {}).items())
        self._outcomes |= {_key(key): ("", why) for key, why in (errors or {}).items()}
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
            entries = json.loads(read_text(Path(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise BackendError(f"'{path}' cannot be read as a JSON table of replies: {error}.") from error
        if not isinstance(entries, list):
            raise BackendError(f"'{path}' holds a JSON {type(entries).__name__}, expected a list of {ENTRY}.")
        table, errors = dict[Key, str](), dict[Key, str]()
        for number, entry in enumerate(entries, start=1):
            where = f"{path}, entry {number}"
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise BackendError(f"{where}: expected {ENTRY}, got {type(entry).__name__}.")
            unknown = set(entry) - {"prompt", "context", "completion", "error"}
            if unknown or "prompt" not in entry or ("completion" in entry) == ("error" in entry):
                raise BackendError(f"{where}: expected {ENTRY}, got the keys {', '.join(sorted(entry)) or 'none'}.")
            key = entry["prompt"], entry.get("context", ANY)
            (errors if "error" in entry else table)[key] = entry["error" if "error" in entry else "completion"]
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
        keys = ((prompt, context), (prompt, ANY), (ANY, context), (ANY, ANY))  # the closest first
        missing = ("", f"the table has no completion for the prompt '{prompt[:60]}' under this context.")
        text, why = next((self._outcomes[key] for key in keys if key in self._outcomes), missing)
        try:
            if self._reply and (text, why) == missing:
                text, why = self._reply(prompt, context), None
        except BackendError as error:
            why = str(error)
        if why is not None:
            return failed(request, self.model_id, sampling, why)
        words = text.split()
        stopped = len(words) <= sampling.max_tokens
        shown = text if stopped else " ".join(words[: sampling.max_tokens])
        # No real ids: a table has no tokenizer. The prompt's length still counts, in words.
        prompt_words = EncodedPrompt(tuple(range(self.count_tokens(f"{context} {prompt}"))), opens_thinking=False)
        return completed(request, self.model_id, sampling, prompt_words, shown, (), stopped)


def _key(key: str | Key) -> Key:
    return key if isinstance(key, tuple) else (key, ANY)
