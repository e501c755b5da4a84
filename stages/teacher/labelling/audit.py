"""What the current data and teachers have to do with a store: coverage, asking again, labelling again."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cache import Index, Producer, ProducerError, SoftLabels, Store, example_ids
from cache.commands.verify import differing
from stages.artifacts import TEACHERS, of_each_fold, of_each_teacher
from stages.data.examples import all_examples
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.pins import model_folder
from stages.teacher.folds import Fold
from stages.teacher.labelling.examples import Examples
from stages.teacher.labelling.identity import producer_of
from stages.teacher.labelling.loop import fill, made_with
from stages.teacher.params import LabelParams, TeacherParams


@dataclass(frozen=True)
class Rechecked:
    """What a teacher says now, against what a store says.

    Attributes:
        language: Of the examples.
        examples: How many were asked again.
        differing: How many of these have other logits now.
        largest: Largest difference of a logit.
        made_with: Records of what computed those that differ, as far as their shards have any.
        here: The record of what computed them now.
    """

    language: str
    examples: int
    differing: int
    largest: float
    made_with: list[dict[str, str]]
    here: dict[str, str]

    def drift(self) -> str:
        """Say what computed those that differ, in words; empty where nothing is known of it."""
        others = [
            ", ".join(
                f"{key} {value} (here {self.here.get(key)})"
                for key, value in record.items()
                if self.here.get(key) != value
            )
            for record in self.made_with
        ]
        said = [one or "the same libraries and device as here" for one in others]
        return f"those that differ were computed with {'; '.join(said)}" if said else ""


def coverage(task: TaskParams, store: Store) -> list[dict[str, Any]]:
    """Count the current data's examples that a producer has labelled.

    Returns:
        For each language and split: ``language``, ``split``, ``labelled`` and ``examples``; languages of
        which it has none are left out.
    """
    examples = all_examples(task)
    if examples is None:
        return []
    found = store.look_up(examples["example_id"].combine_chunks()).found
    table = examples.select(["language", "split"]).append_column("found", pa.array(found.astype(np.int64)))
    counts = table.group_by(["language", "split"], use_threads=False)
    rows = counts.aggregate([("found", "sum"), ("found", "count")]).to_pylist()
    known = {row["language"] for row in rows if row["found_sum"]}
    return [
        {
            "language": row["language"],
            "split": row["split"],
            "labelled": row["found_sum"],
            "examples": row["found_count"],
        }
        for row in rows
        if row["language"] in known
    ]


class Current(NamedTuple):
    """A teacher that stage one would run now."""

    language: str
    folder: Path
    producer: Producer
    fold: Fold
    place: int
    """Among the language's teachers."""
    names: Sequence[str | None]
    """Of all of these."""

    def examples(self, task: TaskParams) -> Examples:
        """Read the examples that it labels."""
        return Examples.read(task, self.language).of_teacher(self.place, self.names).of_fold(self.fold)


def current_teachers(
    task: TaskParams,
    teachers: Mapping[str, TeacherParams],
    params: LabelParams,
    producer_ids: Collection[str],
) -> list[Current]:
    """Identify the teachers that stage one would run now, as far as their producers are among some ids.

    A teacher that is not there, or is incomplete, is none of them.
    """
    found = []
    for language in task.supervised:
        names = [one.name for one in teachers[language].all]
        for place, its in enumerate(of_each_teacher(TEACHERS / language, len(names))):
            n_folds = len(list(its.glob("fold-*"))) or 1
            for index, made in enumerate(of_each_fold(its, n_folds)):
                with suppress(ProducerError, StageError):
                    folder = model_folder(made, command=f"teacher finetune --language {language}")
                    producer = producer_of(folder, task, params)
                    if producer.id in producer_ids:
                        fold = Fold(index, n_folds)
                        found.append(Current(language, folder, producer, fold, place, names))
    return found


def relabel(
    task: TaskParams,
    teachers: Mapping[str, TeacherParams],
    params: LabelParams,
    root: str,
    producer_ids: Collection[str],
) -> dict[str, int]:
    """Label what a store lacks of the current data, for those of some producers that are current teachers.

    Returns:
        By producer id, how many examples went through the teacher.
    """
    labelled = {}
    for current in current_teachers(task, teachers, params, producer_ids):
        store = Store(root, current.producer)
        store.create()
        _, count = fill(params, store, current.folder, current.examples(task))
        labelled[current.producer.id] = count
    return labelled


def recheck(task: TaskParams, params: LabelParams, root: str, current: Current, n_examples: int) -> Rechecked:
    """Run a teacher again on random examples that a store has.

    Args:
        task: Whose data to draw examples from; a store knows no texts.
        params: Section `teacher.label`.
        root: The store.
        current: Which teacher.
        n_examples: At most so many are drawn.
    """
    from stages.teacher.labelling.inference import Teacher  # slow import: torch

    language, folder = current.language, current.folder
    store = Store(root, current.producer)
    examples = current.examples(task)
    found = np.flatnonzero(store.look_up(examples.ids).found)
    drawn = np.sort(np.random.default_rng().permutation(found)[:n_examples])
    if not len(drawn):
        return Rechecked(language, 0, 0, 0.0, [], made_with(params))
    fields = examples.texts(drawn)
    cached = store.look_up(example_ids(fields)).soft_labels()
    teacher = Teacher(folder, params)
    answers = list(teacher.answer(teacher.tokenize(fields)))
    order = np.argsort(np.concatenate([batch.positions for batch in answers]))
    logits = np.concatenate([batch.logits for batch in answers])[order]
    hidden = [batch.hidden for batch in answers if batch.hidden is not None]
    again = SoftLabels.pack(
        cached.ids, logits, np.concatenate(hidden)[order] if hidden else None, outputs=store.producer.outputs
    )
    if "top_classes" in cached.columns:
        # Two classes of nearly the same logit may change places: the cached classes are asked about.
        top = cached.columns["top_classes"].astype(np.int64)
        again.columns["top_logits"][:] = np.take_along_axis(logits, top, axis=1)
        difference = np.abs(again.columns["top_logits"] - cached.columns["top_logits"])
    else:
        difference = np.abs(again.logits - cached.logits)
    differs = differing(again, cached, precision=params.precision)
    records = _records(store, cached.ids.take(pa.array(np.flatnonzero(differs))))
    largest = float(difference.max())
    return Rechecked(language, len(drawn), int(differs.sum()), largest, records, made_with(params))


def _records(store: Store, ids: pa.FixedSizeBinaryArray) -> list[dict[str, str]]:
    """Give the records of what computed some examples' soft labels."""
    if not len(ids):
        return []
    index, records = Index(ids), set()
    for _, soft_labels in store.read(store.shards()):
        if (index.positions(soft_labels.ids) >= 0).any():
            records |= set(soft_labels.made_with)
    return [json.loads(one) for one in sorted(records)]
