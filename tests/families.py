"""A tiny random model of every encoder family that a student can be made of."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig

from stages.models.modeling_mblm import MBLMForSequenceClassification

B, T, K, C = 5, 7, 3, 4
LANGUAGES = ["de", "en", "zh-Hant"]
_COMMON = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_MODERNBERT = {**_COMMON, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
_MODERNBERT |= {"sep_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _COMMON),
    "camembert": ("camembert", _COMMON),
    "deberta-v2": (
        "deberta-v2",
        {
            **_COMMON,
            "relative_attention": True,
            "position_buckets": 4,
            "max_relative_positions": 20,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
    "distilbert": (
        "distilbert",
        {"vocab_size": 50, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    ),
    "electra": ("electra", {**_COMMON, "embedding_size": 12}),
    "modernbert": ("modernbert", _MODERNBERT),
    "modernbert, mean": ("modernbert", {**_MODERNBERT, "classifier_pooling": "mean"}),
    "roberta": ("roberta", _COMMON),
    "xlm-roberta": ("xlm-roberta", _COMMON),
}


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    model_type, values = FAMILIES[family]
    return AutoConfig.for_model(model_type, num_labels=C, **values | changes)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(B, T, dtype=torch.int64)
    mask[1, 4:] = 0
    mask[3, 2:] = 0
    return {
        "input_ids": torch.randint(5, 50, (B, T), generator=generator),
        "attention_mask": mask,
    }


def save_plain(family: str, folder: Path, **changes: Any) -> Any:
    """Save a classifier of a family, and give it."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(family, **changes)).eval()
    model.save_pretrained(folder)
    return model


def student_of(folder: Path, **config: Any) -> MBLMForSequenceClassification:
    config = {"languages": LANGUAGES, "n_branches": K, "branch_layers": 2} | config
    student = MBLMForSequenceClassification.from_mplm(folder, id2label=dict(enumerate("abcd")), **config)
    student.eval()
    return student


def perturbed(student: MBLMForSequenceClassification) -> MBLMForSequenceClassification:
    """Make the branches differ, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student
