"""How charts are drawn: Matplotlib's SVG, set inline so that the page's own fonts and colours apply."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
    "xtick.major.pad": 6,  # clear of the labels of the other axis, also in fonts with tall lines
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}
_PIXEL = 1 / 72  # an inch has 72 of the units that the SVG counts in
_LARGEST = 1.25  # how much larger than drawn a chart may be shown


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


@contextmanager
def blank(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give an empty chart of that many units of the page; only within are its settings in force."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * _PIXEL, height * _PIXEL), dpi=72)
        yield figure, figure.add_subplot()


def inset(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> None:
    """Leave that many units free around the axes."""
    width, height = figure.get_size_inches() / _PIXEL
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


def marker(mark: Mark) -> dict[str, Any]:
    """Give what `Axes.plot` needs to know of a mark."""
    return {
        "marker": mark.form,
        "markersize": 8,
        "markerfacecolor": mark.colour if mark.filled else PAPER,
        "markeredgecolor": PAPER if mark.filled else mark.colour,
        "markeredgewidth": 1 if mark.filled else 1.5,
        "linestyle": "none",
    }


def in_percent(axis: Axis) -> None:
    """Write an axis of shares in percent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))


def svg(figure: Figure, title: str) -> Markup:
    """Turn a chart into an element of the page: no fonts, no colours and no names of its own.

    Args:
        figure: The chart.
        title: What it says, for those who do not see it. The label also says where its numbers are.
    """
    buffer = io.StringIO()
    label = f"{title}. The numbers are in the table below."
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": label}):  # ids are those of this chart, and the same in every run
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
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{escape(label)}">{inner}</svg>')
