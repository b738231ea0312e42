"""Judges take turns in memory: the model of one is unloaded before another's is loaded, and not more often."""

from collections.abc import Sequence
from pathlib import Path

from flipsearch.config import ScoreConfig, SearchConfig
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Context, Exchange, Verdict
from flipsearch.core.studies import Study
from flipsearch.judging.library import OtherJudges
from flipsearch.judging.panel import PanelJudge
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.reporting.study_file import STUDY
from flipsearch.searching import prepare_search, run_score, run_study
from tests.world import GREEDY, Model, RefusalJudge, benign, library, prompt_set, template

CONFIG = SearchConfig(
    num_contexts=12, cohort_size=6, first_rung=8, num_finalists=3, breed=0, depths=(1,), max_over_refusal=1.0
)
REFUSED = [
    benign(number, 0, "search" if number < 1000 else "confirm") for number in (*range(50, 59), *range(1050, 1059))
]
PROMPTS = [*prompt_set(), *REFUSED]
TEMPLATES = library(kind=template("kind", "{{ 'kind ' * times }}", "times = [1]", role="benign"))


class Memory:
    """Holds models by the names of their judges, and remembers what came and went."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.held: list[str] = []
        self.most = 0

    def judge(self, name: str, identity: str = "") -> "HeavyJudge":
        return HeavyJudge(self, name, identity or name)


class HeavyJudge(RefusalJudge):
    """Loads at its first exchange, as guard models do."""

    def __init__(self, memory: Memory, name: str, identity: str) -> None:
        super().__init__(identity)
        self.memory, self.called = memory, name

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        if self.called not in self.memory.held:
            self.memory.held.append(self.called)
            self.memory.events.append(f"+{self.called}")
            self.memory.most = max(self.memory.most, len(self.memory.held))
        return super().judge(exchanges)

    def close(self) -> None:
        if self.called in self.memory.held:
            self.memory.held.remove(self.called)
            self.memory.events.append(f"-{self.called}")


def study_of(judge: Judge, others: OtherJudges, place: Path | str = "sqlite://") -> Study:
    with Ledger(place) as ledger:
        runner = Runner(Model(), judge, ledger, GREEDY)
        return run_study(prepare_search(CONFIG, TEMPLATES, PROMPTS), runner, others=others)


def test_judges_take_turns() -> None:
    memory = Memory()
    search, confirm, second, third = map(memory.judge, ("search", "confirm", "second", "third"))
    study = study_of(search, OtherJudges(confirm, (second, third)))
    turns = "+search -search +confirm -confirm +search -search +second -second +third"
    assert memory.events == turns.split()
    light = [RefusalJudge(judge.identity) for judge in (search, confirm, second, third)]
    assert study == study_of(light[0], OtherJudges(light[1], tuple(light[2:])))
    assert study.trials[0].late.depth
    assert study.benign
    assert study.benign.context


def test_a_judge_that_is_alone_stays() -> None:
    memory = Memory()
    study_of(memory.judge("search"), OtherJudges())
    assert memory.events == ["+search"]


def test_the_same_judge_twice_is_loaded_once() -> None:
    memory = Memory()
    search, twin = memory.judge("search"), memory.judge("twin", "search")
    study = study_of(search, OtherJudges(twin))
    assert memory.events == ["+search"]
    assert study.confirm_judge_id == "search"


def test_a_panels_members_are_loaded_and_unloaded_together() -> None:
    memory = Memory()
    panel = PanelJudge([memory.judge("one"), memory.judge("two")], "any")
    study_of(panel, OtherJudges(memory.judge("confirm")))
    both = ["+one", "+two", "-two", "-one"]
    assert memory.events == [*both, "+confirm", "-confirm", *both]


def test_a_finished_study_loads_nothing(tmp_path: Path) -> None:
    place, memory = tmp_path / "ledger.db", Memory()
    others = OtherJudges(memory.judge("confirm"), (memory.judge("second"),))
    first = study_of(memory.judge("search"), others, place)
    memory.events.clear()
    memory.held.clear()
    assert STUDY.dump_json(study_of(memory.judge("search"), others, place)) == STUDY.dump_json(first)
    assert memory.events == []


def test_second_judges_of_a_score_take_turns() -> None:
    memory = Memory()
    with Ledger("sqlite://") as ledger:
        runner = Runner(Model(), memory.judge("first"), ledger, GREEDY)
        second = [memory.judge("second"), memory.judge("third")]
        run_score(ScoreConfig(), runner, [Context("firm")], prompt_set(), "s", second)
    assert memory.events == ["+first", "-first", "+second", "-second", "+third"]
    assert memory.most == 1
