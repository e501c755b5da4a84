"""The charts of the report: numbers, language tags and model names, never texts or classes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stages.page.drawing import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SOFT,
    STUDENT,
    Mark,
    blank,
    in_percent,
    inset,
    marker,
    svg,
)
from stages.results.measures import Bins, calibration_error

_WIDTH = 380  # of a chart: two side by side on a desk, and one on a telephone, still legible
_COLUMN = 58  # width of a column of numbers beside a chart


class Line(NamedTuple):
    """A line of a chart with its name at its end.

    Attributes:
        name: Empty for a line without one.
        x: Shape ``(N,)``.
        y: Shape ``(N,)``.
        colour: One of `stages.page.drawing`.
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
    with blank(_WIDTH, 78 + 24 * len(rows)) as (figure, axes):
        inset(figure, left=_room_for(rows), right=_column(len(marks)), top=44, bottom=34)
        last = len(rows) - 1
        for place, (name, values) in enumerate(rows.items()):
            y = last - place - (0.4 if place == last else 0)
            weight = "bold" if place == last else "normal"
            _beside(axes, -10, y, name, weight=weight)
            if name in intervals:
                axes.plot(intervals[name], (y, y), color=SOFT, linewidth=7, zorder=1)
            ends = (min(values.values()), max(values.values()))
            axes.plot(ends, (y, y), color=MUTED, linewidth=1, zorder=2)
            for column, (model, mark) in enumerate(marks.items()):
                text = f"{100 * values[model]:.1f}" if model in values else "–"
                _beside(axes, _middle(column), y, text, weight=weight)
                if model in values:
                    axes.plot(values[model], y, **marker(mark), zorder=3)
        for column, (model, mark) in enumerate(marks.items()):
            where = 1 + _middle(column) / axes.bbox.width
            axes.plot(where, last + 1.6, transform=axes.get_yaxis_transform(), clip_on=False, **marker(mark))
            _beside(axes, _middle(column), last + 0.9, model, color=mark.colour, weight="bold")
        axes.set_ylim(-0.95, last + 0.6)
        axes.set_xlim(_limits([*intervals.values(), *(tuple(values.values()) for values in rows.values())]))
        axes.axhline(0.3, color=GRID, linewidth=1)
        _lines_at_shares(axes)
        return svg(figure, title)


def errors_chart(rows: Mapping[str, tuple[float, float]], *, title: str) -> Markup:
    """Draw a row per language: its calibration error before (hollow) and after (filled)."""
    with blank(_WIDTH, 56 + 24 * len(rows)) as (figure, axes):
        inset(figure, left=_room_for(rows), right=_column(2), top=24, bottom=32)
        last = len(rows) - 1
        for place, (name, errors) in enumerate(rows.items()):
            y = last - place
            _beside(axes, -10, y, name)
            axes.plot(errors, (y, y), color=MUTED, linewidth=1)
            for column, error in enumerate(errors):
                axes.plot(error, y, **marker(Mark(STUDENT, "o", filled=column == 1)), clip_on=False)
                _beside(axes, _middle(column), y, f"{100 * error:.1f}")
        for column, head in enumerate(("before", "after")):
            _beside(axes, _middle(column), last + 0.9, head, color=MUTED)
        axes.set(xlim=(0, 1.06 * max(0.01, *map(max, rows.values()))), ylim=(-0.6, last + 0.5))
        _lines_at_shares(axes)
        return svg(figure, title)


def shares_chart(rows: Mapping[str, Sequence[float]], *, colours: Sequence[str], title: str) -> Markup:
    """Draw a bar per row, cut into shares that add up to 1, with a number where there is room for one."""
    with blank(_WIDTH, 30 + 30 * len(rows)) as (figure, axes):
        inset(figure, left=_room_for(rows), right=20, top=2, bottom=28)
        last = len(rows) - 1
        for place, (name, shares) in enumerate(rows.items()):
            y = last - place
            _beside(axes, -10, y, name)
            starts = np.cumsum([0.0, *shares])
            for share, start, colour in zip(shares, starts, colours, strict=False):
                axes.barh(y, share, left=start, height=0.8, color=colour, edgecolor=PAPER, linewidth=1.5)
                if share >= 0.07:
                    ink = INK if colour in (SOFT, GRID) else PAPER
                    middle = start + share / 2
                    axes.text(middle, y, f"{100 * share:.0f}", ha="center", va="center", color=ink)
        axes.set(xlim=(0, 1), ylim=(-0.5, last + 0.5))
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        in_percent(axes.xaxis)
        return svg(figure, title)


def _room_for(names: Iterable[str]) -> float:
    """Give the width that names of rows take, as many units as they have at most."""
    return 16 + 9 * max(map(len, names))


def _column(place: int) -> float:
    """Say how far right of the axes a column of numbers begins."""
    return 6 + _COLUMN * place


def _middle(place: int) -> float:
    """Say how far right of the axes a column's numbers have their middle."""
    return 38 + _COLUMN * place


def _beside(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write beside the axes.

    Args:
        axes: Of the chart.
        x: Negative for text that ends that far left of the axes, else centred that far right of them.
        y: In the axes' own units.
        text: What to write.
        style: More of Matplotlib's properties of a text.
    """
    where = x / axes.bbox.width + (1 if x > 0 else 0)
    side = "center" if x > 0 else "right"
    axes.text(where, y, text, transform=axes.get_yaxis_transform(), ha=side, va="center", **style)


def _lines_at_shares(axes: Axes) -> None:
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    in_percent(axes.xaxis)
    axes.grid(axis="x")


def _limits(groups: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Give the ends of an axis of shares: room for marks at all of them, and ten points apart or more."""
    shares = [share for group in groups for share in group]
    length = max(shares) - min(shares)
    room = max(0.06 * length, (0.1 - length) / 2)
    return min(shares) - room, max(shares) + room


def curves_chart(
    lines: Sequence[Line], *, percent: bool, title: str, over: str = "optimizer step", of_shares: bool = False
) -> Markup:
    """Draw lines, each with its name at its end.

    Args:
        lines: Of one colour or several.
        percent: Whether heights are shares.
        title: For those who cannot see it.
        over: What the lines run over: the steps of a training.
        of_shares: Whether that is a share.
    """
    with blank(_WIDTH, 260) as (figure, axes):
        inset(figure, left=46, right=92, top=10, bottom=42)
        for line in lines:
            width, front = (1, 1) if line.is_thin else (2.2, 2)
            dashes = (0, (3, 1.5)) if line.is_dashed else "-"
            axes.plot(line.x, line.y, color=line.colour, linewidth=width, linestyle=dashes, zorder=front)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(over)
        if of_shares:
            in_percent(axes.xaxis)
        if percent:
            axes.set_ylim(_limits(line.y for line in lines))
            in_percent(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        _name_at_their_ends(axes, [line for line in lines if line.name])
        return svg(figure, title)


def _name_at_their_ends(axes: Axes, lines: Sequence[Line]) -> None:
    ends = [float(axes.transData.transform((line.x[-1], line.y[-1]))[1]) for line in lines]
    for line, end, place in zip(lines, ends, spread(ends, gap=16.0), strict=True):
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
    with blank(300, 280) as (figure, axes):
        inset(figure, left=46, right=20, top=10, bottom=42)
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        share = after.counts / max(after.counts.sum(), 1)
        width = 1 / len(share)
        edges = np.arange(len(share)) / len(share)
        axes.bar(edges, share / 2, width=width, align="edge", color=GRID, edgecolor=PAPER, linewidth=1)
        for bins, linewidth, fill in ((before, 1.2, PAPER), (after, 2.2, colour)):
            some = bins.counts > 0
            axes.plot(
                bins.confidence[some],
                bins.accuracy[some],
                color=colour,
                linewidth=linewidth,
                marker="o",
                markersize=6.5,
                markerfacecolor=fill,
                markeredgecolor=colour,
            )
        errors = [f"{100 * calibration_error(bins):.1f}" for bins in (before, after)]
        axes.text(0.04, 0.97, f"error {errors[0]} → {errors[1]}", va="top", color=colour, weight="bold")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence")
        in_percent(axes.xaxis)
        in_percent(axes.yaxis)
        axes.grid()
        return svg(figure, title)
