"""Calibration is fitted on one split and reported on another."""

from pathlib import Path

import numpy as np
from page_reader import percent, read_page
from written_out import calibration_error_of

from pipeline.params import load_params
from stages.results.measures import fit_temperature
from stages.results.predictions import read_predictions


def test_calibration_is_fitted_on_validation_and_reported_on_test(varied: Path) -> None:
    task = load_params(Path("params.yaml")).task
    student = read_predictions(task, "student")
    held_out = [student[language, "validation"] for language in task.supervised]
    temperature = fit_temperature(
        np.concatenate([one.logits for one in held_out]), np.concatenate([one.labels for one in held_out])
    )
    rows = read_page().table("Expected calibration error on the test split, supervised")
    for language in task.supervised:
        one = student[language, "test"]
        assert rows[language]["mblm: temperature"] == f"{temperature:.2f}"
        for when, by in (("before", 1.0), ("after", temperature)):
            expected = calibration_error_of(one.logits / by, one.labels)
            assert rows[language][f"mblm: {when}"] == percent(expected)
