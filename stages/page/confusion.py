"""Section `confusion`: which classes the student takes for which."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.page.findings import Findings
from stages.page.tables import Cell, Heat, clip

_MAX_CLASSES = 12  # of a matrix: more are not legible
_MAX_NAME = 16  # characters of a class beside a matrix


def confusion(found: Findings) -> dict[str, list[Heat]]:
    """Say what is taken for what: of each kind of languages together, then of each language."""
    result = {}
    for kind, languages in found.groups.items():
        each = {name: found.student[name].confusion for name in languages}
        total = np.sum(list(each.values()), axis=0)
        shown = most_confused(total)
        result[kind] = [
            _matrix(name, counts, found.task.classes, shown)
            for name, counts in {f"all {kind} languages": total, **each}.items()
        ]
    return result


def most_confused(counts: NDArray[np.int64]) -> list[int]:
    """Choose the classes that a matrix shows: all, or those with the most errors."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind="stable")[:_MAX_CLASSES].tolist())


def short_names(classes: Sequence[str]) -> list[str]:
    """Shorten names of classes; where some then are the same, it is their middle that is left out."""
    names = [clip(name, _MAX_NAME) for name in classes]
    if len(set(names)) == len(names):
        return names
    half = _MAX_NAME // 2
    ends = [f"{name[:half]}…{name[-half:]}" if len(name) > _MAX_NAME else name for name in classes]
    return [clip(name, _MAX_NAME + 1) for name in ends]


def _matrix(name: str, counts: NDArray[np.int64], classes: Sequence[str], shown: Sequence[int]) -> Heat:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = short_names([classes[i] for i in shown])
    rows = []
    for i, row in zip(shown, names, strict=True):
        cells = []
        for j in shown:
            text = f"{100 * shares[i, j]:.0f}" if counts[i, j] else "·"
            cells.append(Cell(text, float(shares[i, j]), "good" if i == j else "bad"))
        rows.append((row, cells))
    note = f"The {len(shown)} of {len(classes)} classes with the most errors."
    if len(shown) == len(classes):
        note = ""
    return Heat(name, "label\u00a0↓ student\u00a0→", names, rows, note)
