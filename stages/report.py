"""The report: test accuracy per language of teachers, baseline, student and branches, as text and page."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import write_atomically
from stages.artifacts import METRICS, PLOTS, REPORT
from stages.base import StageError
from stages.task import TaskParams

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Accuracy per language</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: right; padding: .2rem .6rem; font-variant-numeric: tabular-nums; }}
th:first-child {{ text-align: left; }}
tbody th {{ font-weight: inherit; }}
thead th {{ border-bottom: 2px solid; }}
tr.average {{ font-weight: bold; border-bottom: 1px solid; }}
</style>
<h1>Test accuracy per language</h1>
<p>{caption}</p>
{accuracies}
<h2>Every branch on every language</h2>
<p>Test accuracy of the student: a row is a language, a column the branch that its texts are sent through.</p>
{branches}
</html>
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: a language or the average of a group of languages.

    Attributes:
        name: The language, or the name of the group.
        is_average: Whether it is the average of the lines above it.
        cells: Accuracies in the order of the columns; None where there is no such model.
    """

    name: str
    is_average: bool
    cells: tuple[float | None, ...]


def report(task: TaskParams, variant: str) -> Path:
    """Write ``artifacts/report/report.html`` and the same table as ``accuracy.md``.

    Args:
        task: Section `task` of params.yaml.
        variant: The variant that the student is, which names its column.

    Returns:
        Path of the page.

    Raises:
        StageError: The metrics are not there.
    """
    head = ("language", "teacher", "finetune", variant)
    rows = _rows(task)
    caption = (
        f"Supervised: {', '.join(task.supervised)}. The teachers are monolingual; finetune is the "
        f"multilingual model fine-tuned on the hard labels; {variant} is the student."
    )
    write_atomically(REPORT / "accuracy.md", _markdown(head, rows).encode())
    page = _PAGE.format(
        caption=html.escape(caption),
        accuracies=_table(head, rows),
        branches=_table(*_branch_rows(task)),
    )
    write_atomically(REPORT / "report.html", page.encode())
    return REPORT / "report.html"


def _rows(task: TaskParams) -> list[Row]:
    by_language = {
        (row["model"], row["language"]): row["accuracy"]
        for row in _read(PLOTS / "accuracy_by_language.json", "student evaluate")
        if row["split"] == "test"
    }
    teachers = {
        language: _read(METRICS / "teachers" / f"{language}.json", f"teacher label --language {language}")[
            "test"
        ]["accuracy"]
        for language in task.supervised
    }
    rows = []
    for name, languages in (("supervised", task.supervised), ("zero-shot", task.zero_shot)):
        group = [
            Row(
                language,
                False,
                (
                    teachers.get(language),
                    by_language.get(("baseline", language)),
                    by_language.get(("student", language)),
                ),
            )
            for language in languages
        ]
        if group:
            columns = zip(*(row.cells for row in group), strict=True)
            rows += [*group, Row(f"{name} average", True, tuple(map(_mean, columns)))]
    return rows


def _mean(cells: tuple[float | None, ...]) -> float | None:
    present = [cell for cell in cells if cell is not None]
    return sum(present) / len(present) if present else None


def _markdown(head: tuple[str, ...], rows: list[Row]) -> str:
    table = [head, *((f"**{r.name}**" if r.is_average else r.name, *_texts(r)) for r in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in table
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _table(head: tuple[str, ...], rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in _texts(row))
        style = ' class="average"' if row.is_average else ""
        lines.append(f'<tr{style}><th scope="row">{html.escape(row.name)}</th>{cells}</tr>')
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "\n".join(lines)
    return f"<div><table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"


def _branch_rows(task: TaskParams) -> tuple[tuple[str, ...], list[Row]]:
    """Lay out the accuracies of all branches on all languages."""
    found = {
        (row["language"], row["branch"]): row["accuracy"]
        for row in _read(PLOTS / "accuracy_by_branch.json", "student evaluate")
        if row["split"] == "test"
    }
    branches = list(dict.fromkeys(branch for _, branch in found))
    rows = [
        Row(language, False, tuple(found.get((language, branch)) for branch in branches))
        for language in task.languages
    ]
    return ("language", *branches), rows


def _texts(row: Row) -> list[str]:
    return ["–" if cell is None else f"{cell:.3f}" for cell in row.cells]


def _read(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; write it with: python -m pipeline {command}") from None
