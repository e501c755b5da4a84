"""A round of learning: a finished student labels texts of a language without labels, the next learns them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny import CLASSES, ROOT, Run, tiny_params, write_jsonl, write_params
from warm import warm_python

from cache import SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import SILVER_LABELS
from stages.data.examples import read_examples
from stages.data.task import TaskParams
from stages.models.students import load_student
from stages.student.params import SilverParams
from stages.student.silver import choose, silver_texts

TEXTS = [f"hond {i}" for i in range(4)] + [f"rood {i}" for i in range(4)] + ["een", "twee en drie"]
ROUND = "students/round-1"


@pytest.fixture
def round_two(finished: Path, run: Run) -> dict[str, Any]:
    """A finished run whose student is to teach Dutch; gives the parameters of the next round."""
    shutil.copytree("artifacts/student", ROUND)
    shutil.rmtree("data/nl/train.jsonl", ignore_errors=True)
    Path("data/nl/train.jsonl").unlink(missing_ok=True)
    write_jsonl(Path("data/nl/unlabelled.jsonl"), [{"text": text} for text in TEXTS])
    params = tiny_params()
    params["task"] |= {"unlabelled": True, "zero_shot_texts": True}
    params["teachers"]["nl"] = {"base": ROUND, "finetune": False, "branch": "mixture"}
    write_params(params)
    assert run("prepare").code == 0
    return params


def task_of(params: dict[str, Any]) -> TaskParams:
    return TaskParams.model_validate(params["task"])


def said_of_dutch(params: dict[str, Any]) -> tuple[SoftLabelSet, np.ndarray[Any, Any]]:
    label_set = SoftLabelSet.read(SILVER_LABELS / "nl", language="nl")
    ids = read_examples(task_of(params), "nl", "unlabelled")["example_id"]
    return label_set, label_set.join(ids).logits


@pytest.mark.parametrize("branch", ["mixture", "en"])
def test_a_student_labels_through_the_branch_that_is_named(
    branch: str, round_two: dict[str, Any], run: Run
) -> None:
    file = Path(ROUND, "config.json")
    config = json.loads(file.read_text()) | {"chunk_size_feed_forward": 0}  # another version may write it
    file.write_text(json.dumps(config))
    # In a process of its own, which has loaded nothing of ours yet.
    command = [warm_python(), "-m", "pipeline", "teacher", "silver", "--set", f"teachers.nl.branch={branch}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "nl: 31 soft labels, 31 of them new; the teacher's accuracy: validation " in done.stdout
    label_set, logits = said_of_dutch(round_two)
    assert json.loads(file.read_text()) == config  # the student itself is what it was
    facts = label_set.producers[0].facts["config"]
    assert facts["default_language"] == (None if branch == "mixture" else "en")
    assert facts["chunk_size_feed_forward"] == 0
    student, tokenizer = load_student(Path(ROUND))
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    language = -1 if branch == "mixture" else 1
    with torch.inference_mode():
        expected = student(**inputs, language_ids=torch.full((len(TEXTS),), language)).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    counted = json.loads(Path("artifacts/silver/metrics/nl.json").read_text())
    assert set(counted) == {"validation", "test"}
    again = run("teacher", "silver", "--set", f"teachers.nl.branch={branch}")
    assert "31 soft labels, 0 of them new" in again.out


def test_the_next_student_learns_what_the_last_one_is_sure_of(round_two: dict[str, Any], run: Run) -> None:
    for command in ("teacher label --language de", "teacher label --language en", "teacher silver"):
        assert run(*command.split()).code == 0
    done = run("student", "distill")
    assert done.code == 0, done.err
    assert "nl: 10 of 10 texts teach, whose most probable class has " in done.err
    assert "mblm: 22 steps" in done.out  # of 36 + 36 + 10 texts, twice, in batches of 8
    card = Path("artifacts/student/README.md").read_text(encoding="utf-8")
    producer = said_of_dutch(round_two)[0].producers[0].id
    assert (
        f"- It has read texts in nl, with the soft labels of students/round-1 (producer {producer})" in card
    )
    some = run("student", "distill", "--set", "student.distill.silver.most_per_class=1")
    _, logits = said_of_dutch(round_two)
    n_classes = len(set(logits.argmax(axis=1)))
    assert f"nl: {n_classes} of 10 texts teach" in some.err
    assert "mblm: 22 steps" in some.out  # as many for all settings
    assert "finetune: 22 steps" in run("student", "baseline").out
    none = run("student", "distill", "--set", "student.distill.silver.least_confidence=0.999")
    assert none.code == 1
    assert "error: no text of 'nl' has a class of probability 0.999; lower student.distill.silver" in none.err
    shutil.rmtree(SILVER_LABELS)
    missing = run("student", "distill")
    assert missing.code == 1
    assert "teacher silver" in missing.err


def test_soft_labels_of_others_serve_as_well(round_two: dict[str, Any], run: Run) -> None:
    rows = [
        {"text": text, "probabilities": dict(zip(CLASSES, (0.6, 0.3, 0.1), strict=True))} for text in TEXTS
    ]
    write_jsonl(Path("data/silver.jsonl"), rows)
    round_two["teachers"]["nl"] = {"soft_labels": "data/silver.jsonl"}
    write_params(round_two)
    done = run("teacher", "silver")
    assert "nl: 10 soft labels, 0 of them new" in done.out, done.err
    np.testing.assert_allclose(np.exp(said_of_dutch(round_two)[1]), [[0.6, 0.3, 0.1]] * 10, rtol=1e-5)


def test_how_sure_several_teachers_are_does_not_depend_on_the_temperature(
    round_two: dict[str, Any], run: Run
) -> None:
    for name, probs in (("sure", (0.98, 0.01, 0.01)), ("unsure", (0.34, 0.33, 0.33))):
        said = dict(zip(CLASSES, probs, strict=True))
        write_jsonl(Path(f"data/{name}.jsonl"), [{"text": text, "probabilities": said} for text in TEXTS])
    more = [{"soft_labels": "data/unsure.jsonl", "name": "unsure"}]
    round_two["teachers"]["nl"] = {"soft_labels": "data/sure.jsonl", "name": "sure", "more": more}
    write_params(round_two)
    assert run("teacher", "silver").code == 0
    params = load_params(Path("params.yaml"))
    for temperature in (0.5, 1.0, 4.0):
        changes = {"temperature": temperature, "silver": SilverParams(least_confidence=0.65)}
        found = silver_texts(params.task, params.teachers, params.student.distill.model_copy(update=changes))
        assert found.notes == ["nl: 10 of 10 texts teach, whose most probable class has 66% on average"]
        softened = np.exp(np.log([[0.98, 0.01, 0.01], [0.34, 0.33, 0.33]]) / temperature)
        expected = (softened / softened.sum(axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(softmax(found.logits / temperature, axis=1), [expected] * 10, rtol=1e-5)


def test_without_teachers_of_zero_shot_languages_nothing_is_to_be_done(finished: Path, run: Run) -> None:
    done = run("teacher", "silver")
    assert (done.code, done.out) == (0, "")
    assert [path.name for path in Path("artifacts/silver").iterdir()] == ["languages.json"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"base": ROUND}, "teachers.nl has a base, but 'nl' is a zero-shot language, without labels"),
        ({"base": ROUND, "branch": "de"}, "branch is de, which a finished student has; set finetune: false"),
        (
            {"base": ROUND, "finetune": False, "branch": "nl"},
            "teachers.nl.branch is nl, but the student in ",
        ),
        (
            {"base": "artifacts/encoder", "finetune": False, "branch": "mixture"},
            "holds a roberta model, no student",
        ),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(
    teacher: dict[str, Any], message: str, round_two: dict[str, Any], run: Run
) -> None:
    round_two["teachers"]["nl"] = teacher
    write_params(round_two)
    done = run("teacher", "silver")
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_language_without_texts_has_nothing_to_be_labelled(round_two: dict[str, Any], run: Run) -> None:
    write_jsonl(Path("data/fr/test.jsonl"), [{"text": "rouge", "label": "colour"}])
    round_two["task"]["zero_shot"] = ["nl", "fr"]
    round_two["teachers"]["fr"] = round_two["teachers"]["nl"]
    write_params(round_two)
    assert run("prepare").code == 0
    done = run("teacher", "silver")
    assert done.code == 1
    assert "error: teachers.fr has no texts to label: 'fr' has neither the split train nor unlab" in done.err


def test_the_surest_texts_of_each_class_are_chosen() -> None:
    classes = np.array([0, 0, 0, 1, 1])
    confidence = np.array([0.5, 0.9, 0.8, 0.6, 0.6])
    for options, expected in (
        ({}, [1, 1, 1, 1, 1]),
        ({"least_confidence": 0.6}, [0, 1, 1, 1, 1]),
        ({"most_per_class": 1}, [0, 1, 0, 1, 0]),
        ({"most_per_class": 2, "least_confidence": 0.7}, [0, 1, 1, 0, 0]),
    ):
        assert choose(classes, confidence, SilverParams(**options)).astype(int).tolist() == expected


def test_a_language_with_texts_alone_is_labelled(round_two: dict[str, Any], run: Run) -> None:
    for split in ("validation", "test"):
        Path(f"data/nl/{split}.jsonl").unlink()
    assert run("prepare").code == 0
    done = run("teacher", "silver")
    assert (done.code, done.out.startswith("nl: 10 soft labels")) == (0, True), done.err
