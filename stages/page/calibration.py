"""Section `calibration`: how far confidence and accuracy agree, before and after temperature scaling."""

from typing import NamedTuple

import numpy as np

from stages.page.charts import Line, curves_chart, errors_chart, reliability_chart
from stages.page.drawing import MARKS, STUDENT
from stages.page.findings import Findings
from stages.page.tables import Figure, Table, percent
from stages.results.measures import Bins, by_coverage

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the texts, so many are answered, in the table."""


class Calibration(NamedTuple):
    """What the section shows.

    Attributes:
        panels: Accuracy over confidence, of teachers and student by kind of language.
        errors: Calibration errors by language, a figure for each kind of language.
        abstaining: Accuracy of those answers of which the student is the surest, by their share.
    """

    panels: list[Figure]
    errors: list[Figure]
    abstaining: Figure


def calibration(found: Findings) -> Calibration:
    """Compare confidence and accuracy, before and after temperature scaling."""
    shown = [*([("teacher", "supervised")] if found.models["teacher"] else [])]
    shown += [(found.student_name, kind) for kind in found.groups]
    panels = [_panel(found, model, kind) for model, kind in shown]
    return Calibration(panels, [_errors(found, kind) for kind in found.groups], _abstaining(found))


def _panel(found: Findings, model: str, kind: str) -> Figure:
    mark = dict(zip(found.models, MARKS.values(), strict=True))[model]
    before, after = (found.bins(model, found.groups[kind], calibrated=after) for after in (False, True))
    title = f"{'teachers' if model == 'teacher' else model}, {kind} languages"
    label = f"Accuracy over confidence, before and after calibration: {title}"
    chart = reliability_chart(before, after, colour=mark.colour, title=label)
    return Figure(title, chart, _bins_table(title, before, after))


def _bins_table(title: str, before: Bins, after: Bins) -> Table:
    whats = ("examples", "confidence", "accuracy")
    rows = []
    for place in np.flatnonzero(before.counts + after.counts).tolist():
        ends = (place / len(after.counts), (place + 1) / len(after.counts))
        cells = [" – ".join(map(percent, ends))]
        for bins in (before, after):
            count = int(bins.counts[place])
            means = (bins.confidence[place], bins.accuracy[place]) if count else (None, None)
            cells += [f"{count:,}", *map(percent, means)]
        rows.append(cells)
    return Table(title, ["bin", *(f"{what} {when}" for when in ("before", "after") for what in whats)], rows)


def _abstaining(found: Findings) -> Figure:
    lines, columns = [], []
    for kind, languages in found.groups.items():
        results = [found.student[name] for name in languages]
        probs = np.concatenate([one.probabilities(calibrated=True) for one in results])
        accuracies = by_coverage(probs, np.concatenate([one.labels for one in results]))
        sure = -np.sort(-probs.max(axis=1))
        n = len(accuracies)
        counts = np.maximum(1, np.round(n * np.array(_SHARES))).astype(np.int64)
        least = np.floor(sure[counts - 1] * 1e4) / 1e4  # rounded up, it would leave out that very text
        columns.append([f"{one:.4f}" for one in least])
        columns.append([percent(accuracies[count - 1]) for count in counts])
        # Of a handful of answers, accuracy says nothing.
        shown = np.unique(np.linspace(max(1, n // 20), n, 200).astype(np.int64))
        x, y = (shown / n).tolist(), accuracies[shown - 1].tolist()
        lines.append(Line(kind, x, y, STUDENT, is_dashed=kind == "zero-shot"))
    title = f"Accuracy of the surest answers of {found.student_name}"
    chart = curves_chart(lines, percent=True, title=title, over="texts answered", of_shares=True)
    rows = [[percent(share), *cells] for share, *cells in zip(_SHARES, *columns, strict=True)]
    whats = ("--abstain-below", "accuracy")
    head = ["texts answered", *(f"{kind}: {what}" for kind in found.groups for what in whats)]
    return Figure(title, chart, Table(title, head, rows))


def _errors(found: Findings, kind: str) -> Figure:
    whats = ("temperature", "before", "after")
    student, rows = {}, []
    for language in found.groups[kind]:
        cells = [language]
        for results in found.models.values():
            if language in results:
                one = results[language]
                before, after = (one.calibration_error(calibrated=after) for after in (False, True))
                cells += [f"{one.temperature:.2f}", percent(before), percent(after)]
                student[language] = (before, after)  # the last of the models
            else:
                cells += ["–"] * len(whats)
        rows.append(cells)
    title = f"Calibration error of {found.student_name}, {kind} languages"
    chart = errors_chart(student, title=f"{title}, before and after calibration")
    head = ["language", *(f"{model}: {what}" for model in found.models for what in whats)]
    caption = f"Expected calibration error on the test split, {kind} languages"
    return Figure(title, chart, Table(caption, head, rows))
