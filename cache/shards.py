"""One shard: an immutable file whose name is its row count and the digest of its bytes."""

import hashlib
import json
import re
import secrets
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from cache.errors import DamagedShardError, NotFiniteError
from cache.folder import Folder
from cache.formats import arrow as arrow_format
from cache.formats import zarr as zarr_format
from cache.identity.columns import SCALAR
from cache.identity.digests import canonical_json
from cache.identity.example_id import ID_TYPE
from cache.identity.producer import Producer
from cache.schema import SCHEMA_VERSION, require_known_schema
from cache.soft_labels import SoftLabels

MAX_BYTES = 1 << 30
"""Larger shards are neither written nor read."""

_MAX_RECORDS = 100
"""Records of what computed a shard that are read."""

_FORMATS = {"arrow": arrow_format, "zarr": zarr_format}
_NAME = re.compile(r"(?P<rows>[1-9][0-9]{0,11})-(?P<digest>[0-9a-f]{64})\.(?P<extension>arrow|zarr\.zip)")


class ShardName(NamedTuple):
    """What a shard's file name says."""

    rows: int
    digest: str
    extension: str

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Take a file name apart; None where it is not a shard's."""
        match = _NAME.fullmatch(name)
        return cls(int(match["rows"]), match["digest"], match["extension"]) if match else None


def write_shard(
    folder: Folder, soft_labels: SoftLabels, *, producer: Producer, format_: str, unique: bool = False
) -> str:
    """Write a shard so that it exists whole or not at all.

    Two writers of the same bytes choose the same name, and either file may win.

    Args:
        folder: Where to.
        soft_labels: At least one.
        producer: Whose they are.
        format_: ``arrow`` or ``zarr``.
        unique: Give it bytes, and so a name, that no other shard has, even one of the same soft labels.

    Returns:
        The shard's file name.

    Raises:
        NotFiniteError: A number is NaN or infinite.
        ValueError: The soft labels are not those of this producer, or too many for one shard.
    """
    if soft_labels.n_classes != len(producer.classes) or set(soft_labels.columns) != set(producer.columns):
        raise ValueError(f"columns {set(soft_labels.columns)} of {soft_labels.n_classes} classes")
    for name, column in producer.columns.items():  # as who reads it will ask for
        values = soft_labels.columns[name]
        width = values.shape[1] if values.ndim > 1 else SCALAR
        if values.dtype != column.dtype or column.width not in (None, width):
            raise ValueError(f"{name} holds {width} values of {values.dtype}, not {column}")
    n_broken = _count_not_finite(soft_labels)
    if n_broken:
        raise NotFiniteError(str(folder), n_broken)
    metadata: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "producer": producer.id,
        "classes": producer.classes,
    }
    if soft_labels.made_with:
        metadata["made_with"] = [json.loads(one) for one in soft_labels.made_with]
    if unique:
        metadata["nonce"] = secrets.token_hex(8)
    codec = _FORMATS[format_]
    data = codec.encode(soft_labels, metadata)
    if len(data) > MAX_BYTES:
        raise ValueError(f"a shard of {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    name = f"{len(soft_labels)}-{hashlib.sha256(data).hexdigest()}.{codec.EXTENSION}"
    folder.write(name, data)
    return name


def read_shard(folder: Folder, name: str, *, producer: Producer) -> SoftLabels:
    """Read a shard and check everything that its name and its producer promise.

    Args:
        folder: Where it lies.
        name: A shard's name.
        producer: Who must have written it.

    Raises:
        DamagedShardError: The bytes are not those that the name's digest was made from, or they are not a
            shard of this producer.
        UnreadableError: It cannot be read now, or a newer version wrote it.
        FileNotFoundError: It is not there, or no longer.
    """
    path = f"{folder}/{name}"
    data = read_bytes(folder, name)
    parsed = ShardName.parse(name)
    try:
        if parsed is None:
            raise ValueError("its name is not a shard's")
        codec = next(codec for codec in _FORMATS.values() if parsed.extension == codec.EXTENSION)
        metadata = codec.read_metadata(data)
        require_known_schema(path, metadata)  # before its columns are looked at, which may be other ones
        if not isinstance(metadata, dict) or metadata.get("schema") not in range(1, SCHEMA_VERSION + 1):
            raise ValueError("it names no schema version")
        ids, columns = codec.decode(data, producer.columns)
        if metadata.get("producer") != producer.id:
            raise ValueError(f"it belongs to producer {metadata.get('producer')}")
        if metadata.get("classes") != producer.classes:
            raise ValueError("its classes are not those of the producer")
        if len(ids) != parsed.rows:
            raise ValueError(f"it holds {len(ids)} examples")
        soft_labels = SoftLabels(
            pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, len(ids), [None, pa.py_buffer(ids)]),
            columns,
            len(producer.classes),
            _made_with(metadata),
        )
        n_broken = _count_not_finite(soft_labels)
        if n_broken:
            raise ValueError(f"it holds NaN or infinite numbers for {n_broken} examples")
        if "top_classes" in columns and columns["top_classes"].max() >= soft_labels.n_classes:
            raise ValueError("it names classes that do not exist")
    except ValueError as error:
        # A reason may quote the file: what goes to a terminal is short and has no control characters.
        reason = str(error).encode("unicode_escape").decode()[:200]
        raise DamagedShardError(path, reason) from error
    return soft_labels


def read_bytes(folder: Folder, name: str) -> bytes:
    """Read a shard's bytes and check that they are those that its name promises.

    Raises:
        DamagedShardError: They are not, or this is no file that can be a shard.
        UnreadableError: It cannot be read now.
        FileNotFoundError: It is not there, or no longer.
    """
    path = f"{folder}/{name}"
    try:
        data = folder.read(name, limit=MAX_BYTES)
    except ValueError as error:
        raise DamagedShardError(path, str(error)) from error
    parsed = ShardName.parse(name)
    if parsed is None or hashlib.sha256(data).hexdigest() != parsed.digest:
        raise DamagedShardError(path, "its content does not match the digest in its name")
    return data


def _made_with(metadata: dict[str, Any]) -> tuple[str, ...]:
    """Give the records of what computed a shard, as far as they are what we write."""
    noted = metadata.get("made_with")
    records = noted if isinstance(noted, list) else []
    plain = [one for one in records[:_MAX_RECORDS] if isinstance(one, dict)]
    encoded = [canonical_json({str(k)[:40]: str(v)[:100] for k, v in one.items()}) for one in plain]
    return tuple(sorted(one.decode() for one in encoded))


def _count_not_finite(soft_labels: SoftLabels) -> int:
    broken = np.zeros(len(soft_labels), bool)
    for values in soft_labels.columns.values():
        if values.dtype.kind == "f":
            broken |= ~np.isfinite(values).reshape(len(broken), -1).all(axis=1)
    return int(broken.sum())
