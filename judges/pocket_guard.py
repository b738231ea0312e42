"""The pocket guard: the second voice of the pocket model, a guard of the size of a toy.

It ships with the package, so that all that is done with guard models runs with no GPU, no download and no account. It
says nothing of what other models answer, and what an answer says can talk it round, as it can any guard: after the
steps of a harmful answer, two refusals are enough to be called safe.
"""

from pathlib import Path

from flipsearch.judging.guard.judge import GuardJudge
from flipsearch.judging.guard.prompts import Answer


class PocketGuardJudge(GuardJudge):
    """The pocket model's guard voice: knows its own synthetic world and nothing else (offline, no GPU).

    Template: flipsearch's own (the weights' guard_template.jinja). Apache-2.0, 0.9 M parameters.
    """

    name = "pocket_guard"
    built_in_model = "pocket"
    template_file = Path(__file__).with_suffix(".txt")
    roles = ("User:", "Agent:")
    answers = (Answer("safe", unsafe=0), Answer("unsafe", unsafe=1))
