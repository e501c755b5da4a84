"""Translations of what teaches the student: their average, and what zero-shot languages take from it."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.data.examples import read_entities, read_examples, taught_splits
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.student.objective import average_translations


class Inherited(NamedTuple):
    """Texts of zero-shot languages that are translations of texts of supervised ones.

    Attributes:
        tables: By language; they have the labels of their originals, and null where these have none.
        originals: Of which of the N texts of supervised languages each of these M is a translation, of the
            first of several, int64, shape ``(M,)``.
        n_others: How many texts of zero-shot languages are translations of none.
        n_contradictory: How many have no label, since their originals have several.
    """

    tables: dict[str, pa.Table]
    originals: NDArray[np.int64]
    n_others: int = 0
    n_contradictory: int = 0


def inherited(task: TaskParams, teachers: Collection[str]) -> Inherited:
    """Find the texts of zero-shot languages that teach the student what their originals say.

    Args:
        task: Section `task` of params.yaml.
        teachers: The languages in section `teachers`: what has a teacher learns from it.

    Raises:
        StageError: There are none, though `task.zero_shot_texts` asks for them; or the data is not there.
    """
    silver = silver_languages(task, teachers)
    if not task.zero_shot_texts or len(silver) == len(task.zero_shot):
        return Inherited({}, np.empty(0, np.int64))
    of = _originals(task)
    tables, originals, n_others, n_contradictory = {}, [], 0, 0
    for language in (name for name in task.zero_shot if name not in silver):
        for split in taught_splits(task, language):
            entities = read_entities(language, split)
            has = np.array([entity in of.first for entity in entities], bool)
            table = read_examples(task, language, split).filter(pa.array(has))
            kept = [entity for entity in entities if entity in of.first]
            said = pa.array([of.labels.get(entity) for entity in kept], pa.int32())
            place = table.schema.get_field_index("label")
            if kept:
                tables[language] = table.set_column(place, table.schema.field(place), said)
            originals += [of.first[entity] for entity in kept]
            n_others += len(entities) - len(kept)
            n_contradictory += sum(entity in of.contradictory for entity in kept)
    if not originals and not silver:
        raise StageError(
            "task.zero_shot_texts is true, but no text of a zero-shot language is a translation of one that "
            "teaches the student; give translations the same text in a column 'entity', or a language a "
            "teacher, or set it to false"
        )
    return Inherited(tables, np.array(originals, np.int64), n_others, n_contradictory)


class _Originals(NamedTuple):
    """Texts of supervised languages, by what they are about.

    Attributes:
        first: The first of them.
        labels: The label of those that have one.
        contradictory: Those with several labels.
    """

    first: dict[str, int]
    labels: dict[str, int]
    contradictory: set[str]


def _originals(task: TaskParams) -> _Originals:
    """Read what the texts of supervised languages that teach are about."""
    found = _Originals({}, {}, set())
    n_texts = 0
    for language in task.supervised:
        for split in taught_splits(task, language):
            its = read_examples(task, language, split)["label"].to_pylist()
            for row, (entity, label) in enumerate(zip(read_entities(language, split), its, strict=True)):
                if entity is None:
                    continue
                found.first.setdefault(entity, n_texts + row)
                if label is not None and found.labels.setdefault(entity, label) != label:
                    found.contradictory.add(entity)
            n_texts += len(its)
    for entity in found.contradictory:
        del found.labels[entity]
    return found


def averaged(task: TaskParams, logits: NDArray[np.float32], *, temperature: float) -> NDArray[np.float32]:
    """Give each text of the supervised languages the average of the soft labels of its translations.

    Args:
        task: Section `task`.
        logits: Of all languages' texts that teach, one language behind the other, shape ``(N, C)``.
        temperature: τ at which probabilities are averaged.

    Returns:
        Likewise; what is no translation of anything stays as it is.
    """
    entities = [
        entity
        for language in task.supervised
        for split in taught_splits(task, language)
        for entity in read_entities(language, split)
    ]
    first: dict[str, int] = {}
    numbers = [row if name is None else first.setdefault(name, row) for row, name in enumerate(entities)]
    return average_translations(
        torch.from_numpy(logits), torch.tensor(numbers), temperature=temperature
    ).numpy()
