"""The premise of distillation: teachers know more than the student's own encoder learns from the labels."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.examples import UNLABELLED, read_entities, read_examples, taught_splits
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.results.intervals import interval, numbered_entities
from stages.results.measures import fit_temperature_of, probabilities
from stages.results.predictions import Predictions
from stages.results.teachers import Teachers, require_some, said_by

_FAR = 0.2
"""By so much more often are teachers right than they say, where a student may learn their doubts."""


class Gain(NamedTuple):
    """By how much teachers are more accurate than the baseline on validation data.

    Attributes:
        teachers: Accuracy of the teachers.
        confidence: Of the teachers, on average: the probability of the class that they name.
        temperature: τ at which what a student learns of them is as sure as they are right.
        baseline: Accuracy of the encoder that was fine-tuned on the hard labels of all supervised languages.
        low: Lower bound of the difference, at 95 %: for other texts, not for other seeds.
        high: Upper bound.
        by_heart: Accuracy of the teachers on their training texts. Where it is far above that on others, a
            soft label of such a text says little more than the hard one.
        only_labelled: Whether the student learns from texts with labels alone.
        chosen: Whether these texts chose which epoch of the teachers is kept: they look too good then.
    """

    teachers: float
    confidence: float
    temperature: float
    baseline: float
    low: float
    high: float
    by_heart: float
    only_labelled: bool
    chosen: bool

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
        favours = "; these texts chose the epochs of the teachers, which favours them" if self.chosen else ""
        if self.low > 0:
            return self._of_better() + favours
        if self.high < 0:
            return "teachers are worse than the encoder fine-tuned on the labels"
        return f"teachers and the encoder fine-tuned on the labels cannot be told apart{favours}"

    def _of_better(self) -> str:
        better = (
            f"teachers {'look' if self.chosen else 'are'} better than the encoder fine-tuned on the labels"
        )
        if self.teachers - self.confidence > _FAR and self.temperature < 1:  # 1: they are never wrong
            return (
                f"{better}, but only {self.confidence:.0%} sure on average: a student may learn their "
                f"doubts; at a student.distill.temperature of {self.temperature:.1g}, they would be as "
                "sure as they are right"
            )
        knows_by_heart = 1 - self.by_heart < (1 - self.teachers) / 2
        if self.only_labelled and knows_by_heart:
            return (
                f"{better}, but know {self.by_heart:.0%} of the training texts by heart: "
                "texts without labels, or folds, would show what they know"
            )
        return better


class Premise(NamedTuple):
    """The gain on average over the supervised languages, and in each of them."""

    average: Gain
    languages: dict[str, Gain]


def premise(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    baseline: Mapping[tuple[str, Split], Predictions],
    *,
    keep_best: bool,
) -> Premise:
    """Compare teachers and baseline on the validation split of the supervised languages.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`.
        baseline: What `stages.results.predictions.read_predictions` gives of the baseline.
        keep_best: Whether teachers that are fine-tuned here keep the best of several epochs.

    Raises:
        StageError: The data is not there, a teacher's classes are not the task's, or no validation example
            has soft labels.
        CacheError: The soft labels are not there or not readable.
    """
    known_entities = {language: read_entities(language, "validation") for language in task.supervised}
    entities = numbered_entities(known_entities)
    said, right, by_heart = {}, {}, {}
    chosen = keep_best and any(one.is_trained for name in task.supervised for one in teachers[name].all)
    only_labelled = all(UNLABELLED not in taught_splits(task, language) for language in task.languages)
    for language in task.supervised:
        own = baseline[language, "validation"]
        of_teachers = _answers(task, teachers[language], language, "validation")
        if not of_teachers.has.any():
            continue
        said[language] = of_teachers
        baseline_right = (own.predicted == own.labels)[of_teachers.has]
        right[language] = np.stack([of_teachers.right, baseline_right]).astype(np.int64)
        entities[language] = entities[language][of_teachers.has]
        of_training = _answers(task, teachers[language], language, "train")
        require_some(of_training.has, language)
        by_heart[language] = of_training.right.mean()

    def gain(*languages: str) -> Gain:
        accuracies = np.mean([right[name].mean(axis=1) for name in languages], axis=0)
        differences = [right[name][:1] - right[name][1:] for name in languages]
        low, high = interval(differences, [entities[name] for name in languages])
        known = float(np.mean([by_heart[name] for name in languages]))
        sure = [probabilities(said[name].together()).max(axis=1).mean() for name in languages]
        temperature = fit_temperature_of(
            lambda at: np.concatenate([said[name].together(at) for name in languages]),
            np.concatenate([said[name].labels for name in languages]),
        )
        of_teachers, of_baseline = map(float, accuracies)
        return Gain(
            teachers=of_teachers,
            confidence=float(np.mean(sure)),
            temperature=temperature,
            baseline=of_baseline,
            low=low,
            high=high,
            by_heart=known,
            only_labelled=only_labelled,
            chosen=chosen,
        )

    if not right:
        raise StageError("no validation text of a supervised language has soft labels")
    return Premise(gain(*right), {name: gain(name) for name in right})


class _Answers(NamedTuple):
    """What teachers say of the N examples of a split.

    Attributes:
        has: Of which examples there are soft labels, shape ``(N,)``.
        together: Gives these at a temperature, shape ``(n, C)``: see `Said.together`.
        labels: Their hard labels, shape ``(n,)``.
    """

    has: NDArray[np.bool_]
    together: Callable[..., NDArray[np.floating]]
    labels: NDArray[np.int32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which name the class, shape ``(n,)``."""
        right: NDArray[np.bool_] = self.together().argmax(axis=1) == self.labels
        return right


def _answers(task: TaskParams, teachers: Teachers, language: str, split: Split) -> _Answers:
    said = said_by(task, teachers, language, [split])
    labels = read_examples(task, language, split)["label"].to_numpy()
    return _Answers(said.has, said.together, labels[said.has])
