"""How likely a model finds given openings: one pass over prompt and opening, and nothing about requests or text.

N rows, T tokens with padding, C tokens of the longest opening, V vocabulary.
"""

from collections.abc import Sequence

import torch

from flipsearch.backends.decoding import Decoder, Ids
from flipsearch.records import Reading

MOST_ROWS = 256
"""Rows read at once: their keys and values are held until all are read."""
LOGIT_BYTES = {True: 128 * 2**20, False: 2**30}
"""Logits of at most so many bytes are held at once on a CPU and on anything else."""


def rows_at_once(decoder: Decoder, width: int) -> int:
    """Return how many openings of at most `width` tokens may be read in one call."""
    row_bytes = 4 * max(1, width) * decoder.model.config.get_text_config(decoder=True).vocab_size
    return int(max(1, min(MOST_ROWS, LOGIT_BYTES[decoder.device.type == "cpu"] // row_bytes)))


@torch.inference_mode()
def read_openings(
    decoder: Decoder, prompts: Sequence[Ids], prefixes: Sequence[int], openings: Sequence[Ids]
) -> list[Reading]:
    """Return a reading for each prompt and opening, in order, all read in one call.

    They should be of like length. `prefixes[i]` leading tokens of prompt i may be read together with those of other
    prompts that have the same.
    """
    width = max(map(len, openings))
    if width == 0:
        return [Reading((), 0) for _ in openings]
    # The last token of an opening predicts what comes after it, which nobody asks for.
    read = [[*prompt, *opening[:-1]] for prompt, opening in zip(prompts, openings, strict=True)]
    logits = decoder.logits_after(read, prefixes, width)  # (N, C, V), aligned at the end
    found = []
    for row, opening in zip(logits, openings, strict=True):
        wanted = torch.tensor(opening, device=row.device)
        own = row[width - len(opening) :]
        log_probs = own.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
        agrees = (own.argmax(-1) == wanted).int().cumprod(-1)
        found.append(Reading(tuple(log_probs.tolist()), int(agrees.sum())))
    return found
