"""check_ledger, export_ledger and list_available: what a ledger holds, and what names on the command line can mean."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from flipsearch.backends.base import list_backends
from flipsearch.backends.models import list_models
from flipsearch.core.errors import ConfigError, TemplateError, unknown_name
from flipsearch.judging.library import list_judges
from flipsearch.ledger import Ledger
from flipsearch.ledger.check import LedgerCheck
from flipsearch.ledger.check import check_ledger as check
from flipsearch.prompts.attacks import list_attacks
from flipsearch.prompts.known_sets import KNOWN_SETS, describe
from flipsearch.prompts.problems import list_problem_sets
from flipsearch.prompts.sets import list_sets
from flipsearch.reporting.formats import Export, check_export, export_file, export_lines, study_beside
from flipsearch.reporting.study_file import ledger_place
from flipsearch.settings import library_for
from flipsearch.templating.library import BROKEN, TemplateLibrary


def check_ledger(study: Path | str, *, reports: Path | None = None) -> LedgerCheck:
    """Read the ledger of a study and return what it holds and what is wrong with it; nothing is written.

    `study` is a study's name or folder, or a ledger's file or database URL.
    """
    return check(ledger_place(study, reports))


def export_ledger(
    study: Path | str, *, to: Path | str | None = None, reports: Path | None = None, stream: TextIO | None = None
) -> Export:
    """Write all rollouts of a study with their verdicts to a .jsonl, .csv or .parquet file, or as lines to `stream`.

    Without either, the lines go to stdout. Once the study is finished, the texts of prompts and contexts are in them.
    """
    if to is not None:
        check_export(Path(to))
    place = ledger_place(study, reports)
    finished = study_beside(place)
    with Ledger(place, read_only=True) as ledger:
        if to is not None:
            return export_file(ledger, Path(to), finished)
        return export_lines(ledger, stream or sys.stdout, finished)


def list_available(what: str, contexts: Sequence[str] = (), model: str | None = None) -> list[dict[str, str]]:
    """Return rows of name and description for models, contexts, judges, prompts, problems, backends or attacks.

    Contexts, those that go with `model`, have more: role, length, placements, number of variants, source; a file that
    cannot be read has the role "broken", and the error as its description. So do public
    prompt sets: what they hold, licence, access (gated, pinned file), addresses, hashes, columns.
    """
    tables = {
        "models": list_models,
        "judges": list_judges,
        "prompts": lambda: {
            name: f"{counts['harmful']} harmful and {counts['benign']} benign prompts; {counts['borderline']} of the "
            "benign ones are borderline: they sound harmful"
            for name, counts in list_sets().items()
        },
        "problems": list_problem_sets,
        "backends": list_backends,
        "attacks": list_attacks,
    }
    if what == "contexts":
        broken: dict[Path, TemplateError] = {}
        rows = _context_rows(library_for(model or "", contexts, broken))
        return rows + [{"name": str(file), "role": BROKEN, "description": str(broken[file])} for file in broken]
    if what not in tables:
        raise ConfigError(unknown_name("list", what, [*tables, "contexts"]))
    if contexts or model:
        raise ConfigError(
            f"{'--contexts' if contexts else '--model'} goes with `list contexts`, not with `list {what}`."
        )
    rows = [{"name": name, "description": text} for name, text in tables[what]().items()]
    return rows + ([describe(known) for known in KNOWN_SETS] if what == "prompts" else [])


def _context_rows(library: TemplateLibrary) -> list[dict[str, str]]:
    """Return one row per template: those that are searched first, then those for benign prompts, then placebos."""
    templates = [library[name] for role in ("context", "benign", "placebo") for name in library.names(role)]
    return [
        {
            "name": template.name,
            "role": template.role,
            "words": template.length_in_words(),
            "placements": ", ".join(template.placements),
            "variants": str(template.num_variants),
            "description": template.description,
            "source": template.source,
        }
        for template in templates
    ]
