"""What a test reads from a page: its data blocks, as the page's script unpacks them."""

import base64
import gzip
import html
import json
import re
from typing import Any


def data_of(page: str, block: str = "table-data") -> Any:
    """Return what a data block of a page holds."""
    result = re.search(rf'id="{block}">([^<]*)</script>', page)
    assert result, f"no block {block}"
    return json.loads(gzip.decompress(base64.b64decode(result[1])))


def cells_of(page: str, column: str) -> list[tuple[str, str]]:
    """Return text and small text of a column of the leaderboard, row by row."""
    data = data_of(page)
    place = [name for name, *_ in data["columns"]].index(column)
    return [(row["cells"][place][0], row["cells"][place][1]) for row in data["rows"]]


def words_of(page: str) -> str:
    """Return what a page says, without the marks that keep options and figures in one line."""
    return html.unescape(re.sub(r"</?span[^>]*>", "", page)).replace("\u00a0", " ")
