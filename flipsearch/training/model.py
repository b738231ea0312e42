"""The model that is trained, as student and as frozen teacher. Knows no method and no loss."""

import copy
import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flipsearch.backends.base import make_backend
from flipsearch.backends.loading import choose_device, choose_dtype, make_savable, memory_bytes, quiet
from flipsearch.backends.models import locate, model_source
from flipsearch.backends.transformers import TransformersBackend
from flipsearch.config import TrainConfig
from flipsearch.core.errors import TrainingError
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import init_process_group, is_sharded, num_processes
from flipsearch.training.rounding import RoundedCopy
from flipsearch.training.rows import TokenLayout, check_fits

AsTeacher = Callable[[], AbstractContextManager[Any]]
"""Opens a block in which the frozen teacher can be run: a copy, or the student with its adapters off."""
WEIGHT_BYTES = 4
FULL_BYTES = 4 * WEIGHT_BYTES
"""A trained parameter: the weight, its gradient and AdamW's two moments, in float32."""
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def load_student(plan: TrainPlan) -> TransformersBackend:
    """Return the model of a plan, loaded once it is known to fit into memory, and checked: it can be trained here.

    Of several processes each loads it, and meets the others first. Raises TrainingError or BackendError.
    """
    config = plan.config
    device = choose_device(config.device)
    init_process_group(on_cpu=device.type == "cpu")
    check_memory(locate(model_source(config.model)).folder, config, device, choose_dtype(config.dtype, device))
    backend = make_backend(config)
    assert isinstance(backend, TransformersBackend)  # by plan
    if config.gradient_checkpointing and not backend.model.supports_gradient_checkpointing:
        raise TrainingError(f"{type(backend.model).__name__} does not know --gradient-checkpointing; leave it out.")
    backend.notes += make_savable(backend.model)
    for context in plan.contexts:
        by_kind = {"harmful": context, "benign": plan.benign_context}
        routes = {prompt.prompt_id: c for prompt in plan.prompts if (c := by_kind[prompt.kind])}
        check_fits(backend.chat, plan.prompts, routes, config.sampling().longest, backend.max_positions)
    return backend


def check_memory(folder: Path, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise TrainingError if weights, gradients, optimizer and teacher alone cannot fit; rollouts need more."""
    if config.lora:  # the teacher is the model without its adapters
        bytes_per_parameter: float = dtype.itemsize
    elif is_sharded():  # the student is whole twice: in float32 before it is sharded, and beside its shard in rollouts
        sharded = FULL_BYTES / num_processes() + dtype.itemsize
        bytes_per_parameter = dtype.itemsize + max(WEIGHT_BYTES, sharded)
    else:
        rounded_copy = 0 if dtype is torch.float32 else dtype.itemsize
        bytes_per_parameter = dtype.itemsize + FULL_BYTES + rounded_copy
    num_parameters = count_parameters(folder)
    needed = num_parameters * bytes_per_parameter
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()
    if needed > available:
        todo = "take a smaller model" if config.lora else "give --lora 16, or take a smaller model"
        raise TrainingError(
            f"training '{config.model}' ({num_parameters / 1e9:.2f} B parameters) takes {needed / 2**30:.1f} GiB for "
            f"weights, gradients, AdamW and teacher, but {device} has {available / 2**30:.1f} GiB; {todo}."
        )


def count_parameters(folder: Path) -> int:
    """Return the number of values in a folder's safetensors files, from their headers alone."""
    return sum(math.prod(entry["shape"]) for _, entry in _stored(folder))


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the precision of each weight in a folder's safetensors files, float32 for what no training knows."""
    return {name: STORED_DTYPES.get(entry["dtype"], torch.float32) for name, entry in _stored(folder)}


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def student_and_teacher(
    model: PreTrainedModel, lora: int, *, with_teacher: bool
) -> tuple[Any, RoundedCopy | None, AsTeacher]:
    """Return the model made trainable, what is run in its place, and what gives its frozen initial copy.

    Without `lora` the student's weights are float32, run as a copy in the model's own precision if that is another. The
    teacher, made only `with_teacher`, has that precision too. With `lora` (a rank) only adapters are trained, and the
    teacher is the same model with adapters off, in eval mode.
    """
    if not lora:
        teacher = copy.deepcopy(model).requires_grad_(False).eval() if with_teacher else None
        # FSDP rounds what it gathers of its shards.
        is_rounded = model.dtype != torch.float32 and not is_sharded()
        rounded = RoundedCopy(copy.deepcopy(model)) if is_rounded else None
        student: Any = model.float()
        return student.requires_grad_(True), rounded, lambda: nullcontext(teacher)
    peft = importlib.import_module("peft")  # an extra: the plan has checked that it is there
    options = peft.LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet():  # it says what it did to layers that keep their weights transposed
        adapted = peft.get_peft_model(model, options)

    @contextmanager
    def without_adapters() -> Iterator[Any]:
        modes = [(module, module.training) for module in adapted.modules()]
        adapted.eval()
        try:
            with adapted.disable_adapter():
                yield adapted
        finally:
            for module, mode in modes:  # one by one: the wrapper may be in another mode than what it holds
                module.training = mode

    return adapted, None, without_adapters


def completion_hidden(model: Any, layout: TokenLayout) -> Tensor:
    """Return the hidden states (N, H) that predict the completion tokens of a batch."""
    decoder = unwrap(model).get_decoder()
    hidden: Tensor = decoder(input_ids=layout.ids, attention_mask=layout.mask, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[layout.predicts]  # (B, T, H) -> (N, H)


def unwrap(model: Any) -> PreTrainedModel:
    """Return the transformers model inside adapters, or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner
