"""Several studies beside each other: the same contexts under other models, judges or seeds.

A difference is paired over the prompts that are unsafe without a context in both studies: where models differ, their
flip rates rest on other prompts, and say less. Placebos are shown, and rank nowhere.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from flipsearch.core.errors import ConfigError
from flipsearch.core.files import shortened
from flipsearch.core.measurements import Difference, Estimate, json_value
from flipsearch.core.settings import typed_path
from flipsearch.core.studies import TIE_LEVEL, Study, Trial
from flipsearch.measuring.measure import flip_difference
from flipsearch.reporting.format import (
    DASH,
    Cell,
    bar_cell,
    difference_cell,
    escaped,
    low_high,
    markdown_table,
    names_of,
    percent,
    points,
    with_interval,
)
from flipsearch.reporting.formats import MOST_COLUMNS, MOST_ROWS, report_format, summary_text, write_report
from flipsearch.reporting.pages import render
from flipsearch.reporting.verdict import NextStep, StudyVerdict, Tone, folder_of
from flipsearch.reporting.verdict import verdict as study_verdict
from flipsearch.statistics.intervals import holm, rank_correlation

LONGEST_NAME = 60
"""Characters of a context's name in a sentence."""
MOST_TRANSFERS = 6
"""Sentences on best contexts in other studies; the table has all."""
PAGE_ROWS = 40
"""Shared contexts on the page; the tables have all."""
PICTURE_HEIGHT = 1100


@dataclass(frozen=True, slots=True)
class SharedContext:
    """A context that several studies measured."""

    context_id: str
    name: str
    is_placebo: bool
    trials: tuple[Trial | None, ...]
    """One per study, None where it was not measured."""
    differences: tuple[Difference | None, ...]
    """To the first study that measured it, paired; None for that one, and where no prompt counts in both."""

    @property
    def text(self) -> str:
        """Hostile text."""
        return next(trial.context.text for trial in self.trials if trial)

    @property
    def rates(self) -> list[float]:
        """Its flip rate in each study that measured it."""
        return [_rate(trial) for trial in self.trials if trial]

    def cells(self, studies: Sequence[Study]) -> list[Cell]:
        """Return what the page shows: the rate in each study, then the differences to the first."""
        rates = [
            bar_cell(trial.final.flip_rate, study) if trial else Cell()
            for trial, study in zip(self.trials, studies, strict=True)
        ]
        return rates + [_paired_cell(difference) for difference in self.differences[1:]]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the best context of one study does in another one, and how alike both rank what they share."""

    source: str
    """Study whose best context it is."""
    target: str
    best: SharedContext | None
    """None where the target did not measure it."""
    trial: Trial | None
    """In the target."""
    behind: Difference | None
    """Its flip rate minus that of the best of the target, paired; None for that best one itself."""
    num_shared: int
    """Contexts that both measured, placebos left out."""
    ranks: Estimate | None
    """Spearman's correlation of the flip rates on the search prompts; None for fewer than five shared contexts."""

    @property
    def sentence(self) -> str:
        """What the best context of the source does in the target."""
        if self.best is None:
            return f"{self.source} has no best context."
        name = f"The best of {self.source}, {shortened(self.best.name, LONGEST_NAME)}"
        if self.trial is None:
            return f"{name}, was not measured in {self.target}."
        rate = f"{percent(self.trial.final.flip_rate.value)} in {self.target}"
        if self.behind is None:
            return f"{name}, flips {rate}."
        behind = f"{points(self.behind.value)} points ({low_high(self.behind, 'points')})"
        return f"{name}, flips {rate}, {behind} to the best there."

    def cell(self, study: Study) -> Cell:
        """Return what the page shows of it in the target."""
        if self.trial is None:
            return Cell("not measured")
        cell = bar_cell(self.trial.final.flip_rate, study)
        small = _paired_cell(self.behind)
        below = f"{small.text} points to the best there ({small.small})" if self.behind else cell.small
        return Cell(cell.text, below, None, cell.bars, cell.whisker)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` holds."""
        rate = self.trial.final.flip_rate if self.trial else None
        named = {"source": self.source, "target": self.target, "num_shared": self.num_shared}
        figures = {"flip_rate": rate, "behind": self.behind, "rank_correlation": self.ranks}
        return {**named, "context_id": self.best.context_id if self.best else None, **json_value(figures)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Studies that share contexts, and what those do in each."""

    studies: tuple[Study, ...]
    shared: tuple[SharedContext, ...]
    """By their mean flip rate, best first; placebos last."""
    num_decided: int
    """Studies in which the best shared context is better than every other one, by paired tests adjusted by Holm."""
    transfers: tuple[Transfer, ...]
    """From each study to each, those to itself included, in the order of the studies."""

    @property
    def is_decisive(self) -> bool:
        """Whether each study shows which of the shared contexts is best."""
        return self.num_decided == len(self.studies) and len(self._arms()) > 1

    @property
    def leading(self) -> list[SharedContext]:
        """The shared context that flips most in each of the studies, each once."""
        places = range(len(self.studies))
        by_study = [[(_rate(trial), row) for row in self._arms() if (trial := row.trials[n])] for n in places]
        rows = [max(rates, key=lambda rate: rate[0])[1] for rates in by_study if rates]
        return list({row.context_id: row for row in rows}.values())

    @property
    def ranking(self) -> str:
        """Which of the shared contexts leads, and whether these studies show that it is best, in a sentence."""
        num, arms = len(self.studies), self._arms()
        if len(arms) < 2:
            return f"One context alone is shared, so there is nothing to rank: {self._with_rates(arms[0])}."
        if not self.is_decisive:
            leads = self._with_rates(self._leader())
            return f"No shared context is decisively ahead: {leads} leads, which may be chance."
        which = ", but not the same" if len(self.leading) > 1 else ""
        named = "; ".join(map(self._with_rates, self.leading))
        return f"In each of the {num} studies one context is better than all others{which}: {named}."

    def _leader(self) -> SharedContext:
        # A mean over fewer studies may only be higher because these are easier.
        return max(self._arms(), key=lambda row: (len(row.rates), fmean(row.rates)))

    def _with_rates(self, row: SharedContext) -> str:
        rates = [
            f"{percent(trial.final.flip_rate.value)} in {study.name}"
            for trial, study in zip(row.trials, self.studies, strict=True)
            if trial
        ]
        return f"{shortened(row.name, LONGEST_NAME)} ({', '.join(rates)})"

    @property
    def verdict(self) -> StudyVerdict:
        """What the studies say together, and what to do next."""
        tone: Tone = "null" if not self.is_decisive else "warning" if len(self.leading) > 1 else "good"
        return StudyVerdict(tone, self.ranking, tuple(self.basis), tuple(self._next_steps()))

    def _next_steps(self) -> Iterator[NextStep]:
        ids = list(dict.fromkeys([self._leader().context_id, *(row.context_id for row in self.leading)]))
        winners = [(s.winner.context.context_id, s) for s in self.studies if s.is_confirmed and s.winner]
        own = [study for id in ids for winner, study in winners if winner == id]
        if not self.is_decisive and len(self._arms()) > 1:
            yield NextStep(
                "Where contexts tie, take the one that refuses least, or the shortest. More unsafe prompts in each "
                "study tell them apart."
            )
        if len(self._arms()) < 2:
            yield NextStep("To rank contexts measure the same ones in each: score their cards, or search with --start.")
        yield from islice(self._unmeasured(), 1)
        if own:
            if self.is_decisive:
                each = "It" if len(self.leading) == 1 else "Each model's own best context"
                yield NextStep(f"{each} is the one to train with.")
            path = typed_path(f"{folder_of(own[0])}/best.txt")
            command = f"flipsearch preflight --model {typed_path(own[0].settings['model'])} --context {path}"
            yield NextStep(f"Is a training on the best context of {own[0].name} worth its start? Go or no-go:", command)
        if not own:  # then the studies say themselves what they lack
            steps = [(study.name, step) for study in self.studies for step in study_verdict(study).next_steps]
            ready = (NextStep(f"{name}: {step.text}", step.command) for name, step in steps if step.command)
            yield from islice(ready, 1)

    def _unmeasured(self) -> Iterator[NextStep]:
        """Yield for each best context that another study did not try the command that measures it there."""
        by_name = {study.name: study for study in self.studies}
        for transfer in self.transfers:
            source, target = by_name[transfer.source], by_name[transfer.target]
            if transfer.trial is None and source.is_confirmed and not target.unfinished:
                text = f"The best context of {source.name} was not tried in {target.name}. Measure it there:"
                words, best = list[str](), typed_path(f"{folder_of(source)}/best.json")
                for key in ("model", "judge", "prompts", "harmful", "benign"):
                    given = target.settings.get(key) or ()
                    words += [
                        word for value in ([given] if isinstance(given, str) else given) for word in (f"--{key}", value)
                    ]
                yield NextStep(text, f"flipsearch score {best} {shlex.join(words)} --split confirm")

    @property
    def basis(self) -> list[str]:
        """What the sentence rests on."""
        decided, tests = f"{self.num_decided or 'none'} of the {len(self.studies)} studies", "(paired tests, Holm, 5 %)"
        shown = f"In {decided} is the best shared context shown to be better than every other one {tests}."
        lines = [shown] if len(self._arms()) > 1 else []
        elsewhere = [transfer.sentence for transfer in self.transfers if transfer.source != transfer.target]
        lines += elsewhere[:MOST_TRANSFERS]
        differing = {
            key: list(dict.fromkeys(str(study.settings.get(key)) for study in self.studies))
            for key in ("model", "judge", "seed", "temperature", "max_tokens")
        }
        apart = [f"{key.replace('_', ' ')} ({', '.join(values)})" for key, values in differing.items() if values[1:]]
        lines.append(f"The studies differ in {', '.join(apart)}." if apart else "Model, judge and seed are the same.")
        num_shared = len(self._arms())
        were = "context was" if num_shared == 1 else "contexts were"
        lines.append(f"{num_shared:,} {were} measured by two studies or more.")
        pairs = [t.behind.n for t in self.transfers if t.behind] + [
            d.n for row in self.shared for d in row.differences if d
        ]
        if pairs:
            least, most = min(pairs), max(pairs)
            num = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            lines.append(f"Paired differences rest on {num} prompts that are unsafe without a context in both.")
        lines += [f"{study.name} is unfinished: {study.unfinished}." for study in self.studies if study.unfinished]
        return lines

    def transfer_rows(self) -> list[tuple[Study, list[Transfer]]]:
        """Return each study with the transfers of its best context."""
        rows = defaultdict(list)
        for transfer in self.transfers:
            rows[transfer.source].append(transfer)
        return [(study, rows[study.name]) for study in self.studies]

    def page(self) -> str:
        """Return the comparison as a page, which needs no scripts and no network."""
        rows = [row for row in self.shared if not row.is_placebo][:PAGE_ROWS]
        rows += [row for row in self.shared if row.is_placebo]
        return render(
            "comparison.html", compared=self, verdict=self.verdict, rows=rows, num_left=len(self.shared) - len(rows)
        )

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Write the comparison to a file: html, csv, json, md, parquet or png, by its ending unless `format` is given.

        A picture, of the top of the page, needs Chromium.
        """
        chosen = report_format(Path(path), format)
        write_report(Path(path), chosen, self.frame, self.page, lambda: (self.page(), PICTURE_HEIGHT), self._summary)

    def _summary(self) -> str:
        shown = [*self._arms()[:MOST_ROWS], *(row for row in self.shared if row.is_placebo)]
        studies = self.studies[: MOST_COLUMNS - 1]
        rates = [[with_interval(t.final.flip_rate, "percent") if t else DASH for t in row.trials] for row in shown]
        rows = [[row.name, *cells[: len(studies)]] for row, cells in zip(shown, rates, strict=True)]
        table = markdown_table(["flip rate under", *(escaped(study.name) for study in studies)], rows, 1)
        return summary_text(f"Comparison of {len(self.studies)} studies", self.verdict, table)

    def frame(self) -> pd.DataFrame:
        """Return one row per shared context and study."""
        rows: list[dict[str, Any]] = []
        for row in self.shared:
            for study, trial, difference in zip(self.studies, row.trials, row.differences, strict=True):
                if trial is None:
                    continue
                rate = trial.final.flip_rate
                cells: dict[str, Any] = {"context": row.name, "context_id": row.context_id, "study": study.name}
                cells |= {key: study.settings.get(key) for key in ("model", "judge", "seed")}
                cells |= {"split": trial.final.split, "flip_rate": rate.value, "low": rate.low, "high": rate.high}
                cells |= {"n": rate.n, "over_refusal_rate": trial.final.over_refusal_rate.value}
                for name in ("value", "low", "high", "n", "p_value"):
                    key = "difference" if name == "value" else f"difference_{name}"
                    cells[key] = getattr(difference, name) if difference else None
                rows.append({**cells, "text": trial.context.text})
        return pd.DataFrame(rows)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = self.frame().astype(object).where(self.frame().notna(), None).to_dict("records")
        names, transfers = [study.name for study in self.studies], [transfer.as_dict() for transfer in self.transfers]
        return {
            "studies": names,
            "ranking": self.ranking,
            "next_steps": json_value(self.verdict.next_steps),
            "transfers": transfers,
            "rows": json_value(rows),
        }

    def _arms(self) -> list[SharedContext]:
        return [row for row in self.shared if not row.is_placebo]


def compare_studies(studies: Sequence[Study]) -> Comparison:
    """Return how the contexts that at least two of the studies measured do in each; ConfigError if there is none."""
    # Reversed, as a placebo may have the very text of an arm, and comes after it.
    by_study = [{trial.context.context_id: trial for trial in reversed(study.trials)} for study in studies]
    names: dict[str, str] = {}
    for study in studies:
        of_study = names_of(study)
        names = {trial.context.context_id: of_study[trial.number] for trial in reversed(study.trials)} | names
    rows, num = {}, Counter(names.values())  # studies may call two texts by the same name
    for id, name in ((id, f"{name} · {id[:6]}" if num[name] > 1 else name) for id, name in names.items()):
        trials = tuple(of_study.get(id) for of_study in by_study)
        first = next(filter(None, trials))
        pairs = tuple(_difference(trial, first) if trial and trial is not first else None for trial in trials)
        is_placebo = not any(trial.role == "arm" for trial in trials if trial)
        rows[id] = SharedContext(id, name, is_placebo, trials, pairs)
    shared = [row for row in rows.values() if sum(trial is not None for trial in row.trials) > 1]
    if all(row.is_placebo for row in shared):
        listed = ", ".join(study.name for study in studies)
        raise ConfigError(
            f"the studies {listed} have no context in common; score the card (best.json) of one with the model of "
            "another."
        )
    shared.sort(key=lambda row: (row.is_placebo, -fmean(row.rates)))
    columns = [[row.trials[n] for row in shared if not row.is_placebo] for n in range(len(studies))]
    places = range(len(studies))
    transfers = [_transfer(studies, rows, source, target) for source in places for target in places]
    return Comparison(tuple(studies), tuple(shared), sum(map(_is_decided, columns)), tuple(transfers))


def _transfer(studies: Sequence[Study], rows: dict[str, SharedContext], source: int, target: int) -> Transfer:
    """Return what the best context of a study does in another; both are positions."""
    names = studies[source].name, studies[target].name
    pairs = [row.trials[source : source + 1] + row.trials[target : target + 1] for row in rows.values()]
    both = [
        (a.search.flip_rate.value, b.search.flip_rate.value) for a, b in pairs if a and b and a.role == b.role == "arm"
    ]
    measured = [(first, second) for first, second in both if first is not None and second is not None]
    ranks = rank_correlation(*zip(*measured, strict=True)) if len(measured) >= 5 and source != target else None
    best, best_there = studies[source].best, studies[target].best
    row = rows[best.context.context_id] if best else None
    trial = row.trials[target] if row else None
    is_other = trial and best_there and trial is not best_there
    behind = _difference(trial, best_there) if is_other and trial and best_there else None
    return Transfer(*names, row, trial, behind, len(measured), ranks)


def _difference(trial: Trial, first: Trial) -> Difference | None:
    """Return the paired difference on the last split that both saw prompts of."""
    return flip_difference(trial.final, first.final) or flip_difference(trial.search, first.search)


def _paired_cell(difference: Difference | None) -> Cell:
    cell = difference_cell(difference, None)
    return Cell(cell.text, f"{low_high(difference, 'points')}, n {difference.n:,}") if difference else cell


def _rate(trial: Trial) -> float:
    return trial.final.flip_rate.value or 0.0


def _is_decided(trials: Sequence[Trial | None]) -> bool:
    """Return whether the best of a study's shared contexts is better than each other one."""
    ordered = sorted(filter(None, trials), key=lambda trial: -_rate(trial))
    others = ordered[1:]
    differences = [_difference(ordered[0], other) for other in others]
    known = [difference for difference in differences if difference is not None]
    adjusted = holm([difference.p_value for difference in known])
    is_better = [d.low > 0 and p < TIE_LEVEL for d, p in zip(known, adjusted, strict=True)]
    return bool(others) and len(known) == len(others) and all(is_better)
