"""Take soft labels that somebody else made into a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache.commands.verify import differing
from cache.errors import StoreError
from cache.identity.producer import Producer
from cache.soft_labels import SoftLabels
from cache.store import Store
from cache.top_k import TopKChange

_SHARD_BYTES = 1 << 28
"""Of a shard, at most, which is also what a killed import may lose."""


@dataclass(frozen=True)
class ImportedInto:
    """What an import did.

    Attributes:
        producer: Its id.
        new: Soft labels that were written.
        present: Soft labels that the store had already, with the same values but for rounding.
    """

    producer: str
    new: int
    present: int


def import_(
    root: str | Path,
    producer: Producer,
    soft_labels: SoftLabels,
    *,
    format_: Literal["arrow", "zarr"],
    top_k_change: TopKChange | None = None,
) -> ImportedInto:
    """Write what the store lacks. What was stopped goes on when it is done again.

    Args:
        root: The store.
        producer: Who made them; not a teacher that was run here.
        soft_labels: One for each of N texts.
        format_: Of the shards.
        top_k_change: What top-k changes, where that is known.

    Raises:
        StoreError: The store has another soft label of one of the texts, of the same producer.
        UnreadableError: What the store has cannot be read now.
    """
    assert producer.imported is not None
    store = Store(root, producer)
    there = store.look_up(soft_labels.ids)
    store.require_readable()
    found = np.flatnonzero(there.found)
    if len(found):
        own = soft_labels.take(found)
        known = Store(root, producer).look_up(own.ids).soft_labels()
        differs = other_values(own, known)
        if differs.any():
            raise StoreError(
                f"the store has other values for {int(differs.sum()):,} of these texts, by the same maker; "
                "if these are of another version, say so: --fact version=…"
            )
    store.create()
    if top_k_change is not None:
        top_k_change.note(store.folder)
    misses = np.flatnonzero(~there.found)
    row_bytes = 16 + sum(values[:1].nbytes for values in soft_labels.columns.values())
    step = max(1, _SHARD_BYTES // row_bytes)
    for start in range(0, len(misses), step):
        store.append(soft_labels.take(misses[start : start + step]), format_=format_)
    return ImportedInto(producer.id, len(misses), len(found))


def other_values(one: SoftLabels, other: SoftLabels) -> NDArray[np.bool_]:
    """Tell which examples have other classes or numbers in `one` than in `other`, beyond rounding; ``(N,)``.

    The number of classes that are kept changes how the logits of the others are rounded.
    """
    differs = differing(one, other, precision="float32")
    if "top_classes" in one.columns:
        differs |= (one.columns["top_classes"] != other.columns["top_classes"]).any(axis=1)
    return differs
