"""What a language's teachers say: their soft labels, read and compared with the hard ones."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cache import Producer, SoftLabelSet, file_digest
from stages.artifacts import SOFT_LABELS, of_each_teacher
from stages.data.classes import ClassOrder, match_classes, weigh_class_order
from stages.data.examples import SPLITS, read_examples, taught_splits
from stages.data.task import Split, TaskParams
from stages.page.result import Result
from stages.results.averages import average_teachers
from stages.results.measures import confusion, entropy, fit_temperature


class LabelSet(NamedTuple):
    """One teacher's soft labels of a language.

    Attributes:
        name: Where they lie under ``artifacts/soft_labels``.
        producers: Who wrote them: one, or one for each fold.
        manifest: Sha256 of the set's manifest.
        n_labels: How many there are: one for each distinct text.
        n_bytes: Of its shards.
        order: What the labelled examples say of the declared class order.
    """

    name: str
    producers: list[Producer]
    manifest: str
    n_labels: int
    n_bytes: int
    order: ClassOrder


class Taught(NamedTuple):
    """A language's teachers and what they say together: the average of their probabilities.

    Attributes:
        sets: The soft labels of each.
        test: On the test split.
        accuracy: By split.
        entropy: Mean over the training split, in bits: what soft labels say beyond one class.
        n_train: Examples that the student learns from.
    """

    sets: list[LabelSet]
    test: Result
    accuracy: dict[Split, float]
    entropy: float
    n_train: int


def read_taught(task: TaskParams, teachers: Mapping[str, Any], language: str) -> Taught:
    """Read the soft labels of a language, and compare them with the hard ones.

    Args:
        task: Section `task` of params.yaml.
        teachers: The language's part of section `teachers`, as plain values.
        language: One of the supervised ones.

    Raises:
        StageError: The data is not there, or a teacher's classes are not the task's.
        CacheError: The soft labels are not there or not readable.
    """
    tables = {split: read_examples(task, language, split) for split in SPLITS}
    ids = pa.concat_tables(tables.values())["example_id"].combine_chunks()
    labels = np.concatenate([table["label"].to_numpy() for table in tables.values()])
    named = [teachers, *teachers["more"]]
    sets, logits = [], []
    for folder, teacher in zip(of_each_teacher(SOFT_LABELS / language, len(named)), named, strict=True):
        label_set = SoftLabelSet.read(folder, language=language)
        order = match_classes(label_set.classes, task.classes, names=teacher["labels"], language=language)
        logits.append(label_set.join(ids).logits[:, order].astype(np.float64))
        shards = [folder / name for name in label_set.shards]
        sets.append(
            LabelSet(
                name=folder.relative_to(SOFT_LABELS).as_posix(),
                producers=label_set.producers,
                manifest=file_digest(folder / "manifest.json"),
                n_labels=json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["examples"],
                n_bytes=sum(path.stat().st_size for path in shards),
                order=weigh_class_order(
                    confusion(labels, logits[-1].argmax(axis=1), n_classes=len(task.classes)).T
                ),
            )
        )
    ends = np.cumsum([table.num_rows for table in tables.values()])
    parts = dict(zip(SPLITS, np.split(average_teachers(logits), ends[:-1]), strict=True))
    by_split = {split: Result(tables[split], part) for split, part in parts.items()}
    temperature = fit_temperature(parts["validation"], by_split["validation"].labels)
    return Taught(
        sets=sets,
        test=Result(tables["test"], parts["test"], temperature),
        accuracy={split: result.accuracy for split, result in by_split.items()},
        entropy=float(entropy(by_split["train"].probabilities()).mean()),
        n_train=sum(read_examples(task, language, split).num_rows for split in taught_splits(task, language)),
    )
