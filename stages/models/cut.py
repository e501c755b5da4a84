"""How many texts are longer than a model may read, and lose their ends."""

from collections.abc import Sequence

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from stages.progress import say

_SAMPLE = 10_000
"""Texts that are looked at before a training."""


def n_cut(encoded: BatchEncoding, max_tokens: int) -> int:
    """Count the texts of a batch of which something is left out.

    Args:
        encoded: What a tokenizer made of the texts, truncating them.
        max_tokens: What it was to truncate them to.

    Returns:
        Their number; with a tokenizer that does not say, as those written in Python, that of full length.
    """
    full = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_tokens]
    said = encoded.encodings
    return len(full) if said is None else sum(bool(said[row].overflowing) for row in full)


def say_cut(
    tokenizer: PreTrainedTokenizerBase, fields: Sequence[Sequence[str]], max_tokens: int, *, key: str
) -> None:
    """Say how many training texts lose their ends, if any do; of very many, a sample is looked at.

    Args:
        tokenizer: The model's.
        fields: One or two sequences of N texts.
        max_tokens: What the model may read.
        key: The parameter that says so.
    """
    n = len(fields[0])
    rows = np.random.default_rng(0).choice(n, min(n, _SAMPLE), replace=False)
    some = [[field[row] for row in rows] for field in fields]
    found = n_cut(tokenizer(*some, truncation=True, max_length=max_tokens), max_tokens)
    if found:
        how_many = f"{found:,} of {n:,}" if n == len(rows) else f"about {found / len(rows):.1%} of {n:,}"
        say(f"{how_many} training texts are longer than {key}, {max_tokens}, and are cut")
