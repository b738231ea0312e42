"""The pocket guard: a toy guard model, built into the weights of the pocket model.

It ships with the package, so that everything that works with guard models runs without a GPU, a download or an account.
It knows nothing about other models' answers, and an answer can persuade it, as it can any guard: two refusals after the
steps of a harmful answer are enough to be called safe.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge


class PocketGuardJudge(GuardJudge):
    """The pocket model's own guard: knows its synthetic world and nothing else (offline, no GPU).

    Template: flipsearch's own (the weights' guard_template.jinja). Apache-2.0, 0.9 M parameters.
    """

    name = "pocket_guard"
    built_in_model = "pocket"
    template_file = Path(__file__).with_suffix(".txt")
    roles = ("User:", "Agent:")
    answers = (GuardAnswer("safe", unsafe=0), GuardAnswer("unsafe", unsafe=1))
