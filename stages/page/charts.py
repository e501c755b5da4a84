"""The charts of the report: Matplotlib's SVG, set inline so that the page's own fonts and colours apply.

Nothing here knows a language's texts or classes: charts hold numbers, language tags and names of models.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stages.results.measures import Bins, calibration_error

# Matplotlib wants numbers for colours, the page wants names, which mean another colour in the dark: each name
# has a number that stands for it while the chart is drawn.
_NAMES = ("ink", "muted", "grid", "paper", "teacher", "finetune", "student", "soft", "wrong")
_COLOURS = {name: f"#0000{index + 16:02x}" for index, name in enumerate(_NAMES)}
INK, MUTED, GRID, PAPER, TEACHER, FINETUNE, STUDENT, SOFT, WRONG = _COLOURS.values()

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],  # to measure with: it comes with Matplotlib, and is wider than most
    "font.size": 12,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}
_PIXEL = 1 / 72  # an inch has 72 of the units that the SVG counts in
_WIDTH = 380  # of a chart: two side by side on a desk, and one on a telephone, still legible
_LARGEST = 1.25  # how much larger than that a chart may be shown


def name_of(colour: str) -> str:
    """Give the name that a colour has on the page."""
    return next(name for name, number in _COLOURS.items() if number == colour)


class Mark(NamedTuple):
    """How a model is drawn: by colour and by form, since not everybody tells the colours apart."""

    colour: str
    form: str
    filled: bool


MARKS = {
    "teacher": Mark(TEACHER, "D", True),
    "finetune": Mark(FINETUNE, "s", True),
    "student": Mark(STUDENT, "o", True),
}


class Line(NamedTuple):
    """A line of a chart with its name at its end.

    Attributes:
        name: Empty for a line without one.
        x: Shape ``(N,)``.
        y: Shape ``(N,)``.
        colour: One of this module's.
        is_thin: Whether it is drawn behind the others.
        is_dashed: Whether it is told from another of its colour in that way.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    is_thin: bool = False
    is_dashed: bool = False


def accuracy_chart(
    rows: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, tuple[float, float]],
    *,
    marks: Mapping[str, Mark],
    title: str,
) -> Markup:
    """Draw a row per language, a mark per model, and the numbers beside them.

    Args:
        rows: Accuracies by row and model; the last row is the mean of the others.
        intervals: By row, the 95 % interval of the last model.
        marks: How each model is drawn, in the order of the columns.
        title: What the chart says, for those who do not see it.
    """
    left, right = _room_for(rows), 58 * len(marks) + 6
    with _figure(_WIDTH, 78 + 24 * len(rows)) as (figure, axes):
        _inset(figure, left=left, right=right, top=44, bottom=34)
        beside = axes.get_yaxis_transform()
        unit = 1 / (_WIDTH - left - right)
        last = len(rows) - 1
        for place, (name, values) in enumerate(rows.items()):
            y = last - place - (0.4 if place == last else 0)
            weight = "bold" if place == last else "normal"
            axes.text(-10 * unit, y, name, transform=beside, ha="right", va="center", weight=weight)
            if name in intervals:
                axes.plot(intervals[name], (y, y), color=SOFT, linewidth=7, zorder=1)
            axes.plot(
                (min(values.values()), max(values.values())), (y, y), color=MUTED, linewidth=1, zorder=2
            )
            for column, (model, mark) in enumerate(marks.items()):
                text = f"{100 * values[model]:.1f}" if model in values else "–"
                where = 1 + unit * (38 + 58 * column)
                axes.text(where, y, text, transform=beside, ha="center", va="center", weight=weight)
                if model in values:
                    axes.plot(values[model], y, **_marker(mark, 8), zorder=3)
        for column, (model, mark) in enumerate(marks.items()):
            where = 1 + unit * (38 + 58 * column)
            axes.plot(where, last + 1.6, transform=beside, clip_on=False, **_marker(mark, 8))
            axes.text(
                where,
                last + 0.9,
                model,
                transform=beside,
                ha="center",
                va="center",
                color=mark.colour,
                weight="bold",
            )
        axes.set_ylim(-0.95, last + 0.6)
        axes.set_xlim(_limits([*intervals.values(), *(tuple(values.values()) for values in rows.values())]))
        axes.axhline(0.3, color=GRID, linewidth=1)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.grid(axis="x")
        return _svg(figure, title)


def _room_for(names: Iterable[str]) -> float:
    """Give the width that names of rows take, as many units as they have at most."""
    return 16 + 9 * max(map(len, names))


def _limits(groups: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Give the ends of an axis of shares: room for marks at all of them, and ten points apart or more."""
    shares = [share for group in groups for share in group]
    length = max(shares) - min(shares)
    room = max(0.06 * length, (0.1 - length) / 2)
    return min(shares) - room, max(shares) + room


def curves_chart(lines: Sequence[Line], *, percent: bool, title: str) -> Markup:
    """Draw lines over the steps of a training, each with its name at its end."""
    with _figure(_WIDTH, 260) as (figure, axes):
        _inset(figure, left=40, right=92, top=10, bottom=42)
        for line in lines:
            width, front = (1, 1) if line.is_thin else (2.2, 2)
            dashes = (0, (3, 1.5)) if line.is_dashed else "-"
            axes.plot(line.x, line.y, color=line.colour, linewidth=width, linestyle=dashes, zorder=front)
        named = [line for line in lines if line.name]
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("optimizer step")
        if percent:
            axes.set_ylim(_limits(line.y for line in lines))
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        to_pixels = axes.transData.transform
        ends = [float(to_pixels((line.x[-1], line.y[-1]))[1]) for line in named]
        for line, end, place in zip(named, ends, spread(ends, gap=16.0), strict=True):
            axes.annotate(
                line.name,
                (1, (end - axes.bbox.y0) / axes.bbox.height),
                (1.05, (place - axes.bbox.y0) / axes.bbox.height),
                xycoords="axes fraction",
                textcoords="axes fraction",
                va="center",
                color=MUTED if line.is_thin else line.colour,
                weight="normal" if line.is_thin else "bold",
                arrowprops={"arrowstyle": "-", "color": GRID, "shrinkA": 0, "shrinkB": 2},
            )
        return _svg(figure, title)


def spread(places: Sequence[float], *, gap: float) -> list[float]:
    """Move numbers apart until each is `gap` or more from the next, and keep their order and their middle."""
    order = np.argsort(places, kind="stable")
    groups: list[list[Any]] = []  # [middle, members]: members stand `gap` apart around their middle
    for index in order:
        groups.append([places[index], [index]])
        while len(groups) > 1:
            (below, lower), (above, upper) = groups[-2:]
            if above - below >= gap * (len(lower) + len(upper)) / 2:
                break
            together = [*lower, *upper]
            groups[-2:] = [[(below * len(lower) + above * len(upper)) / len(together), together]]
    moved = [0.0] * len(places)
    for middle, members in groups:
        for place, index in enumerate(members):
            moved[index] = float(middle + gap * (place - (len(members) - 1) / 2))
    return moved


def reliability_chart(before: Bins, after: Bins, *, colour: str, title: str) -> Markup:
    """Draw accuracy over confidence, before and after calibration, and how often each confidence occurs."""
    with _figure(300, 280) as (figure, axes):
        _inset(figure, left=46, right=20, top=10, bottom=42)
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        share = after.counts / max(after.counts.sum(), 1)
        edges = np.arange(len(share)) / len(share)
        axes.bar(
            edges, share / 2, width=1 / len(share), align="edge", color=GRID, edgecolor=PAPER, linewidth=1
        )
        for bins, width, fill in ((before, 1.2, PAPER), (after, 2.2, colour)):
            some = bins.counts > 0
            axes.plot(
                bins.confidence[some],
                bins.accuracy[some],
                color=colour,
                linewidth=width,
                marker="o",
                markersize=6.5,
                markerfacecolor=fill,
                markeredgecolor=colour,
            )
        errors = [f"{100 * calibration_error(bins):.1f}" for bins in (before, after)]
        axes.text(0.04, 0.97, f"error {errors[0]} → {errors[1]}", va="top", color=colour, weight="bold")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
        axes.grid()
        return _svg(figure, title)


def errors_chart(rows: Mapping[str, tuple[float, float]], *, title: str) -> Markup:
    """Draw a row per language: its calibration error before (hollow) and after (filled)."""
    with _figure(_WIDTH, 56 + 24 * len(rows)) as (figure, axes):
        left = _room_for(rows)
        _inset(figure, left=left, right=122, top=24, bottom=32)
        last = len(rows) - 1
        beside, unit = axes.get_yaxis_transform(), 1 / (_WIDTH - left - 122)
        columns = (1 + 38 * unit, 1 + 96 * unit)
        for place, (name, errors) in enumerate(rows.items()):
            y = last - place
            axes.text(-10 * unit, y, name, transform=beside, ha="right", va="center")
            axes.plot(errors, (y, y), color=MUTED, linewidth=1)
            for error, filled, where in zip(errors, (False, True), columns, strict=True):
                axes.plot(error, y, **_marker(Mark(STUDENT, "o", filled), 8), clip_on=False)
                axes.text(where, y, f"{100 * error:.1f}", transform=beside, ha="center", va="center")
        for where, head in zip(columns, ("before", "after"), strict=True):
            axes.text(where, last + 0.9, head, transform=beside, ha="center", va="center", color=MUTED)
        axes.set(xlim=(0, 1.06 * max(0.01, *map(max, rows.values()))), ylim=(-0.6, last + 0.5))
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.grid(axis="x")
        return _svg(figure, title)


def shares_chart(rows: Mapping[str, Sequence[float]], *, colours: Sequence[str], title: str) -> Markup:
    """Draw a bar per row, cut into shares that add up to 1, with a number where there is room for one."""
    with _figure(_WIDTH, 30 + 30 * len(rows)) as (figure, axes):
        left = _room_for(rows)
        _inset(figure, left=left, right=20, top=2, bottom=28)
        last = len(rows) - 1
        for place, (name, shares) in enumerate(rows.items()):
            y = last - place
            axes.text(
                -10 / (_WIDTH - left - 20),
                y,
                name,
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
            )
            starts = np.cumsum([0.0, *shares])
            for share, start, colour in zip(shares, starts, colours, strict=False):
                axes.barh(y, share, left=start, height=0.8, color=colour, edgecolor=PAPER, linewidth=1.5)
                if share >= 0.07:
                    text = INK if colour in (SOFT, GRID) else PAPER
                    axes.text(
                        start + share / 2, y, f"{100 * share:.0f}", ha="center", va="center", color=text
                    )
        axes.set(xlim=(0, 1), ylim=(-0.5, last + 0.5))
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        return _svg(figure, title)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give an empty chart of that many units of the page; only within are its settings in force."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * _PIXEL, height * _PIXEL), dpi=72)
        yield figure, figure.add_subplot()


def _inset(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> None:
    """Leave that many units free around the axes."""
    width, height = figure.get_size_inches() / _PIXEL
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


def _marker(mark: Mark, size: float) -> dict[str, Any]:
    fill = mark.colour if mark.filled else PAPER
    edge = PAPER if mark.filled else mark.colour
    return {
        "marker": mark.form,
        "markersize": size,
        "markerfacecolor": fill,
        "markeredgecolor": edge,
        "markeredgewidth": 1 if mark.filled else 1.5,
        "linestyle": "none",
    }


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:g} %"


def _svg(figure: Figure, title: str) -> Markup:
    """Turn a chart into an element of the page: no fonts, no colours and no names of its own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": title}):  # ids are those of this chart, and the same in every run
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    width, height = (round(float(size) / _PIXEL) for size in (figure.get_figwidth(), figure.get_figheight()))
    inner = drawn[drawn.index("<g id=") : drawn.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r' id="[a-z]+[\w.]*_\d+"', "", inner)  # the same in every chart
    inner = inner.replace("xlink:href", "href")
    for name, colour in _COLOURS.items():
        inner = inner.replace(colour, f"var(--{name})")
    size = f'viewBox="0 0 {width} {height}" style="max-width: {_LARGEST * width:.0f}px"'
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">{inner}</svg>')
