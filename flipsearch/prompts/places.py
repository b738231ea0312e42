"""Where the prompts that a file names may lie: cards and studies decide nothing that is fetched."""

from collections.abc import Iterable
from pathlib import Path

from flipsearch.core.errors import PromptError
from flipsearch.prompts.files import split_column


def require_local_prompts(specs: Iterable[str], named_by: str, todo: str) -> None:
    """Raise PromptError for prompts that a file names and that are neither a set by name nor files on this machine.

    `todo` says how the user names them.
    """
    for spec in specs:
        is_here = Path(spec).is_file() or Path(split_column(spec)[0]).is_file()
        if "://" in spec or ("/" in spec and not is_here):
            raise PromptError(
                f"{named_by} names the prompts '{spec}', which are not on this machine, and no file decides what is "
                f"fetched: {todo}."
            )
