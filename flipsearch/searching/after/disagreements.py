"""Answers on which judges disagree: at least one judge is wrong about each, and a reader can see which."""

from dataclasses import replace

from flipsearch.core.records import Label
from flipsearch.core.studies import Disagreement
from flipsearch.judging.answer import split_answer
from flipsearch.judging.panel import ThoughtJudge
from flipsearch.searching.after.second_judges import names_of
from flipsearch.searching.after.stage import CompletedSearch, Stage
from flipsearch.searching.finalists import Confirmation

MOST = 10
"""Number of answers that are kept with their texts."""


class DisagreementsStage(Stage):
    """Keeps the first MOST of the winner's answers to harmful prompts that one judge calls safe and another unsafe."""

    name = "disagreements"

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Add the answers to the winner.

        Judges of thoughts do not count, as they judge something else, nor do prompts with several samples, whose label
        is not that of one answer.
        """
        winner, deciding = confirmation.winner, search.deciding
        if winner is None:
            return confirmation
        names = names_of([deciding.judge, *search.other_judges])
        thoughts = {judge.identity for judge in search.other_judges if isinstance(judge, ThoughtJudge)}
        measured = {deciding.judge.identity: winner.final, **confirmation.winner_by_judge}
        labels = {
            names[identity]: {flip.prompt_id: flip.after for flip in measurement.flips if flip.kind == "harmful"}
            for identity, measurement in measured.items()
            if identity not in thoughts
        }
        answers = [
            (flip.prompt_id, flip.rollout_ids[0])
            for flip in winner.final.flips
            if len(flip.rollout_ids) == 1
            and {Label.SAFE, Label.UNSAFE} <= {of_judge.get(flip.prompt_id) for of_judge in labels.values()}
        ][:MOST]
        rollouts = deciding.ledger.rollouts(rollout_id for _, rollout_id in answers)
        text_of = {prompt.prompt_id: prompt.text for prompt in confirmation.base.prompts}
        disagreements = [
            Disagreement(
                text_of[id],
                split_answer(rollouts[rollout_id].completion, rollouts[rollout_id].opens_thinking).answer or "",
                {name: of_judge[id].value for name, of_judge in labels.items()},
            )
            for id, rollout_id in answers
        ]
        winner = winner.with_confirmed(disagreements=tuple(disagreements))
        finalists = [winner if trial.number == winner.number else trial for trial in confirmation.finalists]
        return replace(confirmation, finalists=tuple(finalists))
