"""A model behind an OpenAI-compatible chat completions endpoint: a served model, or one that only its vendor has.

The only backend that is concurrent inside. Completions have no token ids, and cannot continue a prefill. Reasoning that
is returned separately is put back as a think block, so that judges separate the two as for every other model.

Every parameter that can change a completion is sent, at its neutral value where the settings have none: servers fill in
what is missing from the model's own generation settings. Not every server takes all of them, so loading the backend
sends one request as the study's will be (`probe`), and leaves out, or sends under another name, what that refuses. The
key goes into a header, nowhere else: what the endpoint says is quoted with the key removed.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from flipsearch.backends.base import completed, failed, name_host, stream_seed
from flipsearch.backends.chat import EncodedPrompt, lay_out
from flipsearch.backends.endpoint import (
    Address,
    Endpoint,
    FilteredRequestError,
    RefusedRequestError,
    RequestError,
)
from flipsearch.backends.replies import ChatReply, parse_reply
from flipsearch.config import REQUEST_TIMEOUT_S, ModelConfig
from flipsearch.core.errors import BackendError, unknown_name
from flipsearch.core.records import Context, Prompt, Request, Rollout, Sampling, content_id

NUM_CONNECTIONS = 16
BYTES_PER_TOKEN = 4
"""Rule of thumb for the number of tokens in a text; within a third of it for most tokenizers and scripts."""
CONTROL = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?(?:s|bos|eos|think|start_of_turn|end_of_turn)>", re.IGNORECASE
)
"""What control tokens of known models look like; those of the endpoint's model are not known."""
NEUTRAL: dict[str, float] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "top_k": -1,
    "min_p": 0,
}
"""Parameters at the values at which they change nothing; OpenAI's API knows the first two alone."""
MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
OMITTABLE = (MAX_TOKENS, "temperature", "seed", "top_p", *NEUTRAL)
"""What an endpoint may refuse; without max_tokens, max_completion_tokens is sent."""
PROBE = Request(Prompt("Reply with the one word: ready", "benign"), Context("You are a helpful assistant."))
PROBE_TRIES, PROBE_S = 4, 180.0
"""An endpoint that is down or never answers is to be found out soon; the settings' own limit holds if it is less."""
NO_SYSTEM = re.compile(
    r"\bsystem\b.{0,40}\b(?:role|message|prompt|instruction)|\brole\b.{0,60}\bsystem\b|must alternate|only user", re.I
)
"""How servers say that a chat template takes no system role."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Done = SimpleQueue[tuple[list[Result], Exception | None]]


class HttpBackend:
    """The model that `http(s)://host[:port]/v1#model-name` names, with its key, if there is one.

    What is wrong with the endpoint for every request is a BackendError, of `probe` where the backend is loaded by its
    settings. `omit` are parameters that are not sent. Its identity is address and name, and the parameters that are
    not sent; nothing more is known of it: another model served under the same name needs another ledger.
    """

    revision: str | None = None

    def __init__(
        self,
        model: str,
        *,
        num_connections: int = NUM_CONNECTIONS,
        timeout_s: float = REQUEST_TIMEOUT_S,
        omit: Sequence[str] = (),
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._address = Address.parse(model)
        self._num_connections = num_connections
        self._done: Done[Rollout] = SimpleQueue()
        self._endpoint = Endpoint(self._address, num_connections, timeout_s, pause, self._show_pause)
        self._omitted, self._takes_system = set(omit), True
        self._unknown_reasons: set[str] = set()
        self._lock = Lock()
        self.status = ""
        """What it waits for, to be shown with the progress; "" for nothing but answers."""
        self._describe()

    def _describe(self) -> None:
        lacks = ["temperature"] if "temperature" in self._omitted else []
        lacks += [] if self._takes_system else ["system role"]
        self.model_id = content_id("http", self._address.base, self._address.model, *lacks)
        notes = [
            "the endpoint counts no tokens: lengths of contexts are estimates (a token for four bytes), completions "
            "have none, and a budget of tokens ends nothing.",
            "the endpoint samples and rounds in its own way: a request may be answered otherwise again, even greedily.",
        ]
        if self._endpoint.sends_key_unencrypted:
            notes.append(f"the key travels unencrypted to {self._address.host}; https would hide it.")
        if not self._takes_system:
            notes.append("the endpoint takes no system role: system contexts are placed before the prompt.")
        if MAX_TOKENS in self._omitted:
            notes.append("the endpoint takes max_completion_tokens, which counts what the model thinks unseen, too.")
        if "temperature" in self._omitted:
            notes.append("the endpoint takes no temperature: its answers are sampled in its own way, none is greedy.")
        if "seed" in self._omitted:
            notes.append("the endpoint takes no seed: samples cannot be repeated.")
        if unset := [name for name in ("top_p", *NEUTRAL) if name in self._omitted]:
            notes.append(f"the endpoint takes no {', '.join(unset)}: if it has such settings of its own, they hold.")
        if self._unknown_reasons:
            reasons = ", ".join(f"'{reason}'" for reason in sorted(self._unknown_reasons)[:5])
            notes.append(f"the endpoint ended answers for reasons that are not known ({reasons}): they count as whole.")
        self.notes: tuple[str, ...] = tuple(notes)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise BackendError for a model that is no address, and for settings that only the endpoint decides."""
        name_host(Address.parse(config.model).place)
        if config.think_tokens:
            raise BackendError(
                "--think-tokens is for local models: an endpoint takes no budget of its own for thoughts."
            )
        local = {"thinking": config.thinking, "device": config.device, "dtype": config.dtype}
        if given := [name for name, value in local.items() if value != "auto"]:
            raise BackendError(f"--{given[0]} is for local models; the endpoint of '{config.model}' decides it.")
        if unknown := [name for name in config.omit if name not in OMITTABLE]:
            raise BackendError(f"--omit: {unknown_name('parameter', unknown[0], OMITTABLE)}")

    @classmethod
    def from_config(cls, config: ModelConfig, memory_share: float = 1.0) -> "HttpBackend":
        """Return the backend of the address that --model names, after a probe of it."""
        backend = cls(config.model, timeout_s=config.request_timeout_s, omit=config.omit)
        try:
            backend.probe(config.sampling())
        except BaseException:
            backend.close()
            raise
        return backend

    def probe(self, sampling: Sampling) -> None:
        """Send one request as a study's will be, and leave out from then on what is refused; BackendError if all is."""
        while True:
            body = self._body(PROBE, sampling)
            try:
                answer = self._endpoint.post(body, tries=PROBE_TRIES, timeout_s=PROBE_S)
                parse_reply(answer, sampling.max_tokens)
            except FilteredRequestError:
                return
            except RefusedRequestError as refusal:
                self._give_up_refused(refusal, body, sampling)
            except RequestError as error:
                where = f"the endpoint {self._address.base} cannot be used"
                reason = self._endpoint.without_key(str(error))
                raise BackendError(f"{where}: {reason}. The request was for one word, before anything else.") from error
            else:
                return

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request as they are completed; an empty batch says that `status` has changed."""
        # A queue per call: requests of an earlier one that was given up may still come back.
        self._done = SimpleQueue()
        work = _as_completed(lambda r: self._rollout(r, sampling), requests, self._num_connections, self._done)
        for batch in work:
            yield batch
            if batch:
                self.status = ""

    def count_tokens(self, text: str) -> int:
        """Return an estimate, as the endpoint does not count: a token for every four bytes of UTF-8."""
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _show_pause(self, why: str) -> None:
        self.status = why
        self._done.put(([], None))

    def _give_up_refused(self, refusal: RefusedRequestError, body: dict[str, Any], sampling: Sampling) -> None:
        """Leave out what a refusal names; BackendError if that cannot be left out, or if the settings require it."""
        named = {name: re.search(rf"(?<!\w){name}(?!\w)", refusal.details) for name in OMITTABLE if name in body}
        places = {name: match.start() for name, match in named.items() if match}
        if places:
            names = [min(places, key=places.__getitem__)]  # what it says first
        elif self._takes_system and NO_SYSTEM.search(refusal.details):
            self._takes_system = False
            self._describe()
            return
        else:  # which one is not said: those that few servers know
            names = [name for name in NEUTRAL if name in body and not (name == "top_k" and sampling.top_k)]
        wanted = {"temperature": sampling.temperature > 0, "top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0}
        if given := [name for name in names if wanted.get(name) and sampling.temperature > 0]:
            flag = f"--{given[0].replace('_', '-')}"
            raise BackendError(
                f"the endpoint {self._address.base} refuses {flag} {body[given[0]]:g} ({refusal}); give another value, "
                f"or --omit {given[0]} to let the endpoint decide."
            )
        if not names:
            raise BackendError(f"the endpoint {self._address.base} refuses every request ({refusal}).")
        self._omitted |= set(names)
        self._describe()

    def _rollout(self, request: Request, sampling: Sampling) -> Rollout:
        reply = ChatReply("", "filtered", 0)
        try:
            if request.prefill or request.prompt.is_raw:
                raise RequestError("the endpoint takes no tokens: no completion can be continued, no template left out")
            reply = parse_reply(self._endpoint.post(self._body(request, sampling)), sampling.max_tokens)
        except FilteredRequestError:
            pass
        except RequestError as failure:
            return failed(request, self.model_id, sampling, self._endpoint.without_key(str(failure)))
        if reply.unknown_reason:
            with self._lock:
                self._unknown_reasons.add(reply.unknown_reason)
                self._describe()
        unknown = EncodedPrompt((), opens_thinking=False)
        rollout = completed(request, self.model_id, sampling, unknown, reply.completion, (), stopped=True)
        return replace(rollout, finish_reason=reply.finish_reason, num_prompt_tokens=reply.num_prompt_tokens)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        # What looks like a control token gets a space inside, as `chat` does to known ones.
        messages = [
            {**message, "content": CONTROL.sub(lambda match: match[0][0] + " " + match[0][1:], message["content"])}
            for message in lay_out(request.prompt, request.context, self._takes_system)
        ]
        is_sampled = sampling.temperature > 0
        settings = NEUTRAL | {
            MAX_TOKENS: sampling.max_tokens,
            "temperature": sampling.temperature,
            # 31 bits, because some endpoints read a seed as a 32-bit integer.
            "seed": stream_seed(request, sampling) >> 33 if is_sampled else 0,
        }
        if is_sampled:
            settings |= {"top_p": sampling.top_p} | ({"top_k": sampling.top_k} if sampling.top_k else {})
        if MAX_TOKENS in self._omitted:
            settings[MAX_COMPLETION_TOKENS] = sampling.max_tokens
        settings = {name: value for name, value in settings.items() if name not in self._omitted}
        return {"model": self._address.model, "messages": messages, **settings}


def _as_completed(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int, done: Done[Result]
) -> Iterator[list[Result]]:
    """Yield the results of `work` on each item in lists, as soon as there are any, in any order.

    Results go through `done`; what is put there besides, ([], None), is yielded as an empty list.
    An exception is raised after the other finished results; nothing new is started after it, nor once the caller stops.
    The threads are daemons, unlike those of concurrent.futures: an interrupted program does not wait for them.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
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
            results = [result for finished, _ in batch for result in finished]
            if results or ([], None) in batch:
                yield results
            for error in (error for _, error in batch if error):
                raise error
            num_left -= len(results)
    finally:
        stopped.set()
