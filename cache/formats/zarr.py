"""A shard as a Zarr v3 group in an uncompressed zip file: one array per column, one chunk per array.

Zarr writes it. It is read without Zarr, after checks that leave no freedom to a hostile file: no codec but
plain bytes, no entry but the expected ones, no size but the declared one.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.identity.columns import SCALAR, Column
from cache.soft_labels import SoftLabels, id_bytes

EXTENSION = "zarr.zip"
_METADATA_KEY = "mblm"
_MAX_JSON = 1 << 24  # bytes; class names are the only thing in it that grows
_MAX_ENTRIES = 1000
_ENTRY = b"PK\x01\x02"
"""With which each entry begins in a zip file's directory; numbers, too, may happen to be these bytes."""


def encode(soft_labels: SoftLabels, metadata: Mapping[str, Any]) -> memoryview:
    """Give the bytes of a shard."""
    import zarr  # slow import
    from zarr.storage import MemoryStore

    entries: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(entries), attributes={_METADATA_KEY: dict(metadata)})
    for name, values in {"example_id": id_bytes(soft_labels.ids), **soft_labels.columns}.items():
        group.create_array(
            name,
            data=np.ascontiguousarray(values),
            chunks=values.shape,
            compressors=None,
            config={"write_empty_chunks": True},  # a chunk of zeros, too, is a file that can be checked
        )
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            # A fixed date: the same soft labels give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), entries[name].to_bytes())
    return sink.getbuffer()


def read_metadata(data: bytes) -> Any:
    """Give the JSON value of a shard's metadata, whatever its columns are and however they are packed.

    Raises:
        ValueError: This is no shard.
    """
    _require_few_entries(data)
    with _no_zip(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = {member.filename: member for member in _members(archive, len(data))}.get("zarr.json")
        if member is None:
            raise ValueError("it has no zarr.json")
        _require_stored([member])
        if member.file_size > _MAX_JSON:
            raise ValueError("its metadata is too long")
        described = archive.read(member)
    try:
        return json.loads(described)["attributes"][_METADATA_KEY]
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (AttributeError, IndexError, RecursionError, TypeError) as error:
        raise ValueError(f"it is not a shard: {error}") from error


def decode(data: bytes, columns: Mapping[str, Column]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Take a shard apart.

    Args:
        data: The bytes.
        columns: The columns that it must have.

    Returns:
        The ids as bytes ``(N, 16)``, and the columns.

    Raises:
        ValueError: This is no such shard.
    """
    entries = _entries(data)
    try:
        arrays = {
            name: _array(entries, name, column)
            for name, column in {"example_id": Column("uint8", 16), **columns}.items()
        }
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (AttributeError, IndexError, RecursionError, TypeError) as error:
        raise ValueError(f"it is not a shard: {error}") from error
    if len({len(values) for values in arrays.values()}) != 1:
        raise ValueError("its columns are not of one length")
    if len(entries) != 1 + 2 * len(arrays):
        raise ValueError("it holds more than the columns of the producer")
    return arrays.pop("example_id"), arrays


def _require_few_entries(data: bytes) -> None:
    """Refuse a file whose directory alone would fill the memory."""
    if data.count(_ENTRY) > _MAX_ENTRIES:
        raise ValueError(f"it holds more than {_MAX_ENTRIES} entries")


def _entries(data: bytes) -> dict[str, bytes]:
    _require_few_entries(data)
    with _no_zip(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = _members(archive, len(data))
        _require_stored(members)
        return {member.filename: archive.read(member) for member in members}


def _members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """List the entries of a file of `size` bytes, unless they overlap."""
    members = archive.infolist()
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its entries are larger than the file")
    return members


def _require_stored(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse entries that would unpack to more bytes than they have in the file."""
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
        raise ValueError("it holds compressed entries")


@contextmanager
def _no_zip() -> Iterator[None]:
    """Turn what zipfile raises for bytes in memory, an OSError too, into a ValueError."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, RuntimeError) as error:
        raise ValueError(f"it is not a zip file: {error}") from error


def _array(entries: Mapping[str, bytes], name: str, column: Column) -> NDArray[Any]:
    described = entries[f"{name}/zarr.json"]
    if len(described) > _MAX_JSON:
        raise ValueError(f"{name}: its description is too long")
    array = json.loads(described)
    shape = tuple(array["shape"])
    n_dimensions = 1 if column.width == SCALAR else 2
    if len(shape) != n_dimensions or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{name} has shape {shape}")
    if n_dimensions == 2 and column.width is not None and shape[1] != column.width:
        raise ValueError(f"{name} has {shape[1]} values per example, not {column.width}")
    codecs = [codec["name"] for codec in array["codecs"]]
    endian = [codec.get("configuration", {}).get("endian", "little") for codec in array["codecs"]]
    if (
        array["zarr_format"] != 3
        or array["data_type"] != column.dtype
        or array["chunk_grid"]["configuration"]["chunk_shape"] != list(shape)
        or codecs != ["bytes"]
        or endian != ["little"]
    ):
        raise ValueError(f"{name} is not one plain chunk of {column.dtype}")
    chunk = entries["/".join([name, "c", *"0" * n_dimensions])]
    if len(chunk) != np.dtype(column.dtype).itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f"{name} is not as long as its shape says")
    return np.frombuffer(chunk, np.dtype(column.dtype).newbyteorder("<")).reshape(shape)
