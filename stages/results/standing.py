"""Whether to use a student for a language at all: beside chance, its baseline and the language's teachers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.examples import read_entities
from stages.data.task import Split, TaskParams
from stages.results.intervals import interval, numbered_entities
from stages.results.measures import interval as share_interval
from stages.results.predictions import Predictions
from stages.results.teachers import Teachers, said_by

By = Mapping[tuple[str, Split], Predictions]
"""What a model says, by language and split."""


class Standing(NamedTuple):
    """How a student stands in a language, on labelled examples.

    Attributes:
        n: Examples.
        accuracy: Of the student, in [0, 1].
        low: Lower bound of its 95 % interval.
        high: Upper bound.
        majority: The share of the most frequent class: who always says that is right so often.
        over_baseline: Bounds of the student's difference to the baseline at 95 %, for other texts.
        over_teachers: Likewise to the teachers; None: there are none, or not of all these examples.
    """

    n: int
    accuracy: float
    low: float
    high: float
    majority: float
    over_baseline: tuple[float, float]
    over_teachers: tuple[float, float] | None

    @property
    def near_chance(self) -> bool:
        """Whether the student is not surely better than who always says the most frequent class."""
        return self.low <= self.majority

    def verdict(self) -> str:
        """Say in words what is sure: ``above chance``, or what speaks against the student."""
        if self.near_chance:
            return "near chance"
        behind = [("finetune", self.over_baseline), ("its teacher", self.over_teachers)]
        names = [name for name, bounds in behind if bounds is not None and bounds[1] < 0]
        return f"behind {' and '.join(names)}" if names else "above chance"


def standings(
    task: TaskParams, teachers: Mapping[str, Teachers], student: By, baseline: By
) -> dict[str, Standing]:
    """Compare student, baseline and teachers on the test split of each language that has one.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`; languages that are not in it are compared with no teacher.
        student: What `stages.results.predictions.read_predictions` gives of the student.
        baseline: Likewise of the baseline.

    Raises:
        StageError: The data is not there, or a teacher's classes are not the task's.
        CacheError: The soft labels are not there or not readable.
    """
    found = {}
    for language in (name for name, split in student if split == "test"):
        one = student[language, "test"]
        says = None
        if language in teachers and language in task.supervised:
            said = said_by(task, teachers[language], language, ["test"])
            says = said.together().argmax(axis=1) if said.has.all() else None
        [entities] = numbered_entities({language: read_entities(language, "test")}).values()
        others = (baseline[language, "test"].predicted, says)
        found[language] = standing(one.labels, one.predicted, *others, entities)
    return found


def standing(
    labels: NDArray[np.int32],
    student: NDArray[np.int64],
    baseline: NDArray[np.int64],
    teachers: NDArray[np.int64] | None,
    entities: NDArray[np.int64],
) -> Standing:
    """Compare what models say of N examples of one language.

    Args:
        labels: Hard labels, shape ``(N,)``.
        student: The classes that it says, shape ``(N,)``.
        baseline: Likewise.
        teachers: Likewise; None: nobody knows.
        entities: What the examples are about, numbers from 0, shape ``(N,)``.
    """
    right = student == labels
    low, high = share_interval(int(right.sum()), len(labels))

    def over(other: NDArray[np.int64]) -> tuple[float, float]:
        difference = right.astype(np.int64) - (other == labels)
        return interval([difference[None]], [entities])

    return Standing(
        n=len(labels),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        majority=float(np.bincount(labels).max() / len(labels)),
        over_baseline=over(baseline),
        over_teachers=None if teachers is None else over(teachers),
    )
