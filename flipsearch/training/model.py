"""The model that is trained, as student and as frozen teacher, and how its logits are made.

The student is run as the teacher is: without dropout, and in bfloat16 by weights that are rounded once per step. They
are kept in float32, or small updates would be lost, and multiplied without autocast, which would round other places. So
equal weights give equal logits, a context that says nothing trains nothing, and rollouts need no rounding of their own.

Logits are made for a few positions at a time (divergence.py): the last hidden states times the output embeddings, to
which some models add a bias, a scale or a cap. What becomes of the product is not read off a config: the model's own
`forward` is run with its decoder replaced by one that returns the product. Knows no method.

What a training holds in memory follows from its settings and the headers of the model's files alone.
Bytes per GPU, for P parameters, of which A are adapters, on N GPUs (ZeRO, arXiv 1910.02054, section 3, with this
training's precisions: model.py). s is the size of a number in the model's precision, b the rows of a backward pass, B
those that are decoded at once, T the longest prompt and completion:

    weights      4 P / N in float32, with s P rounded to run; s P for the teacher       LoRA: s P in all, 4 A; with
                 --quantize, linear layers have .52 (4bit) or 1 (8bit) in place of s
    gradients    4 P / N                                                                LoRA: 4 A
    optimizer    8 P / N, AdamW's two moments; 2 P / N in 8 bits                        LoRA: 8 A or 2 A
    activations  s b T (L (6 h + 4 q + 4 i) + 3 h), what a backward pass through L layers of hidden width h, query width
                 q and intermediate width i keeps: both norms' inputs, normalised and scaled values, queries, keys,
                 values and output of attention, and four values of a gated MLP; no scores of attention, which are
                 never whole (cf. arXiv 2205.05198, section 4, which counts 34 h per layer for a GPT in 16 bits).
                 Recomputed (--gradient-checkpointing): s b T (L h + one layer's). Beside it the head's five chunks of
                 logits, and its gradient in float32
    decode cache 2 s L k B T, keys and values of width k, and logits

The peak is weights, gradients and optimizer with the greater of activations and decode cache: they take turns.
"""

import copy
import importlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from flipsearch.backends.base import make_backend
from flipsearch.backends.colocated import ROLLOUT_SHARE
from flipsearch.backends.loading import choose_device, choose_dtype, load_config, memory_bytes, model_class, quiet
from flipsearch.backends.models import locate, model_source, stored_weights
from flipsearch.backends.quantized import BYTES, num_rounded
from flipsearch.backends.transformers import MAX_ROWS, TransformersBackend
from flipsearch.backends.vllm import GPU_MEMORY
from flipsearch.config import TrainConfig
from flipsearch.core.errors import BackendError, ConfigError, TrainingError, one_line, unknown_name
from flipsearch.training.divergence import CHUNK_BYTES, Head
from flipsearch.training.plan import TrainPlan
from flipsearch.training.processes import init_process_group, is_sharded, num_processes
from flipsearch.training.rows import TokenLayout, check_fits, prompt_lengths

AsTeacher = Callable[[], AbstractContextManager[Any]]
"""Opens a block in which the frozen teacher can be run: a copy, or the student with its adapters off."""

FLAGGED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""How transformers names the generation settings that it ignores, and for which it refuses to save a model."""


def load_student(plan: TrainPlan) -> tuple[TransformersBackend, TrainPlan]:
    """Return a plan's model, loaded once it is known to fit, and the plan with completions that fit behind its prompts.

    Of several processes each does, and meets the others.
    """
    config = plan.config
    device = choose_device(config.device)
    init_process_group(on_cpu=device.type == "cpu")
    folder = locate(model_source(config.model)).folder
    check_memory(plan, folder)
    layers = [name.removesuffix(".weight") for name, _ in stored_weights(folder)]
    for target in config.lora_targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            raise ConfigError(unknown_name("--lora-target", target, sorted({n.rpartition(".")[2] for n in layers})))
    backend = make_backend(config)
    assert isinstance(backend, TransformersBackend)  # by plan
    if config.gradient_checkpointing and not backend.model.supports_gradient_checkpointing:
        raise TrainingError(f"{type(backend.model).__name__} does not know --gradient-checkpointing; leave it out.")
    backend.notes += make_savable(backend.model)
    longest = max(max(prompt_lengths(backend.chat, plan.prompts, routes)) for routes in ({}, *plan.routes))
    plan = plan.within_length(longest)
    check_fits(longest, plan.config.sampling().longest, backend.max_positions)
    return backend, plan


def make_savable(model: PreTrainedModel) -> tuple[str, ...]:
    """Unset the generation settings that transformers refuses to save, and note them; BackendError if that fails."""
    settings: Any = model.generation_config
    ignored: dict[str, Any] = {}
    while True:
        try:
            settings.validate(strict=True)
        except ValueError as error:
            flagged = [name for name in FLAGGED.findall(str(error)) if name not in ignored]
            if not flagged:
                reason = one_line(error, 300)
                raise BackendError(f"the model could not be saved with its generation_config.json: {reason}") from error
            ignored |= {name: getattr(settings, name) for name in flagged}
            for name in flagged:
                setattr(settings, name, None)
        else:
            break
    listed = ", ".join(f"{name} = {value!r}" for name, value in ignored.items())
    note = f"transformers ignores {listed} in the model's generation settings; the checkpoint leaves that out."
    return (note,) if ignored else ()


class RoundedCopy:
    """A copy of a model in a lower precision, which is run in its place; gradients reach the model's own weights."""

    def __init__(self, rounded: Any) -> None:
        # Gradients never stay here, but what is kept for them has to be the same when layers are recomputed.
        self.rounded = rounded.requires_grad_(True)

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Take the weights that `model` has now."""
        for own, copied in zip(model.parameters(), self.rounded.parameters(), strict=True):
            copied.copy_(own)

    def run(self, model: nn.Module, **options: Any) -> Any:
        """Return what the copy's forward returns; its gradients go to the weights of `model`."""
        pairs = zip(model.named_parameters(), self.rounded.parameters(), strict=True)
        weights = {name: _Rounded.apply(own, copied) for (name, own), copied in pairs}  # type: ignore[no-untyped-call]
        return torch.func.functional_call(self.rounded, weights, (), options)


class _Rounded(torch.autograd.Function):
    """A rounded weight whose gradient is that of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None


def without_noise(model: nn.Module, recomputes: bool) -> None:
    """Put a model into eval mode: no dropout, no jitter; with `recomputes` its layers keep activations of none."""
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)] if recomputes else []
    for layer in layers:
        layer.training = True  # the library recomputes no others
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)


def student_and_teacher(
    model: PreTrainedModel, lora: int, *, with_teacher: bool, alpha: float | None = None, targets: Sequence[str] = ()
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
    options = peft.LoraConfig(
        r=lora, lora_alpha=alpha or 2 * lora, target_modules=list(targets) or "all-linear", task_type="CAUSAL_LM"
    )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if module in ends and any(name == target or name.endswith(f".{target}") for target in targets):
            raise TrainingError(f"--lora-target names '{name}', the model's embeddings; adapters are for other layers.")
    with quiet():  # it says what it did to layers that keep their weights transposed
        try:
            adapted = peft.get_peft_model(model, options)
        except ValueError as error:
            raise TrainingError(f"--lora-target {' '.join(targets)}: {one_line(error, 300)}") from error

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


HeadGetter = Callable[[Any], Head]
"""Returns the head of a transformers model, with its weights as they are now."""
PROBE_IDS = (1, 2, 3, 4, 5)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the largest logit: a last bit, in the precision that the model computes in."""
LARGE_LOGITS = 300.0
"""Of a random model no logit comes near its cap: that nothing follows the product is tried on products up to here."""


def head_getter(model: Any) -> HeadGetter:
    """Return what gives the head of `model` and of its copies; TrainingError for one that cannot be computed apart."""
    name = type(model).__name__
    refusal = f"{name} does more to its logits than can be computed for a few tokens at a time; train another model."
    ids = torch.tensor([PROBE_IDS], device=model.device)
    try:
        follows = _logit_transform(model, ids)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            product = head_of(model).product(hidden)
            large = torch.linspace(-LARGE_LOGITS, LARGE_LOGITS, product.numel(), device=ids.device)
            large = large.to(product.dtype).view_as(product)
            transform = None if torch.equal(follows(large), large) else follows
            head = head_of(model, transform)
            alone = torch.cat([head.logits(state[None]) for state in hidden])  # of one token, whatever the others are
            difference = (alone.float() - logits.float()).abs().max()
    except Exception as error:  # models of other kinds lack all sorts of things
        raise TrainingError(f"{refusal} ({one_line(error)})") from error
    if not difference <= TOLERANCE[product.dtype] * logits.float().abs().max():
        raise TrainingError(refusal)
    return lambda model: head_of(model, transform)


def head_of(model: Any, transform: Callable[[Tensor], Tensor] | None = None) -> Head:
    """Return the head of a model that does `transform` to hidden states times output embeddings; None: nothing."""
    embeddings = model.get_output_embeddings()
    return Head(embeddings.weight, getattr(embeddings, "bias", None), transform)


def _logit_transform(model: Any, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function (n, V) -> (n, V) that `model` applies to hidden states times output embeddings."""
    decoder, embeddings = model.get_decoder(), model.get_output_embeddings()
    forward = model.forward  # kept now: a trainer wraps it later
    with torch.no_grad():
        output = type(decoder(input_ids=ids, use_cache=False))

    def transform(product: Tensor) -> Tensor:
        zeros = torch.zeros((1, len(product)), dtype=torch.long, device=product.device)
        with (
            _replaced(decoder, lambda *_, **__: output(last_hidden_state=product[None])),
            _replaced(embeddings, lambda hidden: hidden.clone()),  # which the model may change in place
        ):
            logits: Tensor = forward(input_ids=zeros, use_cache=False).logits[0]
        return logits

    return transform


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    usual = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if usual is not None:
            module.forward = usual


WEIGHT_BYTES = 4
MOST_ROWS = {True: 32, False: 1}
"""Rows per backward pass by default, on a CPU and on anything else: a GPU's memory is scarce."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    decode_cache: int

    @property
    def peak(self) -> int:
        """The most at a time: activations and decode cache take turns."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.decode_cache)


def check_memory(plan: TrainPlan, folder: Path) -> None:
    """Raise TrainingError if weights, gradients, optimizer and teacher alone cannot fit; rollouts need more."""
    config, device = plan.config, choose_device(plan.config.device)
    held = step_memory(plan, folder, 1, num_processes() if is_sharded() else 1)
    needed = held.weights + held.gradients + held.optimizer
    num = num_parameters(folder)
    if is_sharded():  # the student is whole in float32 before it is sharded, beside its teacher
        dtype = choose_dtype(config.dtype, device)
        needed = max(needed, num * (WEIGHT_BYTES + dtype.itemsize * (not plan.method.is_supervised)))
    available: float = memory_bytes()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        available = free - (GPU_MEMORY * ROLLOUT_SHARE * total if config.rollouts == "vllm" else 0)
    if needed > available:
        less = (
            []
            if config.quantize
            else ["give --quantize 4bit", "a smaller --lora"]
            if config.lora
            else ["give --lora 16"]
        )
        less = ["give --rollouts transformers", *less] if config.rollouts == "vllm" else less
        todo = " or ".join([*less, "take a smaller model"])
        raise TrainingError(
            f"training '{config.model}' ({num / 1e9:.2f} B parameters) takes {needed / 2**30:.1f} GiB for "
            f"weights, gradients, AdamW and teacher, but {device} has {available / 2**30:.1f} GiB; {todo}."
        )


def num_quantized(folder: Path) -> int:
    """Return how many weights of the model in a folder --quantize rounds; BackendError for one that it does not suit.

    The model is built without weights for it: what its layers are is in no file.
    """
    config = load_config(folder)
    try:
        with quiet(), torch.device("meta"):
            model = model_class(config).from_config(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise TrainingError(f"no model can be built from the config in '{folder}': {one_line(error, 300)}") from error
    return num_rounded(model)


def num_parameters(folder: Path) -> int:
    """Return the parameters of the model in a folder."""
    return sum(math.prod(entry["shape"]) for _, entry in stored_weights(folder))


def step_memory(plan: TrainPlan, folder: Path, longest: int, num_gpus: int) -> StepMemory:
    """Return the memory of a training whose longest prompt and completion have `longest` tokens: the formula above."""
    config, is_supervised = plan.config, plan.method.is_supervised
    device = choose_device(config.device)
    dtype, on_cpu = choose_dtype(config.dtype, device), device.type == "cpu"
    shape: Any = load_config(folder).get_text_config(decoder=True)
    size, num_layers, hidden = dtype.itemsize, shape.num_hidden_layers, shape.hidden_size
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    queries = head * shape.num_attention_heads
    keys = head * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)
    wide = getattr(shape, "intermediate_size", None) or 4 * hidden
    trained = num = num_parameters(folder)
    moments = 2 if config.optimizer == "adamw-8bit" else 2 * WEIGHT_BYTES
    if config.lora:
        trained = _num_adapter_parameters(config, folder)
        rounded = num_quantized(folder) if config.quantize else 0
        weights = size * (num - rounded) + round(BYTES[config.quantize] * rounded) + WEIGHT_BYTES * trained
    else:
        teacher = 0 if is_supervised else size * num
        # Sharded weights are gathered for rollouts, others rounded to be run.
        running = size * num if num_gpus > 1 or size != WEIGHT_BYTES else 0
        weights = WEIGHT_BYTES * num // num_gpus + running + teacher
    shards = 1 if config.lora else num_gpus
    batch = math.ceil((config.train_batch_size or 1) / num_gpus)
    rows = min(config.micro_batch_size or MOST_ROWS[on_cpu], batch)
    layer = 6 * hidden + 4 * queries + 4 * wide
    kept = num_layers * hidden + layer if config.gradient_checkpointing else num_layers * layer
    embeddings = 0 if config.lora else WEIGHT_BYTES * shape.vocab_size * hidden
    cached = 2 * size * num_layers * keys * longest + WEIGHT_BYTES * shape.vocab_size
    return StepMemory(
        weights=weights,
        gradients=WEIGHT_BYTES * trained // shards,
        optimizer=moments * trained // shards,
        activations=size * rows * longest * (kept + 3 * hidden) + 5 * CHUNK_BYTES + embeddings,
        decode_cache=0 if is_supervised else min(batch, config.batch_size or MAX_ROWS[on_cpu]) * cached,
    )


def _num_adapter_parameters(config: TrainConfig, folder: Path) -> int:
    """Return the parameters of the adapters, by the shapes of the layers that have them."""
    num = 0
    for name, entry in stored_weights(folder):
        layer = name.removesuffix(".weight")
        is_target = any(layer == target or layer.endswith(f".{target}") for target in config.lora_targets)
        is_inner = ".layers." in name or ".h." in name
        if len(entry["shape"]) == 2 and (is_target if config.lora_targets else is_inner):
            num += config.lora * sum(entry["shape"])
    return num
