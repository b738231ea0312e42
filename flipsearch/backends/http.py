"""One OpenAI-compatible endpoint: its address, its key, and calls that are tried again where that can help.

The key comes from the environment variable OPENAI_API_KEY and goes into a header, nowhere else: what the endpoint says
is quoted with the key struck out, and what it says of a refused key is not quoted at all.

A model behind an OpenAI-compatible chat completions endpoint: a served model, or one that only its vendor has.

The only backend that is concurrent inside. What the endpoint does not tell is not made up: completions have no token
ids, and a completion cannot go on from given tokens. Where it gives a thought apart, the thought is put back as a think
block in front of the answer, so that judges tell the two apart as they do everywhere.

`max_tokens`, `temperature` and a seed always go along; `top_p` where completions are drawn, and `top_k` where it is
set, which vLLM, SGLang and llama.cpp take and others refuse.
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
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, Field, ValidationError

from flipsearch.backends.chat import EncodedPrompt, lay_out
from flipsearch.backends.decoding import stream_seed
from flipsearch.backends.loading import as_completed
from flipsearch.backends.rollouts import completed, failed
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Request, Rollout, Sampling, content_id

KEY_VARIABLE = "OPENAI_API_KEY"
FORM = "http(s)://host[:port]/v1#model-name"
TRIES = 8
"""Of one request; the pauses between them are 1, 2, 4, … 64 seconds, or what the endpoint asks for."""
FIRST_TRIES = 3
"""To reach an endpoint that has never answered: it is more likely not there than busy."""
LONGEST_PAUSE_S = 300
"""An endpoint that asks for more is not waited for."""
CONNECT_S, ANSWER_S = 15, 900
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class RequestError(Exception):
    """One request failed for good; the others may go on."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model is served."""

    base: str
    """URL up to and with the version, e.g. "http://localhost:8000/v1"."""
    model: str
    """What the endpoint calls the model."""
    host: str
    """Of the URL, in lower case."""

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
            raise BackendError(f"an address with a password or a query is not taken: give the key in {KEY_VARIABLE}.")
        if parts.scheme not in ("http", "https") or not host or not model.strip():
            raise BackendError(f"'{text}' is no address of a model; expected {FORM}.")
        return cls(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", model.strip(), host)


class Endpoint:
    """Calls to one address, safe to be made from several threads. `pause` sleeps for so many seconds."""

    def __init__(self, address: Address, num_connections: int, pause: Callable[[float], object] = time.sleep) -> None:
        self.address = address
        self._pause = pause
        self._key = _read_key()
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
        )
        self._answers = False

    @property
    def sends_key_in_the_open(self) -> bool:
        """Whether the key travels unencrypted to another machine."""
        return bool(self._key) and self.address.base.startswith("http:") and self.address.host not in LOCAL_HOSTS

    def ask(self, body: Mapping[str, Any]) -> bytes:
        """Return what the endpoint answers to a chat completion request.

        Raises RequestError where this request failed for good, and BackendError where every request would: a refused
        key, an unknown model or path, and an endpoint that never answered.
        """
        content = _encode(body)
        for number in range(TRIES):
            answer = self._post(content, patient=number + 1 < FIRST_TRIES)
            if isinstance(answer, bytes):
                return answer
            reason, asked_pause = answer
            if asked_pause > LONGEST_PAUSE_S:
                raise RequestError(f"{reason}; the endpoint asks to wait {asked_pause:.0f} s")
            if number + 1 < TRIES:
                self._pause(max(2.0**number, asked_pause))
        raise RequestError(f"{reason}, after {TRIES} tries")

    def _post(self, content: bytes, patient: bool) -> bytes | tuple[str, float]:
        """Return the answer, or why there is none yet and what pause is asked for; raises where no try can help."""
        url, headers = f"{self.address.base}/chat/completions", {"Content-Type": "application/json"}
        try:
            response = self._client.post(url, content=content, headers=headers)
        except httpx2.RequestError as error:
            reason = self._clean(f"{type(error).__name__}: {error}")
            away = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self._answers
            if away and not patient:
                where = self.address.base
                raise BackendError(f"the endpoint {where} cannot be reached ({reason}); is it running?") from error
            return reason, 0.0
        self._answers = True
        if response.is_success:
            return response.content
        return self._failure(response), _asked_pause(response.headers.get("retry-after", ""))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _failure(self, response: httpx2.Response) -> str:
        """Return why another try may help; raises where it cannot."""
        status, where = response.status_code, f"the endpoint {self.address.base}"
        if status in (401, 403):
            known = f"the key in {KEY_VARIABLE}" if self._key else f"requests without a key: set {KEY_VARIABLE}"
            raise BackendError(f"{where} refuses {known} (HTTP {status}).")
        told = self._clean(_message(response))
        if status == 404:
            raise BackendError(f"{where} has no model '{self.address.model}', or its path is wrong (HTTP 404: {told}).")
        if status < 400 or status == 405:
            raise BackendError(f"{where} is no chat completions endpoint (HTTP {status}); expected {FORM}.")
        if status in (408, 409, 425, 429) or status >= 500:
            return f"HTTP {status}: {told}"
        raise RequestError(f"HTTP {status}: {told}")

    def _clean(self, text: str) -> str:
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:200]


def _read_key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if re.search(r"[^!-~]", key):
        raise BackendError(f"{KEY_VARIABLE} holds blanks or characters that no key has; set it again.")
    return key


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError("the prompt or context holds half a character, which cannot be sent") from error


def _message(response: httpx2.Response) -> str:
    """The error message in what the endpoint says, or its beginning."""
    try:
        found = json.loads(response.content)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.content[:500].decode("utf-8", errors="replace") or response.reason_phrase


def _asked_pause(told: str) -> float:
    """The seconds that a Retry-After header asks for, given as such or as a date; 0 where it asks for nothing."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told, re.ASCII):
        return float(told)
    try:
        until = email.utils.parsedate_to_datetime(told)
        return max(0.0, until.replace(tzinfo=until.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


AT_ONCE = 16
BYTES_PER_TOKEN = 4
"""The rule of thumb by which a text's tokens are estimated; within a third of it for most tokenizers and scripts."""
CONTROL = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?(?:s|bos|eos|think|start_of_turn|end_of_turn)>", re.IGNORECASE
)
"""What control tokens of known models look like: which ones the endpoint's model has is not told."""

Length = Annotated[int, Field(ge=0, lt=2**31)]


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    """The thought, as vLLM, SGLang, DeepSeek and llama.cpp name it."""
    reasoning: str | None = None
    """The thought, as others and newer versions do."""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: Length | None = None


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class HttpBackend:
    """The model that `http(s)://host[:port]/v1#model-name` names; the key is that of OPENAI_API_KEY, if there is one.

    Nothing is asked of the endpoint until there is something to generate; what is wrong with it for every request is
    then a BackendError. Its identity is address and name, as that is all that can be known of it: what serves another
    model under the same name must get another ledger.
    """

    revision: str | None = None

    def __init__(self, model: str, *, at_once: int = AT_ONCE, pause: Callable[[float], object] = time.sleep) -> None:
        address = Address.parse(model)
        self._at_once = at_once
        self._endpoint = Endpoint(address, at_once, pause)
        self.model_id = content_id("http", address.base, address.model)
        self.notes = tuple(self._notes())

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout a request, in the order in which they are done; a kill loses those under way."""
        yield from as_completed(lambda request: self._rollout(request, sampling), requests, self._at_once)

    def count_tokens(self, text: str) -> int:
        """Return an estimate, as the endpoint does not tell: a token for every four bytes of UTF-8."""
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _notes(self) -> Iterator[str]:
        yield (
            "the endpoint counts no tokens: lengths of contexts are estimates (a token for four bytes), completions "
            "have none, and a budget of tokens ends nothing."
        )
        yield "the endpoint draws and rounds in its own way: asked again it may answer otherwise, even greedily."
        if self._endpoint.sends_key_in_the_open:
            yield f"the key travels unencrypted to {self._endpoint.address.host}; https would hide it."

    def _rollout(self, request: Request, sampling: Sampling) -> Rollout:
        try:
            if request.prefill:
                raise RequestError("the endpoint takes no tokens, so no completion can be continued")
            completion, stopped, num_prompt_tokens = _read(self._endpoint.ask(self._body(request, sampling)))
        except RequestError as failure:
            return failed(request, self.model_id, sampling, str(failure))
        unknown = EncodedPrompt((), opens_thinking=False)
        rollout = completed(
            request, self.model_id, sampling, unknown, completion=completion, completion_ids=(), stopped=stopped
        )
        return replace(rollout, num_prompt_tokens=num_prompt_tokens)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        messages = lay_out(request.prompt, request.context)
        body: dict[str, Any] = {
            "model": self._endpoint.address.model,
            "messages": [{**message, "content": defuse(message["content"])} for message in messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            # 31 bits, because some endpoints read a seed as a 32-bit integer.
            "seed": 0 if sampling.temperature == 0 else stream_seed(request, sampling) >> 33,
        }
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p} | ({"top_k": sampling.top_k} if sampling.top_k else {})
        return body


def defuse(text: str) -> str:
    """Return `text` with a space inside everything that looks like a control token, as `chat` does for known ones."""
    return CONTROL.sub(lambda found: found[0][0] + " " + found[0][1:], text)


def _read(content: bytes) -> tuple[str, bool, int]:
    """Return completion, whether it ended by itself, and the prompt's tokens (0 where not told)."""
    try:
        answer = _Answer.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise RequestError(f"the endpoint's answer is no chat completion ({where}: {first['msg'][:150]})") from error
    choice = answer.choices[0]
    if choice.finish_reason not in ("stop", "length"):
        raise RequestError(f"finish_reason is '{str(choice.finish_reason)[:40]}', expected stop or length")
    stopped = choice.finish_reason == "stop"
    return _completion(choice.message, stopped), stopped, (answer.usage and answer.usage.prompt_tokens) or 0


def _completion(message: _Message, stopped: bool) -> str:
    """The thought in a think block and the answer; the block of a thought that was cut stays open."""
    thought = message.reasoning_content or message.reasoning
    if thought is None:
        if message.content is None:
            raise RequestError("the endpoint's message has no content")
        return message.content
    cut = not message.content and not stopped
    return f"<think>\n{thought}" if cut else f"<think>\n{thought}\n</think>\n\n{message.content or ''}"
