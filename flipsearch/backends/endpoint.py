"""Calls to a chat completions endpoint: its address, the key, retries, and the bounds on time and size.

What an endpoint sends is hostile: it can be endless, slow, huge or a redirect, and it may repeat the key. A call ends
by its deadline whatever the endpoint does, reads a bounded number of bytes, and follows no redirect, so that the key
goes to no address but the one that the user typed.
"""

import email.utils
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx2

from flipsearch.backends.base import KEY_VARIABLE, variable_of
from flipsearch.core.errors import BackendError, one_line

FORM = "http(s)://host[:port]/v1#model-name"
PATH = "/chat/completions"
TRIES = 8
"""Of one request; the pauses between them are 1, 2, 4, … 64 seconds, or what the endpoint requests."""
FIRST_TRIES = 3
"""To reach an endpoint that has never answered: it is more likely down than busy."""
LONGEST_PAUSE_S = 300
"""No pause is longer; an endpoint that requests one ends the command, which continues when it is run again."""
CONNECT_S, GRACE_S, CLOSE_S = 15, 0.5, 1.0
MOST_FAILURES = 32
"""Requests in a row that failed after all retries: the endpoint is down, and the others would fail as well."""
MOST_BYTES, MOST_ERROR_BYTES = 16 * 2**20, 2**16
"""Of an answer, and of the text that goes with an HTTP error."""
ENCODINGS = ("", "identity", "gzip", "deflate")
"""Of a body: none is requested, these are read, and others could unpack to more than memory holds."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
FILTER_MARKS = re.compile(
    r"content_?(?:filter|policy|management)|responsible_?ai|data_?inspection_?failed|flagged_input|moderation_?blocked",
    re.IGNORECASE,
)
"""What the codes of an error say if a filter refused the prompt: Azure, OpenAI, DashScope and OpenRouter."""

PAGE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.{1,80}?)</title", re.IGNORECASE | re.DOTALL)


class RequestError(Exception):
    """One request failed for good; the others may continue."""


class RefusedRequestError(RequestError):
    """The endpoint refuses this request as it is; `details` is all that it says, with the parameter's name first."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class FilteredRequestError(RequestError):
    """A content filter of the endpoint refuses the prompt."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model is served, and under which name; `base` is e.g. "http://localhost:8000/v1"."""

    base: str
    model: str
    host: str

    @property
    def place(self) -> str:
        """The host, with its port if one is given."""
        return urlsplit(self.base).netloc

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
        if parts.path.rstrip("/").endswith(PATH):
            raise BackendError(f"'{text}': leave {PATH} out, which is added to the address; expected {FORM}.")
        if parts.scheme not in ("http", "https") or not host or not model.strip():
            raise BackendError(f"'{text}' is no address of a model; expected {FORM}.")
        return cls(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", model.strip(), host)


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Endpoint:
    """Calls to one address, retried where that can help; thread-safe.

    `timeout_s` is the time of one request, retries and pauses included. `pause` sleeps for a number of seconds, and
    `on_pause` is called with the reason before it does.
    """

    def __init__(
        self,
        address: Address,
        num_connections: int,
        timeout_s: float,
        pause: Callable[[float], object] = time.sleep,
        on_pause: Callable[[str], object] = str,
    ) -> None:
        self.address, self._timeout_s, self._pause, self._on_pause = address, timeout_s, pause, on_pause
        self._variable = variable_of(address.place)
        self._key = os.environ.get(self._variable, "").strip()
        if re.search(r"[^!-~]", self._key):
            raise BackendError(f"{self._variable} holds blanks or characters that no key has; set it again.")
        self._client = httpx2.Client(
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
            follow_redirects=False,
        )
        self._has_answered, self._num_failed, self._lock = False, 0, Lock()
        self._has_served, self._num_forbidden = False, 0
        self._exchanges, self._is_closed = set[Thread](), False
        is_plain = address.base.startswith("http:") and address.host not in LOCAL_HOSTS
        self.sends_key_unencrypted = bool(self._key) and is_plain

    def post(self, body: Mapping[str, Any], *, tries: int = TRIES, timeout_s: float | None = None) -> bytes:
        """Return the response; RequestError where this request failed for good, BackendError where each would."""
        try:
            content = json.dumps(body, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError("the prompt or context holds half a character, which cannot be sent") from error
        timeout_s = min(timeout_s or self._timeout_s, self._timeout_s)
        deadline = time.monotonic() + timeout_s
        for number in range(1, tries + 1):
            response = self._try(content, deadline, may_be_down=number < FIRST_TRIES)
            if isinstance(response, bytes):
                self._num_failed = 0
                return response
            reason, pause = response
            if pause > LONGEST_PAUSE_S:
                raise BackendError(
                    f"the endpoint {self.address.base} requests a pause of {pause:,.0f} s ({reason}); what was "
                    "finished is kept: run the same command again then."
                )
            pause = max(2.0 ** (number - 1), pause)
            if time.monotonic() + pause >= deadline:
                reason = f"{reason}; the {timeout_s:g} s of --request-timeout are over"
                break
            if number < tries:
                self._on_pause(f"waiting {pause:.0f} s: {reason[:40]}")
                self._pause(pause)
        else:
            reason = f"{reason}, after {tries} tries"
        with self._lock:
            self._num_failed += 1
            if self._num_failed >= MOST_FAILURES:
                raise BackendError(
                    f"the endpoint {self.address.base} failed {self._num_failed} requests in a row, the last one with: "
                    f"{reason}. What was finished is kept: run the same command again when it is up."
                )
        raise RequestError(reason)

    def close(self) -> None:
        """Close the connections, after a moment for the requests in flight, which would open new ones."""
        with self._lock:
            self._is_closed, exchanges = True, list(self._exchanges)
        until = time.monotonic() + CLOSE_S
        for exchange in exchanges:
            exchange.join(max(0.0, until - time.monotonic()))
        self._client.close()

    def _try(self, content: bytes, deadline: float, may_be_down: bool) -> bytes | tuple[str, float]:
        """Return the response, or why there is none yet and the requested pause; raise where no retry can help."""
        try:
            response = self._within(deadline, lambda: self._exchange(content, deadline))
        except RequestError:
            raise
        except Exception as error:  # whatever the client raises on what an endpoint sends
            reason = self._one_line(f"{type(error).__name__}: {error}")
            unreachable = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self._has_answered
            if unreachable and not may_be_down:
                where = self.address.base
                raise BackendError(f"the endpoint {where} cannot be reached ({reason}); is it running?") from error
            return reason, 0.0
        self._has_answered = True
        if 200 <= response.status < 300:
            self._has_served, self._num_forbidden = True, 0
            return response.body
        return self._failure(response), _retry_after(response.headers.get("retry-after", ""))

    def _exchange(self, content: bytes, deadline: float) -> _Response:
        """Send one request and read its response, bounded in size and, but for its head, in time."""
        left = max(0.001, deadline - time.monotonic())
        timeout = httpx2.Timeout(left, connect=min(CONNECT_S, left))
        url, headers = f"{self.address.base}{PATH}", {"Content-Type": "application/json"}
        with self._client.stream("POST", url, content=content, headers=headers, timeout=timeout) as response:
            if response.headers.get("content-encoding", "").strip().lower() not in ENCODINGS:
                raise RequestError("the endpoint's answer is compressed in a way that was not requested")
            most, body = MOST_BYTES if response.is_success else MOST_ERROR_BYTES, bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > most and response.is_success:
                    raise RequestError(f"the endpoint's answer is longer than {most >> 20} MiB")
                if len(body) > most:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer did not end in time")
            return _Response(response.status_code, response.headers, bytes(body[:most]))

    def _within(self, deadline: float, work: Callable[[], _Response]) -> _Response:
        """Return or raise what `work` does, or TimeoutError soon after the deadline: its thread is then left behind."""
        done: SimpleQueue[_Response | Exception] = SimpleQueue()

        def run() -> None:
            try:
                done.put(work())
            except Exception as error:  # raised in the caller's thread
                done.put(error)
            with self._lock:
                self._exchanges.discard(thread)

        thread = Thread(target=run, daemon=True)
        with self._lock:
            if self._is_closed:
                raise RequestError("the command has ended")
            thread.start()
            self._exchanges.add(thread)
        try:
            result = done.get(timeout=max(0.0, deadline - time.monotonic()) + GRACE_S)
        except Empty:
            raise TimeoutError("no answer in time") from None
        if isinstance(result, Exception):
            raise result
        return result

    def _failure(self, response: _Response) -> str:
        """Return why a retry may help; raise where it cannot."""
        status, where = response.status, f"the endpoint {self.address.base}"
        message, codes = error_of(response.body)
        if status in (400, 403, 422, 451) and FILTER_MARKS.search(codes):
            raise FilteredRequestError(f"the endpoint's content filter refuses the prompt (HTTP {status})")
        if status == 403 and self._has_served and self._num_forbidden < MOST_FAILURES:
            self._num_forbidden += 1  # what was let in before is refused for what it says: a firewall, a moderation
            raise RequestError(f"HTTP 403: {self._one_line(message) or 'Forbidden'}")
        if status in (401, 403):
            known = f"the key in {self._variable}" if self._key else f"requests without a key: set {self._variable}"
            several = f"; {KEY_VARIABLE} goes to no host where a command calls several"
            why = several if not self._key and self._variable != KEY_VARIABLE else ""
            raise BackendError(f"{where} refuses {known} (HTTP {status}){why}.")
        details = f"{codes} {message}"
        message = self._one_line(message) or httpx2.codes.get_reason_phrase(status) or "no reason given"
        if status == 404:
            model = self.address.model
            raise BackendError(f"{where} has no model '{model}', or its path is wrong (HTTP 404: {message}).")
        if status < 400 or status == 405:
            raise BackendError(f"{where} is no chat completions endpoint (HTTP {status}); expected {FORM}.")
        if status == 402 or "insufficient_quota" in codes:
            raise BackendError(f"{where} has no quota left (HTTP {status}: {message}).")
        if status in (408, 409, 425, 429) or status >= 500:
            return f"HTTP {status}: {message}"
        raise RefusedRequestError(f"HTTP {status}: {message}", details)

    def without_key(self, text: str) -> str:
        """Return a text of the endpoint in one line that does not hold the key: some servers repeat it."""
        line = " ".join(text.split())
        return line.replace(self._key, "[key]") if self._key else line

    def _one_line(self, text: str) -> str:
        return self.without_key(text)[:200]


def error_of(body: bytes) -> tuple[str, str]:
    """Return an HTTP error's message, and its codes and parameter in one text; other bodies are messages whole."""
    try:
        content = json.loads(body)
        content = content[0] if isinstance(content, list) and content else content  # Google's
        error = content.get("error") or content
        if isinstance(error, dict) and "message" in error:
            codes = {key: value for key, value in error.items() if key != "message"}
            return str(error["message"]), " ".join([str(codes.pop("param", "") or ""), json.dumps(codes)])
        return str(error) if error is not content else body[:2000].decode("utf-8", errors="replace"), ""
    except (ValueError, AttributeError, RecursionError):
        text = body[:2000].decode("utf-8", errors="replace")
        return page_title(text) or text, ""


def page_title(text: str) -> str:
    """Return "a web page" with its title; "" for any other text, and for a page without a title."""
    title = TITLE.search(text) if PAGE.match(text) else None
    return f"a web page ({one_line(ValueError(title[1]), 60)!r})" if title else ""


def _retry_after(header: str) -> float:
    """Return the seconds that a Retry-After header requests, as a number or a date; 0 where it requests nothing."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header, re.ASCII):
        return float(header)
    try:
        until = email.utils.parsedate_to_datetime(header)
        return max(0.0, until.replace(tzinfo=until.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
