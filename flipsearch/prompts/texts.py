"""Texts out of cells, for prompts and problems alike: whole, or an error with file and line."""

from flipsearch.errors import PromptError
from flipsearch.prompts.files import Row, Table, is_missing


def text_cell(table: Table, row: Row, column: str) -> str:
    """Return a cell's text without the blanks around it, "" where it is missing; raises PromptError for no text."""
    value = row.cells.get(column)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise PromptError(f"{table.at(row)}: column '{column}' holds {type(value).__name__}, expected text.")
    return whole_text(table, row, column, value)


def whole_text(table: Table, row: Row, column: str, text: str) -> str:
    """Return a text without the blanks around it; raises PromptError if it holds half a character."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(f"{table.at(row)}: column '{column}' holds half a character (a lone surrogate).")
    return text.strip()
