"""True rates of contexts on the pocket model, over its whole population of prompts, kept in a file by context id."""

import json
from collections.abc import Sequence
from pathlib import Path

from baselines.ground import Ground, Rates
from flipsearch.core.files import PACKAGE
from flipsearch.core.records import Context, Label
from flipsearch.measuring.measure import measure
from pocket_model.prompt_set import population

TRUTH = json.loads((PACKAGE / "pocket" / "truth.json").read_text(encoding="utf-8"))


def measure_truth(ground: Ground, contexts: Sequence[Context]) -> dict[str, Rates]:
    """Return the rates of contexts over the population, by context id: those of pocket_model.truth."""
    prompts = [query.prompt() for query in population()]
    runner = ground.metered()
    base = runner.baseline(prompts)
    measured = [p for p in prompts if p.kind == "benign" or base[p.prompt_id].label is Label.UNSAFE]
    rates = {}
    for context, result in zip(contexts, measure(runner, contexts, measured, base, "all"), strict=True):
        rates[context.context_id] = Rates(result.flip_rate.value or 0.0, result.over_refusal_rate.value or 0.0)
    return rates


class TruthFile:
    """Rates by context id in a JSON file, one for each build of the weights."""

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / f"truth-{TRUTH['fingerprint']}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.rates = {key: Rates(*values) for key, values in known.items()}

    def add(self, rates: dict[str, Rates]) -> None:
        """Add rates to the file."""
        self.rates |= rates
        known = {key: [rate.flip_rate, rate.over_refusal_rate] for key, rate in sorted(self.rates.items())}
        self.path.write_text(json.dumps(known, indent=0), encoding="utf-8")
