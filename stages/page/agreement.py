"""Sections `agreement` and `disagreements`: where student and teacher say the same, and where they differ."""

from typing import NamedTuple

import numpy as np

from stages.page.charts import shares_chart
from stages.page.drawing import GRID, SOFT, STUDENT, TEACHER, WRONG, name_of
from stages.page.findings import Findings
from stages.page.result import Result
from stages.page.tables import Figure, Table, clip, percent
from stages.results.measures import divergence

_MAX_TEXT = 280  # characters of an example
_MAX_NAME = 60  # characters of a class
_N_DISAGREEMENTS = 6  # per language

_OUTCOMES = {
    "both right": STUDENT,
    "only the student right": SOFT,
    "only the teacher right": TEACHER,
    "both wrong, alike": WRONG,
    "both wrong, each in its way": GRID,
}


class Agreement(NamedTuple):
    """What the section `agreement` shows.

    Attributes:
        legend: What a colour of the chart means, and its name on the page.
        outcomes: Who is right, by language.
        divergence: How often both say the same class, and how far their probabilities are apart.
    """

    legend: list[tuple[str, str]]
    outcomes: Figure
    divergence: Table


def agreement(found: Findings) -> Agreement | None:
    """Say where student and teacher are right, and where they agree; None: no test text has soft labels."""
    pairs = found.pairs
    if not pairs:
        return None
    outcomes = {name: _outcomes(student, teacher) for name, (student, teacher) in pairs.items()}
    title = "Who is right, in percent of the test examples"
    chart = shares_chart(outcomes, colours=[*_OUTCOMES.values()], title=title)
    shares = [[name, *map(percent, row)] for name, row in outcomes.items()]
    alike = []
    for name, (student, teacher) in pairs.items():
        bits = divergence(student.probabilities(), teacher.probabilities())
        alike.append([name, percent(student.same_class(teacher)), f"{bits.mean():.3f}"])
    return Agreement(
        [(name, name_of(colour)) for name, colour in _OUTCOMES.items()],
        Figure(title, chart, Table(title, ["language", *_OUTCOMES], shares)),
        Table("Student and teacher", ["language", "same class", "mean divergence (bits)"], alike),
    )


def _outcomes(student: Result, teacher: Result) -> list[float]:
    """Give the shares of the examples of each of _OUTCOMES."""
    alike = student.predicted == teacher.predicted
    ours, theirs = student.predicted == student.labels, teacher.predicted == teacher.labels
    cases = (ours & theirs, ours & ~theirs, theirs & ~ours, ~ours & alike, ~ours & ~theirs & ~alike)
    return [float(case.mean()) for case in cases]


class Disagreement(NamedTuple):
    """An example that student and teacher see differently.

    Attributes:
        texts: Its text fields, shortened, with what would not be seen written out.
        label: The hard label.
        said: By model, its class, how sure it is, and whether that is the hard label.
        bits: The divergence of the two, in [0, 1].
    """

    texts: list[str]
    label: str
    said: dict[str, tuple[str, str, bool]]
    bits: str


def disagreements(found: Findings) -> dict[str, list[Disagreement]]:
    """Find the test examples of each language on which student and teacher differ most."""
    return {name: _disagreements(found, *pair) for name, pair in found.pairs.items()}


def _disagreements(found: Findings, student: Result, teacher: Result) -> list[Disagreement]:
    models = {"teacher": teacher, "student": student}
    probs = {name: result.probabilities() for name, result in models.items()}
    bits = divergence(probs["student"], probs["teacher"])
    labels, classes = models["student"].labels, found.task.classes
    result = []
    for place in np.argsort(-bits, kind="stable")[:_N_DISAGREEMENTS].tolist():
        example = models["student"].examples.slice(place, 1)
        said = {}
        for name, one in models.items():
            winner = int(one.predicted[place])
            said[name] = (
                clip(classes[winner], _MAX_NAME),
                percent(float(probs[name][place, winner])),
                winner == labels[place],
            )
        texts = [_text(example[field][0].as_py()) for field in found.task.text_fields]
        label = clip(classes[labels[place]], _MAX_NAME)
        result.append(Disagreement(texts, label, said, f"{bits[place]:.2f}"))
    return result


def _text(text: str) -> str:
    shown = clip(text, _MAX_TEXT)
    return shown if len(text) <= _MAX_TEXT else f"{shown} ({len(text):,} characters)"
