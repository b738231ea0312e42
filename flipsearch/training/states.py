"""How a trainer's states are written and read: a full disk and a torn file are one line that says how to go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from flipsearch.backends.loading import is_out_of_memory
from flipsearch.core.errors import TrainingError, one_line


@contextmanager
def save_errors_as_one_line(folder: object) -> Iterator[None]:
    """Turn what torch, safetensors and the system raise on a disk that is full or read-only into a TrainingError."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # torch and safetensors have no type for it
        if is_out_of_memory(error):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        todo = "Free the disk, and --resume goes on from the last whole state."
        raise TrainingError(f"cannot write '{folder}': {why}. {todo}") from error


class SavedStates(Trainer):
    """A trainer whose states are written whole or not used, and read back or refused in one line."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with save_errors_as_one_line(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _torn_state(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _torn_state(checkpoint):
            for name in ("optimizer.pt", "scheduler.pt") if checkpoint and not self.is_fsdp_enabled else ():
                os.stat(f"{checkpoint}/{name}")  # without them the loop would start its optimizer anew
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _torn_state(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _torn_state(state: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pickle, torch, safetensors and json each have their own for a torn file
        if state is None or is_out_of_memory(error):
            raise
        todo = "Remove it: --resume goes on from an earlier state if there is one, and else from the start."
        raise TrainingError(
            f"the state '{state}' is torn: {type(error).__name__}: {one_line(error)}. {todo}"
        ) from error
