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
from stages.data.classes import class_key
from stages.data.examples import ENTITY, SOFT_LABEL, TEACHER, columns_of
from stages.data.files import shown, without_zeros
from stages.data.remarks import first_words
from stages.data.rows import DECODER
from stages.data.sources import WINDOW, Rows
from stages.data.task import TaskParams
from stages.errors import StageError


def laid_out(task: TaskParams, rows: Rows, labels: Sequence[int | None]) -> pa.Table:
    """Lay out a window's examples, with what they are about, and what else the source tells of them.

    Raises:
        StageError: A soft label is no mapping of classes to numbers.
    """
    arrays = [example_ids(rows.texts), *rows.texts, labels, rows.entities]
    fields = [*columns_of(task), pa.field(ENTITY, pa.string())]
    if rows.soft is not None:
        arrays.append(values_by_class(rows, task.classes))
        fields.append(pa.field(SOFT_LABEL, pa.list_(pa.float64(), len(task.classes))))
    if rows.teachers is not None:
        nobody = [name in (None, "") or name != name for name in rows.teachers]
        # A column of whole numbers with gaps has floats: 1.0 is the teacher called 1.
        names = [without_zeros(str(one)) if isinstance(one, float) else str(one) for one in rows.teachers]
        arrays.append([None if no else name for no, name in zip(nobody, names, strict=True)])
        fields.append(pa.field(TEACHER, pa.string()))
    schema = pa.schema(fields, metadata=columns_of(task).metadata)
    return pa.Table.from_arrays(
        [pa.array(a, type=f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
    )


def values_by_class(rows: Rows, classes: Sequence[str]) -> list[list[float | None] | None]:
    """Give each row's soft label as a value for each class; None for classes, and rows, that have none.

    Raises:
        StageError: It is no mapping of classes to numbers.
    """
    places = {class_key(name): place for place, name in enumerate(classes)}
    found: list[list[float | None] | None] = []
    for row, said in enumerate(rows.soft or ()):
        try:
            by_name = DECODER.decode(said) if isinstance(said, str) and said else said
            by_name = {} if by_name in (None, "") else dict(by_name)
            values: list[float | None] = [None] * len(classes)
            if len({class_key(str(name)) for name in by_name}) < len(by_name):
                raise ValueError("two names of one class")
            for name, value in by_name.items():
                values[places[class_key(str(name))]] = None if value in (None, "") else float(value)
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
            names = ", ".join(classes)
            raise StageError(
                f"{rows.at(row)}: the soft label is {shown(said)}, not a number for each class: {names}"
            ) from None
        found.append(None if all(value is None for value in values) else values)
    return found


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
    wanted = np.zeros(len(table), bool)
    wanted[np.argsort(keys_of(table["example_id"], entities_of(table), b""), kind="stable")[:n]] = True
    # Not take(): it makes one text of a column's texts, of which there may be more than 2 GiB.
    return pa.concat_tables([table.slice(0, 0), *filtered(table, wanted)]).combine_chunks()


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
