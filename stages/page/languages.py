"""Section `languages`: where to use the student, and what is guessed where there are no labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.page.findings import Findings
from stages.page.tables import Table, clip, percent

_MAX_NAME = 40  # characters of a class


class Languages(NamedTuple):
    """What the section shows.

    Attributes:
        known: Languages with labelled test data, each with a verdict.
        guessed: Languages without; None where there are none.
        errors: By how much guesses differ from the truth in zero-shot languages with labels, on average.
        recall: By class, what changed against teachers and baseline.
    """

    known: Table
    guessed: Table | None
    errors: dict[str, float]
    recall: list[Table]


def languages(found: Findings) -> Languages:
    """Say for which languages the student should be used."""
    guesses = {"confidence": "confidence", "agreement": "agreement of branches"}
    known = [row for row in found.estimates if row["accuracy"] is not None and row["kind"] == "zero_shot"]
    errors = {
        name: float(np.mean([abs(row[key] - row["accuracy"]) for row in known]))
        for key, name in guesses.items()
        if known and all(row[key] is not None for row in known)
    }
    return Languages(_known(found), _guessed(found), errors, _recall(found))


def _known(found: Findings) -> Table:
    rows = []
    for kind, names in found.groups.items():
        for name in names:
            one = found.standings[name]
            bounds = f"[{percent(one.low, unit=False)}, {percent(one.high, unit=False)}]"
            teacher = found.models["teacher"].get(name)
            rows.append(
                [
                    name,
                    kind,
                    f"{percent(one.accuracy)} {bounds}",
                    percent(one.majority),
                    percent(found.baseline[name].accuracy),
                    percent(teacher.accuracy if teacher else None),
                    one.verdict(),
                ]
            )
    head = ["language", "kind", "student", "most frequent class", "finetune", "teacher", "verdict"]
    return Table("Test accuracy beside chance, baseline and teacher", head, rows)


def _guessed(found: Findings) -> Table | None:
    rows = [
        [row["language"], f"{row['examples']:,}", percent(row["confidence"]), percent(row["agreement"])]
        for row in found.estimates
        if row["accuracy"] is None
    ]
    head = ["language", "texts", "guess by confidence", "guess by agreement of branches"]
    if all(row["agreement"] is None for row in found.estimates):  # a student with one branch
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table("Accuracy as guessed, without labels", head, rows) if rows else None


def _recall(found: Findings) -> list[Table]:
    """Give the recall of each class over all test examples of a kind of languages, and what it gained."""
    tables = []
    for kind, names in found.groups.items():
        recalls = {
            model: _recalls([results[name].confusion for name in names])
            for model, results in found.models.items()
            if all(name in results for name in names)
        }
        own = recalls.pop(found.student_name)
        rows = [
            [
                clip(name, _MAX_NAME),
                percent(own[place]),
                *(_gain(own[place], other[place]) for other in recalls.values()),
            ]
            for place, name in enumerate(found.task.classes)
        ]
        head = ["class", found.student_name, *(f"points over {model}" for model in recalls)]
        tables.append(Table(f"Recall by class, {kind} languages", head, rows))
    return tables


def _recalls(confusions: Sequence[NDArray[np.int64]]) -> list[float | None]:
    total = np.sum(confusions, axis=0)
    rows = zip(total.diagonal().tolist(), total.sum(axis=1).tolist(), strict=True)
    return [right / n if n else None for right, n in rows]


def _gain(own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return "–"
    return f"{100 * (own - other):+.1f}".replace("-", "−")
