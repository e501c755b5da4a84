"""The report: what was run and what came of it, as one page, and test accuracy per language as a text table.

`stages/page` holds its numbers, sections and charts, and its layout, `page.html`. All that is written into it
is escaped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from cache import write_atomically
from stages.artifacts import REPORT
from stages.data.origin import data_source
from stages.data.task import TaskParams
from stages.page import sections
from stages.page.findings import Findings, find
from stages.results.measures import N_BINS

_CONTENTS = (
    ("accuracy", "Accuracy"),
    ("branches", "Branches"),
    ("confusion", "Confusion"),
    ("calibration", "Calibration"),
    ("agreement", "Agreement"),
    ("disagreements", "Disagreements"),
    ("curves", "Curves"),
    ("teachers", "Teachers"),
    ("cache", "Cost"),
    ("run", "Run"),
)


@dataclass(frozen=True)
class Row:
    """One line of the text table: a language or the average of a group of languages.

    Attributes:
        name: The language, or the name of the group.
        is_average: Whether it is the average of the lines above it.
        cells: Accuracies in the order of the columns; None where there is no such model.
    """

    name: str
    is_average: bool
    cells: tuple[float | None, ...]


def report(task: TaskParams, params: Mapping[str, Any]) -> Path:
    """Write ``artifacts/report/report.html``, its accuracies as ``accuracy.md``, and ``summary.json``.

    The summary is what `dvc metrics` and `dvc exp show` print. The same artifacts give the same bytes.

    Args:
        task: Section `task` of params.yaml.
        params: All sections that the results depend on, as plain values.

    Returns:
        Path of the page.

    Raises:
        StageError: What a stage writes is not there, or is not of the current data.
        CacheError: The soft labels are not there or not readable.
    """
    found = find(task, params)
    write_atomically(REPORT / "accuracy.md", _markdown(("language", *found.models), _rows(found)).encode())
    write_atomically(REPORT / "summary.json", json.dumps(sections.summary(found), indent=1).encode())
    write_atomically(REPORT / "report.html", _page(found, params).encode())
    return REPORT / "report.html"


def _page(found: Findings, params: Mapping[str, Any]) -> str:
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    panels, errors = sections.calibration(found)
    return pages.get_template("page.html").render(
        contents=_CONTENTS,
        found=found,
        source=data_source(found.task),
        n_bins=N_BINS,
        tiles=sections.tiles(found),
        accuracy=sections.accuracy(found),
        branches=sections.branches(found),
        confusions=sections.confusions(found),
        panels=panels,
        errors=errors,
        agreement=sections.agreement(found),
        legend=sections.LEGEND,
        disagreements=sections.disagreements(found),
        curves=sections.curves(found),
        teachers=sections.teachers(found),
        coverage=sections.coverage(found),
        run=sections.run(found, params),
    )


def _rows(found: Findings) -> list[Row]:
    rows = []
    for name, languages in (("supervised", found.task.supervised), ("zero-shot", found.task.zero_shot)):
        group = [
            Row(language, False, tuple(found.accuracy(model, [language]) for model in found.models))
            for language in languages
        ]
        if group:
            averages = tuple(found.accuracy(model, languages) for model in found.models)
            rows += [*group, Row(f"{name} average", True, averages)]
    return rows


def _markdown(head: tuple[str, ...], rows: list[Row]) -> str:
    table = [head, *((f"**{r.name}**" if r.is_average else r.name, *_texts(r)) for r in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in table
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _texts(row: Row) -> list[str]:
    return ["–" if cell is None else f"{cell:.3f}" for cell in row.cells]
