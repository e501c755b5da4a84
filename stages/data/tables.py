"""Tables of examples on their way to disk, window by window: laid out, chosen from, written, read again."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import example_ids
from stages.data.examples import ENTITY, columns_of
from stages.data.remarks import first_words
from stages.data.sources import WINDOW, Rows
from stages.data.task import TaskParams


def laid_out(task: TaskParams, rows: Rows, labels: Sequence[int | None]) -> pa.Table:
    """Lay out a window's examples, with what they are about."""
    arrays = [example_ids(rows.texts), *rows.texts, labels, rows.entities]
    schema = columns_of(task).append(pa.field(ENTITY, pa.string()))
    return pa.Table.from_arrays(
        [pa.array(a, type=f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
    )


def keys_of(ids: pa.ChunkedArray, entities: Iterable[str | None], purpose: bytes) -> NDArray[np.uint64]:
    """Hash what examples are about, or their text, into numbers by which some are chosen: ``(N,)``."""
    keys = first_words(ids)
    for row, entity in enumerate(entities):
        if entity is not None:
            digest = hashlib.blake2b(entity.encode(), digest_size=16, person=purpose).digest()
            keys[row] = int.from_bytes(digest[:8])
    return keys


def entities_of(table: pa.Table) -> Iterator[str | None]:
    """Give what examples are about, where there is a column for it."""
    chunks = table[ENTITY].iterchunks() if ENTITY in table.column_names else ()
    return (name for chunk in chunks for name in chunk.to_pylist())


def some_of(table: pa.Table, n: int) -> pa.Table:
    """Choose `n` rows by a hash of what they are about, or of their text, and leave them in their order."""
    keys = keys_of(table["example_id"], entities_of(table), b"")
    return table.take(pa.array(np.sort(np.argsort(keys, kind="stable")[:n]))).combine_chunks()


def filtered(table: pa.Table, wanted: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Give the rows that are wanted, window by window."""
    for start in range(0, table.num_rows, WINDOW):
        part = table.slice(start, WINDOW).filter(pa.array(wanted[start : start + WINDOW]))
        if part.num_rows:
            yield part


def write_batches(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables into one Arrow file, which is not made where there are none."""
    first = next(tables, None)
    if first is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table, max_chunksize=WINDOW)
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path) -> pa.Table:
    """Map a written table into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
