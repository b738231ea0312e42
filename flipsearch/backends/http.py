"""A model behind an OpenAI-compatible chat completions endpoint: a served model, or one that only its vendor has.

The only backend that is concurrent inside. What the endpoint does not tell is not made up: completions have no token
ids, and a completion cannot go on from given tokens. Where it gives a thought apart, the thought is put back as a think
block in front of the answer, so that judges tell the two apart as they do everywhere.

`max_tokens`, `temperature` and a seed always go along; `top_p` where completions are drawn, and `top_k` where it is
set, which vLLM, SGLang and llama.cpp take and others refuse.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from flipsearch.backends.drawing import stream_seed
from flipsearch.backends.endpoint import Address, Endpoint, RequestError
from flipsearch.backends.rollouts import completed, failed
from flipsearch.backends.threads import as_completed
from flipsearch.chat import EncodedPrompt, lay_out
from flipsearch.records import Request, Rollout, Sampling, content_id

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
            if request.opening:
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
