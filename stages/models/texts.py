"""Texts on their way into a model: examples of one language or many, tokenised batch by batch."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

import stages.models.quiet  # noqa: F401
from cache import write_atomically
from stages.errors import StageError
from stages.models.batches import few_at_once
from stages.models.processes import process_index, wait_for
from stages.progress import Bar

SPLIT_MARK = "\u2063"
"""INVISIBLE SEPARATOR: where tokenizers of `stages.models.scratch` split a word, and drop it."""


class Texts(Dataset[dict[str, Any]]):
    """Texts or text pairs with numbers beside them, such as labels.

    Attributes:
        fields: One or two sequences of N texts, until their tokens are made.
        numbers: Arrays with N as their first axis, by the name under which the model takes them.
        lengths: Characters of each example, all fields together.
        epoch: With the seed, it decides the order of training and where words are split.
    """

    def __init__(
        self,
        fields: Sequence[Sequence[str]],
        numbers: Mapping[str, NDArray[Any]],
        *,
        subword_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Hold N examples.

        Args:
            fields: One or two sequences of N texts.
            numbers: Arrays with N as their first axis, by the name under which the model takes them.
            subword_dropout: Chance of a split at each character boundary, drawn anew every epoch.
            seed: Decides the splits.
        """
        self.fields = fields
        self.numbers = numbers
        self._subword_dropout = subword_dropout
        self._seed = seed
        self.epoch = 0
        self._tokens: dict[str, NDArray[np.int32]] = {}
        self._starts = np.zeros(1, np.int64)
        self.lengths = [sum(map(len, example)) for example in zip(*fields, strict=True)]

    def make_tokens(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> None:
        """Make the tokens of all examples once, in files that are mapped into memory, and forget the texts.

        Args:
            tokenizer: The model's.
            max_tokens: Longer inputs are truncated to this many tokens.
            folder: Where the files go; what an interrupted run has left complete is taken as it is.
        """
        folder = folder / f"tokens-{transformers.__version__}"
        starts = folder / "starts.npy"
        if process_index() == 0 and not starts.is_file():
            lengths = self._write_tokens(tokenizer, max_tokens, folder)
            buffer = BytesIO()
            np.save(buffer, np.concatenate([[0], np.cumsum(lengths)]))
            write_atomically(starts, buffer.getvalue())
        wait_for(starts)
        self._starts = np.load(starts)
        self._tokens = {path.stem: np.memmap(path, np.int32, "r") for path in sorted(folder.glob("*.i4"))}
        self.fields = [[] for _ in self.fields]

    def _write_tokens(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> list[int]:
        """Write the tokens one behind the other, a file for each of the model's inputs; give their lengths."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        with ExitStack() as stack, Bar(desc="tokens", unit="text", total=len(self), delay=2) as bar:
            files: dict[str, IO[bytes]] = {}
            for some in few_at_once(self.fields):
                encoded = tokenizer(
                    *(list(field[some]) for field in self.fields),
                    truncation=True,
                    max_length=max_tokens,
                    return_attention_mask=False,
                )
                for name, rows in encoded.items():
                    if name not in files:
                        files[name] = stack.enter_context((folder / f"{name}.i4").open("wb"))
                    files[name].write(np.fromiter(chain.from_iterable(rows), np.int32).tobytes())
                lengths += map(len, encoded["input_ids"])
                bar.update(some.stop - some.start)
        return lengths

    def set_epoch(self, epoch: int) -> None:
        """Change the order and the splits. The Trainer calls it before each epoch.

        Here and not in the sampler, which it does not reach where processes share a resumed epoch.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        numbers = {name: array[index] for name, array in self.numbers.items()}
        if self._tokens:
            cells = slice(self._starts[index], self._starts[index + 1])
            return {"tokens": {name: ids[cells].tolist() for name, ids in self._tokens.items()}, **numbers}
        texts = [field[index] for field in self.fields]
        if self._subword_dropout:
            generator = self.generator(index)
            texts = [split_randomly(text, self._subword_dropout, generator) for text in texts]
        return {"texts": texts, **numbers}

    def generator(self, index: int) -> np.random.Generator:
        """Make the random numbers of one example in this epoch, whatever was drawn before."""
        return np.random.default_rng((self._seed, self.epoch, index))


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
