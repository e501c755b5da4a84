"""Merge a producer's small shards into large ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from cache.lookup import Index
from cache.soft_labels import SoftLabels, preferred
from cache.store import Store

_TARGET_BYTES = 1 << 28
"""Shards are merged up to this size; several times as much is in memory meanwhile."""


@dataclass(frozen=True)
class Compacted:
    """What was merged.

    Attributes:
        producer: Its id.
        before: Number of shards.
        after: Number of shards.
        repeated: Soft labels that were left out because another one of the same example was merged with them.
    """

    producer: str
    before: int
    after: int
    repeated: int


def compact(
    root: str | Path,
    producer_id: str,
    *,
    format_: Literal["arrow", "zarr"],
    on_bytes: Callable[[int], None],
) -> Compacted:
    """Merge shards, while others read and write them.

    A merged shard is new, and written before its parts are deleted: whatever stops this, and whoever does the
    same at the same time, every soft label is in at least one shard. Who has listed a part that is gone finds
    it in the merged shard, which is there by then. Damaged shards stay where they are, and so do all others
    that were not read.

    Args:
        root: The store.
        producer_id: Whose shards to merge.
        format_: Of the merged shards.
        on_bytes: Called with the size of each shard that is done.

    Raises:
        ProducerError: The producer.json is absent, no JSON or not that of the id.
        UnreadableError: It, or a shard, cannot be read now. What was merged before is complete.
    """
    store = Store.open(root, producer_id)
    sizes = store.shards()
    n_repeated = 0
    for group in _groups(sizes):
        read = dict(store.read(group)) if len(group) > 1 else {}
        store.require_readable()
        if len(read) > 1:
            together = SoftLabels.concatenate(list(read.values()))
            again, first = Index(together.ids).repeats()
            n_repeated += len(again)
            chosen = np.arange(len(together))
            for row, place in zip(again, first, strict=True):
                chosen[place] = min(chosen[place], row, key=partial(preferred, together.columns))
            kept = chosen[np.delete(np.arange(len(together)), again)]
            store.append(together.take(kept), format_=format_, unique=True)
            for name in read:
                store.folder.delete(name)
        on_bytes(sum(sizes[name] for name in group))
    return Compacted(producer_id, len(sizes), len(store.shards()), n_repeated)


def _groups(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Put shards together, the smallest first, up to the size of a large one."""
    group: list[str] = []
    size = 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        if group and size + sizes[name] > _TARGET_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += sizes[name]
    if group:
        yield group
