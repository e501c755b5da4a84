"""A soft-label set: exactly the soft labels of one data set in one language, as stage two reads them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.errors import (
    CacheError,
    ManifestError,
    MissingSoftLabelsError,
    ProducerError,
    StoreError,
    UnreadableError,
)
from cache.folder import Folder, is_temporary, write_atomically
from cache.identity.digests import canonical_json
from cache.identity.producer import Producer
from cache.lookup import Lookup
from cache.schema import SCHEMA_VERSION, require_known_schema
from cache.shards import ShardName, read_shard, write_shard
from cache.soft_labels import SoftLabels
from cache.top_k import TopKChange

MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 24  # bytes: 160,000 shards
_SHARD_BYTES = 1 << 24  # few files for DVC, little memory for those who write and read them


@dataclass(frozen=True)
class SoftLabelSet:
    """The soft labels of one language, by their manifest.

    Attributes:
        folder: Where it lies.
        language: Whose examples it labels.
        producers: The teachers that wrote it: one, or one for each fold of the examples.
        shards: Names of its shards, and the producer of each.
        top_k_change: What top-k changes in a student's training; None where all logits are kept, or where it
            was not measured.
        letter_bias: What `find` adds to the C logits of a teacher behind HTTP; None: nothing.
        terms: What was said of who answered behind HTTP, such as the licence.
    """

    folder: Path
    language: str
    producers: list[Producer]
    shards: dict[str, Producer]
    top_k_change: TopKChange | None = None
    letter_bias: NDArray[np.float32] | None = None
    terms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        language: str,
        parts: Sequence[tuple[Producer, SoftLabels]],
        top_k_changes: Mapping[str, TopKChange] | None = None,
        letter_bias: Sequence[float] | None = None,
        terms: Mapping[str, str] | None = None,
        format_: str = "arrow",
    ) -> None:
        """Write a set in place of the one that lies there.

        The manifest is replaced last but for the old shards, so what interrupts this leaves the old set or
        the new one. Two writers at once leave one of their sets, or one that `read` refuses.

        Args:
            folder: Where to.
            language: Of the examples.
            parts: Each producer's soft labels; no example is in two of them.
            top_k_changes: What top-k changes, by producer id, where it was measured.
            letter_bias: Of a teacher behind HTTP, to be added to its C logits; they are written as they are.
            terms: What was said of who answered behind HTTP.
            format_: ``arrow`` or ``zarr``.
        """
        producers = []
        for producer, soft_labels in parts:
            row_bytes = 16 + sum(values[:1].nbytes for values in soft_labels.columns.values())
            step = max(1, _SHARD_BYTES // row_bytes)
            try:
                shards = [
                    write_shard(
                        Folder(folder),
                        soft_labels.take(slice(start, start + step)),
                        producer=producer,
                        format_=format_,
                    )
                    for start in range(0, len(soft_labels), step)
                ]
            except FileNotFoundError as error:  # to that process it was what a killed one had left
                raise StoreError(
                    f"another process writes to {folder}, too; run the same command again"
                ) from error
            change = (top_k_changes or {}).get(producer.id)
            measured: dict[str, Any] = {"top_k_change": change.encode()} if change else {}
            measured |= {"letter_bias": list(letter_bias)} if letter_bias is not None else {}
            measured |= {"terms": dict(terms)} if terms else {}
            producers.append({"id": producer.id, "facts": producer.facts, "shards": shards, **measured})
        manifest = {
            "schema": SCHEMA_VERSION,
            "language": language,
            "examples": sum(len(soft_labels) for _, soft_labels in parts),
            "producers": producers,
        }
        write_atomically(folder / MANIFEST, canonical_json(manifest))
        written = {name for entry in producers for name in entry["shards"]}
        for path in folder.iterdir():
            old = ShardName.parse(path.name) is not None and path.name not in written
            if old or is_temporary(path.name):
                path.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path, *, language: str) -> Self:
        """Read a set's manifest and check that what it names is there.

        Args:
            folder: Where `write` put it.
            language: Whose examples it must label.

        Raises:
            ManifestError: There is no manifest, or it does not match what lies beside it.
            UnreadableError: It cannot be read now, or a newer version wrote it.
        """

        def refuse(reason: str) -> ManifestError:
            return ManifestError(folder=str(folder), language=language, reason=reason)

        try:
            manifest = _load(folder / MANIFEST)
            n_examples, found_language = manifest["examples"], manifest["language"]
            entries = manifest["producers"]
            producers = [Producer(entry["facts"]) for entry in entries]
            shards = {
                str(name): producer
                for producer, entry in zip(producers, entries, strict=True)
                for name in entry["shards"]
            }
            ids = [entry["id"] for entry in entries]
            changes = [TopKChange.decode(entry.get("top_k_change")) for entry in entries]
            kinds = [(producer.classes, producer.columns) for producer in producers]
            first = entries[0] if entries else {}  # a teacher behind HTTP is the only producer
            bias, terms = _letter_bias(first, kinds), dict(first.get("terms", {}))
        except FileNotFoundError:
            raise refuse("there are no soft labels") from None
        except (AttributeError, KeyError, ProducerError, RecursionError, TypeError, ValueError) as error:
            raise refuse(f"the manifest is not readable ({error!r})") from error
        if found_language != language:
            raise refuse(f"the soft labels are of language '{found_language}'")
        if [producer.id for producer in producers] != ids:
            raise refuse("a producer id of the manifest is not that of its facts")
        if not kinds or any(kind != kinds[0] for kind in kinds):
            raise refuse("its producers do not fit together")
        rows = _rows_by_shard(folder)
        n_found = 0
        for name in shards:
            if name not in rows:
                raise refuse(f"shard {name} of the manifest is not there")
            n_found += rows[name]
        if n_found != n_examples:
            raise refuse(f"{n_found} soft labels where the manifest says {n_examples}")
        known = [change for change in changes if change]
        change = reduce(add, known) if len(known) == len(entries) else None
        return cls(folder, language, producers, shards, change, bias, terms)

    @property
    def classes(self) -> list[str]:
        """The C class names, in the order of the logits."""
        return self.producers[0].classes

    def join(self, ids: pa.FixedSizeBinaryArray) -> SoftLabels:
        """Give the soft labels of examples, in their order.

        Args:
            ids: N example ids in any order, repeated as often as wanted.

        Raises:
            ManifestError: A shard is damaged.
            UnreadableError: A shard cannot be read now, or a newer version wrote it.
            MissingSoftLabelsError: An example has no soft label.
        """
        has, soft_labels = self.find(ids)
        n_missing = int(np.count_nonzero(~has))
        if n_missing:
            raise MissingSoftLabelsError(
                language=self.language, missing=n_missing, total=len(ids), folder=str(self.folder)
            )
        return soft_labels

    def find(self, ids: pa.FixedSizeBinaryArray) -> tuple[NDArray[np.bool_], SoftLabels]:
        """Give the soft labels of those examples that have one, with `letter_bias` added.

        The shards are read and checked one after the other; no more than one is in memory.

        Args:
            ids: N example ids in any order, repeated as often as wanted.

        Returns:
            Which have one, shape ``(N,)``, and the soft labels of these, in their order.

        Raises:
            ManifestError: A shard is damaged.
            UnreadableError: A shard cannot be read now, or a newer version wrote it.
        """
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        lookup = Lookup(ids)
        for name, producer in self.shards.items():
            try:
                lookup.fill(read_shard(Folder(self.folder), name, producer=producer))
            except UnreadableError:
                raise  # to write the soft labels again is no answer to it
            except (CacheError, OSError, ValueError) as error:
                raise ManifestError(
                    folder=str(self.folder), language=self.language, reason=str(error)
                ) from error
        has = lookup.found
        soft_labels = lookup.soft_labels() if has.all() else lookup.some(has)
        if self.letter_bias is not None:
            columns = {"logits": soft_labels.logits + self.letter_bias}
            soft_labels = replace(soft_labels, columns=columns)
        return has, soft_labels


def _letter_bias(
    entry: Mapping[str, Any], kinds: Sequence[tuple[list[str], Any]]
) -> NDArray[np.float32] | None:
    """Read a manifest's correction.

    Raises:
        ValueError: It is none of C classes.
    """
    if entry.get("letter_bias") is None:
        return None
    bias = np.array(entry["letter_bias"], np.float32)
    if bias.shape != (len(kinds[0][0]),) or not np.isfinite(bias).all():
        raise ValueError(f"letter_bias is {entry['letter_bias']}")
    return bias


def _load(path: Path) -> Any:
    """Read a manifest, unless it or the facts in it are of a newer version."""
    manifest = json.loads(Folder(path.parent).read(path.name, limit=_MAX_MANIFEST))
    require_known_schema(str(path), manifest)
    for producer in manifest["producers"]:
        require_known_schema(str(path), producer["facts"])
    return manifest


def _rows_by_shard(folder: Path) -> dict[str, int]:
    entries = Folder(folder).list().items()
    parsed = {name: ShardName.parse(name) for name, entry in entries if not entry.is_folder}
    return {name: shard.rows for name, shard in parsed.items() if shard is not None}
