"""Labels as positions in the task's classes: by name, or by number where nothing has a name."""

import re
from collections.abc import Mapping
from typing import Any

from stages.data.files import shown
from stages.data.sources import Rows
from stages.data.task import TableSource, TaskParams
from stages.errors import StageError


class LabelReader:
    """Reads the labels of one split, window by window."""

    def __init__(self, task: TaskParams) -> None:
        self._classes = task.classes
        self._by_name = {name: position for position, name in enumerate(task.classes)}
        self._first = task.source.first_class_number if isinstance(task.source, TableSource) else None
        self._by_number = {str(number + (self._first or 0)): number for number in range(len(task.classes))}
        self._used: set[str] = set()

    def positions(self, rows: Rows) -> list[int]:
        """Give the labels of a window.

        Raises:
            StageError: A label is no class.
        """
        may_be_numbers = not rows.by_name and not any(name.lstrip("-").isdigit() for name in self._classes)
        index = self._by_number | self._by_name if may_be_numbers else self._by_name
        names = [_name_of(label, index) for label in rows.labels]
        for row, (label, name) in enumerate(zip(rows.labels, names, strict=True)):
            if name not in index:
                raise StageError(
                    f"{rows.at(row)}: label {shown(label)} is not one of task.classes: "
                    f"{', '.join(self._classes)}{self._hint(label, may_be_numbers)}"
                )
        self._used.update(names)
        return [index[name] for name in names]

    def require_zero(self, language: str) -> None:
        """Refuse training labels that are numbers and may begin with another than 0.

        Raises:
            StageError: They are, and `first_class_number` does not say.
        """
        used = self._used - self._by_name.keys()
        if self._first is None and used and "0" not in used:
            raise StageError(
                f"the training labels of '{language}' are the numbers {', '.join(sorted(used))} and never 0; "
                "say task.source.first_class_number: 0 or 1"
            )

    def _hint(self, label: Any, may_be_numbers: bool) -> str:
        """Say what to type where a number is one beyond the classes, as if they began with 1."""
        if may_be_numbers and self._first is None and str(label) == str(len(self._classes)):
            return "; if their numbers begin with 1, say task.source.first_class_number: 1"
        return ""


def _name_of(label: Any, index: Mapping[str, int]) -> str:
    """Write a label as a class is: true and false in either spelling, and 3.0, pandas' for 3, as 3."""
    name = str(label)
    if name in index:
        return name
    if isinstance(label, bool):
        return name.lower()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", name)
