"""Leave out of a vocabulary what some texts never use; these have the same tokens as before.

Of a multilingual encoder, most weights are embeddings of words that one task never meets (Abdaoui et al.,
2020, "Load What You Need"). Special tokens, single characters and bytes stay: any text can still be read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from stages.errors import StageError

_AT_ONCE = 4096
_MARKS = re.compile(r"^(▁|##|Ġ)|</w>$")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_FEW = 100
"""Tokens that stay if they stand before the padding, which in some models stands behind all others."""
_CHECKED = 1000
"""Texts of which it is looked at whether their tokens are the same as before."""


class Vocabulary(NamedTuple):
    """What is kept of a vocabulary.

    Attributes:
        tokenizer: Of the tokens that are kept.
        kept: Their old ids in the order of the new ones, shape ``(V,)``.
    """

    tokenizer: PreTrainedTokenizerFast
    kept: NDArray[np.int64]


class Trimmer:
    """Counts which pieces of a vocabulary are used, and leaves out the others."""

    def __init__(self, tokenizer: Any, *, what: str) -> None:
        """Begin with no piece used.

        Args:
            tokenizer: A model's.
            what: It is, for messages.

        Raises:
            StageError: The tokenizer is one in Python, without a table that could be cut.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise StageError(f"{what} has a tokenizer without tokenizer.json, whose vocabulary cannot be cut")
        self._tokenizer, self._what = tokenizer, what
        self._used = np.zeros(len(tokenizer), bool)
        self._some: list[str] = []
        self.n_texts = 0

    def count(self, texts: Iterable[str]) -> None:
        """Note which pieces texts use."""
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == _AT_ONCE:
                self._count(batch)
                batch = []
        if batch:
            self._count(batch)

    def _count(self, texts: Sequence[str]) -> None:
        self._some += texts[: max(0, _CHECKED - len(self._some))]
        self.n_texts += len(texts)
        for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]:
            self._used[ids] = True

    def trimmed(self) -> Vocabulary:
        """Make the tokenizer without what is not used.

        Raises:
            StageError: It would make other tokens of a text that was counted.
        """
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        needed = _needed(state, self._used)
        padding = self._tokenizer.pad_token_id
        if padding is not None and padding < _FEW:  # RoBERTa counts positions from the padding's id
            needed[:padding] = True
        kept = np.flatnonzero(self._used | needed)
        new = {int(old): position for position, old in enumerate(kept)}
        _renumber(state, new)
        before = self._tokenizer
        after = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(state)),
            model_max_length=before.model_max_length,
            model_input_names=before.model_input_names,
            padding_side=before.padding_side,
            truncation_side=before.truncation_side,
            **before.special_tokens_map,
        )
        old = before(self._some, verbose=False)["input_ids"]
        if after(self._some, verbose=False)["input_ids"] != [[new[token] for token in ids] for ids in old]:
            raise StageError(
                f"{self._what} has a tokenizer whose vocabulary cannot be cut; set vocabulary: null"
            )
        return Vocabulary(after, kept)


def trim_embeddings(model: Any, kept: NDArray[np.int64]) -> None:
    """Leave the embeddings of some tokens in a model, and change its configuration accordingly.

    Args:
        model: An encoder without a head that predicts tokens.
        kept: Their old ids in the order of the new ones, shape ``(V,)``.
    """
    new = {int(old): position for position, old in enumerate(kept)}
    before = model.get_input_embeddings()
    padding = None if before.padding_idx is None else new.get(before.padding_idx)
    after = nn.Embedding(len(kept), before.embedding_dim, padding_idx=padding, dtype=before.weight.dtype)
    after.weight.data = before.weight.data[kept].clone()
    model.set_input_embeddings(after)
    config = model.config
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value in new:
            setattr(config, name, new[value])
    config.vocab_size = len(kept)


def _needed(state: dict[str, Any], used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which tokens must stay besides those that are used."""
    model = state["model"]
    needed = np.zeros(len(used), bool)
    needed[[one["id"] for one in state["added_tokens"]]] = True
    pieces = _pieces(model)
    for piece, index in pieces.items():
        if len(_MARKS.sub("", piece)) <= 1 or _BYTE.fullmatch(piece):
            needed[index] = True
    if isinstance(model.get("unk_id"), int):
        needed[model["unk_id"]] = True
    elif model.get("unk_token") in pieces:
        needed[pieces[model["unk_token"]]] = True
    if "merges" in model:
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        suffix = model.get("end_of_word_suffix") or ""
        for piece, index in pieces.items():
            if used[index]:
                needed[[pieces[part] for part in _made_of(piece, ranks, suffix) if part in pieces]] = True
    return needed


def _pieces(model: dict[str, Any]) -> dict[str, int]:
    """Give the ids of a vocabulary's pieces: a Unigram model lists them, the others map them."""
    vocab = model["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Give the merges of a byte-pair model, which older files write as one text each."""
    pairs = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    return [(first, second) for first, second in pairs]


def _made_of(piece: str, ranks: Mapping[tuple[str, str], int], suffix: str) -> set[str]:
    """Collect what byte-pair merges make on the way from characters to a piece."""
    word = piece.removesuffix(suffix)
    parts = [*word[:-1], word[-1:] + piece[len(word) :]]
    made = set(parts)
    while len(parts) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        made.add(parts[place])
    return made


def _renumber(state: dict[str, Any], new: Mapping[int, int]) -> None:
    """Take the tokens that have no new id out of a tokenizer's state, and give the others theirs."""
    model = state["model"]
    pieces = {piece: new[index] for piece, index in _pieces(model).items() if index in new}
    if isinstance(model["vocab"], dict):
        model["vocab"] = pieces
    else:
        model["vocab"] = [one for index, one in enumerate(model["vocab"]) if index in new]
    if isinstance(model.get("unk_id"), int):
        model["unk_id"] = new[model["unk_id"]]
    if "merges" in model:
        model["merges"] = [
            [first, second]
            for first, second in _merges(model)
            if first in pieces and second in pieces and first + second in pieces
        ]
    for one in state["added_tokens"]:
        one["id"] = new[one["id"]]
    if state.get("padding"):
        state["padding"]["pad_id"] = new[state["padding"]["pad_id"]]
    _renumber_processor(state.get("post_processor") or {}, new)


def _renumber_processor(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    for part in processor.get("processors", ()):
        _renumber_processor(part, new)
    for name in ("sep", "cls"):  # of BERT and RoBERTa: a token and its id
        if name in processor:
            processor[name][1] = new[processor[name][1]]
    if isinstance(processor.get("special_tokens"), dict):
        for one in processor["special_tokens"].values():
            one["ids"] = [new[index] for index in one["ids"]]
