"""A soft-label set: exactly the soft labels of one data set in one language, as stage two reads them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.errors import CacheError, ManifestError, MissingSoftLabelsError
from cache.identity import SCHEMA_VERSION, Producer, canonical_json
from cache.shards import SoftLabels, is_shard, read_shard, write_atomically, write_shard

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SoftLabelSet:
    """The soft labels of one language, read and checked.

    Attributes:
        folder: Where it lies.
        language: Whose examples it labels.
        producer: The teacher that wrote it.
        soft_labels: Logits in the teacher's class order, ``producer.classes``.
    """

    folder: Path
    language: str
    producer: Producer
    soft_labels: SoftLabels

    @classmethod
    def write(cls, folder: Path, *, language: str, producer: Producer, soft_labels: SoftLabels) -> None:
        """Write a set in place of the one that lies there.

        The manifest is replaced last but for the old shards, so a reader sees the old set or the new one.
        """
        shard = write_shard(folder, soft_labels, producer=producer)
        manifest = {
            "schema": SCHEMA_VERSION,
            "language": language,
            "examples": len(soft_labels),
            "producers": [{"id": producer.id, "facts": producer.facts, "shards": [shard]}],
        }
        write_atomically(folder / _MANIFEST, canonical_json(manifest))
        for path in folder.iterdir():
            if is_shard(path) and path.name != shard:
                path.unlink()

    @classmethod
    def read(cls, folder: Path, *, language: str) -> Self:
        """Read a set and check it against its manifest.

        Args:
            folder: Where `write` put it.
            language: Whose examples it must label.

        Raises:
            ManifestError: There is no manifest, or it does not match what lies beside it.
            DamagedShardError: A shard's bytes do not match its name.
        """

        def refuse(reason: str) -> ManifestError:
            return ManifestError(folder=folder, language=language, reason=reason)

        try:
            data = (folder / _MANIFEST).read_bytes()
        except FileNotFoundError:
            raise refuse("there are no soft labels") from None
        try:
            manifest: dict[str, Any] = json.loads(data)
            (entry,) = manifest["producers"]
            producer = Producer(entry["facts"])
            shards = [str(name) for name in entry["shards"]]
            n_examples, found_language = manifest["examples"], manifest["language"]
            classes, producer_id = producer.classes, entry["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise refuse(f"the manifest is not readable ({error!r})") from error
        if found_language != language:
            raise refuse(f"the soft labels are of language '{found_language}'")
        if producer.id != producer_id:
            raise refuse("the manifest's producer id is not that of its facts")
        parts = []
        for name in shards:
            path = folder / name
            if path.parent != folder or not is_shard(path) or not path.is_file():
                raise refuse(f"shard {name} of the manifest is not there")
            try:
                parts.append(read_shard(path, producer_id=producer_id))
            except CacheError as error:
                raise refuse(str(error)) from error
        soft_labels = SoftLabels.concatenate(parts, n_classes=len(classes))
        if len(soft_labels) != n_examples:
            raise refuse(f"{len(soft_labels)} soft labels where the manifest says {n_examples}")
        return cls(folder, language, producer, soft_labels)

    def join(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
        """Look up the logits of examples.

        Args:
            ids: N example ids in any order, repeated as often as wanted.

        Returns:
            Raw logits in the teacher's class order, float32, shape ``(N, C)``.

        Raises:
            MissingSoftLabelsError: An example has no soft label.
        """
        positions = self.soft_labels.positions(ids)
        n_missing = int((positions < 0).sum())
        if n_missing:
            raise MissingSoftLabelsError(
                language=self.language, missing=n_missing, total=len(ids), folder=self.folder
            )
        return self.soft_labels.logits[positions]
