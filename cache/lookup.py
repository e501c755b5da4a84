"""Find examples by id: an index of ids, and wanted examples that are filled shard by shard."""

import mmap
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.soft_labels import SoftLabels, id_words, preferred

_BLOCK_BITS = 18
_BLOCK = 1 << _BLOCK_BITS

_IN_MEMORY = 1 << 28
"""Bytes of a column that are kept in memory though there is a folder for larger ones."""


class Index:
    """Where each of N example ids stands. It takes 8 bytes per id beside the ids themselves.

    Ids are hashes, so the upper bits of one word all but tell them apart, and the lower bits have room for
    the position: one sort of plain numbers is the whole index, and ids are looked up in sorted order, which
    walks through memory instead of jumping. Whole ids are compared in the end.
    """

    def __init__(self, ids: pa.FixedSizeBinaryArray) -> None:
        self._words = id_words(ids)
        self._bits = np.uint64(max(len(ids) - 1, 0).bit_length())
        self._keys = _prefixes(self._words[:, 0], self._bits) | np.arange(len(ids), dtype=np.uint64)
        self._keys.sort()

    def positions(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.int64]:
        """Find ids.

        Returns:
            For each id the first position where it stands, -1 where it does not; int64, shape
            ``(len(ids),)``.
        """
        return self._positions(id_words(ids))

    def repeats(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the ids that stand more than once.

        Returns:
            The positions at which an id stands again, and for each the first position where it stands.
        """
        prefixes = self._keys >> self._bits
        shared = np.flatnonzero(prefixes[1:] == prefixes[:-1])
        positions = self._position_of(self._keys[np.union1d(shared, shared + 1)])
        first = self._positions(self._words.take(positions, axis=0))
        again = first != positions
        return positions[again], first[again]

    def _position_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (keys & ((np.uint64(1) << self._bits) - np.uint64(1))).astype(np.int64)

    def _positions(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        found = np.full(len(words), -1, np.int64)
        if len(self._keys):
            for start in range(0, len(words), _BLOCK):
                found[start : start + _BLOCK] = self._find(words[start : start + _BLOCK])
        return found

    def _find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Find the positions of at most ``_BLOCK`` ids."""
        bits = np.uint64(_BLOCK_BITS)
        sorted_words = _prefixes(words[:, 0], bits) | np.arange(len(words), dtype=np.uint64)
        sorted_words.sort()
        order = (sorted_words & np.uint64(_BLOCK - 1)).astype(np.int64)
        wanted = words.take(order, axis=0)  # several times as fast as words[order]
        prefixes = _prefixes(wanted[:, 0], self._bits)
        candidates = np.searchsorted(self._keys, prefixes)
        result = np.full(len(words), -1, np.int64)
        open_ = np.arange(len(words))
        while len(open_):  # once, but for ids whose prefix another id shares
            open_ = open_[candidates[open_] < len(self._keys)]
            keys = self._keys[candidates[open_]]
            same_prefix = _prefixes(keys, self._bits) == prefixes[open_]
            open_, keys = open_[same_prefix], keys[same_prefix]
            positions = self._position_of(keys)
            same = (self._words.take(positions, axis=0) == wanted.take(open_, axis=0)).all(axis=1)
            result[order[open_[same]]] = positions[same]
            open_ = open_[~same]
            candidates[open_] += 1
        return result


class Lookup:
    """Wanted examples, filled with soft labels as shards are read or written.

    Attributes:
        ids: The N wanted example ids, repeated as often as wanted.
        seen: Names of the shards that it was filled from.
    """

    def __init__(self, ids: pa.FixedSizeBinaryArray, *, overflow: Path | None = None) -> None:
        """Want examples.

        Args:
            ids: N example ids.
            overflow: A folder on disk. Columns too large for memory are kept there, in files without a name,
                which are gone with the look-up.
        """
        self.ids = ids
        self.seen: set[str] = set()
        self._overflow = overflow
        self._on_disk: list[mmap.mmap] = []
        self._index = Index(ids)
        self._again, self._first = self._index.repeats()
        self._filled = np.zeros(len(ids), bool)
        self._columns: dict[str, NDArray[Any]] = {}
        self._n_classes = 0

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which examples have a soft label, shape ``(N,)``."""
        found = self._filled.copy()
        found[self._again] = found[self._first]
        return found

    def fill(self, soft_labels: SoftLabels) -> None:
        """Take over what is wanted of some soft labels.

        Raises:
            ValueError: They have other columns than those before.
        """
        if not self._columns:
            self._n_classes = soft_labels.n_classes
            for name, values in soft_labels.columns.items():
                self._columns[name] = self._zeros((len(self.ids), *values.shape[1:]), values.dtype)
        if soft_labels.shapes() != {name: values.shape[1:] for name, values in self._columns.items()}:
            raise ValueError("its columns are not those of the other soft labels")
        for start in range(0, len(soft_labels), _BLOCK):  # bounds the memory, however large the shard
            some = slice(start, start + _BLOCK)
            positions = self._index.positions(soft_labels.ids[some])
            wanted = np.flatnonzero(positions >= 0)
            positions = positions[wanted]
            worse = [
                place
                for place in np.flatnonzero(self._filled[positions]).tolist()
                if preferred(self._columns, positions[place])
                <= preferred(soft_labels.columns, start + int(wanted[place]))
            ]
            wanted, positions = np.delete(wanted, worse), np.delete(positions, worse)
            for name, values in soft_labels.columns.items():
                self._columns[name][positions] = values[some].take(wanted, axis=0)
            self._filled[positions] = True
            for mapped in self._on_disk:  # what is written needs no memory any more
                mapped.madvise(mmap.MADV_DONTNEED)

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        can_reserve = hasattr(os, "posix_fallocate")  # on Linux
        if self._overflow is None or n_bytes <= _IN_MEMORY or not can_reserve:
            return np.zeros(shape, dtype)
        with TemporaryFile(dir=self._overflow) as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)  # a full disk ends it here, and not as a signal
            mapped = mmap.mmap(file.fileno(), n_bytes)
        self._on_disk.append(mapped)
        return np.frombuffer(mapped, dtype).reshape(shape)

    def soft_labels(self) -> SoftLabels:
        """Give the soft labels of all wanted examples, in their order.

        Raises:
            ValueError: Some have none.
        """
        if not self.found.all():
            raise ValueError(f"{int((~self.found).sum())} of {len(self.ids)} examples have no soft label")
        for values in self._columns.values():
            values[self._again] = values[self._first]
        return SoftLabels(self.ids, self._columns, self._n_classes)

    def some(self, wanted: NDArray[np.bool_]) -> SoftLabels:
        """Give the soft labels of some examples that were found, ``(N,)``, in their order."""
        for values in self._columns.values():
            values[self._again] = values[self._first]
        columns = {name: values[wanted] for name, values in self._columns.items()}
        return SoftLabels(self.ids.filter(pa.array(wanted)), columns, self._n_classes)


def _prefixes(words: NDArray[np.uint64], bits: np.uint64) -> NDArray[np.uint64]:
    """Set the lower `bits` bits to 0."""
    return words >> bits << bits
