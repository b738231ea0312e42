"""How answers with and without a context are shown beside each other, for prompts that are typed or piped."""

import sys
from collections.abc import Iterator

from rich.table import Column
from rich.text import Text

from flipsearch.api.chat import ChatSession
from flipsearch.commands.console import plain_table, print_table, print_wrapped
from flipsearch.core.hidden import printable

WITHOUT, UNDER = "without a context", "with the context"


def prompts() -> Iterator[str]:
    """Yield the lines of the input that hold anything, until it ends; in a terminal, after a sign that it waits."""
    is_typed = sys.stdin.isatty()
    if is_typed:
        sys.stderr.write("One prompt per line; each is a conversation of its own. End with Ctrl-D.\n")
    while True:
        if is_typed:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if prompt := line.strip("\ufeff").strip():  # a piped file may begin with a byte order mark
            yield prompt


def answers(chat: ChatSession) -> list[dict[str, str]]:
    """Return the answers to all prompts of the input."""
    with chat:
        return [chat.ask(prompt).as_dict() for prompt in prompts()]


def show(chat: ChatSession) -> None:
    """Print the answers to each prompt as soon as they are there."""
    with chat:
        for prompt in prompts():
            pair = chat.ask(prompt)
            print_wrapped(f"\n{pair.prompt}", style="bold")
            columns = (Column(name, ratio=1, overflow="fold") for name in (WITHOUT, UNDER))
            table = plain_table(*columns, expand=True)
            table.add_row(*(Text(printable(text.strip())) for text in (pair.without, pair.under)))
            print_table(table)
            sys.stdout.flush()
