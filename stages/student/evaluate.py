"""Evaluate student and baseline: accuracy per language, averages, and every branch on every language."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer

from cache import write_atomically
from stages.artifacts import BASELINE, METRICS, PLOTS, STUDENT
from stages.base import StageError
from stages.source import loading, model_folder
from stages.student.modeling_mblm import MBLMForSequenceClassification
from stages.student.params import DistillParams, EvaluateParams
from stages.task import SPLITS, TaskParams, has_split, read_examples
from stages.texts import Collator, Texts

MIXTURE = "mixture"


def evaluate(task: TaskParams, distill: DistillParams, params: EvaluateParams) -> dict[str, Any]:
    """Write metrics and plots of ``artifacts/student`` and ``artifacts/baseline``.

    A supervised language goes through its own branch, any other through the mixture of all, as in use.

    Returns:
        The student's metrics: split → ``supervised`` and ``zero_shot`` → mean accuracy and macro-F1.

    Raises:
        StageError: A model or the data is missing.
    """
    models = {"student": STUDENT, "baseline": BASELINE}
    by_language: list[dict[str, Any]] = []
    by_branch: list[dict[str, Any]] = []
    metrics = {}
    for name, folder in models.items():
        rows = _evaluate_model(task, distill, params, folder, name)
        by_branch += [row for row in rows if name == "student"]
        own = [row for row in rows if row["branch"] == row["used"]]
        by_language += [{"model": name, **row} for row in own]
        metrics[name] = _averages(own)
        _write_json(METRICS / f"{name}.json", metrics[name])
    _write_json(PLOTS / "accuracy_by_language.json", by_language)
    _write_json(PLOTS / "accuracy_by_branch.json", by_branch)
    tested = [row for row in by_language if (row["model"], row["split"]) == ("student", "test")]
    _write_json(PLOTS / "test_accuracy.json", tested)
    return metrics["student"]


def _evaluate_model(
    task: TaskParams, distill: DistillParams, params: EvaluateParams, folder: Path, name: str
) -> list[dict[str, Any]]:
    """Give one row per split, language and branch, the mixture included."""
    command = "student baseline" if name == "baseline" else "student distill"
    folder = model_folder(folder, command=command)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    with loading(f"the student in {folder}"):
        model = MBLMForSequenceClassification.from_pretrained(folder).eval().to(device)
        collator = Collator(AutoTokenizer.from_pretrained(folder), distill.max_tokens)
    if (list(model.config.id2label.values()), model.config.languages) != (task.classes, task.supervised):
        raise StageError(
            f"the student in {folder} was trained for other classes or languages than params.yaml names; "
            f"train it again with: python -m pipeline {command}"
        )
    shared = model.config.n_branches == 1
    rows = []
    for language in tqdm(task.languages, desc=f"evaluate {name}", unit="language"):
        for split in SPLITS[1:]:
            if not has_split(language, split):
                continue
            table = read_examples(task, language, split)
            texts = Texts([table[field].to_pylist() for field in task.text_fields], {})
            labels = table["label"].to_numpy()
            supervised = language in task.supervised
            used = language if supervised and not shared else MIXTURE
            for branch, logits in _logits(model, texts, collator, params.batch_size).items():
                predicted = logits.argmax(axis=1)
                rows.append(
                    {
                        "split": split,
                        "language": language,
                        "kind": "supervised" if supervised else "zero_shot",
                        "branch": branch,
                        "used": used,
                        "accuracy": float((predicted == labels).mean()),
                        "macro_f1": _macro_f1(labels, predicted, len(task.classes)),
                    }
                )
    return rows


@torch.inference_mode()
def _logits(
    model: MBLMForSequenceClassification, texts: Texts, collator: Collator, batch_size: int
) -> dict[str, NDArray[np.float32]]:
    """Classify texts by every branch and by the uniform mixture, in one pass; each ``(N, C)``."""
    n_branches = model.config.n_branches
    # (K + 1, K): each branch alone, and all of them alike.
    weights = torch.cat([torch.eye(n_branches), torch.full((1, n_branches), 1 / n_branches)])
    weights = weights.to(model.device)
    order = np.argsort(texts.lengths)
    batches = []
    for batch in DataLoader(texts, batch_size, sampler=order.tolist(), collate_fn=collator):
        states = model(**{key: value.to(model.device) for key, value in batch.items()}).branch_states
        batches.append(torch.stack([model.classify(states, w.expand(len(states), -1)) for w in weights]))
    by_length = torch.cat(batches, dim=1).float().cpu().numpy()
    logits = np.empty_like(by_length)
    logits[:, order] = by_length
    names = [*(model.config.languages if n_branches > 1 else []), MIXTURE]
    return dict(zip(names, logits[-len(names) :], strict=True))


def _averages(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Average over languages, each counting alike."""
    averages: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS[1:]:
        for kind in ("supervised", "zero_shot"):
            chosen = [row for row in rows if row["split"] == split and row["kind"] == kind]
            if chosen:
                averages.setdefault(split, {})[kind] = {
                    key: float(np.mean([row[key] for row in chosen])) for key in ("accuracy", "macro_f1")
                }
    return averages


def _macro_f1(labels: NDArray[Any], predicted: NDArray[Any], n_classes: int) -> float:
    return float(f1_score(labels, predicted, average="macro", labels=range(n_classes), zero_division=0))


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())
