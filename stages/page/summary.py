"""Section `summary`: the run in a few numbers, for people and for DVC."""

from typing import NamedTuple

import numpy as np

from stages.page.findings import Findings
from stages.page.tables import percent


class Tile(NamedTuple):
    """A number that sums up a section."""

    name: str
    value: str
    detail: str


def summary(found: Findings) -> list[Tile]:
    """Give the run in a few numbers, for people."""
    result = []
    by_kind = numbers(found)
    for kind, group in by_kind.items():
        gain = _points(group["student"] - group["finetune"])
        detail = f"{gain} over finetune ({percent(group['finetune'])})"
        result.append(Tile(f"{kind} accuracy", percent(group["student"]), detail))
    group = by_kind["supervised"]
    if "teachers" in group:
        result.append(Tile("teachers’ accuracy", percent(group["teachers"]), "each in its own language"))
        same = percent(group["same_class"])
        result.append(Tile("agreement with teachers", same, "same class on supervised test examples"))
    return result


def numbers(found: Findings) -> dict[str, dict[str, float]]:
    """Average accuracy, agreement and calibration error over the languages of each kind.

    All are shares of the test split; ``validation`` is the accuracy on that split, and
    ``teachers_over_finetune_validation`` a difference there. ``calibration_error`` is of raw logits.
    """
    values: dict[str, dict[str, float]] = {}
    names = {"student": found.student_name, "finetune": "finetune", "teachers": "teacher"}
    for kind, languages in found.groups.items():
        means = {name: found.accuracy(model, languages) for name, model in names.items()}
        values[kind] = {name: mean for name, mean in means.items() if mean is not None}
    if found.premise is not None:
        values["supervised"]["teachers_over_finetune_validation"] = found.premise.average.mean
    same = [student.same_class(teacher) for student, teacher in found.pairs.values()]
    if same:
        values["supervised"]["same_class"] = float(np.mean(same))
    for kind, languages in found.groups.items():
        for key, calibrated in (("calibration_error", False), ("calibration_error_calibrated", True)):
            errors = [found.student[name].calibration_error(calibrated=calibrated) for name in languages]
            values[kind][key] = float(np.mean(errors))
        if kind in found.validation_accuracy:
            values[kind]["validation"] = found.validation_accuracy[kind]
    return values


def _points(difference: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f} points".replace("-", "−")
