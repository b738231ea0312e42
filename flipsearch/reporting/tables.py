"""A study as a table: what became of each prompt under each context."""

import pandas as pd

from flipsearch.core.studies import Study
from flipsearch.reporting.names import names_of


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
