"""The list of context templates, for a terminal."""

import sys
from shutil import get_terminal_size
from textwrap import fill

from flipsearch.core.files import printable

HEADINGS = {
    "context": "CONTEXTS, which a search tries",
    "benign": "CONTEXTS FOR BENIGN PROMPTS, which training may use",
    "placebo": "PLACEBOS, which show what a text without safety content does",
}
FOOT = (
    "A name goes to `search --template NAME` or `score NAME`; `--contexts PATH` adds templates of your own. The pocket "
    "model has a set in its own vocabulary: `list contexts --model pocket`."
)


def show_contexts(rows: list[dict[str, str]]) -> None:
    """Print each template with its length, variants and placements, what it says and where the idea comes from."""
    width, longest = min(get_terminal_size().columns, 120), max(len(row["name"]) for row in rows)
    for role, heading in HEADINGS.items():
        listed = [row for row in rows if row["role"] == role]
        if listed:
            sys.stdout.write(f"{heading} ({len(listed)})\n\n")
        for row in listed:
            variants = "" if role == "placebo" else f"{row['variants']} variants, "
            facts = f"{row['words']} words, {variants}{row['placements']}"
            sys.stdout.write(f"{printable(row['name']):{longest}}  {facts}\n")
            for text in (row["description"], row["source"]):
                indent = "    "
                sys.stdout.write(fill(printable(text), width, initial_indent=indent, subsequent_indent=indent) + "\n")
        sys.stdout.write("\n" if listed else "")
    sys.stdout.write(fill(FOOT, width) + "\n")
