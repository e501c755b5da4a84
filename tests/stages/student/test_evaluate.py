"""What `student evaluate` writes for whoever compares models: predictions and plots."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix
from tiny import Run

from pipeline.params import load_params
from stages.data.examples import SPLITS, has_split
from stages.results.measures import by_confidence, probabilities
from stages.results.predictions import read_predictions
from stages.student.evaluate import _macro_f1, answers


def test_predictions_are_the_students_logits_in_the_order_of_the_data(finished: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = load_params(Path("params.yaml")).task
    folder = "artifacts/student"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    predictions = read_predictions(task, "student")
    assert set(predictions) == {
        (language, split) for language in task.languages for split in SPLITS[1:] if has_split(language, split)
    }
    for language, language_id in (("en", 1), ("nl", -1)):
        one = predictions[language, "test"]
        assert one.branch == ("en" if language == "en" else "mixture")
        inputs = tokenizer(one.examples["text"].to_pylist(), padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs, language_ids=torch.full((12,), language_id)).logits
        np.testing.assert_allclose(one.logits, logits.numpy(), atol=1e-5)


def test_plots_of_dvc_hold_the_numbers_of_the_predictions(finished: Path) -> None:
    task = load_params(Path("params.yaml")).task
    student = read_predictions(task, "student")
    plots = {path.stem: json.loads(path.read_text()) for path in Path("artifacts/plots").iterdir()}
    one = student["nl", "test"]
    counts = [row["count"] for row in plots["confusion"] if row["kind"] == "zero_shot"]
    assert counts == confusion_matrix(one.labels, one.predicted, labels=range(3)).ravel().tolist()
    bins = by_confidence(probabilities(one.logits), one.labels)
    accuracies = [row["zero_shot"] for row in plots["calibration"]]
    assert accuracies == [a if n else None for a, n in zip(bins.accuracy, bins.counts, strict=True)]


def test_a_variety_is_measured_through_the_branch_of_its_language(finished: Path) -> None:
    params = load_params(Path("params.yaml"))
    shutil.copytree("artifacts/data/de", "artifacts/data/de-AT")
    task = params.task.model_copy(update={"zero_shot": ["de-AT"]})
    distill, evaluate = params.student.distill, params.student.evaluate
    said = {
        (one.language, one.split): one
        for one in answers(task, distill, evaluate, Path("artifacts/student"), command="")
    }
    one, other = said["de-AT", "test"], said["de", "test"]
    assert (one.used, one.temperature) == ("de", other.temperature)
    np.testing.assert_array_equal(one.logits["de"], other.logits["de"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_branch_that_a_language_uses_says_the_same_alone(finished: Path, precision: str) -> None:
    params = load_params(Path("params.yaml"))
    distill = params.student.distill.model_copy(update={"precision": precision})
    sections = params.task, distill, params.student.evaluate, Path("artifacts/student")
    every = list(answers(*sections, command=""))
    in_float32: dict[Any, Any] = dict(read_predictions(params.task, "student"))
    for whole, alone in zip(every, answers(*sections, command="", only_used=True), strict=True):
        assert (alone.language, alone.split, list(alone.logits)) == (*whole[:2], [whole.used])
        np.testing.assert_allclose(alone.logits[whole.used], whole.logits[whole.used], atol=1e-5)
        kept = in_float32[whole.language, whole.split].logits
        is_same = np.allclose(kept, whole.logits[whole.used], atol=1e-5)
        assert is_same == (precision == "float32")
        np.testing.assert_allclose(kept, whole.logits[whole.used], atol=0.05)


def test_a_text_longer_than_the_encoder_can_read_is_refused(finished: Path, run: Run) -> None:
    done = run("student", "evaluate", "--set", "student.distill.max_tokens=100000")
    assert (done.code, "student.distill.max_tokens is 100000" in done.err) == (1, True), done.err


def test_a_student_that_gives_nan_has_no_accuracy(finished: Path, run: Run) -> None:
    path = Path("artifacts/student/model.safetensors")
    broken = {name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}
    save_file(broken, path, {"format": "pt"})
    done = run("student", "evaluate")
    assert done.code == 1
    assert "error: the model gives NaN for a text; try student.distill.precision: float32" in done.err


def test_a_class_that_does_not_occur_has_no_share_in_macro_f1() -> None:
    labels = np.array([0, 0, 2, 2])
    assert _macro_f1(labels, labels) == 1
    assert _macro_f1(labels, np.array([0, 0, 2, 1])) == pytest.approx((1 + 2 / 3 + 0) / 3)
