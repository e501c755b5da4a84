"""Run a teacher over texts, each exactly once, longest first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

from stages.base import StageError
from stages.source import loading, require_max_tokens
from stages.teacher.params import LabelParams

_TOKENIZER_BATCH = 4096


class Answers(NamedTuple):
    """What a teacher says of a batch of texts.

    Attributes:
        positions: Of the texts among those asked about, shape ``(B,)``.
        logits: Raw, float32, shape ``(B, C)``.
        hidden: The last layer's state of the first token, float32, shape ``(B, H)``, where it is asked for.
    """

    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None


class Teacher:
    """A Hugging Face sequence classifier with its tokenizer, in memory."""

    def __init__(self, folder: Path, params: LabelParams) -> None:
        """Load it.

        Args:
            folder: Where its files are.
            params: Section `teacher.label`.

        Raises:
            StageError: It cannot be loaded, has no trained classifier, or takes no inputs of `max_tokens`.
        """
        self._folder, self._params = folder, params
        self._device = torch.accelerator.current_accelerator() or torch.device("cpu")
        with loading(f"the teacher in {folder}"):
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        if found["missing_keys"]:
            raise StageError(
                f"the teacher in {folder} has no weights for {', '.join(sorted(found['missing_keys']))}; "
                "fine-tune it first: teachers.<language>.finetune: true"
            )
        require_max_tokens(params.max_tokens, self._tokenizer, model.config, key="teacher.label.max_tokens")
        self._model = model.eval().to(self._device)
        self._last_states: torch.Tensor | None = None
        if params.hidden:
            model.base_model.register_forward_hook(self._keep_states)

    def answer(self, fields: Sequence[Sequence[str]]) -> Iterator[Answers]:
        """Compute a teacher's logits.

        Texts are sorted by length, so that a batch needs little padding and the longest, which need the most
        memory, come first. A batch holds as many texts as fit into `batch_tokens`.

        Args:
            fields: One or two sequences of N texts.

        Raises:
            StageError: The logits are NaN or infinite.
        """
        rows = list(self._tokenize(fields))
        lengths = np.array([len(row["input_ids"]) for row in rows])
        autocast = torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._params.precision == "bfloat16"
        )
        for positions in batches_by_length(lengths, self._params.batch_tokens):
            batch = self._tokenizer.pad([rows[i] for i in positions], return_tensors="pt").to(self._device)
            with torch.inference_mode(), autocast:
                logits = self._model(**batch).logits.float().cpu().numpy()
            _require_finite(logits, [fields[0][i] for i in positions], self._folder)
            hidden = None
            if self._last_states is not None:
                first = batch["attention_mask"].argmax(dim=1)  # behind what is padded on the left
                states = self._last_states[torch.arange(len(first), device=first.device), first]
                hidden = states.float().cpu().numpy()
            yield Answers(positions, logits, hidden)

    def _tokenize(self, fields: Sequence[Sequence[str]]) -> Iterator[dict[str, list[int]]]:
        for start in range(0, len(fields[0]), _TOKENIZER_BATCH):
            encoded: BatchEncoding = self._tokenizer(
                *(list(field[start : start + _TOKENIZER_BATCH]) for field in fields),
                truncation=True,
                max_length=self._params.max_tokens,
            )
            names = list(encoded)
            for values in zip(*(encoded[name] for name in names), strict=True):
                yield dict(zip(names, values, strict=True))

    def _keep_states(self, _model: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._last_states = output[0]  # (B, T, H)


def batches_by_length(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut texts into batches of similar length, longest first.

    Args:
        lengths: Tokens of each text, shape ``(N,)``.
        budget: A batch of B texts whose longest has T tokens has B * T at most this, or is a single text.

    Yields:
        Positions, shape ``(B,)``; each of the N positions occurs once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _require_finite(logits: NDArray[np.float32], texts: Sequence[str], folder: Path) -> None:
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise StageError(
            f"the teacher in {folder} gives NaN or infinite logits, first for {texts[broken[0]]!r}; "
            "try teacher.label.precision: float32, or another teacher"
        )
