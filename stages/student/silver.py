"""Texts of zero-shot languages that teach the student what a teacher says of them, where it is sure."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import MissingSoftLabelsError
from stages.artifacts import SILVER_LABELS
from stages.data.examples import UNLABELLED, examples_digest, has_split, read_examples
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.results.measures import probabilities
from stages.results.teachers import Teachers, said_by
from stages.student.card import TeacherFacts
from stages.student.params import DistillParams, SilverParams
from stages.student.top_k import require_small_top_k_change
from stages.student.variants import temperature_of


class SilverTexts(NamedTuple):
    """What zero-shot languages teach.

    Attributes:
        tables: Their texts, by language, without labels.
        logits: The soft labels of these M texts, one language behind the other, shape ``(M, C)``.
        facts: By language, where the soft labels come from.
        digests: Of all that was read.
        notes: A line for each language: how many of its texts teach.
    """

    tables: dict[str, pa.Table]
    logits: NDArray[np.float32]
    facts: dict[str, list[TeacherFacts]]
    digests: list[str]
    notes: list[str]


def silver_texts(task: TaskParams, teachers: Mapping[str, Teachers], params: DistillParams) -> SilverTexts:
    """Join the texts of zero-shot languages with what their teachers say, and choose among them.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`.
        params: Section `student.distill`.

    Raises:
        StageError: The data is not there, or no text of a language is chosen.
        CacheError: Soft labels are missing or damaged.
    """
    tables, facts, digests, notes = {}, {}, [], []
    logits = [np.empty((0, len(task.classes)), np.float32)]
    for language in silver_languages(task, teachers):
        if not has_split(language, UNLABELLED):
            continue
        table = read_examples(task, language, UNLABELLED)
        said = said_by(
            task,
            teachers[language],
            language,
            [UNLABELLED],
            folder=SILVER_LABELS,
        )
        if not said.has.all():
            raise MissingSoftLabelsError(
                language=language,
                missing=int((~said.has).sum()),
                total=table.num_rows,
                folder=str(SILVER_LABELS / language),
            )
        for one in said.each:
            require_small_top_k_change(task, one.label_set, params, said)
        probs = probabilities(said.together())
        confidence = probs.max(axis=1)
        chosen = choose(probs.argmax(axis=1), confidence, params.silver)
        if not chosen.any():
            raise StageError(
                f"no text of '{language}' has a class of probability {params.silver.least_confidence}; lower "
                "student.distill.silver.least_confidence"
            )
        tables[language] = table.filter(pa.array(chosen))
        its = said.together(temperature_of(params))[chosen].astype(np.float32)
        logits.append(its)
        pairs = zip(teachers[language].all, said.each, strict=True)
        facts[language] = [TeacherFacts.of(teacher.title, one) for teacher, one in pairs]
        digests += [examples_digest(tables[language]), hashlib.sha256(its.tobytes()).hexdigest()]
        notes.append(
            f"{language}: {int(chosen.sum()):,} of {table.num_rows:,} texts teach, whose most probable class "
            f"has {confidence[chosen].mean():.0%} on average"
        )
    return SilverTexts(tables, np.concatenate(logits), facts, digests, notes)


def choose(
    classes: NDArray[np.int64], confidence: NDArray[np.floating], params: SilverParams
) -> NDArray[np.bool_]:
    """Choose the texts of a language of which a teacher is sure (as in Xu et al. 2021, arXiv 2109.00194).

    Args:
        classes: The most probable class of each of N texts, shape ``(N,)``.
        confidence: Its probability, shape ``(N,)``.
        params: Section `student.distill.silver`.

    Returns:
        Which teach, shape ``(N,)``; of equally sure ones the first.
    """
    sure = confidence >= params.least_confidence
    if params.most_per_class is None:
        return sure
    chosen = np.zeros_like(sure)
    order = np.argsort(-confidence, kind="stable")
    for one in np.unique(classes):
        chosen[order[classes[order] == one][: params.most_per_class]] = True
    return chosen & sure
