"""What a language's teachers say: their soft labels, read and compared with the hard ones."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import Producer, file_digest
from stages.artifacts import SILVER_LABELS, SOFT_LABELS
from stages.data.classes import ClassOrder, weigh_class_order
from stages.data.examples import SPLITS, has_split, read_asked, read_examples, taught_splits
from stages.data.task import Split, TaskParams
from stages.page.result import Result
from stages.results.measures import confusion, entropy, fit_temperature, probabilities
from stages.results.teachers import OneSays, Teachers, require_some, said_by


class LabelSet(NamedTuple):
    """One teacher's soft labels of a language.

    Attributes:
        name: Where they lie under ``artifacts/soft_labels``.
        title: What the teacher is called for people.
        producers: Who wrote them: one, or one for each fold.
        manifest: Sha256 of the set's manifest.
        n_labels: How many there are: one for each distinct text.
        n_asked: Examples that may teach the student, and are for this teacher.
        n_bytes: Of its shards.
        order: What the labelled examples say of the declared class order; None where none has its label.
        terms: What was said of who answered behind HTTP, such as the licence.
    """

    name: str
    title: str
    producers: list[Producer]
    manifest: str
    n_labels: int
    n_asked: int
    n_bytes: int
    order: ClassOrder | None
    terms: Mapping[str, str]


class Taught(NamedTuple):
    """A language's teachers and what they say together: the average of their probabilities.

    Attributes:
        sets: The soft labels of each.
        has_test: Which test examples have soft labels, shape ``(N,)``.
        test: On these; None where there are none.
        accuracy: By split, of those with soft labels.
        coverage: By split, the share of examples that have soft labels, in [0, 1].
        entropy: Mean over the training split, in bits: what soft labels say beyond one class.
        outside: The share of probability that imported soft labels give to no class; None: nobody can tell.
    """

    sets: list[LabelSet]
    has_test: NDArray[np.bool_]
    test: Result | None
    accuracy: dict[Split, float]
    coverage: dict[Split, float]
    entropy: float
    outside: float | None


class Silver(NamedTuple):
    """What a zero-shot language has in the place of a teacher.

    All texts that have soft labels, also those that `student.distill` leaves out.

    Attributes:
        titles: What the teachers are called for people.
        producers: Who wrote their soft labels, by whole ids.
        n_texts: How many texts without labels they labelled.
        confidence: Mean probability of these texts' most probable class, in [0, 1].
        accuracy: On the test split, where they labelled all of it.
    """

    titles: list[str]
    producers: list[str]
    n_texts: int
    confidence: float
    accuracy: float | None


def read_silver(task: TaskParams, teachers: Teachers, language: str) -> Silver:
    """Read what teachers say of a zero-shot language's texts.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers.<language>`.
        language: One of the zero-shot ones with teachers.

    Raises:
        StageError: The data is not there, or a teacher's classes are not the task's.
        CacheError: The soft labels are not there or not readable.
    """
    said = said_by(task, teachers, language, taught_splits(task, language), folder=SILVER_LABELS)
    accuracy = None
    if has_split(language, "test"):
        of_test = said_by(task, teachers, language, ["test"], folder=SILVER_LABELS)
        labels = read_examples(task, language, "test")["label"].to_numpy()
        if of_test.has.all():
            accuracy = float((of_test.together().argmax(axis=1) == labels).mean())
    together = said.together()
    return Silver(
        titles=[one.title for one in teachers.all],
        producers=[producer.id for one in said.each for producer in one.label_set.producers],
        n_texts=len(together),
        confidence=float(probabilities(together).max(axis=1).mean()),
        accuracy=accuracy,
    )


def read_taught(task: TaskParams, teachers: Teachers, language: str) -> Taught:
    """Read the soft labels of a language, and compare them with the hard ones.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers.<language>`.
        language: One of the supervised ones.

    Raises:
        StageError: The data is not there, or a teacher's classes are not the task's.
        CacheError: The soft labels are not there or not readable.
    """
    tables = {split: read_examples(task, language, split) for split in SPLITS}
    labels = np.concatenate([table["label"].to_numpy() for table in tables.values()])
    said = said_by(task, teachers, language, SPLITS)
    taught = taught_splits(task, language)
    asked = read_asked(language, taught, [teacher.name for teacher in teachers.all])
    n_taught = sum(read_examples(task, language, split).num_rows for split in taught)
    n_asked = [n_taught] * len(said.each) if asked is None else asked.sum(axis=1).tolist()
    sets = [
        _label_set(task, one, teacher.title, labels, n)
        for one, teacher, n in zip(said.each, teachers.all, n_asked, strict=True)
    ]
    outside = [share for one in said.each if (share := one.outside()) is not None]
    ends = np.cumsum([table.num_rows for table in tables.values()])[:-1]
    has = dict(zip(SPLITS, np.split(said.has, ends), strict=True))
    parts = dict(zip(SPLITS, np.split(said.together(), np.cumsum(said.has)[ends - 1]), strict=True))
    by_split = {
        split: Result(tables[split].filter(pa.array(has[split])), part.astype(np.float64))
        for split, part in parts.items()
        if len(part)
    }
    require_some(has["train"], language)
    temperature = 1.0
    if "validation" in by_split:
        temperature = fit_temperature(parts["validation"], by_split["validation"].labels)
    return Taught(
        sets=sets,
        has_test=has["test"],
        test=replace(by_split["test"], temperature=temperature) if "test" in by_split else None,
        accuracy={split: result.accuracy for split, result in by_split.items()},
        coverage={split: float(of_split.mean()) for split, of_split in has.items()},
        entropy=float(entropy(by_split["train"].probabilities()).mean()),
        outside=float(np.mean(outside)) if outside else None,
    )


def _label_set(
    task: TaskParams, one: OneSays, title: str, labels: NDArray[np.int32], n_asked: int
) -> LabelSet:
    """Describe one teacher's soft labels.

    Args:
        task: Section `task`.
        one: What the teacher says of N labelled examples.
        title: What it is called.
        labels: Their hard labels, shape ``(N,)``.
        n_asked: How many examples that may teach are for it.
    """
    manifest = one.folder / "manifest.json"
    order = None
    if one.has.any():
        predicted = one.logits[one.has].argmax(axis=1)
        counts = confusion(labels[one.has], predicted, n_classes=len(task.classes))
        order = weigh_class_order(counts.T)
    return LabelSet(
        name=one.folder.relative_to(SOFT_LABELS).as_posix(),
        title=title,
        producers=one.label_set.producers,
        manifest=file_digest(manifest),
        n_labels=json.loads(manifest.read_text(encoding="utf-8"))["examples"],
        n_asked=n_asked,
        n_bytes=sum((one.folder / name).stat().st_size for name in one.label_set.shards),
        order=order,
        terms=one.label_set.terms,
    )
