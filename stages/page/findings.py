"""What a finished run found, read from its artifacts. No model is loaded, and nothing is laid out here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import Producer, SoftLabelSet, file_digest
from stages.artifacts import BASELINE, PLOTS, SOFT_LABELS, STUDENT, of_each_teacher
from stages.data.classes import ClassOrder, match_classes, weigh_class_order
from stages.data.examples import SPLITS, examples_digest, has_split, read_examples
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.results.averages import average_teachers
from stages.results.measures import (
    Bins,
    by_confidence,
    calibration_error,
    confusion,
    entropy,
    fit_temperature,
    interval,
    probabilities,
)
from stages.results.predictions import Predictions, read_predictions

Curve = list[dict[str, float]]
"""Points of a training: ``step``, and what was measured there, by name."""


@dataclass(frozen=True)
class Result:
    """What a model says of N labelled examples of one language.

    Attributes:
        examples: As `stages.data.examples.read_examples` gives them.
        logits: In the task's class order, shape ``(N, C)``.
        temperature: What calibrates the model: fitted on validation examples.
    """

    examples: pa.Table
    logits: NDArray[Any]
    temperature: float = 1.0

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The hard labels, shape ``(N,)``."""
        labels: NDArray[np.int32] = self.examples["label"].to_numpy()
        return labels

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class with the largest logit, shape ``(N,)``."""
        predicted: NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted

    @property
    def accuracy(self) -> float:
        """The share of the examples on which prediction and hard label agree."""
        return float((self.predicted == self.labels).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return interval(int((self.predicted == self.labels).sum()), len(self.labels))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts by hard label and prediction, shape ``(C, C)``."""
        return confusion(self.labels, self.predicted, n_classes=self.logits.shape[1])

    def probabilities(self, *, calibrated: bool = False) -> NDArray[np.float64]:
        """Give the probability of each class, shape ``(N, C)``."""
        return probabilities(self.logits, temperature=self.temperature if calibrated else 1.0)

    def bins(self, *, calibrated: bool) -> Bins:
        """Put the predictions into bins by confidence."""
        return by_confidence(self.probabilities(calibrated=calibrated), self.labels)

    def calibration_error(self, *, calibrated: bool) -> float:
        """Give the expected calibration error."""
        return calibration_error(self.bins(calibrated=calibrated))


class LabelSet(NamedTuple):
    """One teacher's soft labels of a language.

    Attributes:
        name: Where they lie under ``artifacts/soft_labels``.
        producers: Who wrote them: one, or one for each fold.
        manifest: Sha256 of the set's manifest.
        n_labels: How many there are: one for each distinct text.
        n_bytes: Of its shards.
        order: What the labelled examples say of the declared class order.
    """

    name: str
    producers: list[Producer]
    manifest: str
    n_labels: int
    n_bytes: int
    order: ClassOrder


class Taught(NamedTuple):
    """A language's teachers and what they say together: the average of their probabilities.

    Attributes:
        sets: The soft labels of each.
        test: On the test split.
        accuracy: By split.
        entropy: Mean over the training split, in bits: what soft labels say beyond one class.
        n_train: Examples that the student learns from.
    """

    sets: list[LabelSet]
    test: Result
    accuracy: dict[Split, float]
    entropy: float
    n_train: int


@dataclass(frozen=True)
class Findings:
    """All that the report shows.

    Attributes:
        task: Section `task` of params.yaml.
        variant: The variant that the student is.
        epochs: Of the student's training.
        supervised: Supervised languages with a test split, the student's best first.
        zero_shot: The same of zero-shot languages.
        student: By language, on the test split, through the branch that the language uses.
        baseline: The same of the baseline.
        teachers: By supervised language.
        branches: Test accuracy of the student by language and branch.
        used: The branch that a language uses, or ``mixture``.
        validation_accuracy: Of the student, the mean over the languages of a group.
        losses: Of the student's training.
        validation: Validation accuracy while training, of ``student`` and ``baseline``.
        counts: Examples by language and split.
        data: Digest of a language's examples of all splits, by language.
        weights: Sha256 of the weight files of ``student`` and ``baseline``, by path.
    """

    task: TaskParams
    variant: str
    epochs: int
    supervised: list[str]
    zero_shot: list[str]
    student: dict[str, Result]
    baseline: dict[str, Result]
    teachers: dict[str, Taught]
    branches: dict[tuple[str, str], float]
    used: dict[str, str]
    validation_accuracy: dict[str, float]
    losses: Curve
    validation: dict[str, Curve]
    counts: dict[str, dict[Split, int]]
    data: dict[str, str]
    weights: dict[str, str]

    @property
    def groups(self) -> dict[str, list[str]]:
        """The languages of each kind that has some."""
        kinds = {"supervised": self.supervised, "zero-shot": self.zero_shot}
        return {kind: languages for kind, languages in kinds.items() if languages}

    @property
    def models(self) -> dict[str, dict[str, Result]]:
        """Test results by the name of a column, and by language."""
        teachers = {language: taught.test for language, taught in self.teachers.items()}
        return {"teacher": teachers, "finetune": self.baseline, self.student_name: self.student}

    @property
    def student_name(self) -> str:
        """The student's column: its variant, told from the baseline's where that is the same."""
        return self.variant if self.variant != "finetune" else "student"

    def accuracy(self, model: str, languages: Sequence[str]) -> float | None:
        """Average a model's test accuracy over languages, each counting alike; None where it has none."""
        found = [self.models[model][name].accuracy for name in languages if name in self.models[model]]
        return sum(found) / len(found) if found else None

    def bins(self, model: str, languages: Sequence[str], *, calibrated: bool) -> Bins:
        """Put a model's test predictions of several languages into bins by confidence."""
        results = [self.models[model][name] for name in languages]
        probs = np.concatenate([one.probabilities(calibrated=calibrated) for one in results])
        return by_confidence(probs, np.concatenate([one.labels for one in results]))


def find(task: TaskParams, params: Mapping[str, Any]) -> Findings:
    """Read what a finished run left.

    Args:
        task: Section `task` of params.yaml.
        params: All of its sections as plain values.

    Raises:
        StageError: Something is not there, or is not of the current data.
        CacheError: The soft labels are not there or not readable.
    """
    student = read_predictions(task, "student")
    results = {
        "student": _results(task, student),
        "baseline": _results(task, read_predictions(task, "baseline")),
    }
    teachers = {
        language: _taught(task, params["teachers"][language], language) for language in task.supervised
    }
    counts, digests = _data(task)
    by_branch = _read_json(PLOTS / "accuracy_by_branch.json", "student evaluate")
    folders = {"student": (STUDENT, "student distill"), "baseline": (BASELINE, "student baseline")}
    return Findings(
        task=task,
        variant=params["student"]["distill"]["variant"],
        epochs=params["student"]["distill"]["epochs"],
        supervised=_best_first(task.supervised, results["student"]),
        zero_shot=_best_first(task.zero_shot, results["student"]),
        student=results["student"],
        baseline=results["baseline"],
        teachers=teachers,
        branches={
            (row["language"], row["branch"]): row["accuracy"] for row in by_branch if row["split"] == "test"
        },
        used={one.language: one.branch for one in student.values()},
        validation_accuracy=_validation_accuracy(task, student),
        losses=_read_json(STUDENT / "losses.json", "student distill"),
        validation={
            name: _read_json(folder / "validation.json", command)
            for name, (folder, command) in folders.items()
        },
        counts=counts,
        data=digests,
        weights={
            str(path): file_digest(path)
            for folder, _ in folders.values()
            for path in sorted(folder.glob("*.safetensors"))
        },
    )


def _results(task: TaskParams, predictions: Mapping[tuple[str, Split], Predictions]) -> dict[str, Result]:
    """Give a model's test results by language.

    One temperature calibrates the model. It is fitted on the supervised languages: others have no labels in
    use, and must do with what is learned from these.
    """
    held_out = [
        one
        for (language, split), one in predictions.items()
        if split == "validation" and language in task.supervised
    ]
    temperature = fit_temperature(
        np.concatenate([one.logits for one in held_out]), np.concatenate([one.labels for one in held_out])
    )
    return {
        language: Result(one.examples, one.logits, temperature)
        for (language, split), one in predictions.items()
        if split == "test"
    }


def _validation_accuracy(
    task: TaskParams, predictions: Mapping[tuple[str, Split], Predictions]
) -> dict[str, float]:
    groups = {"supervised": task.supervised, "zero-shot": task.zero_shot}
    accuracies = {
        kind: [
            Result(one.examples, one.logits).accuracy
            for name in names
            if (one := predictions.get((name, "validation")))
        ]
        for kind, names in groups.items()
    }
    return {kind: float(np.mean(found)) for kind, found in accuracies.items() if found}


def _taught(task: TaskParams, teachers: Mapping[str, Any], language: str) -> Taught:
    """Read the soft labels of a language, and compare them with the hard ones."""
    tables = {split: read_examples(task, language, split) for split in SPLITS}
    ids = pa.concat_tables(tables.values())["example_id"].combine_chunks()
    labels = np.concatenate([table["label"].to_numpy() for table in tables.values()])
    named = [teachers, *teachers["more"]]
    sets, logits = [], []
    for folder, teacher in zip(of_each_teacher(SOFT_LABELS / language, len(named)), named, strict=True):
        label_set = SoftLabelSet.read(folder, language=language)
        order = match_classes(label_set.classes, task.classes, names=teacher["labels"], language=language)
        logits.append(label_set.join(ids).logits[:, order].astype(np.float64))
        shards = [folder / name for name in label_set.shards]
        sets.append(
            LabelSet(
                name=folder.relative_to(SOFT_LABELS).as_posix(),
                producers=label_set.producers,
                manifest=file_digest(folder / "manifest.json"),
                n_labels=json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["examples"],
                n_bytes=sum(path.stat().st_size for path in shards),
                order=weigh_class_order(
                    confusion(labels, logits[-1].argmax(axis=1), n_classes=len(task.classes)).T
                ),
            )
        )
    ends = np.cumsum([table.num_rows for table in tables.values()])
    parts = dict(zip(SPLITS, np.split(average_teachers(logits), ends[:-1]), strict=True))
    by_split = {split: Result(tables[split], part) for split, part in parts.items()}
    temperature = fit_temperature(parts["validation"], by_split["validation"].labels)
    return Taught(
        sets=sets,
        test=Result(tables["test"], parts["test"], temperature),
        accuracy={split: result.accuracy for split, result in by_split.items()},
        entropy=float(entropy(by_split["train"].probabilities()).mean()),
        n_train=tables["train"].num_rows,
    )


def _data(task: TaskParams) -> tuple[dict[str, dict[Split, int]], dict[str, str]]:
    """Count the examples by language and split, and hash each language's."""
    counts: dict[str, dict[Split, int]] = {}
    digests = {}
    for language in task.languages:
        tables = {s: read_examples(task, language, s) for s in SPLITS if has_split(language, s)}
        counts[language] = {split: table.num_rows for split, table in tables.items()}
        if tables:
            digests[language] = examples_digest(pa.concat_tables(tables.values()))
    return counts, digests


def _best_first(languages: Sequence[str], results: Mapping[str, Result]) -> list[str]:
    return sorted((name for name in languages if name in results), key=lambda name: -results[name].accuracy)


def _read_json(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; write it with: python -m pipeline {command}") from None
