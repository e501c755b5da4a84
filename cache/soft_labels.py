"""Soft labels in memory: what a teacher said of N examples, as columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.identity.columns import Outputs
from cache.identity.example_id import ID_TYPE

_LOGITS = Outputs()


@dataclass(frozen=True)
class SoftLabels:
    """Raw logits of N examples, C classes in the teacher's order, and what else was kept.

    Attributes:
        ids: Example ids, Arrow array of type ``ID_TYPE``, length N.
        columns: By name, as listed in ``cache/__init__.py``; each of shape ``(N,)`` or ``(N, width)``.
        n_classes: C.
        made_with: Records of what computed them, each as canonical JSON: libraries, device, precision. They
            decide nothing, and are there where a shard was written by who noted them.
    """

    ids: pa.FixedSizeBinaryArray
    columns: Mapping[str, NDArray[Any]]
    n_classes: int
    made_with: tuple[str, ...] = ()

    @classmethod
    def pack(
        cls,
        ids: pa.FixedSizeBinaryArray,
        logits: NDArray[np.float32],
        hidden: NDArray[np.float32] | None = None,
        *,
        outputs: Outputs = _LOGITS,
    ) -> Self:
        """Keep of a teacher's answers what is to be kept.

        Args:
            ids: N example ids.
            logits: Raw, shape ``(N, C)``.
            hidden: Last hidden states, shape ``(N, H)``, where `outputs` keeps them.
            outputs: What is kept.
        """
        n_classes = logits.shape[1]
        columns: dict[str, NDArray[Any]] = {}
        with np.errstate(over="ignore"):  # too large for float16 is infinite, which is never written
            if outputs.top_k is None:
                columns["logits"] = logits.astype(outputs.dtype, copy=False)
            else:
                order = np.argsort(-logits, axis=1, kind="stable")
                top, rest = order[:, : outputs.top_k], order[:, outputs.top_k :]
                columns["top_classes"] = top.astype(np.uint16)
                columns["top_logits"] = np.take_along_axis(logits, top, axis=1).astype(outputs.dtype)
                others = np.take_along_axis(logits, rest, axis=1).astype(np.float64)
                columns["log_sum_exp_rest"] = np.logaddexp.reduce(others, axis=1).astype(np.float32)
            if hidden is not None:
                columns["hidden"] = hidden.astype(np.float16)
        return cls(ids, columns, n_classes)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put one or more parts of the same producer one behind the other."""
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        made_with = tuple(sorted({one for part in parts for one in part.made_with}))
        return cls(pa.concat_arrays([part.ids for part in parts]), columns, parts[0].n_classes, made_with)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: NDArray[np.int64] | slice) -> Self:
        """Give the soft labels at these positions, in their order."""
        ids = np.frombuffer(_bytes_of(self.ids), "V16")[positions]
        columns = {name: values[positions] for name, values in self.columns.items()}
        return type(self)(_ids_of(ids), columns, self.n_classes, self.made_with)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of one example's value, by column."""
        return {name: values.shape[1:] for name, values in self.columns.items()}

    @property
    def logits(self) -> NDArray[np.float32]:
        """Raw logits in the teacher's class order, float32, shape ``(N, C)``.

        Where only the largest were kept, the others share their probability evenly: the distribution at
        temperature 1 is exact for the classes kept.
        """
        if "logits" in self.columns:
            return self.columns["logits"].astype(np.float32, copy=False)
        top = self.columns["top_classes"].astype(np.int64)
        rest = self.columns["log_sum_exp_rest"] - np.float32(np.log(self.n_classes - top.shape[1]))
        logits = np.repeat(rest[:, None], self.n_classes, axis=1)
        np.put_along_axis(logits, top, self.columns["top_logits"].astype(np.float32), axis=1)
        return logits

    @property
    def hidden(self) -> NDArray[np.float16] | None:
        """Last hidden state of the first token, or of a decoder's last, float16, ``(N, H)``, where kept."""
        return self.columns.get("hidden")


def id_words(ids: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """View example ids as two 64-bit words each, shape ``(N, 2)``, without a copy."""
    return np.frombuffer(_bytes_of(ids), "<u8").reshape(-1, 2)


def id_bytes(ids: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """View example ids as bytes, shape ``(N, 16)``, without a copy."""
    return np.frombuffer(_bytes_of(ids), np.uint8).reshape(-1, 16)


def _ids_of(values: NDArray[Any]) -> pa.FixedSizeBinaryArray:
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, len(values), [None, data])


def _bytes_of(ids: pa.FixedSizeBinaryArray) -> memoryview:
    width = ID_TYPE.byte_width
    if not len(ids):
        return memoryview(b"")
    return memoryview(ids.buffers()[1])[ids.offset * width : (ids.offset + len(ids)) * width]


def preferred(columns: Mapping[str, NDArray[Any]], row: int) -> bytes:
    """Give what decides between several soft labels of one example: that with the smallest bytes counts.

    So shards may be read in any order, and merged, and what is read of an example stays the same.
    """
    return b"".join(columns[name][row].tobytes() for name in sorted(columns))
