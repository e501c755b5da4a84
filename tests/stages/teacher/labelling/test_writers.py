"""Several processes label at once into one store, without locks: nothing is lost, torn or done needlessly."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from processes import FORKS, Alone, fork, label_in, let_teacher_speak

from cache import Lookup, SoftLabels, Store
from stages.artifacts import DATA
from stages.data.examples import SPLITS, data_file

N_WRITERS = 4
LOG = "work.jsonl"


def label_and_log(folder: Path, root: Path, all_are_ready: Barrier) -> None:
    """Run stage one, and note of each shard when the store was looked at for it, and when it was there.

    No process begins to label before all have looked at the store, which is empty, and have their teacher.
    """
    from stages.models.batches import Tokens  # slow import: torch
    from stages.teacher.labelling.inference import Answers, Teacher

    load, update, answer, append = Teacher.__init__, Store.update, Teacher.answer, Store.append
    looked: list[int] = []
    begun: list[int] = []

    def load_and_wait(self: Teacher, *arguments: Any) -> None:
        load(self, *arguments)
        all_are_ready.wait(timeout=60)

    def note_look(self: Store, lookup: Lookup) -> None:
        looked[:] = [time.monotonic_ns()]
        update(self, lookup)

    def note_begin(self: Teacher, tokens: Tokens) -> Iterator[Answers]:
        if len(tokens):
            begun.append(looked[-1])
        return answer(self, tokens)

    def note_append(self: Store, soft_labels: SoftLabels, **options: Any) -> str:
        name = append(self, soft_labels, **options)
        line = {"looked": begun.pop(0), "appended": time.monotonic_ns(), "ids": soft_labels.ids.to_pylist()}
        with (folder / LOG).open("a") as log:
            log.write(json.dumps(line, default=bytes.hex) + "\n")
        return name

    patch = pytest.MonkeyPatch()
    patch.setattr(Teacher, "__init__", load_and_wait)
    patch.setattr(Store, "update", note_look)
    patch.setattr(Teacher, "answer", note_begin)
    patch.setattr(Store, "append", note_append)
    label_in(folder, root)


def keep_some(folder: Path, kept: NDArray[np.bool_]) -> None:
    """Leave some of the examples, of all splits in their order, in a working folder."""
    for split in SPLITS:
        path = data_file("de", split, folder / DATA)
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        some, kept = table.filter(pa.array(kept[: len(table)])), kept[len(table) :]
        with pa.ipc.new_file(path, some.schema) as writer:
            writer.write_table(some)


@pytest.mark.parametrize("data", ["the same", "overlapping"])
def test_processes_that_label_at_once_lose_nothing_and_repeat_only_what_they_could_not_know(
    finished: Path, tmp_path: Path, data: str
) -> None:
    let_teacher_speak()
    alone = Alone.run(tmp_path / "alone")
    wanted = np.ones((N_WRITERS, len(alone)), bool)
    if data == "overlapping":
        wanted[np.arange(len(alone)) % N_WRITERS, np.arange(len(alone))] = False
    folders = [tmp_path / f"writer {i}" for i in range(N_WRITERS)]
    for folder, kept in zip(folders, wanted, strict=True):
        shutil.copytree(finished, folder)
        shutil.rmtree(folder / "artifacts/soft_labels")
        keep_some(folder, kept)

    root = tmp_path / "store"
    barrier = FORKS.Barrier(N_WRITERS)
    writers = [fork(label_and_log, folder, root, barrier) for folder in folders]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * N_WRITERS

    in_store = alone.ids_in(root)
    assert set(in_store) == set(alone.ids.to_pylist())
    assert not list(root.rglob("*.tmp"))
    for folder, kept in zip(folders, wanted, strict=True):
        own = replace(alone, ids=alone.ids.filter(pa.array(kept)), logits=alone.logits[kept])
        own.require_same_set(folder)
    logs = [[json.loads(line) for line in (folder / LOG).read_text().splitlines()] for folder in folders]
    for log in logs:
        own_work = [id_ for work in log for id_ in work["ids"]]
        assert 0 < len(own_work) == len(set(own_work))
    for one, other in combinations(logs, 2):
        for a, b in product(one, other):
            if set(a["ids"]) & set(b["ids"]):  # then neither was there yet when the store was looked at
                assert a["looked"] < b["appended"]
                assert b["looked"] < a["appended"]
