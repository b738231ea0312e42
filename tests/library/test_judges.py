"""Every file of judges/ keeps the judge contract, and the contract notices judges that break it."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from flipsearch.core.files import content_folder
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Exchange, Label, Prompt, Verdict, content_id
from flipsearch.judging.library import list_judges, load_judge
from flipsearch.testing import JudgeContract

NEEDY = {path.stem for path in content_folder("judges").glob("*.py") if "needs_model" in path.read_text("utf-8")}
"""Judges that need a model from the hub; see test_guards.py."""
NOT_ALONE = {"rubric", "detoxify"}
"""Judges that cannot do without an option or a file; their own tests hold them to the contract."""


@pytest.fixture(params=sorted(set(list_judges()) - NEEDY - NOT_ALONE))
def judge_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryJudge(JudgeContract):
    @pytest.fixture(autouse=True)
    def _use(self, judge_name: str) -> None:
        self.judge_name = judge_name

    def make_judge(self) -> Judge:
        return load_judge(self.judge_name)

    def test_goes_by_the_name_of_its_file(self) -> None:
        assert self.make_judge().name == self.judge_name


class PlainJudge:
    """A judge that keeps the contract, for others to break."""

    name = "plain"
    identity = content_id("plain")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self.judge_single(exchange) for exchange in exchanges]

    def judge_single(self, exchange: Exchange) -> Verdict:
        unclosed = exchange.opens_thinking or "<think>" in exchange.completion
        if exchange.finish_reason == "error" or unclosed:
            return Verdict(Label.UNSCORED, reason="no answer")
        return Verdict(Label.SAFE, p_unsafe=0.0) if "sorry" in exchange.completion else Verdict(Label.UNSAFE, 1.0)


class Shuffles(PlainJudge):
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return sorted(super().judge(exchanges), key=lambda verdict: verdict.label)


class CountsItsCalls(PlainJudge):
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(Label.UNSAFE, p_unsafe=1 / (1 + len(exchanges))) for _ in exchanges]


class GuessesTruncated(PlainJudge):
    def judge_single(self, exchange: Exchange) -> Verdict:
        return Verdict(Label.SAFE, p_unsafe=0.0)


class Fragile(PlainJudge):
    def judge_single(self, exchange: Exchange) -> Verdict:
        exchange.completion.format()
        return super().judge_single(exchange)


class BadProbability(PlainJudge):
    def judge_single(self, exchange: Exchange) -> Verdict:
        return Verdict(Label.UNSAFE, p_unsafe=1.5)


class NoProbability(PlainJudge):
    def judge_single(self, exchange: Exchange) -> Verdict:
        return Verdict(super().judge_single(exchange).label, reason="no answer")


class RenamesItself(PlainJudge):
    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.identity = "another"
        return super().judge(exchanges)


def test_the_example_in_the_readme_judges_and_keeps_the_contract(tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "judges" / "README.md"
    example = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)[0]
    file = tmp_path / "shouting.py"
    file.write_text(example, encoding="utf-8")

    class Contract(JudgeContract):
        def make_judge(self) -> Judge:
            return load_judge(str(file))

    verdicts = load_judge(str(file)).judge(
        [Exchange(Prompt("How?", "harmful"), text) for text in ("SURE!", "Sure!", "")]
    )
    assert [verdict.label for verdict in verdicts] == [Label.UNSAFE, Label.SAFE, Label.UNSCORED]
    for test in (name for name in dir(JudgeContract) if name.startswith("test_")):
        getattr(Contract(), test)()


class TestPlainJudge(JudgeContract):
    def make_judge(self) -> Judge:
        return PlainJudge()


@pytest.mark.parametrize(
    ("judge_class", "test"),
    [
        (Shuffles, "test_a_verdict_depends_on_its_exchange_alone"),
        (CountsItsCalls, "test_a_verdict_depends_on_its_exchange_alone"),
        (GuessesTruncated, "test_what_has_no_answer_is_unscored"),
        (Fragile, "test_hostile_text_never_raises"),
        (BadProbability, "test_scores_what_can_be_scored"),
        (NoProbability, "test_scores_what_can_be_scored"),
        (RenamesItself, "test_name_and_identity_are_stable_texts"),
    ],
)
def test_the_contract_catches(judge_class: type[PlainJudge], test: str) -> None:
    class Contract(JudgeContract):
        def make_judge(self) -> Judge:
            return judge_class()

    with pytest.raises((AssertionError, KeyError, ValueError, IndexError)):
        getattr(Contract(), test)()


def test_prompt_kind_reaches_the_judge() -> None:
    exchanges = [Exchange(Prompt("How?", kind), "Sure, here is how.") for kind in ("harmful", "benign")]
    assert [verdict.label for verdict in load_judge("refusal").judge(exchanges)] == [Label.UNSAFE, Label.SAFE]
