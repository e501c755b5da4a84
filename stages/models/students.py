"""Students out of their folders, and what their classes are called."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

import stages.models.quiet  # noqa: F401
from stages.errors import StageError
from stages.models.configuration_mblm import MBLMConfig
from stages.models.loading import loading
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.pins import model_folder


def load_student(
    folder: Path, *, command: str = "student distill"
) -> tuple[MBLMForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a student in float32 and its tokenizer.

    Args:
        folder: Where it is.
        command: What makes it, for messages.

    Raises:
        StageError: The folder holds no student, or parts of one.
    """
    folder = model_folder(folder, command=command)
    with loading(f"the student in {folder}"):
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind != "mblm":
            raise StageError(f"{folder} holds a {kind} model and no student")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.padding_side = "right"  # `pooling: first` reads the first position
        loaded: Any = MBLMForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
        model, found = loaded
    if found["missing_keys"]:
        raise StageError(
            f"the student in {folder} has no weights for {', '.join(sorted(found['missing_keys']))}"
        )
    return model.eval(), tokenizer


def class_names(config: MBLMConfig) -> list[str]:
    """Give the classes in the order of the logits."""
    assert config.num_labels is not None  # transformers gives every configuration two
    names: Any = config.id2label
    return [names[index] for index in range(config.num_labels)]
