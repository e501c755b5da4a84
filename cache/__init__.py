"""Soft labels on disk: the store that everybody shares, and the soft-label sets that stage two reads.

The format, readable with pyarrow or zarr alone. A folder, here or on an object store, holds immutable shards:

    store            <root>/<producer id>/producer.json, last_use.json and shards
    soft-label set   <folder>/manifest.json and shards

A shard is called ``<rows>-<sha256 of the file, hex>.<extension>``. It is an Arrow IPC file with one
uncompressed record batch (``arrow``), or a Zarr v3 group in an uncompressed zip file (``zarr.zip``) with one
array per column, one chunk per array, no codec but ``bytes``, and ids as ``uint8 (N, 16)``. The columns, C
classes:

    example_id         fixed_size_binary(16)            blake2b-128 of the text fields, each preceded by
                                                        its length in bytes (8 bytes, little-endian)
    logits             fixed_size_list<float32>[C]      raw, in the teacher's class order; or float16
    hidden             fixed_size_list<float16>[H]      last state of the first token; where asked for;
                                                        ``hidden_token`` among the facts: of that token,
                                                        or what the teacher pools

or, where only the k largest logits are kept, in place of ``logits``:

    top_classes        fixed_size_list<uint16>[k]       indices of the classes, largest logit first
    top_logits         fixed_size_list<float32>[k]      their logits; or float16
    log_sum_exp_rest   float32                          log-sum-exp of all other logits

The metadata ``mblm`` of Arrow's schema (JSON) or of Zarr's group holds ``schema`` (1), ``producer`` (id) and
``classes`` (C names); in a store also ``made_with``, records of libraries and devices that computed it, which
decide nothing. A file with a shard's name is complete; one whose bytes do not give its name is
damaged, one that cannot be read is not. A higher ``schema``, which facts and manifests have too, is a newer
version's: who does not know it leaves the file alone. Nothing else is needed to read a folder, and any number
of processes may add shards to it at once. The same example in two shards is harmless: both are of the same
producer.

``producer.json`` holds the facts that decide a logit besides the text (digests of weights and tokenizer,
model config, text fields, truncation, dtype, outputs); the producer id is the sha256 of their canonical JSON
(sorted keys, no spaces, UTF-8). Where ``imported`` is among them, nobody here computed the logits: it says
who is said to have made them, and out of what. Where ``endpoint`` is, it says how a server was asked, and
``endpoint.json`` which servers answered, and how well (``cache/endpoint_notes.py``). ``name.json`` holds what
people call the producer in this store, ``last_use.json`` says who used it last, for people and for
``cache gc``. ``damaged/`` holds what ``cache repair`` set aside, as it was, under its name or with a number
behind it.
``manifest.json`` holds ``schema``, ``language``, ``examples`` (a count) and ``producers``: for each its
``id``, ``facts`` and the names of its ``shards``, and ``top_k_change``, as in a store's ``top_k.json``: what
keeping k logits changes (``cache/top_k.py``); ``letter_bias``, C numbers that readers add to the logits; and
``terms``, what is said of who answered. Shards that the manifest does not name are no part of the set.
"""

from cache.endpoint_notes import EndpointNotes
from cache.errors import (
    CacheError,
    DamagedShardError,
    ManifestError,
    MissingSoftLabelsError,
    NotFiniteError,
    ProducerError,
    StoreError,
    UnreadableError,
    UnwritableError,
)
from cache.folder import write_atomically
from cache.identity.columns import Outputs
from cache.identity.digests import canonical_json, file_digest
from cache.identity.example_id import ID_TYPE, example_id, example_ids
from cache.identity.model_files import MODEL_FILES
from cache.identity.producer import Producer
from cache.lookup import Index, Lookup
from cache.soft_label_set import SoftLabelSet
from cache.soft_labels import SoftLabels, id_words
from cache.store import Store, store_root
from cache.top_k import TopKChange

__all__ = [
    "ID_TYPE",
    "MODEL_FILES",
    "CacheError",
    "DamagedShardError",
    "EndpointNotes",
    "Index",
    "Lookup",
    "ManifestError",
    "MissingSoftLabelsError",
    "NotFiniteError",
    "Outputs",
    "Producer",
    "ProducerError",
    "SoftLabelSet",
    "SoftLabels",
    "Store",
    "StoreError",
    "TopKChange",
    "UnreadableError",
    "UnwritableError",
    "canonical_json",
    "example_id",
    "example_ids",
    "file_digest",
    "id_words",
    "store_root",
    "write_atomically",
]
