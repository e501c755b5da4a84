"""Stage one: write a teacher's soft labels. Only what is new goes through the teacher.

hash every example → look it up in the store → run the teacher on the misses → append them to the store →
write the soft-label set. The set is all that stage two reads.
"""

import json
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import softmax
from tqdm import tqdm

from cache import (
    Index,
    Lookup,
    Outputs,
    Producer,
    SoftLabels,
    SoftLabelSet,
    Store,
    write_atomically,
)
from stages.artifacts import METRICS, SOFT_LABELS, TEACHERS, of_each_teacher
from stages.base import StageError
from stages.classes import check_class_order, match_classes
from stages.source import model_folder
from stages.task import SPLITS, Split, TaskParams, read_examples
from stages.teacher.params import LabelParams, TeacherParams

if TYPE_CHECKING:
    from stages.teacher.infer import Answers


PerSplit = dict[Split, tuple[NDArray[np.int64], NDArray[np.int64]]]
"""By split: what a teacher says of each example, and its hard label."""


@dataclass(frozen=True)
class Labelled:
    """What a run of stage one did.

    Attributes:
        examples: Soft labels in the language's sets, one set per teacher.
        labelled: Of these, how many went through a teacher now; the others came from the store.
        accuracy: Per split, the share of examples on which the teacher, or the average of the teachers,
            agrees with the hard label.
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
    root: str,
    language: str,
) -> Labelled:
    """Write ``artifacts/soft_labels/<language>``, a set per teacher, and the teachers' accuracy.

    Args:
        task: Section `task`.
        teacher: Section `teachers.<language>`.
        params: Section `teacher.label`.
        root: Folder or URL of the store.
        language: A supervised language.

    Raises:
        StageError: The teacher or the data is not there, the teacher's classes are not the task's or are
            evidently in another order, or its logits are not finite.
        CacheError: The store cannot be used.
    """
    splits = {split: read_examples(task, language, split) for split in SPLITS}
    examples = distinct(pa.concat_tables(splits.values()))
    count = len(teacher.all)
    folders, sets = (of_each_teacher(place / language, count) for place in (TEACHERS, SOFT_LABELS))
    predictions, probabilities = [], []
    n_labelled = 0
    for one, made, output in zip(teacher.all, folders, sets, strict=True):
        folder = model_folder(made, command=f"teacher finetune --language {language}")
        producer = producer_of(folder, task, params)
        order = match_classes(producer.classes, task.classes, names=one.labels, language=language)
        store = Store(root, producer)
        store.note_use(teacher=one.base, language=language)
        lookup, n_asked = fill(task, params, store, folder, examples, language=language)
        n_labelled += n_asked
        soft_labels = lookup.soft_labels()
        predictions.append(_per_split(np.argsort(order)[soft_labels.predicted()], examples, splits))
        _require_class_order(predictions[-1], task, language)
        SoftLabelSet.write(
            output, language=language, producer=producer, soft_labels=soft_labels, format_=params.format
        )
        if count > 1:
            probabilities.append(softmax(soft_labels.logits[:, order], axis=1))
    for left_over in set((SOFT_LABELS / language).glob("more-*")) - set(sets):
        shutil.rmtree(left_over)
    if count > 1:
        predictions.append(_per_split(np.mean(probabilities, axis=0).argmax(axis=1), examples, splits))
    accuracy: dict[str, float] = {
        split: float((said == hard).mean()) for split, (said, hard) in predictions[-1].items()
    }
    write_atomically(
        METRICS / "teachers" / f"{language}.json",
        json.dumps({split: {"accuracy": value} for split, value in accuracy.items()}).encode(),
    )
    return Labelled(count * examples.num_rows, n_labelled, accuracy)


def producer_of(folder: Path, task: TaskParams, params: LabelParams) -> Producer:
    """Identify a teacher by its files and by how it is asked."""
    return Producer.of_teacher(
        folder,
        text_fields=task.text_fields,
        max_tokens=params.max_tokens,
        dtype=params.precision,
        outputs=Outputs(dtype=params.logits, top_k=params.top_k, hidden=params.hidden),
    )


def fill(
    task: TaskParams, params: LabelParams, store: Store, folder: Path, examples: pa.Table, *, language: str
) -> tuple[Lookup, int]:
    """Let a store have the soft labels of all examples: the teacher is asked for those that it lacks.

    Returns:
        The soft labels, and how many examples went through the teacher.
    """
    lookup = store.look_up(examples["example_id"].combine_chunks())
    n_cached = int(lookup.found.sum())
    for damaged in store.damaged.values():
        tqdm.write(f"{damaged}; its examples are labelled again", file=sys.stderr)
    tqdm.write(f"{language}: {n_cached:,} cached, {examples.num_rows - n_cached:,} to label", file=sys.stderr)
    if n_cached == examples.num_rows:
        return lookup, 0
    fields = [examples[field].to_pylist() for field in task.text_fields]
    try:
        n_labelled = _label_misses(task, params, store, lookup, folder, fields, title=f"label '{language}'")
    finally:
        n_kept = int(lookup.found.sum())
        if n_kept < examples.num_rows:
            tqdm.write(f"stopped; {n_kept:,} of {examples.num_rows:,} soft labels are kept", file=sys.stderr)
    return lookup, n_labelled


def distinct(examples: pa.Table) -> pa.Table:
    """Keep the first of examples with the same text."""
    ids = examples["example_id"].combine_chunks()
    again, _ = Index(ids).repeats()
    return examples.take(pa.array(np.delete(np.arange(len(ids)), again))) if len(again) else examples


def _label_misses(
    task: TaskParams,
    params: LabelParams,
    store: Store,
    lookup: Lookup,
    folder: Path,
    fields: list[list[str]],
    *,
    title: str,
) -> int:
    """Run the teacher on what the store has not, shard by shard.

    Shards are taken in random order, each after another look at the store: processes that label the same
    examples at once go different ways, and one leaves out what another has finished.

    Returns:
        The number of examples that went through the teacher.

    Raises:
        StageError: The teacher's files are no longer those by which it was identified.
    """
    from stages.teacher.infer import Teacher  # slow import: torch

    store.create()
    model = Teacher(folder, params)
    if producer_of(folder, task, params) != store.producer:
        raise StageError(f"the files in {folder} changed while the teacher was loaded; run it again")
    sizes = np.array([sum(map(len, texts)) + 1 for texts in zip(*fields, strict=True)])
    misses = np.flatnonzero(~lookup.found)
    misses = misses[np.argsort(-sizes[misses], kind="stable")]
    shards = [misses[i : i + params.shard_examples] for i in range(0, len(misses), params.shard_examples)]
    n_labelled = 0
    with tqdm(total=int(sizes[misses].sum()), desc=title, unit="char", unit_scale=True) as bar:
        while shards:
            wanted = shards.pop(secrets.randbelow(len(shards)))
            store.update(lookup)
            todo = wanted[~lookup.found[wanted]]
            bar.update(int(sizes[wanted].sum() - sizes[todo].sum()))
            answers: list[Answers] = []
            try:
                for batch in model.answer([[texts[i] for i in todo] for texts in fields]):
                    answers.append(batch)
                    n_labelled += len(batch.positions)
                    bar.update(int(sizes[todo[batch.positions]].sum()))
                    rate = n_labelled / max(bar.format_dict["elapsed"], 1e-9)
                    bar.set_postfix_str(f"{n_labelled:,} examples, {rate:,.0f}/s", refresh=False)
            finally:  # what ends the run, an error or Ctrl-C, loses nothing that is computed
                if answers:
                    soft_labels = _pack(lookup.ids.take(pa.array(todo)), answers, store.producer.outputs)
                    lookup.seen.add(store.append(soft_labels, format_=params.format))
                    lookup.fill(soft_labels)
    return n_labelled


def _pack(ids: pa.FixedSizeBinaryArray, answers: "list[Answers]", outputs: Outputs) -> SoftLabels:
    positions = np.concatenate([batch.positions for batch in answers])
    logits = np.concatenate([batch.logits for batch in answers])
    hidden = [batch.hidden for batch in answers if batch.hidden is not None]
    states = np.concatenate(hidden) if hidden else None
    return SoftLabels.pack(ids.take(pa.array(positions)), logits, states, outputs=outputs)


def _per_split(
    predicted: NDArray[np.int64], examples: pa.Table, splits: Mapping[Split, pa.Table]
) -> PerSplit:
    """Put predictions, of N distinct examples in the task's class order, beside each split's hard labels."""
    index = Index(examples["example_id"].combine_chunks())
    return {
        split: (
            predicted[index.positions(table["example_id"].combine_chunks())],
            table["label"].to_numpy(),
        )
        for split, table in splits.items()
    }


def _require_class_order(predictions: PerSplit, task: TaskParams, language: str) -> None:
    check_class_order(
        np.concatenate([said for said, _ in predictions.values()]),
        np.concatenate([hard for _, hard in predictions.values()]),
        classes=task.classes,
        language=language,
    )
