"""Section `accuracy`: teacher, baseline and student by language, on the page and as the table accuracy.md."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from stages.page.charts import accuracy_chart
from stages.page.drawing import MARKS
from stages.page.findings import Findings
from stages.page.tables import Figure, Table, percent


def accuracy(found: Findings) -> list[Figure]:
    """Compare teacher, baseline and student by language: a figure for each kind of language."""
    models = found.models
    result = []
    for kind, languages in found.groups.items():
        marks = dict(zip(models, MARKS.values(), strict=True))
        if kind == "zero-shot" or not models["teacher"]:
            del marks["teacher"]
        rows = {
            name: {model: models[model][name].accuracy for model in marks if name in models[model]}
            for name in languages
        }
        averages = {model: found.accuracy(model, languages) for model in marks}
        rows["mean"] = {model: value for model, value in averages.items() if value is not None}
        intervals = {name: found.student[name].interval for name in languages}
        title = f"{kind.capitalize()} languages"
        label = f"{title}: test accuracy of {', '.join(marks)}, by language"
        chart = accuracy_chart(rows, intervals, marks=marks, title=label)
        result.append(Figure(title, chart, _table(found, kind, rows, list(marks))))
    return result


def _table(
    found: Findings, kind: str, rows: Mapping[str, Mapping[str, float]], models: Sequence[str]
) -> Table:
    lines = []
    for name, values in rows.items():
        result = found.student.get(name)
        cells = [percent(values.get(model)) for model in models]
        if result is None:
            lines.append([name, *cells, "", ""])
        else:
            low, high = result.interval
            lines.append([name, *cells, f"{percent(low)} – {percent(high)}", f"{len(result.labels):,}"])
    head = ["language", *models, f"95 % interval of {models[-1]}", "test examples"]
    return Table(f"Test accuracy, {kind} languages", head, lines, ["mean"])


def markdown(found: Findings) -> str:
    """Give the accuracies as a Markdown table, with languages in the order of params.yaml."""
    rows = []
    for kind, languages in found.task.groups.items():
        if languages:
            rows += [_line(found, name, [name]) for name in languages]
            measured = [name for name in languages if name in found.student]
            rows.append(_line(found, f"**{kind} average**", measured))
    table = tabulate(
        rows,
        ["language", *found.models],
        tablefmt="pipe",
        stralign="right",
        colalign=("left",),
        disable_numparse=True,
    )
    return f"{table}\n"


def _line(found: Findings, name: str, languages: Sequence[str]) -> list[str]:
    shares = [found.accuracy(model, languages) for model in found.models]
    return [name, *("–" if share is None else f"{share:.3f}" for share in shares)]
