"""Teachers that read from left to right, such as Llama or Qwen3 with a classification head.

transformers reads their class off the last token that is not ``config.pad_token_id``, and never looks at the
attention mask for it. Padding must therefore be an id that no text of the batch contains.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, arange
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig

import stages.models.modeling_mblm  # noqa: F401 - a teacher that pools in a way of its own is one

NO_ID = -1
"""What `pad_token_id` is where nothing is padded: no token has this id."""


def classifier_of(folder: Path) -> tuple[PreTrainedConfig, type[Any]]:
    """Give a teacher's configuration and the class that it is loaded as, without its weights.

    Raises:
        KeyError: transformers has no sequence classifier for it.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    classifiers: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return config, classifiers[type(config)]


def is_decoder(config: PreTrainedConfig, classifier: type[Any]) -> bool:
    """Tell whether a classifier reads from left to right: it can take up a text where it left off.

    Encoder-decoders do that in their second half only; they read all of a text first.
    """
    takes_up = "past_key_values" in inspect.signature(classifier.forward).parameters
    return takes_up and not config.is_encoder_decoder


class LastToken:
    """Where a decoder's last token is, and with which id its texts are padded.

    A decoder whose configuration names a padding token is asked as transformers asks it: texts are padded
    with that token, and those that end in it are read up to there, alone as in a batch. Any other gets an id
    that is not in use, in memory only. Texts are padded on the right, where no token sees it.
    """

    def __init__(self, model: Any) -> None:
        self._config: PreTrainedConfig = model.config.get_text_config()
        self._n_ids: int = model.get_input_embeddings().num_embeddings
        configured: int | None = getattr(self._config, "pad_token_id", None)
        self._configured = configured if configured in range(self._n_ids) else None
        self._last_used: int = self._n_ids - 1

    def unused(self, ids: NDArray[np.int32]) -> int | None:
        """Find an id to pad these ids with, the one before where it will do; None: all are in use.

        A compiled model is compiled again for another id.
        """
        if self._configured is not None:
            return self._configured
        counts = np.bincount(ids, minlength=self._n_ids)
        if counts[self._last_used]:
            free = np.flatnonzero(counts[: self._n_ids] == 0)
            if not len(free):
                return None
            self._last_used = int(free[-1])
        return self._last_used

    def pad_with(self, padding: int) -> None:
        """Let the model know what is padding from now on."""
        if self._config.pad_token_id != padding:
            self._config.pad_token_id = padding

    def positions(self, input_ids: Tensor) -> Tensor:
        """Find the token that the class is read off, for ids of shape ``(B, T)``; int64, shape ``(B,)``."""
        is_text: Tensor = input_ids != self._config.pad_token_id
        return (is_text * arange(input_ids.shape[1], device=input_ids.device)).argmax(dim=1)
