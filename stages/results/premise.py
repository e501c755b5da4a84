"""The premise of distillation: teachers know more than the student's own encoder learns from the labels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS, of_each_teacher
from stages.data.classes import match_classes
from stages.data.examples import read_entities, read_examples
from stages.data.task import Split, TaskParams
from stages.results.averages import average_teachers
from stages.results.intervals import interval, numbered_entities
from stages.results.predictions import Predictions


class Gain(NamedTuple):
    """By how much teachers are more accurate than the baseline on validation data.

    Attributes:
        teachers: Accuracy of the teachers.
        baseline: Accuracy of the encoder that was fine-tuned on the hard labels of all supervised languages.
        low: Lower bound of the difference, at 95 %: for other texts, not for other seeds.
        high: Upper bound.
        by_heart: Accuracy of the teachers on their training texts. Where it is far above that on others, a
            soft label of such a text says little more than the hard one.
    """

    teachers: float
    baseline: float
    low: float
    high: float
    by_heart: float

    @property
    def mean(self) -> float:
        """The difference."""
        return self.teachers - self.baseline

    def points(self) -> str:
        """Write the difference in percentage points, with its interval."""
        numbers = (f"{100 * value:+.1f}" for value in (self.mean, self.low, self.high))
        return "{} points [{}, {}]".format(*numbers)

    def reading(self) -> str:
        """Say in words what the difference means."""
        if self.low > 0:
            return "teachers are better than the encoder fine-tuned on the labels"
        if self.high < 0:
            return "teachers are worse than the encoder fine-tuned on the labels"
        return "teachers and the encoder fine-tuned on the labels cannot be told apart"


class Premise(NamedTuple):
    """The gain on average over the supervised languages, and in each of them."""

    average: Gain
    languages: dict[str, Gain]


Names = Sequence[Mapping[str, str] | None]
"""What each teacher of a language calls the task's classes, where it has names of its own."""


def premise(
    task: TaskParams, names: Mapping[str, Names], baseline: Mapping[tuple[str, Split], Predictions]
) -> Premise:
    """Compare teachers and baseline on the validation split of the supervised languages.

    Args:
        task: Section `task` of params.yaml.
        names: By supervised language.
        baseline: What `stages.results.predictions.read_predictions` gives of the baseline.

    Raises:
        StageError: The data is not there, or a teacher's classes are not the task's.
        CacheError: The soft labels are not there or not readable.
    """
    known_entities = {language: read_entities(language, "validation") for language in task.supervised}
    entities = numbered_entities(known_entities)
    right, by_heart = {}, {}
    for language in task.supervised:
        own = baseline[language, "validation"]
        of_teachers = _teachers_right(task, language, "validation", names[language])
        right[language] = np.stack([of_teachers, own.predicted == own.labels]).astype(np.int64)
        by_heart[language] = _teachers_right(task, language, "train", names[language]).mean()

    def gain(*languages: str) -> Gain:
        accuracies = np.mean([right[name].mean(axis=1) for name in languages], axis=0)
        differences = [right[name][:1] - right[name][1:] for name in languages]
        bounds = interval(differences, [entities[name] for name in languages])
        known = np.mean([by_heart[name] for name in languages])
        return Gain(*map(float, (*accuracies, *bounds, known)))

    return Premise(gain(*task.supervised), {name: gain(name) for name in task.supervised})


def _teachers_right(task: TaskParams, language: str, split: Split, names: Names) -> NDArray[np.bool_]:
    """Tell on which examples of a split a language's teachers are right, together, ``(N,)``."""
    examples = read_examples(task, language, split)
    logits = []
    for folder, labels in zip(of_each_teacher(SOFT_LABELS / language, len(names)), names, strict=True):
        label_set = SoftLabelSet.read(folder, language=language)
        order = match_classes(label_set.classes, task.classes, names=labels, language=language)
        logits.append(label_set.join(examples["example_id"]).logits[:, order])
    right: NDArray[np.bool_] = average_teachers(logits).argmax(axis=1) == examples["label"].to_numpy()
    return right
