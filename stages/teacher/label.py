"""Stage one: write a teacher's soft labels. Only what is new goes through the teacher.

hash every example → look it up in the store → run the teacher on the misses → append them to the store →
write the soft-label set. The set is all that stage two reads.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache import Index, Lookup, Producer, SoftLabels, SoftLabelSet, Store, TopKChange, write_atomically
from stages.artifacts import METRICS, SOFT_LABELS, TEACHERS, of_each_fold, of_each_teacher
from stages.data.classes import check_class_order, match_classes
from stages.data.examples import SPLITS
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.models.pins import model_folder
from stages.results.averages import average_teachers
from stages.teacher.folds import Fold
from stages.teacher.labelling.examples import Examples, Part
from stages.teacher.labelling.identity import producer_of
from stages.teacher.labelling.loop import fill, measured_top_k
from stages.teacher.params import LabelParams, OneTeacher, TeacherParams

Engine = Callable[[LabelParams, Store, Path, Examples], tuple[Lookup, int]]
"""What lets a store have all soft labels, as `fill` does on this machine."""


@dataclass(frozen=True)
class Labelled:
    """What a run of stage one did.

    Attributes:
        language: Of the examples.
        examples: Soft labels in the language's sets, one set per teacher.
        labelled: Of these, how many went through a teacher now; the others came from the store.
        accuracy: Per split, the share of examples on which the teacher, or the average of the teachers,
            agrees with the hard label.
    """

    language: str
    examples: int
    labelled: int
    accuracy: dict[str, float]

    def line(self) -> str:
        """Say it in one line."""
        accuracies = ", ".join(f"{split} {value:.1%}" for split, value in self.accuracy.items())
        return (
            f"{self.language}: {self.examples:,} soft labels, {self.labelled:,} of them new; "
            f"the teacher's accuracy: {accuracies}"
        )


@dataclass(frozen=True)
class LabelledPart:
    """What a run of stage one did that had a part of the examples.

    Attributes:
        language: Of the examples.
        part: Which part.
        examples: Soft labels of the part that the store has now.
        labelled: Of these, how many went through a teacher now.
    """

    language: str
    part: Part
    examples: int
    labelled: int

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"{self.language}: part {self.part.number}/{self.part.of}: {self.examples:,} soft labels in the "
            f"store, {self.labelled:,} of them new; once all parts are there, write the set with: "
            f"python -m pipeline teacher label --language {self.language}"
        )


def label(
    task: TaskParams,
    teacher: TeacherParams,
    params: LabelParams,
    root: str,
    language: str,
    *,
    engine: Engine = fill,
) -> Labelled:
    """Write ``artifacts/soft_labels/<language>``, a set per teacher, and the teachers' accuracy.

    Args:
        task: Section `task`.
        teacher: Section `teachers.<language>`.
        params: Section `teacher.label`.
        root: Folder or URL of the store.
        language: A supervised language.
        engine: What runs the teacher on what the store lacks.

    Raises:
        StageError: The teacher or the data is not there, the teacher's classes are not the task's or are
            evidently in another order, or its logits are not finite.
        CacheError: The store cannot be used.
    """
    examples = Examples.read(task, language)
    places = of_each_teacher(TEACHERS / language, len(teacher.all))
    sets = of_each_teacher(SOFT_LABELS / language, len(teacher.all))
    said: list[list[_OfModel]] = []
    n_labelled = 0
    for one, place, output in zip(teacher.all, places, sets, strict=True):
        parts = []
        changes: dict[str, TopKChange] = {}
        for model in _models(task, one, params, root, language, place, teacher.folds):
            its = examples.of_fold(model.fold)
            if len(its):  # few examples may leave a fold without any
                lookup, n_asked = engine(params, model.store, model.folder, its)
                n_labelled += n_asked
                change = measured_top_k(params, model.store, model.folder, its)
                changes |= {model.store.producer.id: change} if change else {}
                parts.append(
                    _OfModel(model.store.producer, Index(its.ids), lookup.soft_labels(), model.order)
                )
        said.append(parts)
        counts = _confusion(examples, said[-1:])
        confusion = np.sum(list(counts.values()), axis=0)
        names = [parts[0].producer.classes[position] for position in parts[0].order]
        check_class_order(confusion, classes=task.classes, names=names, language=language)
        SoftLabelSet.write(
            output,
            language=language,
            parts=[(part.producer, part.soft_labels) for part in parts],
            top_k_changes=changes,
            format_=params.format,
        )
    for left_over in set((SOFT_LABELS / language).glob("more-*")) - set(sets):
        shutil.rmtree(left_over)
    if len(said) > 1:
        counts = _confusion(examples, said)
    accuracy: dict[str, float] = {
        split: float(np.trace(of_split) / of_split.sum()) for split, of_split in counts.items()
    }
    write_atomically(
        METRICS / "teachers" / f"{language}.json",
        json.dumps({split: {"accuracy": value} for split, value in accuracy.items()}).encode(),
    )
    return Labelled(language, len(teacher.all) * len(examples), n_labelled, accuracy)


def label_part(
    task: TaskParams,
    teacher: TeacherParams,
    params: LabelParams,
    root: str,
    language: str,
    part: Part,
) -> LabelledPart:
    """Let the store have a part of the soft labels, while other machines see to the others; write no set.

    Raises:
        StageError: As `label`.
        CacheError: As `label`.
    """
    examples = Examples.read(task, language, part)
    n_stored = n_labelled = 0
    places = of_each_teacher(TEACHERS / language, len(teacher.all))
    for one, place in zip(teacher.all, places, strict=True):
        for model in _models(task, one, params, root, language, place, teacher.folds):
            lookup, n_asked = fill(params, model.store, model.folder, examples.of_fold(model.fold))
            n_stored += int(lookup.found.sum())
            n_labelled += n_asked
    return LabelledPart(language, part, n_stored, n_labelled)


class _Model(NamedTuple):
    """A model that is a teacher, or a fold's part of one.

    Attributes:
        folder: Where its files are.
        store: Of its soft labels.
        order: Where the task's classes are among its own, shape ``(C,)``.
        fold: Of the examples that it is to label.
    """

    folder: Path
    store: Store
    order: NDArray[np.int64]
    fold: Fold


def _models(
    task: TaskParams,
    teacher: OneTeacher,
    params: LabelParams,
    root: str,
    language: str,
    place: Path,
    n_folds: int,
) -> Iterator[_Model]:
    """Identify the models that a teacher consists of, each when it is wanted.

    Raises:
        StageError: There are none, or those of another number of folds.
    """
    n_made = len(list(place.glob("fold-*"))) or 1
    if n_made != n_folds:
        raise StageError(
            f"teachers.{language}.folds is {n_folds}, but {place} was made with {n_made}; "
            f"make it again with: python -m pipeline teacher finetune --language {language}"
        )
    for index, made in enumerate(of_each_fold(place, n_folds)):
        folder = model_folder(made, command=f"teacher finetune --language {language}")
        producer = producer_of(folder, task, params)
        order = match_classes(producer.classes, task.classes, names=teacher.labels, language=language)
        store = Store(root, producer)
        store.note_use(teacher=teacher.base, language=language)
        yield _Model(folder, store, order, Fold(index, n_folds))


class _OfModel(NamedTuple):
    """What one model said of the examples that it was to label.

    Attributes:
        producer: The model.
        positions: Where each example's soft label is.
        soft_labels: Of N examples.
        order: Where the task's classes are among the model's, shape ``(C,)``.
    """

    producer: Producer
    positions: Index
    soft_labels: SoftLabels
    order: NDArray[np.int64]


def _confusion(examples: Examples, teachers: Sequence[Sequence[_OfModel]]) -> dict[Split, NDArray[np.int64]]:
    """Count, by split, what teachers say and what the hard label is; several say what they say on average.

    Returns:
        Shape ``(C, C)``: row, the teachers' class; column, the hard label.

    Raises:
        StageError: The data changed meanwhile.
    """
    n_classes = len(examples.task.classes)
    counts: dict[Split, NDArray[np.int64]] = {
        split: np.zeros((n_classes, n_classes), np.int64) for split in SPLITS
    }
    for split, labels, ids in examples.labels():
        logits = np.zeros((len(teachers), len(labels), n_classes), np.float32)
        n_said = np.zeros((len(teachers), len(labels)), np.int64)
        for teacher, parts in enumerate(teachers):
            for part in parts:
                positions = part.positions.positions(ids)
                has = positions >= 0
                logits[teacher, has] = part.soft_labels.take(positions[has]).logits[:, part.order]
                n_said[teacher] += has
        if (n_said != 1).any():
            raise examples.changed()
        np.add.at(counts[split], (average_teachers(logits).argmax(axis=1), labels), 1)
    return counts
