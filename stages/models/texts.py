"""Texts on their way into a model: examples of one language or many, tokenised batch by batch."""

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

import stages.models.quiet  # noqa: F401
from stages.errors import StageError

SPLIT_MARK = "\u2063"
"""INVISIBLE SEPARATOR: where tokenizers of `stages.models.scratch` split a word, and drop it."""


class Texts(Dataset[dict[str, Any]]):
    """Texts or text pairs with numbers beside them, such as labels.

    Attributes:
        fields: One or two sequences of N texts.
        numbers: Arrays with N as their first axis, by the name under which the model takes them.
        languages: The number of each example's language among those that teach, ``(N,)``; 0 where it is one.
        lengths: Characters of each example, all fields together.
        epoch: With the seed, it decides the order of training and where words are split.
    """

    def __init__(
        self,
        fields: Sequence[Sequence[str]],
        numbers: Mapping[str, NDArray[Any]],
        *,
        languages: NDArray[np.int64] | None = None,
        subword_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Hold N examples.

        Args:
            fields: One or two sequences of N texts.
            numbers: Arrays with N as their first axis, by the name under which the model takes them.
            languages: See above.
            subword_dropout: Chance of a split at each character boundary, drawn anew every epoch.
            seed: Decides the splits.
        """
        self.fields = fields
        self.numbers = numbers
        self._subword_dropout = subword_dropout
        self._seed = seed
        self.epoch = 0
        self._kept: _Kept | None = None
        self.lengths = [sum(map(len, example)) for example in zip(*fields, strict=True)]
        self.languages = np.zeros(len(self.lengths), np.int64) if languages is None else languages

    def begin(self, seed: int) -> None:
        """Let another training read the texts from its first epoch, with the seed for what it draws."""
        self._seed, self.epoch = seed, 0

    def keep_tokens(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> None:
        """Make the tokens of an example when it is first asked for, and keep them on disk for later epochs.

        Millions of texts need minutes: a training starts at once, and each text is cut up once.

        Args:
            tokenizer: The model's.
            max_tokens: Longer inputs are truncated to this many tokens.
            folder: Where the file is that holds them; it has no name, so that nothing is left of it.
        """
        if self._kept is not None:  # for an earlier training of the same model
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the texts
        weakref.finalize(self, file.close)
        self._kept = _Kept(tokenizer, max_tokens, file, np.full(len(self), -1))

    def set_epoch(self, epoch: int) -> None:
        """Change the order and the splits. The Trainer calls it before each epoch.

        Here and not in the sampler, which it does not reach where processes share a resumed epoch.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        texts = [field[index] for field in self.fields]
        if self._subword_dropout:
            generator = self.generator(index)
            texts = [split_randomly(text, self._subword_dropout, generator) for text in texts]
        return {"texts": texts, **self._numbers_of(index)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Give a batch at once, as PyTorch asks for it: tokens in the place of texts, if they are kept."""
        if self._kept is None:
            return [self[index] for index in indices]
        tokens = self._kept.of(indices, self.fields)
        return [
            {"tokens": row, **self._numbers_of(index)} for index, row in zip(indices, tokens, strict=True)
        ]

    def _numbers_of(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.numbers.items()}

    def generator(self, index: int) -> np.random.Generator:
        """Make the random numbers of one example in this epoch, whatever was drawn before."""
        return np.random.default_rng((self._seed, self.epoch, index))


@dataclass
class _Kept:
    """The tokens of examples, on disk, one behind the other in the order in which they were first asked for.

    Attributes:
        tokenizer: The model's.
        max_tokens: Longer inputs are truncated.
        file: Of each example its number of tokens, and these, once for each of the model's inputs; int32.
        starts: Where each example stands in it, in bytes, shape ``(N,)``; -1: not yet.
        names: Of the model's inputs.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    file: IO[bytes]
    starts: NDArray[np.int64]
    names: list[str] = field(default_factory=list)

    def of(self, indices: Sequence[int], fields: Sequence[Sequence[str]]) -> list[dict[str, list[int]]]:
        """Give the tokens of a batch, and make those that were never asked for."""
        new = [index for index in dict.fromkeys(indices) if self.starts[index] < 0]
        if new:
            encoded = self.tokenizer(
                *([texts[index] for index in new] for texts in fields),
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=False,
            )
            self.names = list(encoded)
            place = self.file.seek(0, os.SEEK_END)
            for index, *rows in zip(new, *encoded.values(), strict=True):
                self.starts[index] = place
                place += self.file.write(np.array([len(rows[0]), *chain(*rows)], np.int32).tobytes())
            self.file.flush()
        return [self._read(self.starts[index]) for index in indices]

    def _read(self, start: int) -> dict[str, list[int]]:
        width = np.dtype(np.int32).itemsize
        number = self.file.fileno()
        n = int(np.frombuffer(os.pread(number, width, start), np.int32)[0])
        found = np.frombuffer(os.pread(number, n * len(self.names) * width, start + width), np.int32)
        return dict(zip(self.names, found.reshape(len(self.names), n).tolist(), strict=True))


def split_randomly(text: str, chance: float, generator: np.random.Generator) -> str:
    """Mark character boundaries, each with the same chance, as places where a word is split.

    A seeded relative of BPE dropout (Provilkov et al., 2020), whose implementation in `tokenizers` cannot be
    seeded: here the learned merges apply within the pieces.
    """
    if len(text) < 2:
        return text
    marks = np.flatnonzero(generator.random(len(text) - 1) < chance) + 1
    bounds = [0, *marks.tolist(), len(text)]
    return SPLIT_MARK.join(text[a:b] for a, b in pairwise(bounds))


def require_splittable(tokenizer: PreTrainedTokenizerBase, subword_dropout: float) -> None:
    """Refuse subword dropout with a tokenizer that does not know the mark.

    Raises:
        StageError: Subword dropout is on, and the tokenizer would read the mark as text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if subword_dropout and SPLIT_MARK not in repr(getattr(backend, "pre_tokenizer", None)):
        raise StageError(
            "subword_dropout works only with tokenizers that were built here from scratch; "
            "set it to 0.0 in params.yaml for this model"
        )


@dataclass(frozen=True)
class Collator:
    """Pads a batch to its longest example, and makes its tokens where they are not made."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch B examples of `Texts`.

        Returns:
            The tokenizer's ``input_ids``, ``attention_mask`` …, shape ``(B, T)``, and every number beside the
            texts, stacked along B.
        """
        if "tokens" in examples[0]:
            made = {name: [example["tokens"][name] for example in examples] for name in examples[0]["tokens"]}
            # It advises against padding what is made, which is done once here and not in each epoch.
            self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
            batch = self.tokenizer.pad(made, return_tensors="pt")
        else:
            first, *second = zip(*(example["texts"] for example in examples), strict=True)
            batch = self.tokenizer(
                list(first),
                list(second[0]) if second else None,
                truncation=True,
                max_length=self.max_tokens,
                padding=True,
                return_tensors="pt",
            )
        numbers = [name for name in examples[0] if name not in ("texts", "tokens")]
        return {
            **batch,
            **{n: torch.as_tensor(np.stack([example[n] for example in examples])) for n in numbers},
        }
