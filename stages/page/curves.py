"""Section `curves`: both trainings, as the student's losses and as validation accuracies."""

from collections.abc import Iterable, Mapping

from stages.page.charts import Line, curves_chart
from stages.page.drawing import FINETUNE, MUTED, STUDENT
from stages.page.findings import Findings
from stages.page.tables import Figure, Table, percent

_N_NAMED_LINES = 10  # of a chart: more names than these have no room


def curves(found: Findings) -> list[Figure]:
    """Show both trainings: the student's losses, and validation accuracies."""
    return [_losses(found), _validation(found)]


def _losses(found: Findings) -> Figure:
    own = {"branches": "own branch", "mblm": "own branch", "pseudo": "teachers’ classes"}
    names = {"own_loss": own.get(found.variant, "soft labels")}
    names |= {"mixture_loss": "mixture", "hidden_loss": "hidden states", "hard_loss": "hard labels"}
    parts = {key: name for key, name in names.items() if any(key in point for point in found.losses)}
    lines = [
        Line(
            name,
            *_points(found.losses, key),
            MUTED if key == "hard_loss" else STUDENT,
            is_thin=key == "hidden_loss",
            is_dashed=key == "mixture_loss",
        )
        for key, name in parts.items()
    ]
    title = "The student’s training losses"
    chart = curves_chart(lines, percent=False, title=title)
    rows = [
        [f"{p['step']:,}", *(f"{p[key]:.3f}" if key in p else "–" for key in parts)] for p in found.losses
    ]
    return Figure(title, chart, Table(title, ["step", *parts.values()], rows))


def _validation(found: Findings) -> Figure:
    languages = found.task.supervised
    student = found.validation["student"]
    are_named = len(languages) <= _N_NAMED_LINES
    lines = [
        Line(language if are_named else "", *_points(student, language), MUTED, is_thin=True)
        for language in languages
    ]
    lines.append(Line("finetune", *_points(found.validation["baseline"], "average"), FINETUNE))
    lines.append(Line(found.student_name, *_points(student, "average"), STUDENT))
    title = "Validation accuracy while training"
    label = f"{title}: means over the supervised languages, and each with the student"
    chart = curves_chart(lines, percent=True, title=label)
    baseline = {point["step"]: point["average"] for point in found.validation["baseline"]}
    rows = [
        [
            f"{point['step']:,}",
            percent(baseline.get(point["step"])),
            percent(point["average"]),
            *(percent(point[language]) for language in languages),
        ]
        for point in student
    ]
    return Figure(title, chart, Table(title, ["step", "finetune", found.student_name, *languages], rows))


def _points(curve: Iterable[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    some = [point for point in curve if key in point]
    return [point["step"] for point in some], [point[key] for point in some]
