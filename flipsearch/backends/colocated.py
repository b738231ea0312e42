"""A vLLM engine beside a model in training: it writes completions with the weights that the model has at that moment.

    model in training --weights, or adapters as such--> engine's own memory --compared bit by bit--> completions

The engine lives in the training's process, so that weights are copied on the device, and sleeps while the model learns.
"""

import atexit
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flipsearch.backends.chat import Chat, Thinking
from flipsearch.backends.vllm import VllmBackend, VllmEngine
from flipsearch.core.errors import BackendError
from flipsearch.core.records import Request, Rollout, Sampling

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
ROLLOUT_SHARE = 1 / 3
"""Part of that which an engine takes beside a model in training; while the model learns it gives all back."""
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ColocatedVllm(VllmBackend):
    """A vLLM engine that writes completions of a model in training, beside it and with the weights that it has now.

    Before all rollouts the engine takes over the weights in place or, if the model is `adapted` by peft, the adapters
    as such, and is compared with the model: BackendError if any weight differs. While the model learns, it sleeps.
    `dtype` is the precision that the model runs in, if that is not the one of its weights.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        tokenizer: Any,
        *,
        thinking: Thinking = "auto",
        max_model_len: int | None = None,
        adapted: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.adapted = model, adapted
        self.model_id, self.revision, self.notes, self.num_updates = "", None, (), 0
        self._use(Chat(tokenizer, thinking))
        options = {}
        if adapted is not None:
            rank = adapted.peft_config["default"].r
            supported = min((num for num in LORA_RANKS if num >= rank), default=rank)
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": supported}
        self._is_alone = not torch.distributed.is_initialized()
        self._engine = VllmEngine(
            folder,
            dtype=str(dtype or model.dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            memory_share=ROLLOUT_SHARE,
            options=options,
            in_process=True,
        )
        self.max_positions = self._engine.max_positions
        if not self._is_alone:
            atexit.register(self._engine.close)  # before the processes leave their group, which it takes along

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Rollout]]:
        """Yield one rollout per request from the weights that the model has now."""
        self.num_updates += 1
        if self.adapted is None:
            self._engine.reload(self.model.named_parameters())
        else:
            with TemporaryDirectory() as folder:
                self.adapted.save_pretrained(folder)
                self._engine.adapt(self.num_updates, Path(folder))
        if self._engine.apply(weight_sum) != weight_sum(self.model):
            raise BackendError(
                "vLLM's weights are not those of the model in training (the sums over all their bits differ): nothing "
                "is learnt from what it would write. Give --rollouts transformers."
            )
        yield from super().generate(requests, sampling)
        self._engine.sleep()

    def close(self) -> None:
        """End the engine; of several processes each leaves it asleep until it ends itself."""
        if self._is_alone:
            super().close()


@torch.no_grad()
def weight_sum(model: Any) -> int:
    """Return the sum of a model's weights and adapters, each number taken as the whole number that its bits are.

    It is the same however an engine joins, turns or pads the weights, and another one if any of them differs.
    """
    weights = [weight for name, weight in model.named_parameters() if "lora_" not in name]
    for module in model.modules():
        if hasattr(module, "lora_a_stacked"):  # vLLM's
            weights += [*module.lora_a_stacked, *module.lora_b_stacked]
        for name, matrix in getattr(module, "lora_A", {}).items():  # peft's, in another precision and not scaled yet
            up = module.lora_B[name].weight.to(weights[0].dtype) * module.scaling[name]
            weights += [matrix.weight.to(weights[0].dtype), up]
    return int(sum(weight.view(WHOLE_NUMBERS[weight.element_size()]).sum() for weight in weights))
