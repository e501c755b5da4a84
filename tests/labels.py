"""Soft labels of a producer that no model stands behind, for the tests of what is on disk."""

from pathlib import Path
from typing import Any

import numpy as np

from cache import Outputs, Producer, SoftLabels, example_id, example_ids
from cache.shards import _FORMATS

CLASS_NAMES = ["a", "b", "c"]
FORMATS = tuple(_FORMATS)


def producer(*, outputs: Outputs | None = None, n_classes: int = 3, **facts: Any) -> Producer:
    outputs = outputs or Outputs()
    names = CLASS_NAMES if n_classes == 3 else [f"class {i}" for i in range(n_classes)]
    id2label = {str(i): name for i, name in enumerate(names)}
    if outputs.dtype != "float32":
        facts["logits_dtype"] = outputs.dtype
    if outputs.top_k is not None:
        facts["top_k"] = outputs.top_k
    kept = ["logits", "hidden"] if outputs.hidden else ["logits"]
    return Producer({"schema": 1, "outputs": kept, "config": {"id2label": id2label}, **facts})


def texts(n: int, first: int = 0) -> list[str]:
    return [f"text {first + i}" for i in range(n)]


def soft_labels(of: list[str], *, outputs: Outputs | None = None, n_classes: int = 3) -> SoftLabels:
    """Give each text logits, and a hidden state of 5 numbers, that are always the same."""
    outputs = outputs or Outputs()
    seeds = [int.from_bytes(example_id(text)[:4], "big") for text in of]
    numbers = np.stack([np.random.default_rng(seed).normal(size=n_classes + 5) for seed in seeds])
    logits, hidden = np.split(numbers.astype(np.float32), [n_classes], axis=1)
    return SoftLabels.pack(example_ids([of]), logits, hidden if outputs.hidden else None, outputs=outputs)


def shard_files(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("*.arrow"), *folder.rglob("*.zarr.zip")])


def only_shard(folder: Path) -> Path:
    (path,) = shard_files(folder)
    return path
