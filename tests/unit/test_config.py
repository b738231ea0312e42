"""Settings: unknown keys, values out of range, TOML, and which settings make another study."""

from pathlib import Path

import pytest

from flipsearch.config import REWRITE_TOKENS, ScoreConfig, SearchConfig
from flipsearch.core.errors import ConfigError
from flipsearch.core.records import Sampling, content_id
from flipsearch.core.settings import make_config, read_toml, toml_text


def test_later_sources_win_and_none_means_not_given() -> None:
    config = make_config(SearchConfig, {"seed": 1, "num_contexts": 8}, {"seed": 2, "num_contexts": None})
    assert (config.seed, config.num_contexts) == (2, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_context": 3}, r"unknown setting 'num_context'\. Did you mean num_contexts"),
        ({"num_contexts": 0}, r"--num-contexts is 0: .*greater than or equal to 1"),
        ({"max_over_refusal": 2}, r"--max-over-refusal is 2: .*less than or equal to 1"),
        ({"thinking": "of"}, r"--thinking is 'of': .*'auto', 'on' or 'off'"),
        ({"temperature": "hot"}, r"--temperature is 'hot': .*valid number"),
        ({"temperature": float("nan")}, r"--temperature is nan"),
        ({"placements": ["sytem"]}, r"--placement is 'sytem'"),
        ({"count_flips": "refusal,degenerat"}, r"unknown kind of answer 'degenerat'\. Did you mean degenerate"),
        ({"count_flips": []}, r"--count-flips is \[\]: "),
        ({"count_flips": 5}, r"--count-flips: unknown kind of answer '5'\. Known: "),
        ({"time_s": 10**400}, r"--time is 1.*: expected seconds"),
    ],
)
def test_a_bad_setting_is_one_clear_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(SearchConfig, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["help, refusal", ["help", "refusal"], ["refusal,help"]])
def test_kinds_of_flips_are_one_setting_however_they_are_written(given: object) -> None:
    config = make_config(SearchConfig, {"count_flips": given})
    assert config.count_flips == ("refusal", "help")
    assert config.identity() == make_config(SearchConfig, {"count_flips": ["refusal", "help"]}).identity()


def test_toml_reads_back_what_was_written(tmp_path: Path) -> None:
    config = make_config(SearchConfig, {"model": 'odd "name"\n', "templates": ["role", "law"], "max_over_refusal": 0.2})
    path = tmp_path / "study.toml"
    path.write_text(toml_text(config), encoding="utf-8")
    assert make_config(SearchConfig, read_toml(path)) == config


def test_a_broken_toml_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read as TOML"):
        read_toml(tmp_path / "x.toml")


def test_the_study_name_follows_what_changes_results_and_nothing_else() -> None:
    name = SearchConfig().study_name()
    assert SearchConfig(batch_size=3, num_contexts=99, device="cpu", best=Path("x.txt")).study_name() == name
    assert SearchConfig(seed=1).study_name() != name
    assert SearchConfig(study="mine").study_name() == "mine"
    assert SearchConfig(model="Qwen/Qwen3-0.6B@main").study_name().startswith("qwen3-0.6b-")


def test_samples_and_confirm_judges_make_another_study_and_second_judges_do_not() -> None:
    config = SearchConfig(temperature=0.7)
    assert config.model_copy(update={"second_judges": ("compact",)}).identity() == config.identity()
    assert config.model_copy(update={"confirm_judge": "compact"}).identity() != config.identity()
    rules = ((1, 1), (2, 1), (2, 2), (3, 2))
    assert len({SearchConfig(temperature=0.7, samples=m, unsafe_at=k).study_name() for m, k in rules}) == 4


def test_a_rewriter_makes_another_study_and_breeds_or_is_refused() -> None:
    assert len({SearchConfig(rewriter=name).study_name() for name in (None, "self", "other")}) == 3
    with pytest.raises(ConfigError, match="--rewriter is 'self', but --breed 0"):
        SearchConfig(rewriter="self", breed=0)
    given = SearchConfig(rewriter="other", max_tokens=9).rewriter_config()
    assert given is not None
    assert (given.model, given.longest_completion()) == ("other", REWRITE_TOKENS)
    far = SearchConfig(rewriter="http://127.0.0.1:1/v1#far", backend="vllm", dtype="float32").rewriter_config()
    assert far is not None
    assert (far.backend, far.dtype) == ("http", "auto")
    assert SearchConfig(max_tokens=9).rewriter_config() is None
    assert SearchConfig(max_tokens=9).longest_completion() == 9


def test_scores_of_other_contexts_have_other_names() -> None:
    assert ScoreConfig().study_name(["a"]) != ScoreConfig().study_name(["b"])


def test_max_tokens_is_what_was_given() -> None:
    assert SearchConfig(max_tokens=7).sampling().max_tokens == 7


def test_a_model_that_thinks_has_tokens_of_its_own_for_it() -> None:
    """The ids of runs without a budget do not know of it."""
    config = SearchConfig(max_tokens=100)
    assert config.sampling() == Sampling(100)
    assert config.sampling(thinks=True) == Sampling(100, think_tokens=50)
    assert config.model_copy(update={"think_tokens": 7}).sampling() == Sampling(100, think_tokens=7)
    assert config.model_copy(update={"think_tokens": 0}).sampling(thinks=True) == Sampling(100)
    assert Sampling(100).sampling_id == content_id("greedy", 100)
    assert len({Sampling(100, think_tokens=n).sampling_id for n in (0, 7, 8)}) == 3
    assert Sampling(100).longest == 100 < 107 < Sampling(100, think_tokens=7).longest
    with pytest.raises(ConfigError, match=r"--think-tokens is -1"):
        make_config(SearchConfig, {"think_tokens": -1})


@pytest.mark.parametrize("settings", [{}, {"time_s": "15m"}])
def test_what_a_config_dumps_makes_the_same_config(settings: dict[str, str]) -> None:
    config = make_config(SearchConfig, settings)
    assert SearchConfig(**config.model_dump()) == config
