"""Stage one in processes of its own, which tests kill, or let run at once."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import ROOT, tiny_params, write_params
from warm import warm_python

from cache import Producer, SoftLabelSet, Store
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS, TEACHERS
from stages.data.examples import SPLITS, read_examples
from stages.teacher.label import Labelled, label
from stages.teacher.labelling.identity import producer_of

# Processes are forked from one that has imported everything, and so start in milliseconds; itself, too.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("processes", "pandas", "stages.teacher.labelling.inference"),
        "transformers.models.roberta.modeling_roberta",
    ]
)


def fork(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function of a test module in a process of its own."""
    process = FORKS.Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        FORKS.set_executable(warm_python())
        process.start()
    return process


def let_teacher_speak() -> None:
    """Let the teacher in the current folder give each text logits of its own, two texts to a shard.

    As it is, it has seen so little that it says nearly the same of all.
    """
    path = TEACHERS / "de/model.safetensors"
    weights = {name: value * (20 if value.ndim == 2 else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    params = tiny_params()
    params["teacher"]["label"] |= {"batch_tokens": 16, "shard_examples": 2}
    write_params(params)


def label_here(root: Path) -> Labelled:
    """Run stage one in the current folder."""
    params = load_params(Path("params.yaml"))
    return label(params.task, params.teachers["de"], params.teacher.label, str(root), "de")


def label_in(folder: Path, root: Path) -> None:
    """Run stage one in another folder."""
    os.chdir(folder)
    label_here(root)


@dataclass(frozen=True)
class Alone:
    """What stage one gives in the current folder when nothing disturbs it.

    Attributes:
        ids: Of the examples.
        logits: Their soft labels, shape ``(N, C)``.
        producer: The teacher.
    """

    ids: pa.FixedSizeBinaryArray
    logits: NDArray[np.float32]
    producer: Producer

    @classmethod
    def run(cls, root: Path) -> "Alone":
        """Label everything with a new store."""
        label_here(root)
        params = load_params(Path("params.yaml"))
        tables = [read_examples(params.task, "de", split) for split in SPLITS]
        ids = pa.concat_arrays([table["example_id"].combine_chunks() for table in tables])
        producer = producer_of(TEACHERS / "de", params.task, params.teacher.label)
        return cls(ids, SoftLabelSet.read(SOFT_LABELS / "de", language="de").join(ids).logits, producer)

    def __len__(self) -> int:
        return len(self.ids)

    def require_same_set(self, folder: Path) -> None:
        """Check the soft-label set of a folder."""
        found = SoftLabelSet.read(folder / SOFT_LABELS / "de", language="de").join(self.ids)
        np.testing.assert_allclose(found.logits, self.logits, atol=1e-4)

    def ids_in(self, root: Path) -> list[bytes]:
        """Read the whole store, of which nothing may be damaged or foreign; an id as often as it is there."""
        store = Store(root, self.producer)
        ids = [id_ for _, found in store.read(store.shards()) for id_ in found.ids.to_pylist()]
        assert store.damaged == {}
        assert store.foreign() == []
        return ids
