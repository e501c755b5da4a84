"""Confusion matrices, of few classes and of many."""

from pathlib import Path

import numpy as np
from page_reader import read_page
from sklearn.metrics import confusion_matrix
from tiny import CLASSES

from pipeline.params import load_params
from stages.page.confusion import most_confused, short_names
from stages.results.predictions import read_predictions


def test_matrices_are_those_of_scikit_learn(varied: Path) -> None:
    task = load_params(Path("params.yaml")).task
    student = read_predictions(task, "student")
    tables = read_page().tables
    for language in task.languages:
        one = student[language, "test"]
        counts = confusion_matrix(one.labels, one.predicted, labels=range(3))
        shares = counts / counts.sum(axis=1, keepdims=True)
        _, *rows = tables[language]
        assert [row[0] for row in rows] == CLASSES
        expected = [[f"{100 * share:.0f}" if share else "·" for share in line] for line in shares]
        assert [row[1:] for row in rows] == expected


def test_names_that_begin_alike_are_told_apart() -> None:
    classes = ["balance_not_updated_after_transfer", "balance_not_updated_after_cheque", "fee"]
    assert short_names(classes) == ["balance_…transfer", "balance_…r_cheque", "fee"]
    assert short_names(["transfer_fee_charged", "fee"]) == ["transfer_fee_cha…", "fee"]


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    counts = 100 * np.eye(40, dtype=np.int64)
    counts[7, 30] = 5
    counts[3, 9:19] = 1
    assert most_confused(counts) == [3, 7, *range(9, 18), 30]
