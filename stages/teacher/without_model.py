"""Teachers without a model: what they say is in a file, in a column of the data, or in the store."""

import hashlib
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache import Index, Producer, SoftLabels, Store, StoreError, TopKChange
from cache.names import find_producer
from cache.soft_labels import id_bytes
from stages.data.classes import match_classes
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.teacher.labelling.examples import Examples
from stages.teacher.labelling.from_files import Imported, read_column, read_soft_labels
from stages.teacher.params import OneTeacher
from stages.teacher.pin import file_pin, read_pin


class Taken(NamedTuple):
    """What a teacher without a model says of the examples that it knows.

    Attributes:
        producer: Who made the soft labels.
        soft_labels: Of n of the examples.
        order: Where the task's classes are among the producer's, shape ``(C,)``.
        top_k_change: What top-k changes, where that is known.
    """

    producer: Producer
    soft_labels: SoftLabels
    order: NDArray[np.int64]
    top_k_change: TopKChange | None


def take_soft_labels(
    task: TaskParams, teacher: OneTeacher, root: str, examples: Examples, place: Path
) -> Taken:
    """Give what a teacher without a model says of the examples; of those that teach the student, it must.

    Args:
        task: Section `task` of params.yaml.
        teacher: One without a base.
        root: The store.
        examples: Of one language.
        place: Where `pin_soft_labels` wrote.

    Raises:
        StageError: The file or producer is not the one that was pinned or cannot be read, its classes are not
            the task's, or a text that teaches the student has no soft label.
        CacheError: The store has no such producer, or cannot be read.
    """
    change = None
    if teacher.producer is not None:
        pinned = read_pin(place).get("producer")
        if pinned is None:
            raise StageError(f"{place} is no producer that was pinned; {_pin_again(examples.language)}")
        if not _is_called(root, pinned, teacher.producer):
            raise StageError(
                f"'{teacher.producer}' is not the producer that was pinned; {_pin_again(examples.language)}"
            )
        store = Store.open(root, pinned)
        lookup = store.look_up(examples.ids)
        store.require_readable()
        for error in store.damaged.values():
            raise StageError(f"{error}; mend with: python -m pipeline cache repair --store {root}")
        producer, has, what = store.producer, lookup.found, f"producer '{teacher.producer}' in {root}"
        examples.require(has, what)
        soft_labels = lookup.some(has)
        change = TopKChange.read(store.folder)
        store.note_use(teacher=teacher.title, language=examples.language)
    else:
        assert teacher.soft_labels is not None
        found, what = _read(task, teacher, examples.language, place)
        positions = Index(found.soft_labels.ids).positions(examples.ids)
        has = positions >= 0
        examples.require(has, what)
        soft_labels, change = found.soft_labels.take(positions[has]), found.top_k_change
        facts = teacher.soft_labels.facts
        content = {} if facts else {"content": _digest(found.soft_labels)}
        producer = replace(found, made={**found.made, **content}).producer(facts, task.text_fields)
    if not has.any():
        raise StageError(f"{what} has no soft label for any text of '{examples.language}' that is for it")
    order = match_classes(producer.classes, task.classes, names=teacher.labels, language=examples.language)
    return Taken(producer, soft_labels, order, change)


def _read(task: TaskParams, teacher: OneTeacher, language: str, place: Path) -> tuple[Imported, str]:
    """Read a file or a column; gives what is in it, and how messages call it."""
    how = teacher.soft_labels
    assert how is not None
    if how.file is None:
        return read_column(task, language, how), f"the column task.source.soft_label_field of '{language}'"
    file = Path(how.file)
    if not file.is_file() or read_pin(place) != file_pin(file):
        raise StageError(f"{file} is not the file that was pinned; {_pin_again(language)}")
    return read_soft_labels(file, how, task, names=teacher.labels), str(file)


def _is_called(root: str, producer_id: str, called: str) -> bool:
    """Tell whether a producer is the one of this name or id; a name that is gone may have been its own."""
    if producer_id.startswith(called):
        return True
    with suppress(StoreError):
        return find_producer(root, called) == producer_id
    return re.fullmatch("[0-9a-f]{64}", called) is None


def _pin_again(language: str) -> str:
    return f"pin it again with: python -m pipeline teacher finetune --language {language}"


def _digest(soft_labels: SoftLabels) -> str:
    """Identify soft labels of which nothing is said by what they are."""
    digest = hashlib.sha256(id_bytes(soft_labels.ids).tobytes())
    for name in sorted(soft_labels.columns):
        digest.update(soft_labels.columns[name].tobytes())
    return digest.hexdigest()
