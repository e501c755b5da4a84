"""A producer's soft labels as one Parquet file, for other tools."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.errors import StoreError
from cache.formats.arrow import to_batch
from cache.identity.example_id import ID_TYPE
from cache.lookup import Index
from cache.soft_labels import preferred
from cache.store import Store
from cache.top_k import TopKChange

_WINDOW = 1 << 16
"""Rows in memory with their texts."""


def export(
    root: str | Path,
    producer_id: str,
    file: Path,
    *,
    overwrite: bool = False,
    examples: pa.Table | None,
    on_bytes: Callable[[int], None],
) -> int:
    """Write every soft label once, with its text where that is known.

    The columns are those of ``cache/__init__.py``, and those of `examples`, null for examples that it does
    not have. The file's metadata holds ``classes``, ``producer``, the facts, and, where it is known,
    ``top_k_change``, what top-k changes, as JSON.

    Args:
        root: The store.
        producer_id: Whose soft labels to write.
        file: What to write; it appears when it is complete.
        overwrite: Whether a file that is there may be replaced.
        examples: Columns such as ``language`` and ``text``, next to ``example_id``.
        on_bytes: Called with the size of each shard that is read, twice per shard.

    Returns:
        The number of examples.

    Raises:
        ProducerError: The producer.json is absent, no JSON or not that of the id.
        UnreadableError: It, or a shard, cannot be read now.
        StoreError: There are no soft labels, they changed meanwhile, the file is there already, or there can
            be none.
    """
    if file.is_dir():
        raise StoreError(f"{file} is a folder; name the file to write")
    if file.exists() and not overwrite:
        raise StoreError(f"{file} is there already; replace it with --overwrite")
    store = Store.open(root, producer_id)
    sizes = store.shards()
    is_kept = _one_of_each(store, sizes, on_bytes)
    index = Index(examples["example_id"].combine_chunks()) if examples is not None else None
    place = file.resolve() if file.is_symlink() else file  # what a link names is replaced
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {file.parent}: {error.strerror}; name another") from error
    writer, start = None, 0
    facts = {"classes": store.producer.classes, "producer": store.producer.facts}
    change = TopKChange.read(store.folder)
    facts |= {} if change is None else {"top_k_change": change.encode()}
    try:
        for name, soft_labels in store.read(sizes):
            kept = np.flatnonzero(is_kept[start : start + len(soft_labels)])
            start += len(soft_labels)
            on_bytes(sizes[name])
            for begin in range(0, len(kept), _WINDOW):
                table = pa.Table.from_batches([to_batch(soft_labels.take(kept[begin : begin + _WINDOW]))])
                if examples is not None and index is not None:
                    positions = index.positions(table["example_id"].combine_chunks())
                    found = _rows_at(examples.drop_columns("example_id"), positions)
                    for column in found.column_names:
                        table = table.append_column(column, found[column])
                table = table.replace_schema_metadata({k: json.dumps(v) for k, v in facts.items()})
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
        store.require_readable()
        if start != len(is_kept):
            raise _changed(store)
        if writer is not None:
            writer.close()
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    return int(is_kept.sum())


def _rows_at(table: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Take a table's rows, null where a position is -1, batch by batch.

    `pyarrow.Table.take` makes one text of all texts of a column, of which there may be more than 2 GiB.
    """
    found = np.flatnonzero(positions >= 0)
    found = found[np.argsort(positions[found], kind="stable")]
    wanted, parts, start = positions[found], [], 0
    for batch in table.to_batches():
        begin, end = np.searchsorted(wanted, [start, start + batch.num_rows])
        parts.append(batch.take(pa.array(wanted[begin:end] - start)))
        start += batch.num_rows
    places = np.full(len(positions), -1)
    places[found] = np.arange(len(found))
    return pa.Table.from_batches(parts, table.schema).take(pa.array(places, mask=places < 0))


def _changed(store: Store) -> StoreError:
    return StoreError(f"{store.folder} changed while it was read; run it again")


def _one_of_each(store: Store, sizes: dict[str, int], on_bytes: Callable[[int], None]) -> NDArray[np.bool_]:
    """Tell which soft labels, shard after shard, count: one of each example."""
    ids = [pa.array([], ID_TYPE)]
    n_read = 0
    for name, soft_labels in store.read(sizes):
        ids.append(soft_labels.ids)
        n_read += 1
        on_bytes(sizes[name])
    store.require_readable()
    if store.damaged:
        raise StoreError(
            f"{len(store.damaged)} shards of {store.folder} are damaged; "
            f"set them aside with: python -m pipeline cache repair --store {store.root}"
        )
    if n_read < len(sizes):  # what replaces a shard that vanished is not among those that were listed
        raise _changed(store)
    all_ids = pa.concat_arrays(ids)
    if not len(all_ids):
        raise StoreError(f"{store.folder} holds no soft labels")
    again, first = (rows.tolist() for rows in Index(all_ids).repeats())
    first_of = dict(zip(again, first, strict=True)) | {row: row for row in first}
    is_kept = np.ones(len(all_ids), bool)
    is_kept[list(first_of)] = False
    is_kept[_preferred_rows(store, sizes, first_of)] = True
    return is_kept


def _preferred_rows(store: Store, sizes: dict[str, int], first_of: dict[int, int]) -> list[int]:
    """Choose one of several soft labels of an example.

    Args:
        store: Whose shards to read.
        sizes: Its shards.
        first_of: For each of these soft labels, by its row in all shards, the first of the same example.
    """
    best: dict[int, tuple[bytes, int]] = {}
    rows, start = np.array(sorted(first_of), np.int64), 0
    for _, soft_labels in store.read(sizes) if first_of else ():
        for row in rows[(rows >= start) & (rows < start + len(soft_labels))].tolist():
            found = preferred(soft_labels.columns, row - start), row
            best[first_of[row]] = min(best.get(first_of[row], found), found)
        start += len(soft_labels)
    return [row for _, row in best.values()]
