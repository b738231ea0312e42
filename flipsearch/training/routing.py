"""Which context each training prompt is read under, decided before training by the frozen teacher's own answers.

With one context every harmful prompt goes under it, as in the paper. With several, or with the gate, each harmful
prompt goes to the first context under which the teacher's greedy answer is judged safe: one context's flip rate is a
ceiling for what its teacher can teach, and a set of them can lift it. Prompts that no context makes safe are left out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from flipsearch.core.progress import Phase
from flipsearch.core.records import Context, Label, Prompt
from flipsearch.core.trainings import RoutedContext
from flipsearch.measuring.runner import Runner
from flipsearch.training.plan import TrainPlan


@dataclass(frozen=True, slots=True)
class Routing:
    """The prompts that are trained on, each under its context."""

    prompts: tuple[Prompt, ...]
    """In the plan's order."""
    contexts: dict[str, Context]
    """Prompt id -> its context; a prompt without one is read without any."""

    def only(self, prompt_ids: Collection[str]) -> "Routing":
        """Return it with only these prompts."""
        return replace(self, prompts=tuple(prompt for prompt in self.prompts if prompt.prompt_id in prompt_ids))

    def counts(self) -> tuple[RoutedContext, ...]:
        """Return how many prompts of each kind went to each context, in order of first use."""
        found: dict[tuple[str, str | None], RoutedContext] = {}
        for prompt in self.prompts:
            context = self.contexts.get(prompt.prompt_id)
            key = prompt.kind, context.context_id if context else None
            before = found[key].num_prompts if key in found else 0
            found[key] = RoutedContext(prompt.kind, context, before + 1)
        return tuple(found.values())


def route(plan: TrainPlan, runner: Runner | None) -> Routing:
    """Return every training prompt with its context; `bench` asks the teacher, greedily, where the plan wants that."""
    harmful = [prompt for prompt in plan.prompts if prompt.kind == "harmful"]
    if runner is None:
        routes = {prompt.prompt_id: plan.contexts[0] for prompt in harmful}
    else:
        routes = _first_safe(runner, plan.contexts, harmful)
    kept = tuple(prompt for prompt in plan.prompts if prompt.kind == "benign" or prompt.prompt_id in routes)
    if plan.benign_context:
        routes |= {prompt.prompt_id: plan.benign_context for prompt in plan.prompts if prompt.kind == "benign"}
    return Routing(kept, routes)


def _first_safe(runner: Runner, contexts: Sequence[Context], prompts: Sequence[Prompt]) -> dict[str, Context]:
    routes: dict[str, Context] = {}
    for number, context in enumerate(contexts, start=1):
        left = [prompt for prompt in prompts if prompt.prompt_id not in routes]
        runner.enter(Phase.ROUTING, f"{number}/{len(contexts)}")
        outcomes = runner.outcomes([runner.request(prompt, context) for prompt in left])
        pairs = zip(left, outcomes, strict=True)
        routes |= {prompt.prompt_id: context for prompt, one in pairs if one.verdict.label is Label.SAFE}
    return routes
