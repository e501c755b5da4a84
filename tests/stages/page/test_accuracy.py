"""Accuracies on the page and in accuracy.md are those of the predictions."""

from pathlib import Path

import numpy as np
from page_reader import PAGE, percent, read_page
from sklearn.metrics import accuracy_score

from pipeline.params import load_params
from stages.data.examples import read_examples
from stages.results.predictions import read_predictions


def test_accuracies_are_those_of_the_predictions(varied: Path) -> None:
    task = load_params(Path("params.yaml")).task
    page = read_page()
    lines = (PAGE.parent / "accuracy.md").read_text(encoding="utf-8").splitlines()
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert head == ["language", "teacher", "finetune", "mblm"]
    markdown = {row[0]: dict(zip(head, row, strict=True)) for row in body}
    assert list(markdown) == ["de", "en", "**supervised average**", "nl", "**zero-shot average**"]
    assert markdown["nl"]["teacher"] == "–"
    models = {"finetune": "baseline", "mblm": "student"}
    for kind, languages in (("supervised", ["de", "en"]), ("zero-shot", ["nl"])):
        rows = page.table(f"Test accuracy, {kind} languages")
        order = [name for name in rows if name != "mean"]
        accuracies = [float(rows[name]["mblm"].split()[0]) for name in order]
        assert accuracies == sorted(accuracies, reverse=True)
        assert sorted(order) == languages
        for column, model in models.items():
            predictions = read_predictions(task, model)
            expected = {
                language: accuracy_score(
                    read_examples(task, language, "test")["label"].to_numpy(),
                    predictions[language, "test"].logits.argmax(axis=1),
                )
                for language in languages
            }
            assert {name: rows[name][column] for name in languages} == {
                name: percent(value) for name, value in expected.items()
            }
            assert rows["mean"][column] == percent(float(np.mean(list(expected.values()))))
            for name, value in {**expected, f"**{kind} average**": np.mean([*expected.values()])}.items():
                assert markdown[name][column] == f"{value:.3f}"
