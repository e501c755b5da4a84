"""Languages of which there are texts alone: nobody knows how good the student is there, and it says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import percent, read_page
from tiny import Run, tiny_params, write_jsonl, write_params

from pipeline.params import load_params
from stages.data.examples import has_only_texts, pretraining_texts, read_examples
from stages.data.task import SplitName, TaskParams
from stages.models.students import load_student
from stages.student.estimates import estimate

TEXTS = ["isten hozott", "kutya 7", "piros 12", "három"]


@pytest.fixture
def params(finished: Path, run: Run) -> dict[str, Any]:
    """A finished run to which a language is added that has texts alone."""
    params = tiny_params()
    params["task"]["zero_shot"].append("hu")
    write_params(params)
    write_jsonl(Path("data/hu/unlabelled.jsonl"), [{"text": text} for text in [*TEXTS, TEXTS[0]]])
    assert run("prepare").code == 0
    return params


def test_its_texts_are_examples_without_labels_and_serve_pre_training(params: dict[str, Any]) -> None:
    task = load_params(Path("params.yaml")).task
    assert [has_only_texts(task, name) for name in task.languages] == [False, False, False, True]
    table = read_examples(task, "hu", "unlabelled")
    assert table["text"].to_pylist() == TEXTS  # each once
    assert table["label"].null_count == 4
    assert list(pretraining_texts(task, "hu").values()) == TEXTS


def test_validation_texts_calibrate_where_there_are_some(
    params: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile("data/nl/validation.jsonl", "data/hu/validation.jsonl")
    assert run("prepare").code == 0
    read = []

    def note(task: TaskParams, language: str, split: SplitName) -> Any:
        read.append((language, split))
        return read_examples(task, language, split)

    monkeypatch.setattr("stages.student.calibration.read_examples", note)
    assert run("student", "distill").code == 0
    assert {split for language, split in read if language == "hu"} == {"validation"}
    assert "\n| hu " in Path("artifacts/student/README.md").read_text()


def test_the_guess_is_what_the_student_says_of_them(params: dict[str, Any], run: Run) -> None:
    done = run("student", "evaluate")
    assert done.code == 0, done.err
    rows = {
        (row["language"], row["split"]): row
        for row in json.loads(Path("artifacts/predictions/estimates.json").read_text())
    }
    student, tokenizer = load_student(Path("artifacts/student"))
    logits = student(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits.detach()
    expected = (logits / student.config.mixture_temperature).softmax(-1).max(-1).values.mean()
    one = rows["hu", "unlabelled"]
    assert one["confidence"] == pytest.approx(float(expected), abs=1e-5)
    assert (one["examples"], one["accuracy"], one["kind"]) == (4, None, "zero_shot")
    known = rows["nl", "test"]
    assert known["accuracy"] is not None
    assert f"guessed without labels: hu {100 * one['confidence']:.0f} %" in done.out
    assert run("report").code == 0
    page = read_page()
    assert page.table("Accuracy as guessed")["hu"] == {
        "texts": "4",
        "guess by confidence": percent(one["confidence"]),
        "guess by agreement of branches": percent(one["agreement"]),
    }
    off = 100 * abs(known["confidence"] - known["accuracy"])
    assert f"the guess by confidence is\n{off:.1f} points off" in Path(
        "artifacts/report/report.html"
    ).read_text(encoding="utf-8")


def test_agreement_is_of_the_branches_with_what_is_said() -> None:
    said = np.array([[2.0, 0.0], [0.0, 2.0]])
    branches = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    found = estimate(said, branches, temperature=2.0)
    assert found.agreement == 0.75
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-1)))
    assert estimate(said, branches[:1], temperature=2.0).agreement is None
    assert estimate(said, np.array([]), temperature=2.0).agreement is None


def test_a_student_without_branches_is_not_compared_with_itself(params: dict[str, Any], run: Run) -> None:
    set_variant = ("--set", "student.distill.variant=distill")
    for command in (("student", "distill"), ("student", "evaluate"), ("report",)):
        assert run(*command, *set_variant).code == 0
    rows = json.loads(Path("artifacts/predictions/estimates.json").read_text())
    assert {row["agreement"] for row in rows} == {None}
    assert list(read_page().table("Accuracy as guessed")["hu"]) == ["texts", "guess by confidence"]
    page = Path("artifacts/report/report.html").read_text(encoding="utf-8")
    assert "the guess by confidence is" in page
    assert "agreement of branches" not in page


def test_a_language_with_neither_labels_nor_texts_is_refused(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["task"]["zero_shot"].append("hu")
    write_params(params)
    done = run("prepare")
    assert done.code == 1
    assert "the test split of 'hu' is empty" in done.err
    assert "or give its split unlabelled, whose texts serve for an estimate" in done.err


def test_prepare_says_that_there_is_no_test_split(params: dict[str, Any], run: Run) -> None:
    done = run("prepare")
    assert "hu: no test split; student evaluate estimates from its other texts" in done.out + done.err
    (row,) = [line.split() for line in done.out.splitlines() if line.startswith("hu ")]
    assert row == ["hu", "–", "–", "–", "–", "4"]


def test_a_labelled_training_file_does_not_stand_in_for_a_test_file(params: dict[str, Any], run: Run) -> None:
    Path("data/hu/unlabelled.jsonl").rename("data/hu/train.jsonl")
    done = run("prepare")
    assert done.code == 1
    assert "error: the test split of 'hu' is empty: " in done.err
