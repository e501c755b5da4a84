"""Batches for a model that answers: each text once, longest first, as many as a budget of tokens allows.

Trainings have batches of a fixed number of examples, and in another order: `stages.models.training`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import stages.models.quiet  # noqa: F401
from stages.errors import StageError
from stages.models.cut import n_cut

# What a tokenizer is given at once, at most: texts, and about so many characters.
_TOKENIZER_BATCH, _TOKENIZER_TEXT = 4096, 1 << 20

# A batch ends where its texts become this much shorter than its longest, if it is large enough by then:
# texts of very different lengths would be padding for the most part.
_SHORTEST_IN_BATCH = 0.95
_LARGE_ENOUGH = 0.125  # of the budget


@dataclass(frozen=True)
class Tokens:
    """N texts as a model reads them, one behind the other, longest first.

    Attributes:
        positions: Of the texts among those that were given, shape ``(N,)``.
        lengths: Tokens of each, shape ``(N,)``, in falling order.
        columns: By name, as the model calls them: a number per token, shape ``(sum of lengths,)``.
        texts: The first field of each, for messages.
        n_cut: How many of the texts that were given were longer than allowed.
    """

    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    columns: dict[str, NDArray[np.int32]]
    texts: list[str]
    n_cut: int

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def cells(self, texts: slice) -> slice:
        """Tell where the tokens of some texts stand in the columns."""
        return slice(int(self._starts[texts.start]), int(self._starts[texts.stop]))

    def keep(self, wanted: NDArray[np.bool_]) -> "Tokens":
        """Leave out texts.

        Args:
            wanted: By position among the texts that were given.
        """
        kept = wanted[self.positions]
        cells = np.repeat(kept, self.lengths)
        columns = {name: values[cells] for name, values in self.columns.items()}
        texts = [text for text, keep in zip(self.texts, kept, strict=True) if keep]
        return Tokens(self.positions[kept], self.lengths[kept], columns, texts, self.n_cut)

    def batches(self, budget: int) -> Iterator[slice]:
        """Cut the texts into batches of at most so many tokens, padding included."""
        start = 0
        while start < len(self):
            stop = start + fitting(self.lengths[start:], budget)
            yield slice(start, stop)
            start = stop

    def batch(
        self, texts: slice, tokenizer: PreTrainedTokenizerBase, *, padding_id: int | None = None
    ) -> dict[str, Tensor]:
        """Pad texts to the longest of them.

        Args:
            texts: Which B of them.
            tokenizer: The one that they were made with, which pads on the side that its settings name.
            padding_id: Pads on the right with this id, whatever the tokenizer would do.

        Returns:
            ``input_ids``, ``attention_mask`` and what else the tokenizer gives, int64, each ``(B, T)``.
        """
        lengths = self.lengths[texts, None]
        width = int(lengths[0, 0])
        column = np.arange(width)
        left = tokenizer.padding_side == "left" and padding_id is None
        is_token = column >= width - lengths if left else column < lengths
        first_id = tokenizer.pad_token_id if padding_id is None else padding_id
        padding = {"input_ids": first_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        batch = {"attention_mask": is_token.astype(np.int64)}
        for name, values in self.columns.items():
            batch[name] = np.full(is_token.shape, padding.get(name, 0))
            batch[name][is_token] = values[self.cells(texts)]
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def tokenize(
    tokenizer: PreTrainedTokenizerBase, fields: Sequence[Sequence[str]], *, max_tokens: int
) -> Tokens:
    """Turn texts into tokens. Another thread may do it while a model answers.

    Args:
        tokenizer: The model's.
        fields: One or two sequences of N texts.
        max_tokens: Longer inputs are truncated to this many tokens.

    Raises:
        StageError: The tokenizer makes no token of a text.
    """
    lengths: list[int] = []
    parts: dict[str, list[NDArray[np.int32]]] = {}
    cut = 0
    for some in _few_at_once(fields):
        encoded = tokenizer(
            *(list(field[some]) for field in fields),
            truncation=True,
            max_length=max_tokens,
            return_attention_mask=False,  # all ones: `Tokens.batch` makes it
        )
        lengths += map(len, encoded["input_ids"])
        cut += n_cut(encoded, max_tokens)
        for name, rows in encoded.items():
            parts.setdefault(name, []).append(np.fromiter(chain.from_iterable(rows), np.int32))
    if 0 in lengths:
        raise StageError(
            f"the tokenizer in {tokenizer.name_or_path} makes no token of the text "
            f"{fields[0][lengths.index(0)]!r}; take it out of the data"
        )
    return _longest_first(
        np.array(lengths, np.int64),
        {name: np.concatenate(values) for name, values in parts.items()},
        fields[0],
        cut,
    )


def fitting(lengths: NDArray[np.int64], budget: int) -> int:
    """Tell how many texts make the next batch.

    Args:
        lengths: Tokens of the texts that are left, in falling order.
        budget: B texts whose longest has T tokens fit where B * T is at most this; a single text always does.
    """
    longest = int(lengths[0])
    most = max(1, budget // longest)
    similar = int(np.searchsorted(-lengths[:most], -_SHORTEST_IN_BATCH * longest, side="right"))
    return min(max(similar, int(most * _LARGE_ENOUGH), 1), len(lengths), most)


def current_device() -> torch.device:
    """Give the accelerator, if there is one, or the CPU: a torch built for CUDA names CUDA without a card."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Send a batch to where the model is; CUDA takes it while it computes."""
    if device.type == "cuda":
        return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}
    return {name: values.to(device) for name, values in batch.items()}


def _few_at_once(fields: Sequence[Sequence[str]]) -> Iterator[slice]:
    """Cut texts into what a tokenizer is given at once: it needs many times the memory of the text."""
    start = n_characters = 0
    for stop, texts in enumerate(zip(*fields, strict=True), 1):
        n_characters += sum(map(len, texts))
        if stop - start == _TOKENIZER_BATCH or n_characters >= _TOKENIZER_TEXT or stop == len(fields[0]):
            yield slice(start, stop)
            start, n_characters = stop, 0


def _longest_first(
    lengths: NDArray[np.int64], columns: dict[str, NDArray[np.int32]], texts: Sequence[str], cut: int
) -> Tokens:
    """Sort N texts, whose tokens stand one behind the other, by their lengths, ``(N,)``."""
    order = np.argsort(-lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    sorted_lengths = lengths[order]
    sorted_starts = np.cumsum(sorted_lengths) - sorted_lengths
    source = np.repeat(starts[order] - sorted_starts, sorted_lengths) + np.arange(int(lengths.sum()))
    return Tokens(
        order,
        sorted_lengths,
        {name: values[source] for name, values in columns.items()},
        [texts[i] for i in order],
        cut,
    )
