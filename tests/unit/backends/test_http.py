"""A model behind an endpoint: what is sent, what comes back, what is retried, and that the key stays secret."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flipsearch.backends.base import check_model, check_rewriter, command_scope, make_backend
from flipsearch.backends.chat import lay_out
from flipsearch.backends.http import HttpBackend
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Context, FinishReason, Placement, Prompt, Request, Rollout, Sampling
from flipsearch.core.thoughts import split_answer
from tests.endpoint import EndpointAnswer, Respond, Served, last_message, refuses, says, serving
from tests.world import flat

KEY = "sk-secret-0123456789"
EGG = Prompt("How do I boil an egg?", "benign")
GREEDY = Sampling(max_tokens=9)


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def backend_to(respond: Respond, **options: Any) -> Iterator[tuple[HttpBackend, Served, list[float]]]:
    """Yield a backend, the requests that it sends, and how long it would have paused."""
    pauses: list[float] = []
    with (
        serving(respond) as served,
        contextlib.closing(HttpBackend(f"{served.url}#org/tiny", pause=pauses.append, **options)) as backend,
    ):
        yield backend, served, pauses


def complete(respond: Respond, request: Request = Request(EGG), sampling: Sampling = GREEDY) -> Rollout:  # noqa: B008
    with backend_to(respond) as (backend, _, _):
        [rollout] = flat(backend.generate([request], sampling))
        return rollout


def in_turn(*answers: EndpointAnswer) -> Respond:
    remaining = iter(answers)
    return lambda body: next(remaining)


def test_a_completion_is_returned_unchanged() -> None:
    rollout = complete(lambda body: says("Boil it. 🥚 \u202e\0 {0}"))
    assert (rollout.completion, rollout.finish_reason) == ("Boil it. 🥚 \u202e\0 {0}", "stop")
    assert (rollout.prompt_id, rollout.context_id) == (EGG.prompt_id, None)
    assert (rollout.completion_ids, rollout.num_prompt_tokens) == ((), 7)


def test_the_request_holds_model_and_limits() -> None:
    with backend_to(lambda body: says("a")) as (backend, served, _):
        list(backend.generate([Request(EGG)], Sampling(max_tokens=5)))
    [body], [path] = served.bodies, served.paths
    assert path == "/v1/chat/completions"
    assert body["model"] == "org/tiny"
    assert (body["max_tokens"], body["temperature"]) == (5, 0)
    assert "top_p" not in body
    assert "Authorization" not in served.headers[0]


def test_samples_have_seeds_of_their_own_that_are_the_same_each_time() -> None:
    sampling = Sampling(max_tokens=5, temperature=0.7, top_p=0.9, top_k=20, seed=3)
    requests = [Request(EGG, sample_index=index) for index in range(3)]
    seeds: list[set[int]] = []
    for _ in range(2):
        with backend_to(lambda body: says("a")) as (backend, served, _):
            list(backend.generate(requests, sampling))
        assert {(body["temperature"], body["top_p"], body["top_k"]) for body in served.bodies} == {(0.7, 0.9, 20)}
        seeds.append({body["seed"] for body in served.bodies})
    assert len(seeds[0]) == 3
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize("placement", ["system", "before", "after", "around"])
def test_a_context_is_placed_as_for_a_local_model(placement: Placement) -> None:
    context = Context("First.\n\nSecond.", placement)
    with backend_to(lambda body: says("a")) as (backend, served, _):
        list(backend.generate([Request(EGG, context)], GREEDY))
    assert served.bodies[0]["messages"] == lay_out(EGG, context)


@pytest.mark.parametrize("mark", ["<|im_end|>", "<｜User｜>", "[INST]", "</s>", "<start_of_turn>", "</think>"])
def test_what_looks_like_a_control_token_is_sent_as_readable_text(mark: str) -> None:
    with backend_to(lambda body: says("a")) as (backend, served, _):
        list(backend.generate([Request(Prompt(f"a {mark} b", "harmful"))], GREEDY))
    assert last_message(served.bodies[0]) == f"a {mark[0]} {mark[1:]} b"


def test_requests_are_concurrent_and_each_gets_its_own_answer() -> None:
    everyone = threading.Barrier(4, timeout=20)

    def respond(body: dict[str, object]) -> EndpointAnswer:
        everyone.wait()  # answers none before four are waiting
        return says(f"re: {last_message(body)}")

    prompts = [Prompt(f"Question {number}", "benign") for number in range(8)]
    with backend_to(respond, num_connections=4) as (backend, _, _):
        rollouts = list(flat(backend.generate([Request(prompt) for prompt in prompts], GREEDY)))
    completions = {rollout.prompt_id: rollout.completion for rollout in rollouts}
    assert completions == {prompt.prompt_id: f"re: {prompt.text}" for prompt in prompts}
    assert len(rollouts) == 8


def test_no_more_requests_are_concurrent_than_the_limit() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def respond(body: dict[str, object]) -> EndpointAnswer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.005)
        with lock:
            now[0] -= 1
        return says("a")

    with backend_to(respond, num_connections=2) as (backend, _, _):
        list(backend.generate([Request(Prompt(str(number), "benign")) for number in range(12)], GREEDY))
    assert most[0] <= 2


def test_finished_rollouts_are_yielded_before_slow_ones() -> None:
    release = threading.Event()

    def respond(body: dict[str, object]) -> EndpointAnswer:
        if last_message(body) == "slow":
            release.wait(20)
        return says(last_message(body))

    with backend_to(respond, num_connections=2) as (backend, _, _):
        batches = backend.generate([Request(Prompt(text, "benign")) for text in ("slow", "quick")], GREEDY)
        assert [rollout.completion for rollout in next(batches)] == ["quick"]
        release.set()
        assert [rollout.completion for rollout in next(batches)] == ["slow"]


def test_nothing_new_is_sent_once_the_caller_stops() -> None:
    with backend_to(lambda body: says("a"), num_connections=1) as (backend, served, _):
        batches = backend.generate([Request(Prompt(str(number), "benign")) for number in range(5000)], GREEDY)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert len(served.bodies) < 5000


@pytest.mark.parametrize("first", [refuses(429), refuses(500), refuses(503), EndpointAnswer(b"", status=None)])
def test_a_passing_failure_is_retried(first: EndpointAnswer) -> None:
    with backend_to(in_turn(first, first, says("Boil it."))) as (backend, served, pauses):
        [rollout] = flat(backend.generate([Request(EGG)], GREEDY))
    assert rollout.completion == "Boil it."
    assert len(served.bodies) == 3
    assert pauses == [1, 2]


def test_a_requested_pause_is_kept() -> None:
    answers = (refuses(429, Retry_After="17"), refuses(503, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"), says("a"))
    with backend_to(in_turn(*answers)) as (backend, _, pauses):
        list(backend.generate([Request(EGG)], GREEDY))
    assert pauses == [17, 2]


@pytest.mark.parametrize("header", ["soon", "-5", "nan", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"])
def test_a_pause_that_cannot_be_read_is_the_usual_one(header: str) -> None:
    with backend_to(in_turn(refuses(429, Retry_After=header), says("a"))) as (backend, _, pauses):
        list(backend.generate([Request(EGG)], GREEDY))
    assert pauses == [1]


@pytest.mark.parametrize("header", ["86400", "Fri, 31 Dec 2199 23:59:59 GMT"])
def test_a_requested_pause_of_hours_ends_the_command_which_can_be_run_again(header: str) -> None:
    with pytest.raises(BackendError, match=r"requests a pause of [\d,]+ s \(HTTP 429: quota\).*run the same command"):
        complete(lambda body: refuses(429, "quota", Retry_After=header))


def test_a_pause_is_shown_while_it_lasts() -> None:
    seen: list[str] = []
    with backend_to(in_turn(refuses(429, "too fast", Retry_After="17"), says("a"))) as (backend, _, _):
        for batch in backend.generate([Request(EGG)], GREEDY):
            seen.append(backend.status)
            assert len(batch) <= 1
        assert backend.status == ""
    assert seen[0] == "waiting 17 s: HTTP 429: too fast"


def test_an_endpoint_that_fails_again_and_again_ends_the_command() -> None:
    with backend_to(lambda body: refuses(503, "down"), num_connections=1) as (backend, served, _):
        batches = backend.generate([Request(Prompt(str(number), "benign")) for number in range(100)], GREEDY)
        with pytest.raises(BackendError, match=r"failed 32 requests in a row, the last one with: HTTP 503: down"):
            list(batches)
    assert len(served.bodies) < 300


@pytest.mark.parametrize("status", [200, None])
def test_an_answer_that_never_ends_is_an_error_by_its_deadline(status: int | None) -> None:
    drip = EndpointAnswer(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400, status, drips=True)
    with backend_to(lambda body: drip, timeout_s=0.3) as (backend, _, _):
        [rollout] = flat(backend.generate([Request(EGG)], GREEDY))
    assert (rollout.finish_reason, rollout.completion) == ("error", "")
    assert "in time; the 0.3 s of --request-timeout are over" in rollout.error


def test_an_answer_of_any_size_is_read_up_to_a_bound() -> None:
    assert "longer than 16 MiB" in complete(lambda body: EndpointAnswer(b" " * (2**24 + 1))).error
    assert complete(lambda body: EndpointAnswer(b"x" * 2**20, 400)).error.startswith("HTTP 400: xxx")


def test_a_lasting_failure_is_an_error_and_the_others_are_completed() -> None:
    def respond(body: dict[str, object]) -> EndpointAnswer:
        return refuses(429, "too fast") if last_message(body) == EGG.text else says("a")

    with backend_to(respond) as (backend, served, pauses):
        rollouts = list(flat(backend.generate([Request(EGG), Request(Prompt("b", "benign"))], GREEDY)))
    assert {(rollout.finish_reason, rollout.error) for rollout in rollouts} == {
        ("stop", ""),
        ("error", "HTTP 429: too fast, after 8 tries"),
    }
    assert pauses == [1, 2, 4, 8, 16, 32, 64]
    assert len(served.bodies) == 9


PAGE = b"<!DOCTYPE html><html><head><title>Open\nWebUI</title></head></html>"
OLLAMA = b'{"model": "llama3", "message": {"role": "assistant", "content": "Hi"}, "done": true}'


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (EndpointAnswer(PAGE), "a web page ('Open WebUI'): does the address end in /v1?"),
        (EndpointAnswer(PAGE, 404), "HTTP 404: a web page ('Open WebUI')"),
        (EndpointAnswer(b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'), "stream of events"),
        (EndpointAnswer(b": keep-alive\n\ndata: {}\n\n"), "a stream of events"),
        (EndpointAnswer(OLLAMA), "Ollama's own form; its address for chat completions is http://HOST:11434/v1#NAME"),
        (EndpointAnswer(OLLAMA + b"\n" + OLLAMA + b"\n"), "a stream of lines, the first one a reply in Ollama's own"),
        (EndpointAnswer(b'[{"generated_text": "Hi"}]'), "a JSON list, expected an object (it holds a reply in"),
        (EndpointAnswer(b'["Hi"]'), "a JSON list, expected an object: does the address end in /v1?"),
        (EndpointAnswer(b'"Hi"'), "a JSON str, expected an object"),
        (EndpointAnswer(b'{"type": "message", "content": [{"type": "text", "text": "Hi"}]}'), "Anthropic's API"),
        (EndpointAnswer(b'{"candidates": []}'), "Google's API"),
        (EndpointAnswer(b'{"object": "list", "data": []}'), "a list; does the address end in /v1?"),
        (EndpointAnswer(b'{"choices": [{"text": "Hi", "finish_reason": "stop"}]}'), "is a plain completion"),
        (EndpointAnswer(b'{"choices": [{"mess'), "JSON that is torn"),
        (EndpointAnswer(b"Ollama is running"), "a text that is no JSON ('Ollama is running')"),
        (EndpointAnswer(b""), "nothing at all"),
        (EndpointAnswer(b"\x16\x03\x01\x00"), "binary data"),
    ],
)
def test_what_came_instead_of_a_completion_is_said(answer: EndpointAnswer, reason: str) -> None:
    with backend_to(lambda body: answer) as (backend, _, _), pytest.raises(BackendError) as caught:
        backend.probe(GREEDY)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_added_anyway_is_refused() -> None:
    with pytest.raises(BackendError, match=r"leave /chat/completions out"):
        check_model(ModelConfig(model="http://localhost/v1/chat/completions#tiny"))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuses(400, "temperature must be 1"), "HTTP 400: temperature must be 1"),
        (EndpointAnswer(b"<html>", 400), "HTTP 400: <html>"),
        (EndpointAnswer(b"[]", 400), "HTTP 400: []"),
        (EndpointAnswer(b'{"error": "flat"}', 422), "HTTP 422: flat"),
        (EndpointAnswer(b"<html>"), "no chat completion"),
        (EndpointAnswer(b"\xff\xfe"), "no chat completion"),
        (EndpointAnswer(b"{}"), "no chat completion but an object without choices"),
        (EndpointAnswer(b'{"choices": null, "base_resp": {"msg": "no quota"}}'), '"msg": "no quota'),
        (EndpointAnswer(b'{"choices": [{"message": {"content": "Su"}, "error": {"message": "boom"}}]}'), "error: boom"),
        (EndpointAnswer(b'{"choices": [{"message": {"content": "Su"}}], "error": "boom"}'), "with an error: boom"),
        (EndpointAnswer(b'[{"error": {"message": "boom"}}]', 400), "HTTP 400: boom"),
        (EndpointAnswer('{"choices": "é"}'.encode("latin-1")), "JSON in another encoding than UTF-8"),
        (EndpointAnswer(b'{"choices": []}\ndata: [DONE]'), "JSON with more behind its end"),
        (says("I look it up.", tool_calls=[{"id": "1"}]), "the model calls a tool"),
        (
            EndpointAnswer(b'{"choices": [{"message": {"content": 3}}]}'),
            "no chat completion (choices.0.message.content",
        ),
        (EndpointAnswer(b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "no chat completion"),
        (says(None), "message has no content"),
        (says("", "whatever"), "message has no content (finish_reason 'whatever')"),
        (says("a", "tool_calls"), "ended with finish_reason 'tool_calls'"),
        (says([{"type": "image_url", "image_url": {}}]), "a part of type 'image_url' without text"),
        (says([{"type": "text", "text": 3}]), "without text"),
        (EndpointAnswer(b"[" * 100_000), "no chat completion"),
        (EndpointAnswer(b"a", headers={"Content-Encoding": "zstd"}), "compressed in a way that was not requested"),
    ],
)
def test_a_malformed_answer_is_an_error_with_its_reason(answer: EndpointAnswer, reason: str) -> None:
    rollout = complete(lambda body: answer)
    assert rollout.finish_reason == "error"
    assert rollout.completion == ""
    assert reason in rollout.error
    assert "\n" not in rollout.error


def test_a_prefill_is_an_error() -> None:
    rollout = complete(lambda body: says("a"), Request(EGG, prefill=(1, 2)))
    assert rollout.finish_reason == "error"
    assert "takes no tokens" in rollout.error
    assert rollout.prefill == (1, 2)


def test_half_a_character_is_an_error() -> None:
    rollout = complete(lambda body: says("a"), Request(Prompt("\ud800", "harmful")))
    assert "half a character" in rollout.error


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        *((name, "stop") for name in ("stop", "eos", "eos_token", "stop_sequence", "", None, "STOP", "end_turn")),
        *((name, "stop") for name in ("COMPLETE", "FinishReason.STOP", "FINISH_REASON_STOP", "never heard of", 7)),
        ({"type": "stop", "matched": 2}, "stop"),
        *((name, "length") for name in ("length", "MAX_TOKENS", "model_length", "max_tokens", "Length")),
        *((name, "filtered") for name in ("content_filter", "SAFETY", "guardrail_intervened", "refusal")),
        ("content_filter: PROHIBITED_CONTENT", "filtered"),
    ],
)
def test_finish_reasons_of_all_dialects_are_understood(given: Any, reason: FinishReason) -> None:
    rollout = complete(lambda body: says("Boil it.", given))
    assert (rollout.finish_reason, rollout.completion, rollout.error) == (reason, "Boil it.", "")


@pytest.mark.parametrize("given", [None, "", "never heard of"])
def test_without_a_known_reason_an_answer_of_all_tokens_counts_as_cut(given: str | None) -> None:
    assert complete(lambda body: says("Boil", given), sampling=Sampling(max_tokens=3)).finish_reason == "length"


def test_an_unknown_finish_reason_is_noted_once() -> None:
    with backend_to(lambda body: says("a", "weary")) as (backend, _, _):
        list(backend.generate([Request(Prompt(str(number), "benign")) for number in range(9)], GREEDY))
    assert [note for note in backend.notes if "'weary'" in note] == [backend.notes[-1]]


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        (says(None, refusal="I can't help with that."), "I can't help with that."),
        (says("Sure", "content_filter"), "Sure"),
        (says(None, "content_filter"), ""),
        (EndpointAnswer(b'{"choices": [{"finish_reason": "content_filter"}]}'), ""),
        (says([{"type": "refusal", "refusal": "No."}], "refusal"), "No."),
        (EndpointAnswer(b'{"error": {"code": "content_filter", "message": "a policy"}}', 400), ""),
        (
            EndpointAnswer(b'{"error": {"metadata": {"flagged_input": "a"}, "message": "flagged", "code": 403}}', 403),
            "",
        ),
    ],
)
def test_what_a_filter_withholds_is_an_outcome_of_its_own(answer: EndpointAnswer, completion: str) -> None:
    rollout = complete(lambda body: answer)
    assert (rollout.finish_reason, rollout.completion, rollout.error) == ("filtered", completion, "")


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Boil it."}],
        [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Boil "}, "it."],
    ],
)
def test_content_in_parts_is_split_into_thought_and_answer(content: list[Any]) -> None:
    parts = split_answer(complete(lambda body: says(content)).completion)
    assert (parts.thought, parts.answer) == ("Hm.", "Boil it.")


def probed(respond: Respond, sampling: Sampling = GREEDY, **options: Any) -> tuple[HttpBackend, list[dict[str, Any]]]:
    """Return a backend after its probe, and the bodies of that and of one request after it."""
    with backend_to(respond, **options) as (backend, served, _):
        backend.probe(sampling)
        list(backend.generate([Request(EGG, Context("Be good."))], sampling))
    return backend, served.bodies


def takes_only(*names: str, message: str = "Unsupported parameter: '{}' is not supported with this model.") -> Respond:
    """Return an endpoint that refuses every parameter but these."""

    def respond(body: dict[str, Any]) -> EndpointAnswer:
        refused = [name for name in body if name not in ("model", "messages", *names)]
        return refuses(400, message.format(*refused)) if refused else says("ready")

    return respond


def test_greedy_is_greedy_on_servers_with_penalties_of_their_own() -> None:
    _, (*_, body) = probed(lambda body: says("a"))
    neutral = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "top_k": -1, "min_p": 0}
    assert {name: body[name] for name in neutral} == neutral


@pytest.mark.parametrize("message", ["Unsupported parameter: '{}' is not supported.", "{}: Extra inputs not permitted"])
def test_a_reasoning_model_gets_no_temperature_and_another_limit(message: str) -> None:
    respond = takes_only("max_completion_tokens", "seed", message=message)
    backend, bodies = probed(respond)
    assert bodies[-1].keys() == {"model", "messages", "max_completion_tokens", "seed"}
    assert bodies[-1]["max_completion_tokens"] == GREEDY.max_tokens
    notes = " ".join(backend.notes)
    assert "takes no temperature: its answers are sampled" in notes
    assert "takes max_completion_tokens" in notes
    assert "repetition_penalty, top_k, min_p" in notes
    assert backend.model_id != HttpBackend("http://127.0.0.1:1/v1#org/tiny").model_id


def test_where_the_refusal_names_nothing_the_rare_parameters_are_left_out() -> None:
    respond = takes_only("max_tokens", "temperature", "seed", message="no")
    _, bodies = probed(respond)
    assert len(bodies) == 3
    assert bodies[-1].keys() == {"model", "messages", "max_tokens", "temperature", "seed"}


def test_what_is_known_to_be_refused_can_be_left_out_at_once() -> None:
    _, bodies = probed(takes_only("max_completion_tokens", "seed"), omit=[
        "max_tokens", "temperature", "frequency_penalty", "presence_penalty", "repetition_penalty", "top_k", "min_p",
    ])  # fmt: skip
    assert len(bodies) == 2
    with pytest.raises(BackendError, match=r"--omit: unknown parameter 'temprature'\. Did you mean temperature"):
        check_model(ModelConfig(model="http://localhost/v1#a", omit=("temprature",)))
    with pytest.raises(BackendError, match="--omit seed is for endpoints"):
        check_model(ModelConfig(omit=("seed",)))


def test_a_temperature_that_the_user_gave_is_never_dropped() -> None:
    with pytest.raises(BackendError, match=r"refuses --temperature 0\.7 .*or --omit temperature"):
        probed(takes_only("max_tokens"), Sampling(max_tokens=9, temperature=0.7))


def test_without_a_system_role_contexts_are_placed_before_the_prompt() -> None:
    def respond(body: dict[str, Any]) -> EndpointAnswer:
        has_system = body["messages"][0]["role"] == "system"
        return refuses(400, "System role not supported") if has_system else says("a")

    backend, bodies = probed(respond)
    assert bodies[-1]["messages"] == [{"role": "user", "content": f"Be good.\n\n{EGG.text}"}]
    assert any("no system role" in note for note in backend.notes)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuses(401), "refuses requests without a key"),
        (refuses(404, "no such model"), "has no model 'org/tiny'"),
        (refuses(400, "max_tokens is too large: 9 > 4"), r"refuses every request \(HTTP 400: max_tokens is too large"),
        (refuses(402, "pay"), "no quota left"),
        (refuses(500, "broken"), r"cannot be used: HTTP 500: broken, after 4 tries"),
        (EndpointAnswer(b"<html>welcome</html>"), "cannot be used: the endpoint's answer is no chat completion"),
        (EndpointAnswer(b"", status=None), "cannot be used: RemoteProtocolError"),
        (says(None), "cannot be used: the endpoint's message has no content"),
    ],
)
def test_an_endpoint_that_no_request_succeeds_at_is_one_error_after_few_requests(
    answer: EndpointAnswer, message: str
) -> None:
    with backend_to(lambda body: answer) as (backend, served, _), pytest.raises(BackendError, match=message) as caught:
        backend.probe(GREEDY)
    assert len(served.bodies) <= 4
    assert "\n" not in str(caught.value)


def test_a_completion_cut_off_has_finish_reason_length() -> None:
    assert complete(lambda body: says("Boil", "length")).finish_reason == "length"


@pytest.mark.parametrize(
    ("field", "thought", "content"),
    [
        ("reasoning_content", "Hm.", "Boil it."),
        ("reasoning", "Hm.", "Boil it."),
        ("reasoning_details", [{"type": "reasoning.text", "text": "Hm."}, {"type": "reasoning.encrypted"}], "Boil it."),
        ("thinking", "Hm.", [{"type": "text", "text": "Boil it."}, {"type": "reference", "reference_ids": [1]}]),
        ("reasoning", "Hm.", "<|channel|>final<|message|>Boil it."),
    ],
)
def test_a_separate_thought_becomes_a_think_block(field: str, thought: Any, content: Any) -> None:
    parts = split_answer(complete(lambda body: says(content, **{field: thought})).completion)
    assert (parts.thought, parts.answer) == ("Hm.", "Boil it.")


def test_a_separate_thought_that_speaks_of_marks_stays_one() -> None:
    parts = split_answer(complete(lambda body: says("Boil it.", reasoning="I end it with </think>. Hm.")).completion)
    assert (parts.thought, parts.answer) == ("I end it with < /think>. Hm.", "Boil it.")


@pytest.mark.parametrize("content", [None, ""])
def test_a_thought_that_was_cut_off_has_no_answer(content: str | None) -> None:
    rollout = complete(lambda body: says(content, "length", reasoning_content="Hm."))
    assert split_answer(rollout.completion).answer is None
    assert complete(lambda body: says("Boil it.", reasoning_content=None)).completion == "Boil it."


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error_at_once_and_is_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with backend_to(lambda body: refuses(status, f"Incorrect key {KEY}")) as (backend, served, pauses):
        with pytest.raises(BackendError, match=rf"refuses the key in OPENAI_API_KEY \(HTTP {status}\)") as caught:
            list(backend.generate([Request(EGG)], GREEDY))
        shown = [str(caught.value), repr(backend), backend.model_id, *backend.notes]
    assert served.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert not any(KEY in text for text in shown)
    assert pauses == []


def test_a_request_that_is_forbidden_after_others_were_served_fails_alone() -> None:
    def answer(body: dict[str, object]) -> EndpointAnswer:
        return refuses(403, "blocked by the firewall") if "bomb" in str(body) else says("Boil it.")

    with backend_to(answer) as (backend, _, _):
        served = next(iter(backend.generate([Request(EGG)], GREEDY)))
        refused = next(iter(backend.generate([Request(Prompt("bomb", "harmful"))], GREEDY)))
        forbidden = [Request(Prompt(f"bomb {number}", "harmful")) for number in range(40)]
        with pytest.raises(BackendError, match="refuses requests without a key"):
            list(backend.generate(forbidden, GREEDY))
    assert (served[0].completion, refused[0].error) == ("Boil it.", "HTTP 403: blocked by the firewall")


def test_the_endpoints_own_words_are_shown_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    body = b'{"error": {"message": "over\\nloaded ' + KEY.encode() + b'"}}'
    rollout = complete(lambda _: EndpointAnswer(body))
    assert rollout.error == "the endpoint's answer is no chat completion (it says: over loaded [key])"
    marked = complete(lambda _: EndpointAnswer(b'\xef\xbb\xbf{"choices": [{"message": {"content": "Sure"}}]}'))
    assert marked.completion == "Sure"


def test_without_a_key_the_error_names_the_variable_to_set() -> None:
    with pytest.raises(BackendError, match="refuses requests without a key: set OPENAI_API_KEY"):
        complete(lambda body: refuses(401))


def test_an_endpoint_that_repeats_the_key_does_not_leak_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rollout = complete(lambda body: refuses(400, f"{KEY} may not do this"))
    assert rollout.error == "HTTP 400: [key] may not do this"


@pytest.mark.parametrize("key", ["sk-a\nb", "sk ab", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(BackendError, match="OPENAI_API_KEY holds blanks") as caught:
        HttpBackend("http://localhost/v1#tiny")
    assert key not in str(caught.value)


def test_the_key_goes_to_no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body: says("a")) as elsewhere:
        moved = EndpointAnswer(b"", 307, {"Location": f"{elsewhere.url}/chat/completions"})
        with pytest.raises(BackendError, match=r"no chat completions endpoint \(HTTP 307\)"):
            complete(lambda body: moved)
    assert elsewhere.bodies == []


def test_a_key_reaches_no_host_of_several_but_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body: says("ready")) as first, serving(lambda body: says("ready")) as second:
        configs = [ModelConfig(model=f"{served.url}#{name}") for served in (first, second) for name in ("a", "b")]
        own = f"OPENAI_API_KEY_127_0_0_1_{second.url.rsplit(':')[-1].removesuffix('/v1')}"

        def sent(*chosen: ModelConfig) -> list[str | None]:
            first.headers.clear()
            second.headers.clear()
            with command_scope():
                for config in chosen:
                    check_model(config)
                for config in chosen:
                    make_backend(config).close()
            return [headers.get("Authorization") for headers in (*first.headers, *second.headers)]

        assert sent(*configs[:2]) == [f"Bearer {KEY}"] * 2
        assert sent(configs[0], configs[2]) == [None, None]
        monkeypatch.setenv(own, "other")
        assert sent(configs[0], configs[2]) == [None, "Bearer other"]
        assert sent(configs[2]) == ["Bearer other"]


def test_an_endpoint_of_several_that_wants_a_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body: refuses(401)) as served, command_scope():
        check_model(ModelConfig(model="http://localhost:1/v1#a"))
        check_model(ModelConfig(model=f"{served.url}#b"))
        with pytest.raises(BackendError, match=r"set OPENAI_API_KEY_127_0_0_1_\d+ \(HTTP 401\); OPENAI_API_KEY goes"):
            make_backend(ModelConfig(model=f"{served.url}#b"))


def test_an_unencrypted_key_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    noted = {url: any("unencrypted" in note for note in HttpBackend(f"{url}#tiny").notes) for url in (
        "http://10.0.0.1/v1", "http://localhost:8000/v1", "https://host.example/v1"
    )}  # fmt: skip
    assert list(noted.values()) == [True, False, False]


def test_an_unknown_model_is_an_error_at_once() -> None:
    with pytest.raises(BackendError, match=r"no model 'org/tiny', or its path is wrong \(HTTP 404: The model"):
        complete(lambda body: refuses(404, "The model does not exist"))


def test_rollouts_before_an_error_are_yielded() -> None:
    def respond(body: dict[str, object]) -> EndpointAnswer:
        return says("a") if last_message(body) == EGG.text else refuses(401)

    with backend_to(respond, num_connections=1) as (backend, _, _):
        batches = backend.generate([Request(EGG), Request(Prompt("b", "benign"))], GREEDY)
        assert [rollout.completion for rollout in next(batches)] == ["a"]
        with pytest.raises(BackendError):
            next(batches)


def test_an_unreachable_endpoint_is_one_clear_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pauses: list[float] = []
    backend = HttpBackend(f"http://127.0.0.1:{port}/v1#tiny", pause=pauses.append)
    with pytest.raises(BackendError, match=r"127.0.0.1:\d+/v1 cannot be reached \(ConnectError: .*is it running"):
        list(backend.generate([Request(EGG)], GREEDY))
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    "model",
    ["http://localhost/v1", "http://#tiny", "http://localhost/v1# ", "http://localhost:x/v1#a", "http://[/v1#a"],
)
def test_a_malformed_address_is_refused_with_the_form(model: str) -> None:
    with pytest.raises(BackendError, match=r"expected http\(s\)://host\[:port\]/v1#model-name"):
        check_model(ModelConfig(model=model))


@pytest.mark.parametrize(
    "model", ["https://me:pass@host/v1#a", "https://host/v1?api_key=pass#a", "https://m:pass:x@h#a"]
)
def test_an_address_with_a_secret_is_refused_unseen(model: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_model(ModelConfig(model=model))
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("setting", [{"thinking": "off"}, {"device": "cpu"}, {"dtype": "float32"}])
def test_settings_of_local_models_are_refused(setting: dict[str, str]) -> None:
    with pytest.raises(BackendError, match=rf"--{next(iter(setting))} is for local models"):
        check_model(ModelConfig(model="http://localhost/v1#tiny", **setting))  # type: ignore[arg-type]


def test_an_address_chooses_the_backend_http_which_is_probed_when_it_is_loaded() -> None:
    with serving(lambda body: says("ready")) as served:
        config = ModelConfig(model=f"{served.url}#org/tiny", max_tokens=77)
        check_model(config)
        check_rewriter(config, fetch=True)
        assert served.bodies == []
        with contextlib.closing(make_backend(config)) as backend:
            assert isinstance(backend, HttpBackend)
    [body] = served.bodies
    assert body["max_tokens"] == 77


def test_identity_is_address_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first = HttpBackend("http://Localhost:8000/v1/#tiny").model_id
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert HttpBackend("http://localhost:8000/v1#tiny").model_id == first
    assert HttpBackend("http://localhost:8000/v1#other").model_id != first
    assert HttpBackend("http://localhost:8001/v1#tiny").model_id != first


def test_tokens_are_estimated_and_the_notes_say_so() -> None:
    backend = HttpBackend("http://localhost/v1#tiny")
    assert [backend.count_tokens(text) for text in ("", "a", "a careful assistant", "\ud800")] == [0, 1, 5, 1]
    assert any("estimates" in note for note in backend.notes)
    assert replace(GREEDY, seed=1).sampling_id == GREEDY.sampling_id
