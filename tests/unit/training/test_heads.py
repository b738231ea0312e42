"""Logits for a few tokens at a time are the model's own, whatever it does to them: bias, scale, cap."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from flipsearch.core.errors import TrainingError
from flipsearch.training.divergence import Divergence, divergence_sum
from flipsearch.training.model import completion_hidden, head_getter
from flipsearch.training.rows import lay_out

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
LLAMA_KIND = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_KIND,
    "granite": {**LLAMA_KIND, "logits_scaling": 8.0},
    "cohere": {**LLAMA_KIND, "logit_scale": 0.0625},
    "gemma2": {**LLAMA_KIND, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0},
    "phi": {**LLAMA_KIND, "num_key_value_heads": 4},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "rotary_dim": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "falcon_h1": {
        **LLAMA_KIND, "lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    },
}  # fmt: skip
TRANSFORMED = {"granite", "cohere", "gemma2", "falcon_h1"}
LAYOUT = lay_out([(5, 6, 7), (9, 3, 4)], [(8, 9), (1, 2)])


def tiny(family: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model


def naive(model: Any, teacher: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The paper's loss and its gradients, from whole logits in float64."""
    log_q, log_p = (
        m(input_ids=LAYOUT.ids, attention_mask=LAYOUT.mask, use_cache=False)
        .logits.flatten(0, 1)[LAYOUT.predicts]
        .double()
        .log_softmax(-1)
        for m in (model, teacher)
    )
    loss = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
    return loss, list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_whole_logits(family: str) -> None:
    student, teacher = tiny(family), copy.deepcopy(tiny(family))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    head_of = head_getter(student)
    assert (head_of(student).transform is not None) == (family in TRANSFORMED)
    hidden = completion_hidden(student, LAYOUT)
    with torch.no_grad():
        teacher_hidden = completion_hidden(teacher, LAYOUT)
    spec, weights = Divergence(), torch.ones(len(hidden))
    loss, _ = divergence_sum(hidden, head_of(student), teacher_hidden, head_of(teacher), weights, spec)
    loss.backward()
    expected, gradients = naive(student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-7)
    for (name, parameter), gradient in zip(student.named_parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_cannot_be_computed_apart_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").to(dtype)
    head_getter(model)
    usual = type(model).forward

    def normalised(self: Any, *args: Any, **options: Any) -> Any:
        output = usual(self, *args, **options)
        output.logits = output.logits - output.logits.mean(1, keepdim=True)  # over the tokens
        return output

    monkeypatch.setattr(type(model), "forward", normalised)
    with pytest.raises(TrainingError, match="LlamaForCausalLM does more to its logits"):
        head_getter(model)
