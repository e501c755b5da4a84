"""A soft-label set: exactly the soft labels of one data set in one language, as stage two reads them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from cache.errors import CacheError, ManifestError, MissingSoftLabelsError
from cache.files import Folder, is_temporary, write_atomically
from cache.identity import SCHEMA_VERSION, Producer, canonical_json
from cache.lookup import Lookup
from cache.shards import ShardName, read_shard, write_shard
from cache.soft_labels import SoftLabels

MANIFEST = "manifest.json"
_SHARD_BYTES = 1 << 24  # few files for DVC, little memory for those who write and read them


@dataclass(frozen=True)
class SoftLabelSet:
    """The soft labels of one language, by their manifest.

    Attributes:
        folder: Where it lies.
        language: Whose examples it labels.
        producer: The teacher that wrote it.
        shards: Names of its shards.
    """

    folder: Path
    language: str
    producer: Producer
    shards: list[str]

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        language: str,
        producer: Producer,
        soft_labels: SoftLabels,
        format_: str = "arrow",
    ) -> None:
        """Write a set in place of the one that lies there.

        The manifest is replaced last but for the old shards, so what interrupts this leaves the old set or
        the new one. Two writers at once leave one of their sets, or one that `read` refuses.
        """
        row_bytes = 16 + sum(values[:1].nbytes for values in soft_labels.columns.values())
        step = max(1, _SHARD_BYTES // row_bytes)
        shards = [
            write_shard(
                Folder(folder),
                soft_labels.take(slice(start, start + step)),
                producer=producer,
                format_=format_,
            )
            for start in range(0, len(soft_labels), step)
        ]
        manifest = {
            "schema": SCHEMA_VERSION,
            "language": language,
            "examples": len(soft_labels),
            "producers": [{"id": producer.id, "facts": producer.facts, "shards": shards}],
        }
        write_atomically(folder / MANIFEST, canonical_json(manifest))
        for path in folder.iterdir():
            old = ShardName.parse(path.name) is not None and path.name not in shards
            if old or is_temporary(path.name):
                path.unlink()

    @classmethod
    def read(cls, folder: Path, *, language: str) -> Self:
        """Read a set's manifest and check that what it names is there.

        Args:
            folder: Where `write` put it.
            language: Whose examples it must label.

        Raises:
            ManifestError: There is no manifest, or it does not match what lies beside it.
        """

        def refuse(reason: str) -> ManifestError:
            return ManifestError(folder=str(folder), language=language, reason=reason)

        try:
            data = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise refuse("there are no soft labels") from None
        try:
            manifest: dict[str, Any] = json.loads(data)
            (entry,) = manifest["producers"]
            producer = Producer(entry["facts"])
            names = {str(name): ShardName.parse(str(name)) for name in entry["shards"]}
            n_examples, found_language = manifest["examples"], manifest["language"]
            producer_id, _ = entry["id"], producer.columns
        except (AttributeError, CacheError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise refuse(f"the manifest is not readable ({error!r})") from error
        if found_language != language:
            raise refuse(f"the soft labels are of language '{found_language}'")
        if producer.id != producer_id:
            raise refuse("the manifest's producer id is not that of its facts")
        n_found = 0
        for name, parsed in names.items():
            if parsed is None or not (folder / name).is_file():
                raise refuse(f"shard {name} of the manifest is not there")
            n_found += parsed.rows
        if n_found != n_examples:
            raise refuse(f"{n_found} soft labels where the manifest says {n_examples}")
        return cls(folder, language, producer, list(names))

    def join(self, ids: pa.FixedSizeBinaryArray) -> SoftLabels:
        """Give the soft labels of examples, in their order.

        The shards are read and checked one after the other; no more than one is in memory.

        Args:
            ids: N example ids in any order, repeated as often as wanted.

        Raises:
            ManifestError: A shard is damaged.
            MissingSoftLabelsError: An example has no soft label.
        """
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        lookup = Lookup(ids)
        for name in self.shards:
            try:
                lookup.fill(read_shard(Folder(self.folder), name, producer=self.producer))
            except (CacheError, OSError, ValueError) as error:
                raise ManifestError(
                    folder=str(self.folder), language=self.language, reason=str(error)
                ) from error
        n_missing = int(np.count_nonzero(~lookup.found))
        if n_missing:
            raise MissingSoftLabelsError(
                language=self.language, missing=n_missing, total=len(ids), folder=str(self.folder)
            )
        return lookup.soft_labels()
