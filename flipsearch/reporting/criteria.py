"""Whether measured contexts are good enough: a line for each criterion, for people and as JUnit XML."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flipsearch.core.display import printable, shortened
from flipsearch.core.measurements import Rate
from flipsearch.core.studies import Study
from flipsearch.reporting.format import percent, with_interval


@dataclass(frozen=True, slots=True)
class Criterion:
    """A rate of one context, and the least or the most that it may be."""

    context: str
    """How its text begins, or the template that it was made from."""
    what: str
    rate: Rate
    """n = 0 where it could not be measured: then the criterion is not met."""
    bound: float
    is_least: bool

    @property
    def is_met(self) -> bool:
        """Whether the measured rate itself is within the bound; its interval is for the reader."""
        value = self.rate.value
        return value is not None and (value >= self.bound if self.is_least else value <= self.bound)

    @property
    def text(self) -> str:
        """The criterion and the rate in one line."""
        wanted = f"{self.what} at {'least' if self.is_least else 'most'} {percent(self.bound)}"
        got = f"{with_interval(self.rate, 'percent')} of {self.rate.n}" if self.rate.n else "it could not be measured"
        return f"{wanted}: {got}"


def criteria(study: Study, min_flip: float | None, max_over_refusal: float | None) -> Iterator[Criterion]:
    """Yield what is required of each context of a score; None requires nothing."""
    for trial in study.trials:
        if trial.role != "arm":
            continue
        name = printable(trial.context.template or shortened(trial.context.text, 40))
        if min_flip is not None:
            yield Criterion(name, "flip rate", trial.final.flip_rate, min_flip, True)
        if max_over_refusal is not None:
            yield Criterion(name, "added over-refusal", trial.final.added_refusals, max_over_refusal, False)


def junit_xml(study: Study, checked: Sequence[Criterion]) -> str:
    """Return the outcome as JUnit XML: a test case for each criterion."""
    num_failed = str(sum(not criterion.is_met for criterion in checked))
    suite = ET.Element("testsuite", name=f"flipsearch {study.name}", tests=str(len(checked)), failures=num_failed)
    for criterion in checked:
        wanted, _, got = criterion.text.partition(": ")
        case = ET.SubElement(suite, "testcase", classname=criterion.context, name=wanted)
        if not criterion.is_met:
            ET.SubElement(case, "failure", message=got).text = criterion.text
    return _document(suite)


def junit_error(contexts: Sequence[str], why: str) -> str:
    """Return as JUnit XML why nothing could be measured: an error for each context."""
    num = str(len(contexts))
    suite = ET.Element("testsuite", name="flipsearch", tests=num, failures="0", errors=num)
    for context in contexts:
        case = ET.SubElement(suite, "testcase", classname=shortened(context, 40), name="could be measured")
        ET.SubElement(case, "error", message=printable(why))
    return _document(suite)


def _document(suite: ET.Element) -> str:
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"
