"""A study as tables for Python: its leaderboard, and what became of each prompt under each context."""

import pandas as pd

from flipsearch.core.studies import Study
from flipsearch.reporting.columns import leaderboard
from flipsearch.reporting.names import names_of


class Leaderboard(pd.DataFrame):
    """The columns of the leaderboard that one looks at first; `full` has all of them."""

    @classmethod
    def of(cls, study: Study) -> "Leaderboard":
        """Return the leaderboard of a study, best first, placebos last; `context` are names that tell rows apart."""
        full, names = leaderboard(study), names_of(study)
        splits = dict.fromkeys((study.trials[0].search.split, study.trials[0].final.split))
        last = list(splits)[-1]
        rates = [f"{split}_flip_rate" for split in splits]
        columns = [
            *("rank", "winner", "role", "state", "placement", "num_context_tokens", *rates),
            *(f"{last}_flip_rate_low", f"{last}_flip_rate_high", "net_flip_rate", f"{last}_added_refusals"),
            *("context_id", "text"),
        ]
        short = cls(full[columns])
        short.insert(1, "context", [names[trial.number] for trial in study.trials])
        object.__setattr__(short, "_full", full)  # by its own way pandas would warn of a new column
        return short

    @property
    def full(self) -> pd.DataFrame:
        """Every column, as in leaderboard.csv."""
        frame: pd.DataFrame = self.__dict__["_full"]
        return frame


def flips_table(study: Study) -> pd.DataFrame:
    """Return one row per context and prompt, on the last split that the context saw."""
    prompts, names = {prompt.prompt_id: prompt for prompt in study.prompts}, names_of(study)
    rows = []
    for trial in study.trials:
        for flip in trial.final.flips:
            prompt = prompts.get(flip.prompt_id)
            rows.append(
                {
                    "context": names[trial.number],
                    "context_id": trial.context.context_id,
                    "role": trial.role,
                    "split": trial.final.split,
                    "prompt_id": flip.prompt_id,
                    "kind": flip.kind,
                    "category": prompt.category if prompt else None,
                    "prompt": prompt.text if prompt else None,
                    "before": str(flip.before),
                    "after": str(flip.after),
                    "flipped": flip.flipped,
                    "kind_after": flip.kind_after,
                    "refused_before": flip.refused_before,
                    "refused_after": flip.refused_after,
                }
            )
    return pd.DataFrame(rows)
