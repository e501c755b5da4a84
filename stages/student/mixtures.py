"""What a student says of texts by mixtures of its branches, of which a single branch is one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.errors import StageError
from stages.models.batches import Tokens, to_device
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.students import class_names
from stages.params import Precision


@torch.inference_mode()
def mixture_logits(
    model: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    weights: Tensor,
    *,
    batch_tokens: int,
    precision: Precision,
) -> NDArray[np.float32]:
    """Classify N texts by M mixtures.

    Each text goes once through all branches, or through the only one that is needed.

    Args:
        model: The student, with K branches.
        tokenizer: Its tokenizer.
        tokens: The texts.
        weights: Of the branches in each mixture, rows on the simplex, ``(M, K)``.
        batch_tokens: A batch has at most so many.
        precision: Of matrix products.

    Returns:
        Raw logits in the texts' order, ``(M, N, C)``.

    Raises:
        StageError: One is NaN.
    """
    weights = weights.to(model.device)
    needed = weights.any(dim=0).nonzero().flatten().tolist()
    language_id = needed[0] if len(needed) == 1 else -1
    in_bfloat16 = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    logits = np.empty((len(weights), len(tokens), len(class_names(model.config))), np.float32)
    for texts in tokens.batches(batch_tokens):
        batch = to_device(tokens.batch(texts, tokenizer), model.device)
        with in_bfloat16:
            states = model(**batch, language_ids=language_id).branch_states
            found = torch.stack([model.classify(states, w.expand(len(states), -1)) for w in weights])
        logits[:, tokens.positions[texts]] = found.float().cpu().numpy()
    if np.isnan(logits).any():
        raise StageError(
            "the model gives NaN for a text; try student.distill.precision: float32, or train it again"
        )
    return logits
