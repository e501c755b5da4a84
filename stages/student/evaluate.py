"""Evaluate student and baseline: accuracy per language, averages, and every branch on every language."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from cache import write_atomically
from stages.artifacts import BASELINE, METRICS, PLOTS, PREDICTIONS, STUDENT
from stages.data.branches import MIXTURE, branch_of
from stages.data.examples import SPLITS, UNLABELLED, has_only_texts, has_split, read_examples
from stages.data.tables import some_of
from stages.data.task import Split, SplitName, TaskParams
from stages.errors import StageError
from stages.models.batches import current_device, tokenize
from stages.models.loading import require_max_tokens
from stages.models.precision import say_if_slower
from stages.models.students import class_names, load_student
from stages.progress import Bar
from stages.results.measures import N_BINS, by_confidence, confusion, probabilities
from stages.results.predictions import Predictions, write_predictions
from stages.student.estimates import estimate
from stages.student.mixtures import mixture_logits
from stages.student.params import DistillParams, EvaluateParams

_MOST_TEXTS = 2_000
"""Texts of a language without labels that are looked at; a hash chooses them."""


def evaluate(task: TaskParams, distill: DistillParams, params: EvaluateParams) -> dict[str, Any]:
    """Write metrics, plots and predictions of ``artifacts/student`` and ``artifacts/baseline``.

    A supervised language and its varieties go through its own branch, any other through the mixture of all,
    as in use.

    Returns:
        The student's metrics: split → ``supervised`` and ``zero_shot`` → mean accuracy and macro-F1.

    Raises:
        StageError: A model or the data is missing.
    """
    models = {"student": (STUDENT, "student distill"), "baseline": (BASELINE, "student baseline")}
    by_language: list[dict[str, Any]] = []
    metrics = {}
    for name, (folder, command) in models.items():
        splits = [*SPLITS[1:], *([UNLABELLED] if name == "student" else [])]
        said = list(answers(task, distill, params, folder, command=command, splits=splits))
        answered = [answer for answer in said if answer.split != UNLABELLED]
        used = [answer.of(answer.used) for answer in answered]
        write_predictions(task, name, used)
        own = [_row(task, one) for one in used]
        cut = [answer.n_cut for answer in answered]
        by_language += [{"model": name, **row, "cut": n} for row, n in zip(own, cut, strict=True)]
        metrics[name] = _averages(task, own)
        _write_json(METRICS / f"{name}.json", metrics[name])
        if name == "student":
            tested = [one for one in used if one.split == "test"]
            _write_json(PLOTS / "confusion.json", _confusion(task, tested))
            calibrated = [
                one._replace(logits=one.logits / answer.temperature)
                for one, answer in zip(used, answered, strict=True)
                if one.split == "test"
            ]
            _write_json(PLOTS / "calibration.json", _calibration(task, calibrated))
            by_branch = [
                {**_row(task, answer.of(branch)), "used": answer.used}
                for answer in answered
                for branch in answer.logits
            ]
            _write_json(PLOTS / "accuracy_by_branch.json", by_branch)
            _write_json(PREDICTIONS / "estimates.json", [_estimate(task, answer) for answer in said])
    _write_json(PLOTS / "accuracy_by_language.json", by_language)
    tested_rows = [row for row in by_language if (row["model"], row["split"]) == ("student", "test")]
    _write_json(PLOTS / "test_accuracy.json", tested_rows)
    return metrics["student"]


class ByBranch(NamedTuple):
    """What a model says of the N examples of one language and split, by branch and by the mixture.

    Attributes:
        language: The examples' language.
        split: Their split; ``unlabelled`` of languages that have no test split.
        temperature: What calibrates what `used` says.
        examples: As `stages.data.examples.read_examples` gives them.
        used: The branch that the language uses, or ``mixture``.
        logits: By branch; each of shape ``(N, C)``.
        n_cut: How many examples were longer than allowed.
    """

    language: str
    split: SplitName
    temperature: float
    examples: pa.Table
    used: str
    logits: dict[str, NDArray[np.float32]]
    n_cut: int

    def of(self, branch: str) -> Predictions:
        """Give what one branch says."""
        return Predictions(self.language, cast(Split, self.split), branch, self.examples, self.logits[branch])


def answers(
    task: TaskParams,
    distill: DistillParams,
    params: EvaluateParams,
    folder: Path,
    *,
    command: str,
    splits: Sequence[SplitName] = SPLITS[1:],
    only_used: bool = False,
) -> Iterator[ByBranch]:
    """Send the validation and test examples of every language through every branch.

    Args:
        task: Section `task` of params.yaml.
        distill: Section `student.distill`.
        params: Section `student.evaluate`.
        folder: The model.
        command: What makes the model, for messages.
        splits: Examples of these splits alone.
        only_used: Through the branch alone that the language uses, or the mixture.

    Raises:
        StageError: The model or examples of a language are not there, or it is of other classes or languages.
    """
    name = folder.name
    for language in task.languages:
        if not (has_split(language, "test") or has_only_texts(task, language)):
            read_examples(task, language, "test")  # which says what to do
    model, tokenizer = load_student(folder, command=command)
    device = current_device()
    say_if_slower(distill.precision, key="student.distill.precision")
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides self
    if (class_names(model.config), model.config.languages) != (task.classes, task.supervised):
        raise StageError(
            f"the student in {folder} was trained for other classes or languages than params.yaml names; "
            f"train it again with: python -m pipeline {command}"
        )
    require_max_tokens(distill.max_tokens, tokenizer, model.config, key="student.distill.max_tokens")
    n_branches = model.config.n_branches
    own, of_others = model.config.own_temperature, model.config.mixture_temperature
    weights = {MIXTURE: torch.full((n_branches,), 1 / n_branches)}
    if n_branches > 1:
        weights |= zip(model.config.languages, torch.eye(n_branches), strict=True)
    for language in Bar(task.languages, desc=f"evaluate {name}", unit="language"):
        position = model.config.language_id(language)
        used = branch_of(position, model.config.languages, n_branches)
        names = [used] if only_used else list(weights)
        for split in splits:
            is_wanted = split != UNLABELLED or has_only_texts(task, language)
            if not (is_wanted and has_split(language, split)):
                continue
            examples = read_examples(task, language, split)
            if split == UNLABELLED:
                examples = some_of(examples, _MOST_TEXTS)
            fields = [examples[field].to_pylist() for field in task.text_fields]
            tokens = tokenize(tokenizer, fields, max_tokens=distill.max_tokens)
            batch_tokens = params.batch_size * distill.max_tokens
            logits = mixture_logits(
                model,
                tokenizer,
                tokens,
                torch.stack([weights[name] for name in names]),
                batch_tokens=batch_tokens,
                precision=distill.precision,
            )
            by_name = dict(zip(names, logits, strict=True))
            temperature = own if position >= 0 else of_others
            yield ByBranch(language, split, temperature, examples, used, by_name, tokens.n_cut)


def _row(task: TaskParams, one: Predictions) -> dict[str, Any]:
    """Say how good predictions are, and whose they are."""
    return {
        "split": one.split,
        "language": one.language,
        "kind": _kind(task, one.language),
        "branch": one.branch,
        "accuracy": float((one.predicted == one.labels).mean()),
        "macro_f1": _macro_f1(one.labels, one.predicted),
    }


def _estimate(task: TaskParams, answer: ByBranch) -> dict[str, Any]:
    """Say how good the student seems in a language without a look at labels; and how good it is, if known."""
    its = answer.logits[answer.used]
    alone = [logits for name, logits in answer.logits.items() if name != MIXTURE]
    labelled = answer.split != UNLABELLED
    return {
        "split": answer.split,
        "language": answer.language,
        "kind": _kind(task, answer.language),
        "examples": len(its),
        **estimate(its, np.array(alone), temperature=answer.temperature)._asdict(),
        "accuracy": _row(task, answer.of(answer.used))["accuracy"] if labelled else None,
    }


def _kind(task: TaskParams, language: str) -> str:
    return next(kind for kind, names in _groups(task).items() if language in names)


def _groups(task: TaskParams) -> dict[str, list[str]]:
    """Give the languages of each kind as the files name it: ``supervised`` and ``zero_shot``."""
    return {kind.replace("-", "_"): languages for kind, languages in task.groups.items()}


def _by_kind(
    task: TaskParams, predictions: list[Predictions]
) -> dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Put labels ``(N,)`` and logits ``(N, C)`` of each kind of language one behind the other."""
    chosen = {
        kind: [one for one in predictions if one.language in languages]
        for kind, languages in _groups(task).items()
    }
    return {
        kind: (np.concatenate([one.labels for one in some]), np.concatenate([one.logits for one in some]))
        for kind, some in chosen.items()
        if some
    }


def _confusion(task: TaskParams, predictions: list[Predictions]) -> list[dict[str, Any]]:
    """Give a row per kind of language and pair of classes: how often one is taken for the other."""
    rows = []
    for kind, (labels, logits) in _by_kind(task, predictions).items():
        counts = confusion(labels, logits.argmax(axis=1), n_classes=len(task.classes))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows += [
            {"kind": kind, "actual": actual, "predicted": said, "count": int(count), "share": float(share)}
            for actual, *line in zip(task.classes, counts, shares, strict=True)
            for said, count, share in zip(task.classes, *line, strict=True)
        ]
    return rows


def _calibration(task: TaskParams, predictions: list[Predictions]) -> list[dict[str, float | None]]:
    """Give a row per bin of calibrated confidence: how often predictions are right, by kind of language.

    None stands for a bin without predictions; `ideal` is what their accuracy should be.
    """
    accuracies: dict[str, list[float | None]] = {kind: [None] * N_BINS for kind in _groups(task)}
    for kind, (labels, logits) in _by_kind(task, predictions).items():
        bins = by_confidence(probabilities(logits), labels)
        found = zip(bins.counts, bins.accuracy, strict=True)
        accuracies[kind] = [float(accuracy) if count else None for count, accuracy in found]
    middles = [(place + 0.5) / N_BINS for place in range(N_BINS)]
    return [
        {
            "confidence": middle,
            "ideal": middle,
            **{kind: shares[place] for kind, shares in accuracies.items()},
        }
        for place, middle in enumerate(middles)
    ]


def _averages(task: TaskParams, rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Average over languages, each counting alike."""
    averages: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS[1:]:
        for kind in _groups(task):
            chosen = [row for row in rows if row["split"] == split and row["kind"] == kind]
            if chosen:
                averages.setdefault(split, {})[kind] = {
                    key: float(np.mean([row[key] for row in chosen])) for key in ("accuracy", "macro_f1")
                }
    return averages


def _macro_f1(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Average F1 over the classes that occur: one that is neither there nor predicted has none."""
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())
