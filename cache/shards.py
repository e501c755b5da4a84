"""One shard: an immutable Arrow file whose name is its row count and the digest of its bytes."""

import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.errors import DamagedShardError, NotFiniteError
from cache.identity import ID_TYPE, SCHEMA_VERSION, Producer

_NAME = re.compile(r"(?P<rows>\d+)-(?P<digest>[0-9a-f]{64})\.arrow")
_METADATA_KEY = b"mblm"


@dataclass(frozen=True)
class SoftLabels:
    """Raw logits of N examples, C classes in the teacher's order.

    Attributes:
        ids: Example ids, Arrow array of type ``ID_TYPE``, length N.
        logits: float32, shape ``(N, C)``.
    """

    ids: pa.FixedSizeBinaryArray
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, parts: list[Self], *, n_classes: int) -> Self:
        """Put parts one behind the other; no parts give zero examples."""
        return cls(
            pa.concat_arrays([part.ids for part in parts] or [pa.array([], type=ID_TYPE)]),
            np.concatenate([np.empty((0, n_classes), np.float32), *(p.logits for p in parts)]),
        )

    def positions(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.int64]:
        """Find ids.

        Returns:
            For each id its position here, -1 where it is absent; int64, shape ``(len(ids),)``.
        """
        found = pc.index_in(ids, value_set=self.ids).fill_null(-1)
        return np.asarray(found, np.int64)


def write_shard(folder: Path, soft_labels: SoftLabels, *, producer: Producer) -> str:
    """Write a shard so that it exists whole or not at all.

    The bytes go to a temporary name, to the disk, and only then to the shard's own name. Two writers of
    the same bytes choose the same name, and either file may win.

    Returns:
        The shard's file name.

    Raises:
        NotFiniteError: A logit is NaN or infinite.
    """
    n_broken = int((~np.isfinite(soft_labels.logits)).any(axis=1).sum())
    if n_broken:
        raise NotFiniteError(str(folder), n_broken)
    data = _encode(soft_labels, producer)
    name = f"{len(soft_labels)}-{hashlib.sha256(data).hexdigest()}.arrow"
    write_atomically(folder / name, data)
    return name


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is never seen half-written, and is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_shard(path: Path) -> bool:
    """Tell whether a file has a shard's name; whether it is one, `read_shard` finds out."""
    return _NAME.fullmatch(path.name) is not None


def read_shard(path: Path, *, producer_id: str) -> SoftLabels:
    """Read a shard and check everything that its name and its producer promise.

    Args:
        path: A file for which `is_shard` holds.
        producer_id: Who must have written it.

    Raises:
        DamagedShardError: The bytes are not those that the name's digest was made from, or they are not a
            shard of this producer.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise DamagedShardError(path, "its name is not a shard's")
    data = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")
    if hashlib.sha256(data).hexdigest() != name["digest"]:
        raise DamagedShardError(path, "its content does not match the digest in its name")
    try:
        table = pa.ipc.open_file(data).read_all().combine_chunks()
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        written_by, version = metadata["producer"], metadata["schema"]
        n_classes = len(metadata["classes"])
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DamagedShardError(path, f"it is not a shard: {error}") from error
    if version != SCHEMA_VERSION:
        raise DamagedShardError(path, f"schema version {version}, this is {SCHEMA_VERSION}")
    if written_by != producer_id:
        raise DamagedShardError(path, f"it belongs to producer {written_by}")
    if not table.schema.equals(_schema(n_classes)) or table.num_rows != int(name["rows"]):
        raise DamagedShardError(path, "its columns or its row count are not a shard's")
    ids = table["example_id"].combine_chunks()
    values = table["logits"].combine_chunks()
    if ids.null_count or values.null_count or values.flatten().null_count:
        raise DamagedShardError(path, "it holds nulls")
    logits = values.flatten().to_numpy().reshape(-1, n_classes)
    if not np.isfinite(logits).all():
        raise DamagedShardError(path, "it holds NaN or infinite logits")
    return SoftLabels(ids, logits)


def _schema(n_classes: int) -> pa.Schema:
    return pa.schema({"example_id": ID_TYPE, "logits": pa.list_(pa.float32(), n_classes)})


def _encode(soft_labels: SoftLabels, producer: Producer) -> memoryview:
    n_classes = len(producer.classes)
    logits = np.ascontiguousarray(soft_labels.logits, np.float32)
    if logits.shape != (len(soft_labels), n_classes):
        raise ValueError(f"logits {logits.shape} for {len(soft_labels)} ids, {n_classes} classes")
    metadata = {"schema": SCHEMA_VERSION, "producer": producer.id, "classes": producer.classes}
    schema = _schema(n_classes).with_metadata(
        {_METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)}
    )
    values = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), n_classes)
    table = pa.Table.from_arrays([soft_labels.ids, values], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())
