"""Stage one: write a teacher's soft labels. Only what is new goes through the teacher.

hash every example → look it up in the store → run the teacher on the misses → append them to the store →
write the soft-label set. The set is all that stage two reads.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import (
    CacheError,
    Index,
    Lookup,
    Producer,
    SoftLabels,
    SoftLabelSet,
    Store,
    TopKChange,
    write_atomically,
)
from cache.commands.name import give_name
from cache.names import name_of
from cache.soft_label_set import MANIFEST
from stages.artifacts import METRICS, SOFT_LABELS, TEACHERS, of_each_fold, of_each_teacher
from stages.data.branches import MIXTURE
from stages.data.classes import check_class_order, match_classes
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.pins import model_folder, read_pin
from stages.progress import say
from stages.results.averages import average_teachers
from stages.results.teachers import outside_classes, weights_of
from stages.teacher.endpoint.label import label_by_endpoint
from stages.teacher.folds import Fold
from stages.teacher.labelling.examples import Examples, Part
from stages.teacher.labelling.identity import producer_of
from stages.teacher.labelling.loop import fill, measured_top_k
from stages.teacher.params import LabelParams, OneTeacher, TeacherParams
from stages.teacher.quality import Quality, measure
from stages.teacher.without_model import take_soft_labels

_Answer = tuple[NDArray[np.bool_], NDArray[np.floating]]
"""See `stages.teacher.quality.Answer`."""

Engine = Callable[[LabelParams, Store, Path, Examples], tuple[Lookup, int]]
"""What lets a store have all soft labels, as `fill` does on this machine."""


@dataclass(frozen=True)
class Labelled:
    """What a run of stage one did.

    Attributes:
        language: Of the examples.
        examples: Soft labels in the language's sets, one set per teacher.
        labelled: Of these, how many went through a teacher now; the others came from the store.
        quality: How the teacher, or the average of the teachers, compares with the hard labels, in words.
    """

    language: str
    examples: int
    labelled: int
    quality: str

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"{self.language}: {self.examples:,} soft labels, {self.labelled:,} of them new; "
            f"the teacher's {self.quality}"
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
    teachers: Path = TEACHERS,
    soft_labels: Path = SOFT_LABELS,
    metrics: Path = METRICS / "teachers",
    accept_change: bool = False,
) -> Labelled:
    """Write ``artifacts/soft_labels/<language>``, a set per teacher, and the teachers' accuracy.

    Args:
        task: Section `task`.
        teacher: Section `teachers.<language>`.
        params: Section `teacher.label`.
        root: Folder or URL of the store.
        language: One of the task's.
        engine: What runs the teacher on what the store lacks.
        teachers: In which folder the teachers are.
        soft_labels: In which folder the sets are to be.
        metrics: In which folder the accuracy is.
        accept_change: Whether servers may be others than before, or answer otherwise.

    Raises:
        StageError: The teacher or the data is not there, the teacher's classes are not the task's or are
            evidently in another order, or its logits are not finite.
        CacheError: The store cannot be used.
    """
    examples = Examples.read(task, language)
    names = [one.name for one in teacher.all]
    places = of_each_teacher(teachers / language, len(teacher.all))
    said: list[list[_OfModel]] = []
    n_labelled = 0
    for number, (one, place) in enumerate(zip(teacher.all, places, strict=True)):
        its = examples.of_teacher(number, names)
        if not len(its):
            raise StageError(
                f"no text of '{language}' is for teacher '{one.title}', by task.source.teacher_field; "
                f"take it out of teachers.{language}"
            )
        if one.endpoint is not None:
            part, n_asked = _from_endpoint(task, one, params, root, its, place, accept_change=accept_change)
            parts, n_labelled = [part], n_labelled + n_asked
        elif one.base is None:
            parts = [_taken(task, one, root, its, place)]
        else:
            parts, n_asked = _asked(task, one, params, root, its, place, teacher.folds, engine)
            n_labelled += n_asked
        _require_class_order(its, parts, complete=one.base is not None or one.endpoint is not None)
        said.append(parts)
    _write_sets(soft_labels / language, teacher, said, language=language, format_=params.format)
    quality = _quality(examples, teacher, said)
    write_atomically(metrics / f"{language}.json", json.dumps(quality.metrics).encode())
    n_said = sum(len(part.soft_labels) for parts in said for part in parts)
    left = [share for parts in said for part in parts if (share := part.outside()) is not None]
    return Labelled(
        language, n_said, n_labelled, quality.line(outside=float(np.mean(left)) if left else None)
    )


def _write_sets(
    folder: Path,
    teacher: TeacherParams,
    said: Sequence[Sequence["_OfModel"]],
    *,
    language: str,
    format_: str,
) -> None:
    """Write a set per teacher, all of them now: sets of two runs never lie side by side to be read."""
    sets = of_each_teacher(folder, len(teacher.all))
    for later in sets[1:]:
        (later / MANIFEST).unlink(missing_ok=True)
    for one, parts, output in zip(teacher.all, said, sets, strict=True):
        SoftLabelSet.write(
            output,
            language=language,
            parts=[(part.producer, part.soft_labels) for part in parts],
            top_k_changes={part.producer.id: part.change for part in parts if part.change},
            letter_bias=None if parts[0].bias is None else parts[0].bias.tolist(),
            terms=one.endpoint.facts if one.endpoint else None,
            format_=format_,
        )
    for left_over in set(folder.glob("more-*")) - set(sets):
        shutil.rmtree(left_over)


def _asked(
    task: TaskParams,
    teacher: OneTeacher,
    params: LabelParams,
    root: str,
    examples: Examples,
    place: Path,
    n_folds: int,
    engine: Engine,
) -> tuple[list["_OfModel"], int]:
    """Let a teacher's models label; gives what they say, and how many examples went through them."""
    parts, n_labelled = [], 0
    for model in _models(task, teacher, params, root, examples.language, place, n_folds):
        its = examples.of_fold(model.fold)
        if len(its):  # few examples may leave a fold without any
            lookup, n_asked = engine(params, model.store, model.folder, its)
            n_labelled += n_asked
            change = measured_top_k(params, model.store, model.folder, its)
            soft_labels = lookup.soft_labels()
            parts.append(_OfModel(model.store.producer, Index(its.ids), soft_labels, model.order, change))
    return parts, n_labelled


def _taken(task: TaskParams, teacher: OneTeacher, root: str, examples: Examples, place: Path) -> "_OfModel":
    """Give what a teacher without a model says."""
    taken = take_soft_labels(task, teacher, root, examples, place)
    index = Index(taken.soft_labels.ids)
    return _OfModel(taken.producer, index, taken.soft_labels, taken.order, taken.top_k_change)


def _from_endpoint(
    task: TaskParams,
    teacher: OneTeacher,
    params: LabelParams,
    root: str,
    examples: Examples,
    place: Path,
    *,
    accept_change: bool,
) -> tuple["_OfModel", int]:
    """Let a server label; gives what it says, and about how many examples it was asked."""
    done = label_by_endpoint(task, teacher, params, root, examples, place, accept_change=accept_change)
    _give_name(root, done.producer.id, teacher.name, Fold(0, 1))
    index = Index(done.soft_labels.ids)
    return _OfModel(done.producer, index, done.soft_labels, done.order, None, done.letter_bias), done.n_asked


def label_part(
    task: TaskParams,
    teacher: TeacherParams,
    params: LabelParams,
    root: str,
    language: str,
    part: Part,
    *,
    accept_change: bool = False,
) -> LabelledPart:
    """Let the store have a part of the soft labels, while other machines see to the others; write no set.

    Raises:
        StageError: As `label`.
        CacheError: As `label`.
    """
    whole, examples = Examples.read(task, language), Examples.read(task, language, part)
    n_stored = n_labelled = 0
    names = [each.name for each in teacher.all]
    places = of_each_teacher(TEACHERS / language, len(teacher.all))
    for number, (one, place) in enumerate(zip(teacher.all, places, strict=True)):
        its = examples.of_teacher(number, names)
        if one.endpoint is not None:
            all_its = whole.of_teacher(number, names)
            done = label_by_endpoint(
                task, one, params, root, its, place, whole=all_its, accept_change=accept_change
            )
            n_stored += len(done.soft_labels)
            n_labelled += done.n_asked
        if one.base is None:
            continue
        for model in _models(task, one, params, root, language, place, teacher.folds):
            lookup, n_asked = fill(params, model.store, model.folder, its.of_fold(model.fold))
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
        StageError: There are none, those of another teacher, or those of another number of folds.
    """
    n_made = len(list(place.glob("fold-*"))) or 1
    if n_made != n_folds:
        raise StageError(
            f"teachers.{language}.folds is {n_folds}, but {place} was made with {n_made}; "
            f"make it again with: python -m pipeline teacher finetune --language {language}"
        )
    for index, made in enumerate(of_each_fold(place, n_folds)):
        if not _may_be(teacher, made):
            raise StageError(
                f"{made} is not the teacher {teacher.title} that params.yaml names; make or pin it again "
                f"with: python -m pipeline teacher finetune --language {language}"
            )
        folder = model_folder(made, command=f"teacher finetune --language {language}")
        producer = producer_of(folder, task, params)
        order = match_classes(producer.classes, task.classes, names=teacher.labels, language=language)
        store = Store(root, producer)
        store.note_use(teacher=teacher.title, language=language)
        _give_name(root, producer.id, teacher.name, Fold(index, n_folds))
        yield _Model(folder, store, order, Fold(index, n_folds))


def _may_be(teacher: OneTeacher, made: Path) -> bool:
    """Tell whether a folder stands for a teacher as params.yaml has it, as far as the folder says."""
    pinned = read_pin(made)
    if pinned is None:
        config = made / "config.json"
        if teacher.finetune or not config.is_file():
            return True
        with suppress(KeyError, ValueError):  # whoever loads it says what is wrong with it
            said = json.loads(config.read_bytes())
            return said["model_type"] == "mblm" and (said["default_language"] or MIXTURE) == teacher.branch
        return True
    if teacher.finetune or teacher.branch is not None:
        return False
    if "folder" in pinned:
        return Path(pinned["folder"]).resolve() == Path(teacher.base or "").resolve()
    is_commit = re.fullmatch("[0-9a-f]{40}", teacher.revision or "") is not None
    return pinned["hub"] == teacher.base and (not is_commit or pinned["commit"] == teacher.revision)


def _give_name(root: str, producer_id: str, name: str | None, fold: Fold) -> None:
    """Let the store call a producer without a name as params.yaml does, unless another one has that name."""
    if name is None:
        return
    name = name if fold.of == 1 else f"{name}/fold-{fold.index}"
    try:
        called = name_of(root, producer_id)
        if called is None:
            give_name(root, producer_id, name)
        elif called != name:
            say(
                f"{producer_id[:12]} keeps its name '{called}'; to call it '{name}', type: "
                f"python -m pipeline cache name {producer_id[:12]} {name}"
            )
    except (CacheError, OSError) as error:  # a store that may only be read serves all the same
        say(f"{error}; {producer_id[:12]} goes without this name")


class _OfModel(NamedTuple):
    """What one model said of the examples that it was to label.

    Attributes:
        producer: The model.
        positions: Where each example's soft label is.
        soft_labels: Of N examples.
        order: Where the task's classes are among the model's, shape ``(C,)``.
        change: What top-k changes, where it was measured.
        bias: What is added to its logits when they are read, shape ``(C,)``; None: nothing.
    """

    producer: Producer
    positions: Index
    soft_labels: SoftLabels
    order: NDArray[np.int64]
    change: TopKChange | None
    bias: NDArray[np.float32] | None = None

    def outside(self) -> float | None:
        """Give the share of probability that it gives to no class, on average; None: nobody can tell."""
        if self.producer.imported is None and self.producer.endpoint is None:
            return None
        return outside_classes(self.producer, self.soft_labels.logits)


def _require_class_order(examples: Examples, parts: Sequence[_OfModel], *, complete: bool) -> None:
    """Stop where another permutation of the classes makes a teacher clearly more accurate.

    Args:
        examples: That it was to label.
        parts: What its models say.
        complete: Whether they say something of each.

    Raises:
        StageError: It does, or the data changed meanwhile.
    """
    index = Index(examples.ids)

    def answer(ids: pa.FixedSizeBinaryArray) -> _Answer:
        logits, has = _looked_up(parts, ids, len(examples.task.classes))
        if complete and (has != (index.positions(ids) >= 0)).any():
            raise examples.changed()
        return has, logits[has]

    quality = measure(examples.task, examples.language, answer)
    names = [parts[0].producer.classes[position] for position in parts[0].order]
    classes = examples.task.classes
    if quality.metrics:
        check_class_order(quality.together, classes=classes, names=names, language=examples.language)


def _quality(examples: Examples, teachers: TeacherParams, said: Sequence[Sequence[_OfModel]]) -> Quality:
    """Compare what a language's teachers say together with the hard labels.

    Args:
        examples: Of the language.
        teachers: Section `teachers.<language>`.
        said: What each of them says.

    Raises:
        StageError: The data changed meanwhile.
    """
    index = Index(examples.ids)
    asked = examples.asked([one.name for one in teachers.all])

    def answer(ids: pa.FixedSizeBinaryArray) -> _Answer:
        places = index.positions(ids)
        if (places < 0).any():
            raise examples.changed()
        weights = weights_of(teachers, None if asked is None else asked[:, places], len(ids))
        found = [_looked_up(parts, ids, len(examples.task.classes)) for parts in said]
        has = np.logical_and.reduce([one | (w == 0) for (_, one), w in zip(found, weights, strict=True)])
        together = average_teachers(
            [logits[has] for logits, _ in found],
            weights=weights[:, has],
            by_confidence=teachers.combine == "confidence",
        )
        return has, together

    return measure(examples.task, examples.language, answer)


def _looked_up(
    parts: Sequence[_OfModel], ids: pa.FixedSizeBinaryArray, n_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give a teacher's logits in the task's class order, ``(n, C)``, and of which examples it has any."""
    logits, has = np.zeros((len(ids), n_classes), np.float32), np.zeros(len(ids), bool)
    for part in parts:
        positions = part.positions.positions(ids)
        found = positions >= 0
        said = part.soft_labels.take(positions[found]).logits
        logits[found] = (said if part.bias is None else said + part.bias)[:, part.order]
        has |= found
    return logits, has
