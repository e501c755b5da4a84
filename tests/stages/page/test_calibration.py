"""Calibration: with the temperatures that a student has in its configuration."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from page_reader import percent, read_page
from tiny import Run
from written_out import calibration_error_of

from pipeline.params import load_params
from stages.page.findings import _results
from stages.results.predictions import read_predictions


def test_errors_are_those_of_the_test_split_before_and_after_division_by_the_temperature(
    varied: Path, run: Run
) -> None:
    path = Path("artifacts/student/config.json")
    config = json.loads(path.read_text()) | {"own_temperature": 1.75, "mixture_temperature": 3.25}
    path.write_text(json.dumps(config))
    assert run("report").code == 0
    task = load_params(Path("params.yaml")).task
    student = read_predictions(task, "student")
    for kind, temperature in (("supervised", 1.75), ("zero-shot", 3.25)):
        rows = read_page().table(f"Expected calibration error on the test split, {kind}")
        for language in task.groups[kind]:
            one = student[language, "test"]
            assert rows[language]["mblm: temperature"] == f"{temperature:.2f}"
            for when, by in (("before", 1.0), ("after", temperature)):
                expected = calibration_error_of(one.logits / by, one.labels)
                assert rows[language][f"mblm: {when}"] == percent(expected)


def test_a_variety_has_the_temperature_of_the_branch_that_it_goes_through(varied: Path) -> None:
    path = Path("artifacts/student/config.json")
    config = json.loads(path.read_text()) | {"own_temperature": 1.75, "mixture_temperature": 3.25}
    path.write_text(json.dumps(config))
    task = load_params(Path("params.yaml")).task
    one = read_predictions(task, "student")["nl", "test"]
    said: dict[Any, Any] = {(language, "test"): one for language in ("de", "de-AT", "nl")}
    found = _results(task, said, path.parent, "student distill")
    assert {name: result.temperature for name, result in found.items()} == {
        "de": 1.75,
        "de-AT": 1.75,
        "nl": 3.25,
    }


def test_the_surest_answers_come_first(varied: Path) -> None:
    task = load_params(Path("params.yaml")).task
    student = read_predictions(task, "student")
    config = json.loads(Path("artifacts/student/config.json").read_text())
    rows = read_page().table("Accuracy of the surest answers")
    for kind, name in (("supervised", "own_temperature"), ("zero-shot", "mixture_temperature")):
        of_kind = [student[language, "test"] for language in task.groups[kind]]
        logits = np.concatenate([one.logits for one in of_kind]) / config[name]
        sure = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        right = logits.argmax(axis=1) == np.concatenate([one.labels for one in of_kind])
        for share in (1.0, 0.5):
            count = round(share * len(right))
            order = np.argsort(-sure.max(axis=1))[:count]
            row = rows[percent(share)]
            assert row[f"{kind}: accuracy"] == percent(right[order].mean())
            least = float(row[f"{kind}: --abstain-below"])
            assert least <= sure.max(axis=1)[order].min() < least + 1e-4
