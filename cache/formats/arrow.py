"""A shard as an Arrow IPC file. What is read may come from anybody: nothing in it is believed."""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.identity.columns import SCALAR, Column
from cache.identity.example_id import ID_TYPE
from cache.soft_labels import SoftLabels

EXTENSION = "arrow"
_METADATA_KEY = b"mblm"
_MAX_JSON = 1 << 24  # bytes; class names are the only thing in it that grows
_MAGIC = b"ARROW1\0\0"
_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "uint16": pa.uint16()}


def encode(soft_labels: SoftLabels, metadata: Mapping[str, Any]) -> memoryview:
    """Give the bytes of a shard: one uncompressed record batch."""
    batch = to_batch(soft_labels)
    encoded = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    batch = batch.replace_schema_metadata({_METADATA_KEY: encoded})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def to_batch(soft_labels: SoftLabels) -> pa.RecordBatch:
    """Give the columns of soft labels as Arrow's, ids first."""
    arrays, columns = [soft_labels.ids], {}
    for name, values in soft_labels.columns.items():
        width = SCALAR if values.ndim == 1 else values.shape[1]
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        arrays.append(flat if width == SCALAR else pa.FixedSizeListArray.from_arrays(flat, width))
        columns[name] = Column(values.dtype.name, width)
    return pa.RecordBatch.from_arrays(arrays, schema=_schema(columns))


def read_metadata(data: bytes) -> Any:
    """Give the JSON value of a shard's metadata, whatever its columns are.

    Raises:
        ValueError: This is no shard.
    """
    with _no_shard():
        schema, _ = _begin(data)
        described = (schema.metadata or {}).get(_METADATA_KEY, b"")
        if len(described) > _MAX_JSON:
            raise ValueError("its metadata is too long")
        return json.loads(described)


def decode(data: bytes, columns: Mapping[str, Column]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Take a shard apart; the columns are views of the bytes, and the ids, which many keep, are not.

    The messages are read in their order, as a stream, so that what is checked is what is used: the footer,
    which could point elsewhere, is not.

    Args:
        data: The bytes.
        columns: The columns that it must have.

    Returns:
        The ids as bytes ``(N, 16)``, and the columns.

    Raises:
        ValueError: This is no such shard.
    """
    with _no_shard():
        schema, messages = _begin(data)
        widths = {name: _with_width(column, name, schema) for name, column in columns.items()}
        if not schema.equals(_schema(widths)):
            raise ValueError("its columns are not those of the producer")
        message = messages.read_next_message()
        if message.type != "record batch" or _is_compressed(message.metadata):
            raise ValueError("it does not begin with an uncompressed record batch")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    flat = [array.flatten() if pa.types.is_fixed_size_list(array.type) else array for array in batch.columns]
    if any(array.null_count for array in [*batch.columns, *flat]):
        raise ValueError("it holds nulls")
    seen = np.frombuffer(batch.column(0).buffers()[1], np.uint8, count=16 * batch.num_rows)
    ids = seen.reshape(-1, 16).copy()
    arrays = {}
    for (name, (_, width)), array in zip(widths.items(), flat[1:], strict=True):
        values = array.to_numpy()
        arrays[name] = values if width == SCALAR else values.reshape(-1, width)
    return ids, arrays


def _begin(data: bytes) -> tuple[pa.Schema, pa.ipc.MessageReader]:
    """Read the schema; gives it and the reader of what comes after it."""
    if not data.startswith(_MAGIC):
        raise ValueError("it is not an Arrow file")
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(data).slice(len(_MAGIC)))
    message = messages.read_next_message()
    if message.type != "schema":  # pyarrow would take any message for one, and read out of bounds
        raise ValueError("it does not begin with a schema")
    return pa.ipc.read_schema(message), messages


@contextmanager
def _no_shard() -> Iterator[None]:
    """Turn what pyarrow raises for bytes in memory, an OSError too, into a ValueError."""
    try:
        yield
    except (OSError, pa.ArrowException, RecursionError, StopIteration, struct.error) as error:
        raise ValueError(f"it is not a shard: {str(error).partition(chr(10))[0]}") from error


def _schema(columns: Mapping[str, Column]) -> pa.Schema:
    fields = {"example_id": ID_TYPE}
    for name, (dtype, width) in columns.items():
        fields[name] = _TYPES[dtype] if width == SCALAR else pa.list_(_TYPES[dtype], width)
    return pa.schema(fields)


def _with_width(column: Column, name: str, schema: pa.Schema) -> Column:
    """Take the width that the facts do not tell from the shard."""
    index = schema.get_field_index(name)
    if column.width is None and index >= 0 and pa.types.is_fixed_size_list(schema.field(index).type):
        return column._replace(width=schema.field(index).type.list_size)
    return column._replace(width=column.width or SCALAR)


def _is_compressed(message: pa.Buffer) -> bool:
    """Tell whether a record batch names a compression: then a small file may unpack to any size.

    pyarrow does not say, so this reads the flatbuffer as ``Message.fbs`` of the Arrow format lays it out:
    field 2 of the message is the record batch, field 3 of the record batch is the compression.
    """
    data = memoryview(message)

    def field(table: int, index: int) -> int:
        """Position of a table's field, 0 where it is absent."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        if vtable < 0:
            raise struct.error("a flatbuffer points outside")
        size = struct.unpack_from("<H", data, vtable)[0]
        if size < 6 + 2 * index:
            return 0
        offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
        return table + offset if offset else 0

    root = struct.unpack_from("<I", data, 0)[0]
    header = field(root, 2)
    batch = header + struct.unpack_from("<I", data, header)[0]
    return field(batch, 3) != 0
