"""Stage one: write a teacher's soft labels. Only what is new goes through the teacher.

hash every example → look it up in the store → run the teacher on the misses → append them to the store →
write the soft-label set. The set is all that stage two reads.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from cache import Producer, SoftLabels, SoftLabelSet, Store, store_root, write_atomically
from stages.artifacts import METRICS, SOFT_LABELS, TEACHERS
from stages.base import StageError
from stages.classes import check_class_order, match_classes
from stages.source import model_folder
from stages.task import SPLITS, Split, TaskParams, read_examples
from stages.teacher.params import CacheParams, LabelParams, TeacherParams


@dataclass(frozen=True)
class Labelled:
    """What a run of stage one did.

    Attributes:
        examples: Distinct examples in the soft-label set.
        labelled: Of these, how many went through the teacher now; the others came from the store.
        accuracy: Per split, the share of examples on which the teacher agrees with the hard label.
    """

    examples: int
    labelled: int
    accuracy: dict[str, float]

    def line(self) -> str:
        """Say it in one line."""
        accuracies = ", ".join(f"{split} {value:.1%}" for split, value in self.accuracy.items())
        return (
            f"{self.examples:,} soft labels, {self.labelled:,} of them new; "
            f"the teacher's accuracy: {accuracies}"
        )


def label(
    task: TaskParams,
    teacher: TeacherParams,
    params: LabelParams,
    cache: CacheParams,
    language: str,
) -> Labelled:
    """Write ``artifacts/soft_labels/<language>`` and the teacher's accuracy.

    Raises:
        StageError: The teacher or the data is not there, the teacher's classes are not the task's or are
            evidently in another order, or its logits are not finite.
        CacheError: The store cannot be used.
    """
    splits = {split: read_examples(task, language, split) for split in SPLITS}
    examples = _distinct(pa.concat_tables(splits.values()))
    folder = model_folder(TEACHERS / language, command=f"teacher finetune --language {language}")
    producer = Producer.of_teacher(
        folder, text_fields=task.text_fields, max_tokens=params.max_tokens, dtype=params.precision
    )
    order = match_classes(producer.classes, task.classes, names=teacher.labels, language=language)
    store = Store(store_root(cache.root), producer)
    cached = store.read()
    for damaged in store.damaged:
        tqdm.write(f"{damaged}; its examples are labelled again", file=sys.stderr)
    misses = examples.filter(pa.array(cached.positions(examples["example_id"]) < 0))
    tqdm.write(
        f"{language}: {examples.num_rows - misses.num_rows:,} cached, {misses.num_rows:,} to label",
        file=sys.stderr,
    )
    if misses.num_rows:
        _label_misses(task, params, store, folder, misses, title=f"label '{language}'")
        cached = store.read()
    soft_labels = _select(cached, examples["example_id"])
    accuracy = _check_accuracy(task, soft_labels, order, splits, language)
    SoftLabelSet.write(SOFT_LABELS / language, language=language, producer=producer, soft_labels=soft_labels)
    write_atomically(
        METRICS / "teachers" / f"{language}.json",
        json.dumps({split: {"accuracy": value} for split, value in accuracy.items()}).encode(),
    )
    return Labelled(examples.num_rows, misses.num_rows, accuracy)


def _distinct(examples: pa.Table) -> pa.Table:
    """Keep the first of examples with the same text."""
    positions = pa.array(np.arange(examples.num_rows))
    first = examples.select(["example_id"]).append_column("position", positions)
    first = first.group_by("example_id", use_threads=False).aggregate([("position", "min")])
    return examples.take(first["position_min"].sort())


def _label_misses(
    task: TaskParams,
    params: LabelParams,
    store: Store,
    folder: Path,
    misses: pa.Table,
    *,
    title: str,
) -> None:
    """Run the teacher and append to the store; whatever ends the run, what is computed is kept."""
    from stages.teacher.infer import infer  # slow import: torch

    store.create()
    ids = misses["example_id"].combine_chunks()
    fields = [misses[field].to_pylist() for field in task.text_fields]
    pending: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    n_pending = n_kept = 0
    try:
        for batch in infer(folder, fields, params, title=title):
            pending.append(batch)
            n_pending += len(batch[0])
            if n_pending >= params.shard_examples:
                n_kept += _append(store, ids, pending)
                pending, n_pending = [], 0
    finally:
        if pending:
            n_kept += _append(store, ids, pending)
        if n_kept < len(ids):
            tqdm.write(f"stopped; {n_kept:,} of {len(ids):,} soft labels are kept", file=sys.stderr)


def _append(
    store: Store,
    ids: pa.FixedSizeBinaryArray,
    batches: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> int:
    positions = np.concatenate([positions for positions, _ in batches])
    logits = np.concatenate([logits for _, logits in batches])
    store.append(SoftLabels(ids.take(pa.array(positions)), logits))
    return len(positions)


def _select(cached: SoftLabels, ids: pa.ChunkedArray) -> SoftLabels:
    positions = cached.positions(ids)
    if (positions < 0).any():
        raise StageError("soft labels vanished from the store while they were read; run it again")
    return SoftLabels(ids.combine_chunks(), cached.logits[positions])


def _check_accuracy(
    task: TaskParams,
    soft_labels: SoftLabels,
    order: NDArray[np.int64],
    splits: Mapping[Split, pa.Table],
    language: str,
) -> dict[str, float]:
    predicted = soft_labels.logits[:, order].argmax(axis=1)
    by_split = {
        split: (predicted[soft_labels.positions(table["example_id"])], table["label"].to_numpy())
        for split, table in splits.items()
    }
    check_class_order(
        np.concatenate([p for p, _ in by_split.values()]),
        np.concatenate([hard for _, hard in by_split.values()]),
        classes=task.classes,
        language=language,
    )
    return {split: float((p == hard).mean()) for split, (p, hard) in by_split.items()}
