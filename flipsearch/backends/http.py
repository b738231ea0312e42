"""A model behind an OpenAI-compatible chat completions endpoint: a served model, or one that only its vendor has.

The only backend that is concurrent inside. Completions have no token ids, and cannot continue a prefill. Reasoning that
is returned separately is put back as a think block, so that judges separate the two as for every other model.

`max_tokens`, `temperature` and a seed are always sent; `top_p` when sampling, and `top_k` where it is set, which vLLM,
SGLang and llama.cpp accept and others refuse. The key (OPENAI_API_KEY) goes into a header, nowhere else: what the
endpoint says is quoted with the key removed, and what it says of a refused key is not quoted at all.
"""

import email.utils
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, Field, ValidationError

from flipsearch.backends.chat import EncodedPrompt, lay_out
from flipsearch.backends.rollouts import completed, failed, stream_seed
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Request, Rollout, Sampling, content_id

KEY_VARIABLE = "OPENAI_API_KEY"
FORM = "http(s)://host[:port]/v1#model-name"
TRIES = 8
"""Of one request; the pauses between them are 1, 2, 4, … 64 seconds, or what the endpoint requests."""
FIRST_TRIES = 3
"""To reach an endpoint that has never answered: it is more likely down than busy."""
LONGEST_PAUSE_S = 300
"""Longer pauses that the endpoint requests are an error."""
CONNECT_S, ANSWER_S = 15, 900
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
NUM_CONNECTIONS = 16
BYTES_PER_TOKEN = 4
"""Rule of thumb for the number of tokens in a text; within a third of it for most tokenizers and scripts."""
CONTROL = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?(?:s|bos|eos|think|start_of_turn|end_of_turn)>", re.IGNORECASE
)
"""What control tokens of known models look like; those of the endpoint's model are not known."""

Length = Annotated[int, Field(ge=0, lt=2**31)]
Item = TypeVar("Item")
Result = TypeVar("Result")


class RequestError(Exception):
    """One request failed for good; the others may continue."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model is served, and under which name; `base` is e.g. "http://localhost:8000/v1"."""

    base: str
    model: str
    host: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Return the address of `http(s)://host[:port]/v1#model-name`; BackendError in one line for anything else."""
        url, _, model = text.partition("#")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            httpx2.URL(url)
        except (ValueError, httpx2.InvalidURL):  # what may hold a secret is not repeated
            raise BackendError(f"the model is no address that can be read; expected {FORM}.") from None
        if "@" in parts.netloc or parts.query:
            raise BackendError(f"an address with a password or a query is refused: give the key in {KEY_VARIABLE}.")
        if parts.scheme not in ("http", "https") or not host or not model.strip():
            raise BackendError(f"'{text}' is no address of a model; expected {FORM}.")
        return cls(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", model.strip(), host)


class _ChatMessage(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None  # in vLLM, SGLang, DeepSeek and llama.cpp
    reasoning: str | None = None  # elsewhere and in newer versions


class _ChatChoice(BaseModel):
    message: _ChatMessage
    finish_reason: str | None = None


class _TokenUsage(BaseModel):
    prompt_tokens: Length | None = None


class _ChatCompletion(BaseModel):
    choices: Annotated[list[_ChatChoice], Field(min_length=1)]
    usage: _TokenUsage | None = None


class Endpoint:
    """Calls to one address, retried where that can help; thread-safe. `pause` sleeps for a number of seconds."""

    def __init__(self, address: Address, num_connections: int, pause: Callable[[float], object] = time.sleep) -> None:
        self.address, self._pause = address, pause
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if re.search(r"[^!-~]", self._key):
            raise BackendError(f"{KEY_VARIABLE} holds blanks or characters that no key has; set it again.")
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
        )
        self._has_answered = False
        is_plain = address.base.startswith("http:") and address.host not in LOCAL_HOSTS
        self.sends_key_unencrypted = bool(self._key) and is_plain

    def post(self, body: Mapping[str, Any]) -> bytes:
        """Return the response to a chat completion request.

        Raises RequestError where this request failed for good, and BackendError where every request would: a refused
        key, an unknown model or path, and an endpoint that never answered.
        """
        try:
            content = json.dumps(body, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError("the prompt or context holds half a character, which cannot be sent") from error
        for number in range(1, TRIES + 1):
            response = self._try(content, may_be_down=number < FIRST_TRIES)
            if isinstance(response, bytes):
                return response
            reason, pause = response
            if pause > LONGEST_PAUSE_S:
                raise RequestError(f"{reason}; the endpoint requests a pause of {pause:.0f} s")
            if number < TRIES:
                self._pause(max(2.0 ** (number - 1), pause))
        raise RequestError(f"{reason}, after {TRIES} tries")

    def _try(self, content: bytes, may_be_down: bool) -> bytes | tuple[str, float]:
        """Return the response, or why there is none yet and the requested pause; raise where no retry can help."""
        url, headers = f"{self.address.base}/chat/completions", {"Content-Type": "application/json"}
        try:
            response = self.client.post(url, content=content, headers=headers)
        except httpx2.RequestError as error:
            reason = self._one_line(f"{type(error).__name__}: {error}")
            unreachable = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self._has_answered
            if unreachable and not may_be_down:
                where = self.address.base
                raise BackendError(f"the endpoint {where} cannot be reached ({reason}); is it running?") from error
            return reason, 0.0
        self._has_answered = True
        if response.is_success:
            return response.content
        return self._failure(response), _retry_after(response.headers.get("retry-after", ""))

    def _failure(self, response: httpx2.Response) -> str:
        """Return why a retry may help; raise where it cannot."""
        status, where = response.status_code, f"the endpoint {self.address.base}"
        if status in (401, 403):
            known = f"the key in {KEY_VARIABLE}" if self._key else f"requests without a key: set {KEY_VARIABLE}"
            raise BackendError(f"{where} refuses {known} (HTTP {status}).")
        try:
            error = json.loads(response.content)["error"]
            message = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError, RecursionError):  # not OpenAI's form
            message = response.content[:500].decode("utf-8", errors="replace") or response.reason_phrase
        message = self._one_line(message)
        if status == 404:
            model = self.address.model
            raise BackendError(f"{where} has no model '{model}', or its path is wrong (HTTP 404: {message}).")
        if status < 400 or status == 405:
            raise BackendError(f"{where} is no chat completions endpoint (HTTP {status}); expected {FORM}.")
        if status in (408, 409, 425, 429) or status >= 500:
            return f"HTTP {status}: {message}"
        raise RequestError(f"HTTP {status}: {message}")

    def _one_line(self, text: str) -> str:
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:200]


class HttpBackend:
    """The model that `http(s)://host[:port]/v1#model-name` names, with the key in OPENAI_API_KEY, if there is one.

    Nothing is sent to the endpoint before `generate`; what is wrong with it for every request is then a BackendError.
    Its identity is address and name, as nothing more is known of it: another model served under the same name needs
    another ledger.
    """

    revision: str | None = None

    def __init__(
        self, model: str, *, num_connections: int = NUM_CONNECTIONS, pause: Callable[[float], object] = time.sleep
    ) -> None:
        address = Address.parse(model)
        self._num_connections = num_connections
        self._endpoint = Endpoint(address, num_connections, pause)
        self.model_id = content_id("http", address.base, address.model)
        self.notes: tuple[str, ...] = (
            "the endpoint counts no tokens: lengths of contexts are estimates (a token for four bytes), completions "
            "have none, and a budget of tokens ends nothing.",
            "the endpoint samples and rounds in its own way: a request may be answered otherwise again, even greedily.",
        )
        if self._endpoint.sends_key_unencrypted:
            self.notes += (f"the key travels unencrypted to {address.host}; https would hide it.",)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise BackendError for a model that is no address, and for settings that only the endpoint decides."""
        Address.parse(config.model)
        if config.think_tokens:
            raise BackendError(
                "--think-tokens is for local models: an endpoint takes no budget of its own for thoughts."
            )
        local = {"thinking": config.thinking, "device": config.device, "dtype": config.dtype}
        if given := [name for name, value in local.items() if value != "auto"]:
            raise BackendError(f"--{given[0]} is for local models; the endpoint of '{config.model}' decides it.")

    @classmethod
    def from_config(cls, config: ModelConfig, memory_share: float = 1.0) -> "HttpBackend":
        """Return the backend of the address that --model names."""
        return cls(config.model)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request, in order of completion; a kill loses those in flight."""
        yield from _as_completed(lambda request: self._rollout(request, sampling), requests, self._num_connections)

    def count_tokens(self, text: str) -> int:
        """Return an estimate, as the endpoint does not count: a token for every four bytes of UTF-8."""
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.client.close()

    def _rollout(self, request: Request, sampling: Sampling) -> Rollout:
        try:
            if request.prefill:
                raise RequestError("the endpoint takes no tokens, so no completion can be continued")
            completion, stopped, num_prompt_tokens = _parse(self._endpoint.post(self._body(request, sampling)))
        except RequestError as failure:
            return failed(request, self.model_id, sampling, str(failure))
        unknown = EncodedPrompt((), opens_thinking=False)
        rollout = completed(request, self.model_id, sampling, unknown, completion, (), stopped)
        return replace(rollout, num_prompt_tokens=num_prompt_tokens)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        # What looks like a control token gets a space inside, as `chat` does to known ones.
        messages = [
            {**message, "content": CONTROL.sub(lambda match: match[0][0] + " " + match[0][1:], message["content"])}
            for message in lay_out(request.prompt, request.context)
        ]
        body: dict[str, Any] = {
            "model": self._endpoint.address.model,
            "messages": messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            # 31 bits, because some endpoints read a seed as a 32-bit integer.
            "seed": 0 if sampling.temperature == 0 else stream_seed(request, sampling) >> 33,
        }
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p} | ({"top_k": sampling.top_k} if sampling.top_k else {})
        return body


def _parse(content: bytes) -> tuple[str, bool, int]:
    """Return completion, whether it ended by itself, and the number of prompt tokens (0 where not reported)."""
    try:
        response = _ChatCompletion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise RequestError(f"the endpoint's answer is no chat completion ({where}: {first['msg'][:150]})") from error
    message, reason = response.choices[0].message, response.choices[0].finish_reason
    if reason not in ("stop", "length"):
        raise RequestError(f"finish_reason is '{str(reason)[:40]}', expected stop or length")
    thought = message.reasoning_content or message.reasoning
    if thought is None and message.content is None:
        raise RequestError("the endpoint's message has no content")
    completion = message.content or ""
    if thought is not None:  # a think block; that of a thought that was cut off stays open
        is_whole = completion or reason == "stop"
        completion = f"<think>\n{thought}" + (f"\n</think>\n\n{completion}" if is_whole else "")
    return completion, reason == "stop", (response.usage and response.usage.prompt_tokens) or 0


def _retry_after(header: str) -> float:
    """Return the seconds that a Retry-After header requests, as a number or a date; 0 where it requests nothing."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header, re.ASCII):
        return float(header)
    try:
        until = email.utils.parsedate_to_datetime(header)
        return max(0.0, until.replace(tzinfo=until.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _as_completed(work: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> Iterator[list[Result]]:
    """Yield the results of `work` on each item in lists, as soon as there are any, in any order.

    An exception is raised after the other finished results; nothing new is started after it, nor once the caller stops.
    The threads are daemons, unlike those of concurrent.futures: an interrupted program does not wait for them.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[list[Result], Exception | None]] = SimpleQueue()
    stopped = Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put(([work(item)], None))
            except Exception as error:  # raised in the caller's thread
                done.put(([], error))

    for _ in range(min(num_threads, len(items))):
        Thread(target=run, daemon=True).start()
    num_left = len(items)
    try:
        while num_left:
            batch = [done.get()]
            while not done.empty():
                batch.append(done.get())
            if results := [result for finished, _ in batch for result in finished]:
                yield results
            for error in (error for _, error in batch if error):
                raise error
            num_left -= len(batch)
    finally:
        stopped.set()
