"""What an endpoint may send: whatever it is, it is a reply that can be judged or one line that says why not."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flipsearch.backends.endpoint import RequestError
from flipsearch.backends.replies import DIALECTS, ChatReply, parse_reply
from flipsearch.core.records import FINISH_REASONS

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
TEXTS = JSON | st.text()
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "reasoning", "refusal", "output_text", "audio"]) | JSON},
    optional=dict.fromkeys(("text", "thinking", "reasoning", "refusal", "content", "summary"), TEXTS),
)
MESSAGES = st.fixed_dictionaries(
    {"content": TEXTS | st.lists(PARTS | TEXTS, max_size=3)},
    optional=dict.fromkeys(("reasoning", "reasoning_content", "refusal", "tool_calls", "role"), TEXTS),
)
REASONS = st.sampled_from([name for names in DIALECTS["finish_reasons"].values() for name in names]) | JSON
CHOICES = st.fixed_dictionaries({"message": MESSAGES}, optional={"finish_reason": REASONS})
USAGES = st.fixed_dictionaries({}, optional={"prompt_tokens": JSON, "completion_tokens": JSON}) | JSON
COMPLETIONS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES | JSON, min_size=1, max_size=2)}, optional={"usage": USAGES}
)


@st.composite
def bodies(draw: Any) -> bytes:
    """A body near a chat completion, cut or spoilt at times."""
    body = json.dumps(draw(COMPLETIONS if draw(st.integers(0, 9)) else JSON)).encode()
    if draw(st.integers(0, 9)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(body)))
        body = body[:place] + draw(st.binary(max_size=4)) + body[place:]
    return body


@given(bodies())
def test_any_body_is_a_reply_or_one_line(body: bytes) -> None:
    try:
        reply = parse_reply(body, 5)
    except RequestError as error:
        reason = str(error)
        assert len(reason.splitlines()) == 1
        return
    assert isinstance(reply, ChatReply)
    assert reply.completion.encode().decode() == reply.completion
    assert reply.finish_reason in FINISH_REASONS
    assert reply.finish_reason != "error"
    message = json.loads(body)["choices"][0].get("message") or {}
    if message.get("refusal"):
        assert reply.finish_reason == "filtered"
    assert 0 <= reply.num_prompt_tokens < 2**31
