"""The sections of the report: what was found, as charts, tables and sentences. The page lays them out."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cache import Producer, canonical_json
from stages.artifacts import DATA, SOFT_LABELS
from stages.data.examples import SPLITS
from stages.page import charts as figures
from stages.page.charts import MARKS, Line
from stages.page.findings import Findings, LabelSet, Result
from stages.results.measures import Bins, divergence

_MAX_CLASSES = 12  # of a confusion matrix: more are not legible
_MAX_TEXT = 280  # characters of an example
_MAX_NAME = 16  # characters of a class beside a confusion matrix
_N_DISAGREEMENTS = 6  # per language
_N_NAMED_LINES = 10  # of a chart: more names than these have no room
_BELOW = "The numbers are in the table below."
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_OUTCOMES = {
    "both right": figures.STUDENT,
    "only the student right": figures.SOFT,
    "only the teacher right": figures.TEACHER,
    "both wrong, alike": figures.WRONG,
    "both wrong, each in its way": figures.GRID,
}
LEGEND = [(name, figures.name_of(colour)) for name, colour in _OUTCOMES.items()]
"""Of the chart of `agreement`: what a colour means, and its name on the page."""


class Table(NamedTuple):
    """Numbers in rows; the first cell of a row is its name.

    Attributes:
        caption: What it shows.
        head: Names of the columns.
        rows: As many cells each as there are columns.
        totals: Names of the rows that sum up others.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    totals: Sequence[str] = ()


class Cell(NamedTuple):
    """A cell of a heat map.

    Attributes:
        text: What it says.
        level: How strong its colour is, in [0, 1].
        kind: ``good`` or ``bad``, which have a colour each.
        is_used: Whether it is outlined.
    """

    text: str
    level: float
    kind: str = "good"
    is_used: bool = False


class Heat(NamedTuple):
    """A heat map: a table whose cells are coloured.

    Attributes:
        caption: What it shows.
        corner: What rows and columns are.
        head: Names of the columns.
        rows: Each with its name.
        note: What is left out.
    """

    caption: str
    corner: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


class Figure(NamedTuple):
    """A chart with its title and its numbers."""

    title: str
    chart: Markup
    table: Table | None = None


class Tile(NamedTuple):
    """A number that sums up a section."""

    name: str
    value: str
    detail: str


def summary(found: Findings) -> dict[str, dict[str, float]]:
    """Give the run in a few numbers, as shares: test split where nothing else is said, no calibration."""
    values: dict[str, dict[str, float]] = {}
    names = {"student": found.student_name, "finetune": "finetune", "teachers": "teacher"}
    for kind, languages in found.groups.items():
        means = {name: found.accuracy(model, languages) for name, model in names.items()}
        values[kind] = {name: mean for name, mean in means.items() if mean is not None}
    outcomes = [_outcomes(found.student[name], found.teachers[name].test) for name in found.supervised]
    values["supervised"]["same_class"] = float(np.mean([both + alike for both, _, _, alike, _ in outcomes]))
    for kind, languages in found.groups.items():
        errors = [found.student[name].calibration_error(calibrated=False) for name in languages]
        values[kind]["calibration_error"] = float(np.mean(errors))
        if kind in found.validation_accuracy:
            values[kind]["validation"] = found.validation_accuracy[kind]
    return {kind.replace("-", "_"): numbers for kind, numbers in values.items()}


def tiles(found: Findings) -> list[Tile]:
    """Give the run in a few numbers, for people."""
    result = []
    values = summary(found)
    for kind in found.groups:
        group = values[kind.replace("-", "_")]
        gain = points(group["student"] - group["finetune"])
        detail = f"{gain} over finetune ({percent(group['finetune'])})"
        result.append(Tile(f"{kind} accuracy", percent(group["student"]), detail))
    group = values["supervised"]
    result.append(Tile("teachers’ accuracy", percent(group["teachers"]), "each in its own language"))
    same = percent(group["same_class"])
    result.append(Tile("agreement with teachers", same, "same class on supervised test examples"))
    return result


def accuracy(found: Findings) -> list[Figure]:
    """Compare teacher, baseline and student by language, supervised and zero-shot apart."""
    models = found.models
    result = []
    for kind, languages in found.groups.items():
        marks = dict(zip(models, MARKS.values(), strict=True))
        if kind == "zero-shot":
            del marks["teacher"]
        rows = {
            name: {model: models[model][name].accuracy for model in marks if name in models[model]}
            for name in languages
        }
        averages = {model: found.accuracy(model, languages) for model in marks}
        rows["mean"] = {model: value for model, value in averages.items() if value is not None}
        intervals = {name: found.student[name].interval for name in languages}
        title = f"{kind[0].upper()}{kind[1:]} languages"
        chart = figures.accuracy_chart(
            rows,
            intervals,
            marks=marks,
            title=f"{title}: test accuracy of {', '.join(marks)}, by language. {_BELOW}",
        )
        result.append(Figure(title, chart, _accuracy_table(found, kind, rows, list(marks))))
    return result


def _accuracy_table(
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


def branches(found: Findings) -> Heat | None:
    """Lay out every branch on every language; None where the student has one branch only."""
    found_here = {branch for _, branch in found.branches}
    if len(found_here) < 2:
        return None
    names = [*found.supervised, *sorted(found_here - set(found.supervised))]
    low, high = min(found.branches.values()), max(found.branches.values())
    rows = []
    for language in [*found.supervised, *found.zero_shot]:
        cells = []
        for branch in names:
            share = found.branches[language, branch]
            is_used = found.used[language] == branch
            level = (share - low) / max(high - low, 1e-9)
            cells.append(Cell(percent(share, unit=False), level, is_used=is_used))
        rows.append((language, cells))
    caption = (
        "Test accuracy of the student in percent. The outlined branch is the one that the language uses."
    )
    return Heat(caption, "language ↓ branch\u00a0→", names, rows)


def confusions(found: Findings) -> dict[str, list[Heat]]:
    """Say what is taken for what: of each group of languages together, and of each language."""
    result = {}
    for kind, languages in found.groups.items():
        each = {name: found.student[name].confusion for name in languages}
        total = np.sum(list(each.values()), axis=0)
        shown = _most_confused(total)
        result[kind] = [
            _confusion(name, counts, found.task.classes, shown)
            for name, counts in {f"all {kind} languages": total, **each}.items()
        ]
    return result


def _most_confused(counts: NDArray[np.int64]) -> list[int]:
    """Choose the classes that a confusion matrix shows: all, or those with the most errors."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind="stable")[:_MAX_CLASSES].tolist())


def _confusion(name: str, counts: NDArray[np.int64], classes: Sequence[str], shown: Sequence[int]) -> Heat:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [clip(classes[i], _MAX_NAME) for i in shown]
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


def calibration(found: Findings) -> tuple[list[Figure], list[Figure]]:
    """Compare confidence and accuracy, before and after temperature scaling: of groups, and by language."""
    panels = []
    colours = dict(zip(found.models, (mark.colour for mark in MARKS.values()), strict=True))
    for model, kind in [("teacher", "supervised"), *((found.student_name, kind) for kind in found.groups)]:
        before, after = (found.bins(model, found.groups[kind], calibrated=after) for after in (False, True))
        title = f"{'teachers' if model == 'teacher' else model}, {kind} languages"
        label = f"Accuracy over confidence, before and after calibration: {title}. {_BELOW}"
        chart = figures.reliability_chart(before, after, colour=colours[model], title=label)
        panels.append(Figure(title, chart, _bins_table(title, before, after)))
    return panels, [_errors(found, kind) for kind in found.groups]


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
    chart = figures.errors_chart(student, title=f"{title}, before and after calibration. {_BELOW}")
    head = ["language", *(f"{model}: {what}" for model in found.models for what in whats)]
    return Figure(
        title, chart, Table(f"Expected calibration error on the test split, {kind} languages", head, rows)
    )


def agreement(found: Findings) -> tuple[Figure, Table]:
    """Say where student and teacher are right, and where they agree."""
    outcomes = {name: _outcomes(found.student[name], found.teachers[name].test) for name in found.supervised}
    title = "Who is right, in percent of the test examples"
    chart = figures.shares_chart(outcomes, colours=[*_OUTCOMES.values()], title=f"{title}. {_BELOW}")
    shares = [[name, *map(percent, row)] for name, row in outcomes.items()]
    alike = []
    for name, (both, _, _, wrong, _) in outcomes.items():
        student, teacher = found.student[name].probabilities(), found.teachers[name].test.probabilities()
        alike.append([name, percent(both + wrong), f"{divergence(student, teacher).mean():.3f}"])
    return (
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
    return {name: _disagreements(found, name) for name in found.supervised}


def _disagreements(found: Findings, language: str) -> list[Disagreement]:
    models = {"teacher": found.teachers[language].test, "student": found.student[language]}
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
                clip(classes[winner], 60),
                percent(float(probs[name][place, winner])),
                winner == labels[place],
            )
        texts = [_text(example[field][0].as_py()) for field in found.task.text_fields]
        result.append(Disagreement(texts, clip(classes[labels[place]], 60), said, f"{bits[place]:.2f}"))
    return result


def _text(text: str) -> str:
    shown = clip(text, _MAX_TEXT)
    return shown if len(text) <= _MAX_TEXT else f"{shown} ({len(text):,} characters)"


def curves(found: Findings) -> list[Figure]:
    """Show both trainings: the student's losses, and validation accuracies."""
    names = {"own_loss": "own branch" if found.variant in ("branches", "mblm") else "soft labels"}
    names |= {"mixture_loss": "mixture", "hidden_loss": "hidden states", "hard_loss": "hard labels"}
    parts = {key: name for key, name in names.items() if any(key in point for point in found.losses)}
    lines = [
        Line(
            name,
            *_points(found.losses, key),
            figures.MUTED if key == "hard_loss" else figures.STUDENT,
            is_thin=key == "hidden_loss",
            is_dashed=key == "mixture_loss",
        )
        for key, name in parts.items()
    ]
    title = "The student’s training losses"
    chart = figures.curves_chart(lines, percent=False, title=f"{title}. {_BELOW}")
    rows = [
        [f"{p['step']:,}", *(f"{p[key]:.3f}" if key in p else "–" for key in parts)] for p in found.losses
    ]
    return [Figure(title, chart, Table(title, ["step", *parts.values()], rows)), _validation(found)]


def _validation(found: Findings) -> Figure:
    languages = found.task.supervised
    student = found.validation["student"]
    are_named = len(languages) <= _N_NAMED_LINES
    lines = [
        Line(language if are_named else "", *_points(student, language), figures.MUTED, is_thin=True)
        for language in languages
    ]
    lines.append(Line("finetune", *_points(found.validation["baseline"], "average"), figures.FINETUNE))
    lines.append(Line(found.student_name, *_points(student, "average"), figures.STUDENT))
    title = "Validation accuracy while training"
    label = f"{title}: means over the supervised languages, and each with the student. {_BELOW}"
    chart = figures.curves_chart(lines, percent=True, title=label)
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


def teachers(found: Findings) -> tuple[Table, Table]:
    """Say how good the teachers are, and whether their classes are read rightly."""
    quality, order = [], []
    for language in found.supervised:
        taught = found.teachers[language]
        test = taught.test
        quality.append(
            [
                language,
                *(percent(taught.accuracy[split]) for split in SPLITS),
                f"{taught.entropy:.3f}",
                percent(test.calibration_error(calibrated=False)),
                percent(test.calibration_error(calibrated=True)),
                f"{test.temperature:.2f}",
            ]
        )
        for one in taught.sets:
            reading = clip(one.order.reading(found.task.classes), 80) or "the declared one"
            verdict = "REFUTED" if one.order.is_refuted else "passed"
            order.append([one.name, percent(one.order.declared), percent(one.order.best), reading, verdict])
    return (
        Table(
            "Teachers against the hard labels",
            [
                "language",
                *(f"accuracy, {split}" for split in SPLITS),
                "entropy, train (bits)",
                "calibration error before",
                "after",
                "temperature",
            ],
            quality,
        ),
        Table(
            "The class-order gate, over all labelled examples",
            ["soft labels", "accuracy as declared", "with the best order", "the best order", "gate"],
            order,
        ),
    )


def coverage(found: Findings) -> Table:
    """Count what has soft labels, and the teachers' forward passes that reading them saves."""
    rows = []
    totals = np.zeros(5, np.int64)
    for language in found.supervised:
        taught = found.teachers[language]
        n_labels = sum(one.n_labels for one in taught.sets)
        n_bytes = sum(one.n_bytes for one in taught.sets)
        needed = saved = 0
        if found.variant != "finetune":  # which reads no soft labels
            needed = taught.n_train * found.epochs * len(taught.sets)
            saved = needed - n_labels
        numbers = (sum(found.counts[language].values()), n_labels, n_bytes, needed, saved)
        totals += numbers
        rows.append([language, *_counts(numbers), _operations(taught.sets)])
    rows.append(["together", *_counts(totals.tolist()), ""])
    return Table(
        "Soft labels, and forward passes of the teachers",
        [
            "language",
            "examples",
            "of them with a soft label",
            "soft labels",
            "bytes",
            "passes without the cache",
            "saved, if no run came before",
            "million operations per token",
        ],
        rows,
        ["together"],
    )


def _counts(numbers: Sequence[int]) -> list[str]:
    first, *others = (f"{number:,}" for number in numbers)
    return [first, "100 %", *others]  # an example without a soft label is an error, and there is no page


def _operations(sets: Sequence[LabelSet]) -> str:
    """Give about how many operations a forward pass takes for each token, from the teachers' configurations.

    Twice the weights of the layers (Kaplan et al., 2020, section 2.1): attention has four matrices, and the
    feed-forward part two.
    """
    total = 0
    for one in sets:
        config = one.producers[0].facts["config"]  # folds differ in their weights alone
        try:
            layers = config.get("num_hidden_layers") or config["n_layers"]  # the second is DistilBERT's word
            hidden = config.get("hidden_size") or config["dim"]
            inner = config.get("intermediate_size") or config["hidden_dim"]
        except KeyError:
            return "–"
        total += 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    return f"{total / 1e6:,.1f}"


def run(found: Findings, params: Mapping[str, Any]) -> dict[str, Table]:
    """Say what was run: data, producers, digests and parameters."""
    counts = [
        [name, *(f"{splits[split]:,}" if split in splits else "–" for split in SPLITS)]
        for name, splits in found.counts.items()
    ]
    sets = [one for language in found.task.supervised for one in found.teachers[language].sets]
    producers = []
    for one in sets:
        facts = one.producers[0].facts
        reads = f"{facts['max_tokens']} tokens, {facts['dtype']}"
        kind = clip(str(facts["config"].get("model_type", "–")), 60)
        producers.append([one.name, kind, reads, clip(", ".join(one.producers[0].classes), 200)])
    digests = {
        **{f"{DATA / name}, ids and labels": digest for name, digest in found.data.items()},
        **{f"producer of {name}": producer.id for one in sets for name, producer in _named(one)},
        **{f"{SOFT_LABELS / one.name}/manifest.json": one.manifest for one in sets},
        **found.weights,
    }
    values = [[clip(key, 100), clip(_value(value), 200)] for key, value in _flat(params)]
    return {
        "data": Table("Examples by language and split", ["language", *SPLITS], counts),
        "producers": Table(
            "Who wrote the soft labels", ["soft labels", "model", "reads", "class order"], producers
        ),
        "digests": Table("Digests", ["what", "sha256"], [[name, digest] for name, digest in digests.items()]),
        "params": Table("Parameters", ["params.yaml", "value"], values),
    }


def _named(one: LabelSet) -> Iterable[tuple[str, Producer]]:
    """Name the producers of a set by what they labelled."""
    place = str(SOFT_LABELS / one.name)
    if len(one.producers) == 1:
        return [(place, one.producers[0])]
    return [(f"{place}, fold {index}", producer) for index, producer in enumerate(one.producers)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value).decode()


def percent(share: float | None, *, unit: bool = True) -> str:
    """Write a share in percent, with a dash for none."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}{' %' if unit else ''}"


def points(difference: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def clip(text: str, length: int) -> str:
    """Shorten a text, and write out the characters in it that would not be seen or would move others."""
    shown = "".join(_visible(character) for character in text[:length])
    return shown if len(text) <= length else f"{shown}…"


def _visible(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character not in "\t\n"
    return f"⟨U+{ord(character):04X}⟩" if is_control or character in _BIDI else character
