"""How likely a model finds given openings: one pass over prompt and opening, and nothing about requests or text.

Openings of one prompt are alternatives: those that part only at their last token are read off the same row, so that
asking for each of a few single tokens costs what asking for one does.

N rows, T tokens with padding, C tokens of the longest opening, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from flipsearch.backends.decoding import PART_TOKENS, Decoder, Ids, shared_prefixes
from flipsearch.backends.memory import free_memory, is_out_of_memory
from flipsearch.records import Reading

MOST_ROWS = 256
"""Rows read at once: their keys and values are held until all are read."""
LOGIT_BYTES = {True: 128 * 2**20, False: 2**30}
"""Logits of at most so many bytes are held at once on a CPU and on anything else."""


@dataclass(slots=True)
class Row:
    """A prompt and what is read after it, for every opening that it tells of."""

    prompt: Ids
    """What stands before the openings."""
    path: Ids
    """The longest opening but for its last token, which predicts what nobody asks for."""
    wanted: list[int] = field(default_factory=list)
    """Numbers of the openings that are read off this row."""
    num_shared: int = 0
    """Leading tokens that all prompts of its group share."""


def read_all(
    decoder: Decoder,
    prompts: Sequence[Ids],
    openings: Sequence[Ids],
    groups: Sequence[object],
    batch_size: int | None = None,
) -> list[Reading | None]:
    """Return a reading for each prompt and opening, in order; None where memory runs out with that prompt alone.

    Prompts of a group are expected to begin alike, which is then read once. At most `batch_size` rows are read at a
    time, fewer where memory is short.
    """
    found: dict[int, Reading] = {i: Reading((), 0) for i, opening in enumerate(openings) if not len(opening)}
    queue = _in_order(prompts, openings, groups)
    size = min(batch_size or MOST_ROWS, rows_at_once(decoder, queue)) if queue else 0
    while queue:
        batch, rest = queue[:size], queue[size:]
        try:
            readings: Mapping[int, Reading] | None = read_rows(decoder, batch, openings)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            readings = {} if len(batch) == 1 else None
        if readings is None:  # outside the handler: the error's traceback held the batch's tensors
            free_memory()
            size = len(batch) // 2
            continue
        found |= readings
        queue = rest
    return [found.get(i) for i in range(len(openings))]


def rows_at_once(decoder: Decoder, rows: Sequence[Row]) -> int:
    """Return how many of `rows` may be read in one call."""
    on_cpu = decoder.device.type == "cpu"
    width = 1 + max(len(row.path) for row in rows)
    row_bytes = 4 * width * decoder.model.config.get_text_config(decoder=True).vocab_size
    most = min(MOST_ROWS, LOGIT_BYTES[on_cpu] // row_bytes)
    if not decoder.shares_prefixes:  # such a model reads the call's rows whole and all at once
        most = min(most, 4 * PART_TOKENS[on_cpu] // max(len(row.prompt) + len(row.path) for row in rows))
    return int(max(1, most))


@torch.inference_mode()
def read_rows(decoder: Decoder, rows: Sequence[Row], openings: Sequence[Ids]) -> dict[int, Reading]:
    """Return the readings of the openings that `rows` tell of, by number, all read in one call."""
    width = 1 + max(len(row.path) for row in rows)
    read = [[*row.prompt, *row.path] for row in rows]
    logits = decoder.logits_after(read, [row.num_shared for row in rows], width)  # (N, C, V), aligned at the end
    return {
        number: reading
        for row, aligned in zip(rows, logits, strict=True)
        for number, reading in _read_off(aligned[width - len(row.path) - 1 :], row, openings)
    }


def _read_off(logits: torch.Tensor, row: Row, openings: Sequence[Ids]) -> Iterator[tuple[int, Reading]]:
    """Yield the readings of a row from the logits (C, V) after its prompt and after each token of its path."""
    log_probs, likeliest = logits.log_softmax(-1), logits.argmax(-1)
    for number in row.wanted:
        wanted = torch.tensor(openings[number], device=logits.device)
        own = log_probs[: len(wanted)].gather(-1, wanted[:, None])[:, 0]
        agrees = (likeliest[: len(wanted)] == wanted).int().cumprod(-1)
        yield number, Reading(tuple(own.tolist()), int(agrees.sum()))


def _in_order(prompts: Sequence[Ids], openings: Sequence[Ids], groups: Sequence[object]) -> list[Row]:
    """Return longest rows first (out of memory then shows at once), those with like shared prefixes together."""
    rows: list[Row] = []
    row_groups: list[object] = []
    of_prompt: dict[tuple[int, ...], list[Row]] = {}
    for number in sorted(range(len(openings)), key=lambda i: -len(openings[i])):
        if not len(openings[number]):
            continue
        path, prompt = tuple(openings[number][:-1]), prompts[number]
        of_this = of_prompt.setdefault(tuple(prompt), [])
        row = next((one for one in of_this if tuple(one.path[: len(path)]) == path), None)
        if row is None:
            row = Row(prompt, path)
            of_this.append(row)
            rows.append(row)
            row_groups.append(groups[number])
        row.wanted.append(number)
    for row, num_shared in zip(rows, shared_prefixes([row.prompt for row in rows], row_groups), strict=True):
        row.num_shared = num_shared
    return sorted(rows, key=lambda row: (row.num_shared, len(row.prompt) + len(row.path)), reverse=True)
