"""Tiny random checkpoints in the form of Detoxify's, with a folder for their config and tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}


def architecture(folder: Path, kind: str = "bert", max_positions: int = 64) -> Path:
    """Save config and a tokenizer of letters, and return the folder."""
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *".,!?'0123456789",
        *("##" + row for row in LETTERS),
    ]
    tokenizer = BertTokenizer(vocab={token: id for id, token in enumerate(tokens)}, model_max_length=max_positions)
    tokenizer.save_pretrained(folder)
    config_class = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
    config_class(
        vocab_size=len(tokens), max_position_embeddings=max_positions, pad_token_id=tokenizer.pad_token_id, **SIZES
    ).save_pretrained(folder)
    return folder


def checkpoint(
    path: Path, folder: Path, kind: str = "bert", num_outputs: int = 6, seed: int = 0, **changes: Any
) -> Path:
    """Save a random checkpoint on the architecture in `folder`; `changes` go into its state_dict, None takes out."""
    config_class: Any = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
    model_class: type[PreTrainedModel] = {
        "bert": BertForSequenceClassification,
        "roberta": RobertaForSequenceClassification,
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class.from_pretrained(folder, num_labels=num_outputs))
    state = {**model.state_dict(), **changes}
    arguments = {
        "model_type": str(folder),
        "model_name": model_class.__name__,
        "tokenizer_name": "BertTokenizer",
        "num_classes": num_outputs,
    }
    config = {"arch": {"type": "BERT", "args": arguments}, "dataset": {"type": "Jigsaw", "args": {"classes": CLASSES}}}
    torch.save({"config": config, "state_dict": {name: item for name, item in state.items() if item is not None}}, path)
    return path
