"""What a finished run found, read from its artifacts. No model is loaded, and nothing is laid out here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cache import file_digest
from stages.artifacts import BASELINE, PLOTS, STUDENT
from stages.data.branches import branch_position
from stages.data.examples import SPLITS, examples_digest, has_split, read_examples, taught_splits
from stages.data.silver import silver_languages
from stages.data.task import Split, SplitName, TaskParams
from stages.errors import StageError
from stages.page.result import Result
from stages.page.taught import Silver, Taught, read_silver, read_taught
from stages.results.measures import Bins, by_confidence
from stages.results.predictions import Predictions, read_estimates, read_predictions, validation_accuracy
from stages.results.premise import Premise, premise
from stages.results.standing import Standing, standings
from stages.results.teachers import Teachers

Curve = list[dict[str, float]]
"""Points of a training: ``step``, and what was measured there, by name."""


@dataclass(frozen=True)
class Findings:
    """All that the report shows.

    Attributes:
        task: Section `task` of params.yaml.
        variant: The variant that the student is.
        epochs: Of the student's trainings, all together.
        groups: Languages with a test split by kind, the student's best first; kinds that have some.
        student: By language, on the test split, through the branch that the language uses.
        baseline: The same of the baseline.
        teachers: By supervised language.
        branches: Test accuracy of the student by language and branch.
        used: The branch that a language uses, or ``mixture``.
        validation_accuracy: Of the student, the mean over the languages of a kind.
        losses: Of the student's training.
        validation: Validation accuracy while training, of ``student`` and ``baseline``.
        counts: Examples by language and split.
        cut: Test examples that are longer than the student reads, by language; none: it is not known.
        data: Digest of a language's examples of all splits, by language.
        premise: Teachers and baseline compared on validation data; None where it has no soft labels.
        weights: Sha256 of the weight files of ``student`` and ``baseline``, by path.
        silver: What teachers say of texts of zero-shot languages, by language.
        standings: How the student stands in each language with a test split.
        estimates: A row per language: how good the student seems without labels, and is.
    """

    task: TaskParams
    variant: str
    epochs: int
    groups: dict[str, list[str]]
    student: dict[str, Result]
    baseline: dict[str, Result]
    teachers: dict[str, Taught]
    branches: dict[tuple[str, str], float]
    used: dict[str, str]
    validation_accuracy: dict[str, float]
    losses: Curve
    validation: dict[str, Curve]
    counts: dict[str, dict[SplitName, int]]
    cut: dict[str, int]
    data: dict[str, str]
    premise: Premise | None
    weights: dict[str, str]
    silver: dict[str, Silver]
    standings: dict[str, Standing]
    estimates: list[dict[str, Any]]

    @property
    def supervised(self) -> list[str]:
        """The supervised languages with a test split, the student's best first."""
        return self.groups["supervised"]

    @property
    def pairs(self) -> dict[str, tuple[Result, Result]]:
        """Student and teachers by supervised language, on the test examples that have soft labels."""
        found = {}
        for name in self.supervised:
            taught, student = self.teachers[name], self.student[name]
            if taught.test is not None:
                examples = student.examples.filter(pa.array(taught.has_test))
                own = Result(examples, student.logits[taught.has_test], student.temperature)
                found[name] = own, taught.test
        return found

    @property
    def models(self) -> dict[str, dict[str, Result]]:
        """Test results by the name of a column, and by language."""
        teachers = {
            language: taught.test
            for language, taught in self.teachers.items()
            if taught.test and taught.coverage["test"] == 1  # the other models are measured on all texts
        }
        return {"teacher": teachers, "finetune": self.baseline, self.student_name: self.student}

    @property
    def student_name(self) -> str:
        """The student's column: its variant, told from the baseline's where that is the same."""
        return self.variant if self.variant != "finetune" else "student"

    def accuracy(self, model: str, languages: Sequence[str]) -> float | None:
        """Average a model's test accuracy over languages, each counting alike; None where one has none."""
        results = self.models[model]
        if not languages or any(name not in results for name in languages):
            return None  # an average over other languages is none to compare the student's with
        return sum(results[name].accuracy for name in languages) / len(languages)

    def bins(self, model: str, languages: Sequence[str], *, calibrated: bool) -> Bins:
        """Put a model's test predictions of several languages into bins by confidence."""
        results = [self.models[model][name] for name in languages if name in self.models[model]]
        probs = np.concatenate([one.probabilities(calibrated=calibrated) for one in results])
        return by_confidence(probs, np.concatenate([one.labels for one in results]))


def find(task: TaskParams, teachers: Mapping[str, Teachers], params: Mapping[str, Any]) -> Findings:
    """Read what a finished run left.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`.
        params: All of its sections as plain values.

    Raises:
        StageError: Something is not there, or is not of the current data.
        CacheError: The soft labels are not there or not readable.
    """
    predictions = read_predictions(task, "student")
    folders = {"student": (STUDENT, "student distill"), "baseline": (BASELINE, "student baseline")}
    student = _results(task, predictions, *folders["student"])
    of_baseline = read_predictions(task, "baseline")
    baseline = _results(task, of_baseline, *folders["baseline"])
    taught = {language: read_taught(task, teachers[language], language) for language in task.supervised}
    counts, digests = _data(task)
    its = params["teacher"]["finetune"]
    training = _training(params["student"]["distill"])
    by_language = _read_json(PLOTS / "accuracy_by_language.json", "student evaluate")
    by_branch = _read_json(PLOTS / "accuracy_by_branch.json", "student evaluate")
    return Findings(
        task=task,
        variant=training["variant"],
        epochs=training["epochs"],
        groups=_best_first(task, student),
        student=student,
        baseline=baseline,
        teachers=taught,
        branches={
            (row["language"], row["branch"]): row["accuracy"] for row in by_branch if row["split"] == "test"
        },
        used={one.language: one.branch for one in predictions.values()},
        validation_accuracy=validation_accuracy(task, predictions.values()),
        losses=_read_json(STUDENT / "losses.json", "student distill"),
        validation={
            name: _read_json(folder / "validation.json", command)
            for name, (folder, command) in folders.items()
        },
        counts=counts,
        cut={
            row["language"]: row["cut"]
            for row in by_language
            if (row["model"], row["split"]) == ("student", "test") and "cut" in row  # since version 0.2
        },
        data=digests,
        premise=(
            premise(task, teachers, of_baseline, keep_best=its["keep"] == "best" and its["epochs"] > 1)
            if any("validation" in one.accuracy for one in taught.values())
            else None
        ),
        weights={
            str(path): file_digest(path)
            for folder, _ in folders.values()
            for path in sorted(folder.glob("*.safetensors"))
        },
        silver={
            language: read_silver(task, teachers[language], language)
            for language in silver_languages(task, teachers)
        },
        standings=standings(task, teachers, predictions, of_baseline),
        estimates=read_estimates(),
    )


def _training(distill: Mapping[str, Any]) -> dict[str, Any]:
    """Give ``variant`` and ``epochs`` of the student, of which version 0.1 wrote nothing beside it."""
    path = STUDENT / "training.json"
    if not path.is_file():
        return {"variant": distill["variant"], "epochs": distill["epochs"] * distill["runs"]}
    training: dict[str, Any] = _read_json(path, "student distill")
    return training


def _results(
    task: TaskParams, predictions: Mapping[tuple[str, Split], Predictions], folder: Path, command: str
) -> dict[str, Result]:
    """Give a model's test results by language, with the temperature that its configuration has for them."""
    config = _read_json(folder / "config.json", command)
    own, mixture = (config.get(f"{name}_temperature", 1.0) for name in ("own", "mixture"))
    results = {}
    for (language, split), one in predictions.items():
        if split == "test":
            temperature = mixture if branch_position(language, task.supervised) < 0 else own
            results[language] = Result(one.examples, one.logits, temperature)
    return results


def _best_first(task: TaskParams, results: Mapping[str, Result]) -> dict[str, list[str]]:
    """Sort each kind's languages by accuracy; drop languages without results and kinds without languages."""
    groups = {
        kind: sorted(
            (name for name in languages if name in results), key=lambda name: -results[name].accuracy
        )
        for kind, languages in task.groups.items()
    }
    return {kind: languages for kind, languages in groups.items() if languages}


def _data(task: TaskParams) -> tuple[dict[str, dict[SplitName, int]], dict[str, str]]:
    """Count the examples by language and split, and hash each language's."""
    counts: dict[str, dict[SplitName, int]] = {}
    digests = {}
    for language in task.languages:
        splits: list[SplitName] = [split for split in SPLITS if has_split(language, split)]
        splits += [split for split in taught_splits(task, language) if split not in splits]
        tables = {split: read_examples(task, language, split) for split in splits}
        counts[language] = {split: table.num_rows for split, table in tables.items()}
        if tables:
            digests[language] = examples_digest(pa.concat_tables(tables.values()))
    return counts, digests


def _read_json(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; write it with: python -m pipeline {command}") from None
    except ValueError as error:
        raise StageError(f"{path} is broken; write it again with: python -m pipeline {command}") from error
