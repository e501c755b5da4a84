"""Labels as positions in the task's classes: by name, or by number where nothing has a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from stages.data.files import shown, without_zeros
from stages.data.sources import Rows
from stages.data.task import Split, TableSource, TaskParams
from stages.errors import StageError


@dataclass
class Numbering:
    """Files of a task whose numbers cannot mean the same classes.

    Attributes:
        by_position: One with bare numbers, which are positions in `task.classes`.
        otherwise: One that notes names for its numbers, in another order than `task.classes`.
        has_zero: Whether a split with bare numbers has a 0, so that they do not begin with 1.
    """

    by_position: str | None = None
    otherwise: str | None = None
    has_zero: bool = False


class LabelReader:
    """Reads the labels of one split, window by window."""

    def __init__(self, task: TaskParams, split: Split, numbering: Numbering) -> None:
        self._numbering = numbering
        self._may_lack = task.unlabelled and split == "train"
        self._split = split
        self._classes = task.classes
        self._by_name = {without_zeros(name): position for position, name in enumerate(task.classes)}
        self._by_name |= {name: position for position, name in enumerate(task.classes)}
        self._first = task.source.first_class_number if isinstance(task.source, TableSource) else None
        self._by_number = {str(number + (self._first or 0)): number for number in range(len(task.classes))}
        self._used: set[str] = set()
        self._has_minus_one = False

    def positions(self, rows: Rows) -> list[int | None]:
        """Give the labels of a window; None: a training row has none, where the task allows it.

        Raises:
            StageError: A label is no class.
        """
        may_be_numbers = not rows.by_name and not any(map(_is_number, self._classes))
        index = self._by_number | self._by_name if may_be_numbers else self._by_name
        positions: list[int | None] = []
        for row, label in enumerate(rows.labels):
            name = _name_of(label, index)
            if name in index:
                self._used.add(name)
                positions.append(index[name])
            elif self._may_lack and _is_missing(label):
                self._has_minus_one |= without_zeros(str(label)) == "-1"
                positions.append(None)
            else:
                raise StageError(
                    f"{rows.at(row)}: label {shown(label)} is not one of task.classes: "
                    f"{', '.join(self._classes)}{self._hint(label, may_be_numbers)}"
                )
        self._require_one_numbering(rows)
        return positions

    def _require_one_numbering(self, rows: Rows) -> None:
        """Refuse bare numbers where another file says that number 0 is another class than the first.

        Raises:
            StageError: So it is, and `first_class_number` does not say what bare numbers are.
        """
        files = self._numbering
        if not rows.by_name and self._used - self._by_name.keys():
            files.by_position = files.by_position or rows.file
        if any(name != own for name, own in zip(rows.noted, self._classes, strict=False)):
            files.otherwise = files.otherwise or rows.file
        if self._first is None and files.by_position and files.otherwise:
            raise StageError(
                f"{files.otherwise} says which class each number is, in another order than task.classes, and "
                f"{files.by_position} has bare numbers; write names there, or say "
                "task.source.first_class_number: 0 if they are positions in task.classes"
            )

    def require_zero(self, language: str) -> None:
        """Refuse labels that are numbers and may begin with another than 0.

        Those of other splits need no 0 where some that were read before have one.

        Raises:
            StageError: They are, and `first_class_number` does not say.
        """
        used = self._used - self._by_name.keys()
        has_zero = "0" in used
        self._numbering.has_zero |= has_zero
        if self._split != "train":
            has_zero = self._numbering.has_zero
        if self._first is None and used and not has_zero:
            kind = "training" if self._split == "train" else self._split
            if self._has_minus_one:
                raise StageError(
                    f"the {kind} labels of '{language}' are the numbers {', '.join(sorted(used))} and -1, "
                    "which stands for none; write the names of classes in their place, or say "
                    "task.source.first_class_number: 0 or 1 if it does"
                )
            raise StageError(
                f"the {kind} labels of '{language}' are the numbers {', '.join(sorted(used))} and never 0; "
                "say task.source.first_class_number: 0 or 1"
            )

    def _hint(self, label: Any, may_be_numbers: bool) -> str:
        """Say what to type where a label is missing, or one beyond the classes, as if they began with 1."""
        if self._split == "train" and _is_missing(label):
            return "; if texts without labels are to teach the student, say task.unlabelled: true"
        if may_be_numbers and self._first is None and str(label) == str(len(self._classes)):
            return "; if their numbers begin with 1, say task.source.first_class_number: 1"
        alike = [name for name in self._classes if _plain(name) == _plain(str(label))]
        if alike and normalize("NFC", alike[0]) == normalize("NFC", str(label)):
            return "; it looks the same, and has other characters: write both in the same Unicode normal form"
        return f"; '{alike[0]}' is written otherwise: change one of them" if alike else ""


def _plain(name: str) -> str:
    return normalize("NFC", name.strip().casefold())


def _is_number(name: str) -> bool:
    return name.lstrip("-").replace(".", "", 1).isdigit()


def _is_missing(label: Any) -> bool:
    """Tell whether a label stands for none: null, nothing between two commas, NaN, or the Hub's -1."""
    return label is None or label == "" or label != label or without_zeros(str(label)) == "-1"


def _name_of(label: Any, index: Mapping[str, int]) -> str:
    """Write a label as a class is: true and false in either spelling, and 3.0, pandas' for 3, as 3."""
    name = str(label)
    if name in index:
        return name
    if isinstance(label, bool):
        return name.lower()
    return without_zeros(name)
