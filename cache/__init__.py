"""Soft labels on disk: the store that everybody shares, and the soft-label sets that stage two reads.

The format, readable with pyarrow alone. A folder holds immutable shards:

    store            <root>/<producer id>/producer.json and shards
    soft-label set   <folder>/manifest.json and shards

A shard is one Arrow IPC file called ``<rows>-<sha256 of the file, hex>.arrow`` with the columns

    example_id   fixed_size_binary(16)            blake2b-128 of the text fields, each preceded by its
                                                  length in bytes (8 bytes, little-endian)
    logits       fixed_size_list<float32>[C]      raw, in the teacher's class order

and the schema metadata ``mblm``: JSON with ``schema`` (1), ``producer`` (id) and ``classes`` (C names).
It is written under a temporary name that begins with a dot, flushed to disk and renamed: a file with a
shard's name is complete, and one whose bytes do not give its name is damaged. Nothing else is needed to
read a folder, and any number of processes may add shards to it at once. The same example in two shards is
harmless: both hold the logits of the same producer.

``producer.json`` holds the facts that decide a logit besides the text (digests of weights and tokenizer,
model config, text fields, truncation, dtype); the producer id is the sha256 of their canonical JSON (sorted
keys, no spaces, UTF-8). ``manifest.json`` holds ``schema``, ``language``, ``examples`` (a count) and
``producers``: for each its ``id``, ``facts`` and the names of its ``shards``. Shards that the manifest does
not name are no part of the set.
"""

from cache.errors import (
    CacheError,
    DamagedShardError,
    ManifestError,
    MissingSoftLabelsError,
    NotFiniteError,
    ProducerError,
)
from cache.identity import ID_TYPE, Producer, canonical_json, example_id, example_ids, file_digest
from cache.shards import SoftLabels, write_atomically
from cache.softlabels import SoftLabelSet
from cache.store import Store, store_root

__all__ = [
    "ID_TYPE",
    "CacheError",
    "DamagedShardError",
    "ManifestError",
    "MissingSoftLabelsError",
    "NotFiniteError",
    "Producer",
    "ProducerError",
    "SoftLabelSet",
    "SoftLabels",
    "Store",
    "canonical_json",
    "example_id",
    "example_ids",
    "file_digest",
    "store_root",
    "write_atomically",
]
