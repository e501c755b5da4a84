"""The report: what was run and what came of it, as one page, and test accuracy per language as a text table.

`stages/page` has a file for each section of the page, and its layout, `page.html`. All that is written into
it is escaped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from cache import write_atomically
from stages.artifacts import REPORT
from stages.data.origin import data_source
from stages.data.task import TaskParams
from stages.page.accuracy import accuracy, markdown
from stages.page.agreement import agreement, disagreements
from stages.page.branches import branches
from stages.page.calibration import calibration
from stages.page.confusion import confusion
from stages.page.cost import cost
from stages.page.curves import curves
from stages.page.findings import Findings, find
from stages.page.languages import languages
from stages.page.premise import premise
from stages.page.run import run
from stages.page.summary import numbers, summary
from stages.page.teachers import teachers as quality_of_teachers
from stages.results.measures import N_BINS
from stages.results.teachers import Teachers


def report(task: TaskParams, teachers: Mapping[str, Teachers], params: Mapping[str, Any]) -> Path:
    """Write ``artifacts/report/report.html``, its accuracies as ``accuracy.md``, and ``summary.json``.

    The summary is what `dvc metrics` and `dvc exp show` print. The same artifacts give the same bytes.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`.
        params: All sections that the results depend on, as plain values.

    Returns:
        Path of the page.

    Raises:
        StageError: What a stage writes is not there, or is not of the current data.
        CacheError: The soft labels are not there or not readable.
    """
    found = find(task, teachers, params)
    metrics = {kind.replace("-", "_"): values for kind, values in numbers(found).items()}
    write_atomically(REPORT / "accuracy.md", markdown(found).encode())
    write_atomically(REPORT / "summary.json", json.dumps(metrics, indent=1).encode())
    write_atomically(REPORT / "report.html", _page(found, params).encode())
    return REPORT / "report.html"


def _page(found: Findings, params: Mapping[str, Any]) -> str:
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    return pages.get_template("page.html").render(
        found=found,
        source=data_source(found.task),
        n_bins=N_BINS,
        summary=summary(found),
        premise=premise(found),
        languages=languages(found),
        accuracy=accuracy(found),
        branches=branches(found),
        confusion=confusion(found),
        calibration=calibration(found),
        agreement=agreement(found),
        disagreements=disagreements(found),
        curves=curves(found),
        teachers=quality_of_teachers(found),
        cost=cost(found),
        run=run(found, params),
    )
