"""The folders of a training: `<name>.partial` while it runs, `<name>` once everything is in it.

<name>.partial/started.json       format, settings, prompts and model: a resume must have the same
<name>.partial/checkpoint-N/      the trainer's states
<name>.partial/log.jsonl          one line per step; answers.jsonl, one for each step whose answers are logged
<name>.partial/lock               held by the process that trains
<name>.partial/final/             the finished checkpoint, renamed to <name> in one move

A full disk and a torn state are one line that says how to continue.
"""

import importlib
import json
import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel, Trainer
from transformers.pytorch_utils import Conv1D

from flipsearch.backends.loading import is_out_of_memory, load_model, quiet
from flipsearch.backends.models import ENCODING_FILES, TRAINING_FILE, locate, model_source, stored_weights
from flipsearch.backends.quantized import dequantized, quantized_layers
from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError, one_line
from flipsearch.core.files import is_held, take_lock, write_text
from flipsearch.core.settings import as_typed
from flipsearch.core.trainings import TRAINING_FORMAT, check_format
from flipsearch.training.model import make_savable, unwrap

LOG_FILE, ANSWERS_FILE, VALIDATION_FILE = "log.jsonl", "answers.jsonl", "validation.jsonl"
LOGS = (LOG_FILE, ANSWERS_FILE, VALIDATION_FILE)
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Others are float32 here: no training knows them."""
STAYS = ("*.jsonl", "*.html", "*.gz", TRAINING_FILE, "scorecard.json")
"""What is not uploaded."""
STATE = re.compile(r"checkpoint-[0-9]{1,9}")
"""Name of a folder with a state; a copy of one that somebody keeps beside it has another."""
STARTED_FILE, STATE_FILE, FINAL, ADAPTER, LOCK = "started.json", "trainer_state.json", "final", "adapter", "lock"


class CheckpointFolder:
    """Where a training works, locked from `start` to the end of the block; TrainingError if taken or unwritable."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.partial = folder, folder.with_name(f"{folder.name}.partial")
        self.final = self.partial / FINAL
        self._lock, self._is_own = ExitStack(), False

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()
        names = {path.name for path in self.partial.iterdir()} if self.partial.is_dir() else set()
        trained = self.partial / LOG_FILE
        is_empty = not trained.is_file() or trained.stat().st_size == 0
        if (
            error[0]
            and self._is_own
            and is_empty
            and names <= {STARTED_FILE, LOCK, LOG_FILE, ANSWERS_FILE, VALIDATION_FILE}
        ):
            # Nothing was trained yet: nothing to resume, and nothing in the way of the next try.
            shutil.rmtree(self.partial, ignore_errors=True)

    def check(self, resume: bool) -> None:
        """Refuse a name that is taken, a start where something waits to be resumed, and a resume of nothing."""
        if self.folder.exists():
            raise TrainingError(
                f"'{self.folder}' is finished already, with other settings, prompts or another base; give another "
                "--name, or remove it."
            )
        if self.partial.exists() and not resume:
            raise TrainingError(f"'{self.partial}' was started and not finished: --resume continues; or remove it.")
        if resume and not self.partial.exists():
            raise TrainingError(f"nothing to resume: there is no '{self.partial}'; leave --resume out.")

    def start(self, identity: dict[str, Any], resume: bool) -> None:
        """Make and lock the folder, and write `identity` there, or check that a resume has the same."""
        self._make_and_lock(resume)
        path = self.partial / STARTED_FILE
        if not path.exists():
            started = {"format": TRAINING_FORMAT, **identity}
            write_text(path, json.dumps(started, indent=1) + "\n", TrainingError)
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(f"'{path}' cannot be read; remove '{self.partial}' and start again.") from error
        check_format(before, path)
        for key in sorted(before.keys() - {"format"} | identity.keys()):
            if before.get(key) != identity.get(key):
                earlier, given = (as_typed(TrainConfig, key, values.get(key)) for values in (before, identity))
                raise TrainingError(
                    f"'{self.partial}' was started with {earlier}, and this command has {given}; resume with the same "
                    "options, or give another --name."
                )

    def _make_and_lock(self, resume: bool) -> None:
        taken = f"another training works in '{self.partial}'; wait for it, or give a --name."
        try:
            self.partial.mkdir(parents=True, exist_ok=resume)
            self._lock.enter_context(closing(take_lock(self.partial / LOCK)))
            self._is_own = True
        except FileExistsError as error:  # made since `check` looked
            raise TrainingError(taken) from error
        except OSError as error:
            raise TrainingError(f"cannot make '{self.partial}': {error.strerror}; give other --checkpoints.") from error
        except sqlite3.Error as error:
            unusable = f"'{self.partial}' cannot be locked: {error}; give other --checkpoints."
            raise TrainingError(taken if is_held(error) else unusable) from error

    def last_state(self) -> Path | None:
        """Return the newest state that was saved whole: the trainer writes its own file last."""
        states = [path for path in self.partial.glob("checkpoint-*") if STATE.fullmatch(path.name)]
        for state in sorted(states, key=step_of, reverse=True):
            try:
                content = json.loads((state / STATE_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(content, dict) and content.get("global_step") == step_of(state):
                return state
        return None

    def save(self, model: Any, weights: Any, base: str) -> tuple[str, ...]:
        """Write the trained model, merged if it has adapters, in Hugging Face format into `final`; return notes on it.

        `weights` are those of a sharded model, gathered; None for a whole one. `base` names the model it was made from,
        whose precision the files have: its engines, and their memory, are made for that.
        """
        source = locate(model_source(base)).folder
        shutil.rmtree(self.final, ignore_errors=True)
        with quiet():
            if model is not unwrap(model):
                # What is uploaded names no folder of this machine.
                name = Path(base).name if Path(base).exists() else base.partition("@")[0]
                model.peft_config["default"].base_model_name_or_path = name
                model.save_pretrained(self.final / ADAPTER)
                (self.final / ADAPTER / "README.md").unlink()
                model = merged(model, self.final / ADAPTER, source)
            stored = {name: STORED_DTYPES.get(entry["dtype"], torch.float32) for name, entry in stored_weights(source)}
            notes = set[str]()
            usual = Counter(stored.values()).most_common(1)[0][0]
            for name, parameter in model.named_parameters():
                dtype = stored.get(name, usual)
                if parameter.dtype == dtype:
                    continue
                if dtype.itemsize < parameter.dtype.itemsize:
                    notes.add(str(dtype).removeprefix("torch."))
                # The data alone: what is tied is one parameter, and stays it.
                parameter.data = parameter.data.to(dtype)
                if weights is not None and name in weights:
                    weights[name] = weights[name].to(dtype)
            if weights is not None:  # gathered, what is tied is no longer one tensor
                weights = {name: values for name, values in weights.items() if name not in model.all_tied_weights_keys}
            model.save_pretrained(self.final, state_dict=weights)
        for path in [path for pattern in ENCODING_FILES for path in source.glob(pattern)]:
            shutil.copyfile(path, self.final / path.name)  # byte for byte, so that prompts are encoded as before
        for name in LOGS:
            if (self.partial / name).exists():
                shutil.copyfile(self.partial / name, self.final / name)
        precisions = " and ".join(sorted(notes))
        note = f"The checkpoint's weights were rounded to {precisions}, in which its base is stored."
        return (note,) if notes else ()

    def publish(self) -> None:
        """Give the finished checkpoint its name, and drop the states."""
        try:
            os.replace(self.final, self.folder)
        except OSError as error:  # something took the name meanwhile
            raise TrainingError(
                f"'{self.final}' is finished, but cannot be renamed to '{self.folder}': {error.strerror}; rename it."
            ) from error
        shutil.rmtree(self.partial, ignore_errors=True)


def merged(adapted: Any, adapter: Path, source: Path) -> PreTrainedModel:
    """Return a plain model that computes what one with adapters does; `adapter` is where they are saved.

    Rounded weights cannot hold the sum: they are dequantised into the model of the folder `source` on the CPU first.
    """
    inner = unwrap(adapted)
    if getattr(inner, "is_quantized", False):
        model = load_model(source, torch.device("cpu"), inner.dtype)
        make_savable(model)
        for name, layer in quantized_layers(inner):
            plain, weights = model.get_submodule(name.removesuffix(".base_layer")), dequantized(layer)
            weights = weights.T.contiguous() if isinstance(plain, Conv1D) else weights
            plain.weight.data = weights.to("cpu", inner.dtype)
        peft = importlib.import_module("peft")
        adapted = peft.PeftModel.from_pretrained(model, adapter, torch_device="cpu")
    return cast(PreTrainedModel, adapted.merge_and_unload())


def upload(folder: Path, name: str) -> str:
    """Upload a finished checkpoint to a model repository of the hub, a private one if it is new; return its address.

    Logs and pages stay here: they hold harmful prompts and answers, and the paths of this machine.
    """
    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=list(STAYS))
    except Exception as error:  # of the network, of the hub or of its client
        raise TrainingError(
            f"'{folder}' is finished, but cannot be uploaded to '{name}': {one_line(error, 300)}; the same command "
            "tries it again."
        ) from error
    return f"{hub.endpoint}/{name}"


def step_of(state: Path) -> int:
    """Return the optimizer step that a state was saved after."""
    return int(state.name.rpartition("-")[2])


@contextmanager
def _errors_as_one_line(what: str, todo: str) -> Iterator[None]:
    """Turn what torch, safetensors, pickle, json and the system raise in the block into a TrainingError."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # they have no type for it
        if is_out_of_memory(error):
            raise
        why = one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
        raise TrainingError(f"{what}: {why}. {todo}") from error


def save_errors_as_one_line(folder: object) -> AbstractContextManager[None]:
    """Return a block in which a disk that is full or read-only is a TrainingError."""
    todo = "Free the disk, and --resume continues from the last whole state."
    return _errors_as_one_line(f"cannot write '{folder}'", todo)


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


def _torn_state(state: str | None) -> AbstractContextManager[None]:
    todo = "Remove it: --resume continues from an earlier state if there is one, and else from the start."
    return _errors_as_one_line(f"the state '{state}' is torn", todo) if state else nullcontext()
