"""A finished study of the synthetic world whose judge is sometimes wrong, and annotators who are not.

Every answer is truly safe (a refusal) or unsafe. The judge gets a share of the answers wrong, and is surer of some than
of others.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flipsearch.config import SearchConfig
from flipsearch.core.protocols import Judge
from flipsearch.core.records import Exchange, Label, Verdict
from flipsearch.core.studies import Study, Trial
from flipsearch.judging.accuracy import JudgeAccuracy, measure_judge
from flipsearch.judging.labels import AnswerToLabel, LabelledAnswer, StudyLabel, sample_answers
from flipsearch.ledger import Ledger
from flipsearch.measuring.runner import Runner
from flipsearch.searching import prepare_search, run_study
from tests.world import COMPLIANCE, GREEDY, REFUSAL, Model, RefusalJudge, library, prompt_set, uniform

CONFIG = SearchConfig(
    study="world", num_contexts=6, cohort_size=6, first_rung=8, num_finalists=2, breed=0, max_tokens=8,
    templates=("plain",),
)  # fmt: skip
PROMPTS = prompt_set(60, 10)


def measured(
    judge: Judge, rows: Sequence[LabelledAnswer], progress: Callable[[int, int], None] | None = None
) -> JudgeAccuracy:
    """Return how a judge agrees with human labels, keeping no verdicts."""
    return measure_judge(judge, rows, None, progress)


def table_of(path: Path, rows: Sequence[LabelledAnswer]) -> Path:
    """Write rows to a csv file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "label", "source"])
        writer.writerows([row.prompt, row.answer, row.label, row.source] for row in rows)
    return path


class MistakenJudge(RefusalJudge):
    """Calls a fifth of the refusals unsafe and a tenth of the rest safe, with less certainty."""

    name = "mistaken"

    def _verdict(self, exchange: Exchange) -> Verdict:
        truth = super()._verdict(exchange)
        if exchange.prompt.kind == "benign":
            return truth
        fate = uniform("mistake", exchange.prompt.prompt_id, exchange.completion)
        is_wrong = fate < (0.2 if truth.label is Label.SAFE else 0.1)
        unsafe = (truth.label is Label.UNSAFE) != is_wrong
        doubt = 0.1 + 0.35 * uniform("doubt", exchange.prompt.prompt_id) + (0.04 if is_wrong else 0.0)
        return Verdict(Label.UNSAFE if unsafe else Label.SAFE, 1 - doubt if unsafe else doubt, truth.p_refusal)


def mistaken_study(ledger: Ledger, config: SearchConfig = CONFIG) -> Study:
    """Search with the judge that is sometimes wrong."""
    return run_study(
        prepare_search(config, library(), PROMPTS), Runner(Model(), MistakenJudge("mistaken"), ledger, GREEDY)
    )


def sample(study: Study, ledger: Ledger, num: int, num_contexts: int = 1) -> list[AnswerToLabel]:
    """Sample answers of the study for annotators."""
    return sample_answers(study, ledger, PROMPTS, num, num_contexts)


def annotate(answers: Sequence[AnswerToLabel]) -> list[StudyLabel]:
    """Label the sampled answers truthfully."""
    assert {answer.response for answer in answers} <= {REFUSAL, COMPLIANCE}
    return [StudyLabel(answer.place, "safe" if answer.response == REFUSAL else "unsafe") for answer in answers]


def renamed(study: Study, number: int) -> Study:
    """Return the same study under another name, which changes the turns of its prompts and so the sample."""
    return replace(study, name=f"world {number}")


def best_of(study: Study) -> Trial:
    """Return the first trial, which has a confirm measurement."""
    assert study.trials[0].confirm
    return study.trials[0]


def true_risk_reduction(study: Study, ledger: Ledger, trial: Trial) -> float:
    """Share of the scored prompts that are truly unsafe without a context, minus that under the trial's."""
    flips = trial.harmful_flips
    under = ledger.rollouts(flip.rollout_ids[0] for flip in flips)
    text = {prompt.prompt_id: prompt.text for prompt in PROMPTS}
    before = sum(not text[flip.prompt_id].endswith("hardness 0") for flip in flips)
    after = sum(under[flip.rollout_ids[0]].completion != REFUSAL for flip in flips)
    return (before - after) / len(flips)
