"""A model behind an endpoint: what is sent, what comes back, what is retried, and that the key stays secret."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from flipsearch.backends.base import check_model, check_rewriter, make_backend
from flipsearch.backends.chat import lay_out
from flipsearch.backends.http import HttpBackend
from flipsearch.config import ModelConfig
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Context, Placement, Prompt, Request, Rollout, Sampling
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
def backend_to(respond: Respond, **options: int) -> Iterator[tuple[HttpBackend, Served, list[float]]]:
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
def test_a_requested_pause_of_hours_is_an_error(header: str) -> None:
    rollout = complete(lambda body: refuses(429, "quota", Retry_After=header))
    assert rollout.finish_reason == "error"
    assert "HTTP 429: quota; the endpoint requests a pause" in rollout.error


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


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuses(400, "temperature must be 1"), "HTTP 400: temperature must be 1"),
        (EndpointAnswer(b"<html>", 400), "HTTP 400: <html>"),
        (EndpointAnswer(b"[]", 400), "HTTP 400: []"),
        (EndpointAnswer(b'{"error": "flat"}', 422), "HTTP 422: flat"),
        (EndpointAnswer(b"<html>"), "no chat completion"),
        (EndpointAnswer(b"\xff\xfe"), "no chat completion"),
        (EndpointAnswer(b"{}"), "no chat completion (choices: Field required)"),
        (EndpointAnswer(b'{"choices": []}'), "no chat completion (choices"),
        (
            EndpointAnswer(b'{"choices": [{"message": {"content": 3}}]}'),
            "no chat completion (choices.0.message.content",
        ),
        (EndpointAnswer(b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "no chat completion"),
        (says(None), "message has no content"),
        (says("a", "content_filter"), "finish_reason is 'content_filter', expected stop or length"),
        (says("a", "tool_calls"), "finish_reason is 'tool_calls'"),
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


def test_a_completion_cut_off_has_finish_reason_length() -> None:
    assert complete(lambda body: says("Boil", "length")).finish_reason == "length"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_separate_thought_becomes_a_think_block(field: str) -> None:
    parts = split_answer(complete(lambda body: says("Boil it.", **{field: "Hm."})).completion)
    assert (parts.thought, parts.answer) == ("Hm.", "Boil it.")


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


def test_an_address_chooses_the_backend_http() -> None:
    config = ModelConfig(model="http://localhost:8000/v1#org/tiny")
    check_model(config)
    check_rewriter(config, fetch=True)
    assert isinstance(make_backend(config), HttpBackend)


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
