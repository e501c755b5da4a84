"""Check a producer's shards: digests, columns, NaN, and examples that lie in several of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.errors import ProducerError, UnreadableError
from cache.identity.example_id import ID_TYPE
from cache.lookup import Index
from cache.soft_labels import SoftLabels
from cache.store import FACTS, Store

TOLERANCE = 1e-4
"""Between logits computed twice: they move by about 1e-7 with the batch, so equality is never asked for."""

_WINDOW = 1 << 12  # soft labels that are compared at once, by class


@dataclass(frozen=True)
class Verified:
    """What a check found.

    Attributes:
        producer: Whose shards they are.
        shards: Good ones.
        examples: Different ones in these.
        repeated: Soft labels of examples that another shard has, too; `compact` leaves them out.
        contradicting: Of these, how many differ by more than ``TOLERANCE``. A server may answer differently
            when it is asked twice, so its answers are never counted.
        damaged: Reasons, by the file's name; without its producer.json a producer is not checked further.
        foreign: Names in the folder that are nobody's; they are not read.
        unreadable: Reasons, by the names of files that cannot be read now, or by none where that is the
            folder. They may be whole.
    """

    producer: str
    shards: int
    examples: int
    repeated: int
    contradicting: int
    damaged: dict[str, str]
    foreign: list[str]
    unreadable: dict[str, str]


def verify(root: str | Path, producer_id: str, *, on_bytes: Callable[[int], None]) -> Verified:
    """Read every shard of a producer and check what its name and its producer promise.

    Args:
        root: The store.
        producer_id: Whose shards to check.
        on_bytes: Called with the size of each shard when it is checked.
    """
    damaged, unreadable = {}, {}
    try:
        store = Store.open(root, producer_id)
        sizes, foreign = store.shards(), store.foreign()
    except ProducerError as error:
        damaged = {FACTS: str(error)}
    except UnreadableError as error:
        unreadable = {FACTS if error.path.endswith(FACTS) else "": error.reason}
    if damaged or unreadable:
        return Verified(producer_id, 0, 0, 0, 0, damaged=damaged, foreign=[], unreadable=unreadable)
    ids = [pa.array([], ID_TYPE)]
    good: list[str] = []
    new = sizes
    while new:
        for name, soft_labels in store.read(new):
            ids.append(soft_labels.ids)
            good.append(name)
            on_bytes(new[name])
        known = {*good, *store.damaged, *store.unreadable}
        there = store.shards()
        # What takes the place of shards that vanished, because another process merged them, was not listed.
        has_vanished = any(name not in known and name not in there for name in new)
        new = {name: size for name, size in there.items() if has_vanished and name not in {*sizes, *known}}
        sizes |= new
    on_bytes(sum(sizes[name] for name in [*store.damaged, *store.unreadable]))
    unread = (sizes.keys() & store.shards().keys()) - {*good, *store.damaged, *store.unreadable}
    all_ids = pa.concat_arrays(ids)
    again, _ = Index(all_ids).repeats()
    may_contradict = len(again) and store.producer.endpoint is None
    return Verified(
        producer_id,
        shards=len(good),
        examples=len(all_ids) - len(again),
        repeated=len(again),
        contradicting=_contradicting(store, good, all_ids.take(pa.array(again))) if may_contradict else 0,
        damaged={name: error.reason for name, error in store.damaged.items()},
        foreign=foreign,
        unreadable={
            **{name: error.reason for name, error in store.unreadable.items()},
            **dict.fromkeys(sorted(unread), "it is listed, but cannot be found"),
        },
    )


def differing(a: SoftLabels, b: SoftLabels, *, precision: str) -> NDArray[np.bool_]:
    """Tell which examples have other numbers in `a` than in `b`, beyond what computing again changes.

    Args:
        a: Soft labels of N examples.
        b: Soft labels of the same examples in the same order, with the same columns.
        precision: Compute dtype of the teacher. In bfloat16, which has 8 significant bits, another batch
            moves a logit by several of its last bits.

    Returns:
        Shape ``(N,)``.
    """
    result = np.zeros(len(a), bool)
    for name, values in a.columns.items():
        if values.dtype.kind != "f":
            continue
        rounding = 2**-4 if precision == "bfloat16" else 2**-9 if values.dtype == np.float16 else 0.0
        x, y = (array.reshape(len(a), -1).astype(np.float64) for array in (values, b.columns[name]))
        result |= (np.abs(x - y) > TOLERANCE + rounding * np.maximum(np.abs(x), 1)).any(axis=1)
    return result


def _contradicting(store: Store, names: list[str], ids: pa.FixedSizeBinaryArray) -> int:
    """Count soft labels of these examples that differ from those of the same example in another shard."""
    index = Index(ids)
    parts = []
    for _, soft_labels in store.read(names):
        parts.append(soft_labels.take(np.flatnonzero(index.positions(soft_labels.ids) >= 0)))
    if not parts:  # what was read a moment ago cannot be read again
        return 0
    together = SoftLabels.concatenate(parts)
    first = Index(together.ids).positions(together.ids)
    precision = store.producer.facts.get("dtype", "float32")
    n = 0
    for start in range(0, len(together), _WINDOW):
        some = slice(start, start + _WINDOW)
        one, other = _by_class(together.take(some)), _by_class(together.take(first[some]))
        n += int(differing(one, other, precision=precision).sum())
    return n


def _by_class(soft_labels: SoftLabels) -> SoftLabels:
    """Lay the largest logits out by class, where only these are kept; other classes have the least of them.

    So two classes of nearly the same logit may change places, also at the end of those that are kept.
    """
    if "top_classes" not in soft_labels.columns:
        return soft_labels
    columns = dict(soft_labels.columns)
    top, kept = columns.pop("top_classes").astype(np.int64), columns["top_logits"]
    columns["top_logits"] = np.repeat(kept.min(axis=1, keepdims=True), soft_labels.n_classes, axis=1)
    np.put_along_axis(columns["top_logits"], top, kept, axis=1)
    return replace(soft_labels, columns=columns)
