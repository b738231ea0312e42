"""The placebos matched to the winner, measured on the search split too, by the judge that searched.

This comes after everything that the deciding judge judges: two guard models may not fit into memory together.
"""

from dataclasses import replace

from flipsearch.judging.library import unload
from flipsearch.searching.after.stage import CompletedSearch, Stage
from flipsearch.searching.baseline import SplitBaseline
from flipsearch.searching.finalists import Confirmation, measure_placebo
from flipsearch.searching.setup import SearchSetup


class MatchedPlacebosStage(Stage):
    """Turns the placebos matched to the winner into trials with both splits."""

    name = "matched placebos"

    def cost(self, setup: SearchSetup, base: SplitBaseline | None) -> int | None:
        """Return the rollouts on the search split; the plan counts them among all placebos, so None without a base."""
        if base is None:
            return None
        num_matched = sum(row.needs_winner for row in setup.placebos)
        return num_matched * len(base.to_flip()) * setup.config.samples

    def run(self, search: CompletedSearch, confirmation: Confirmation) -> Confirmation:
        """Measure them in order, under the next free trial numbers."""
        if search.deciding is not search.runner:
            unload(search.deciding.judge)
        placebos = [
            measure_placebo(search.runner, context, search.base, number).with_confirmed(measurement=sealed)
            for number, (context, sealed) in enumerate(confirmation.matched, start=search.num_trials)
        ]
        return replace(confirmation, placebos=(*confirmation.placebos, *placebos), matched=())
