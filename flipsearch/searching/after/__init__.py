"""The measurements after the search; `STAGES` is the only place that lists them.

To add one, write a file with a subclass of `finalists.Stage` and add it to `STAGES`: the search then runs it, and
budget and plan count its cost.
"""

from flipsearch.searching.after.deciding import BenignContextStage, DepthStage, PortfolioStage
from flipsearch.searching.after.second_judges import DisagreementsStage, SecondJudgesStage
from flipsearch.searching.finalists import MatchedPlacebosStage, Stage

STAGES: tuple[Stage, ...] = (
    DepthStage(),
    PortfolioStage(),
    BenignContextStage(),
    MatchedPlacebosStage(),
    SecondJudgesStage(),
    DisagreementsStage(),
)
"""In the order in which they run. Everything that the deciding judge judges comes first, then the placebos for the
judge that searched, then the other judges: so each judge's model is loaded once per turn."""
