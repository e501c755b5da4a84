"""Tables, heat maps and figures of the report as data, and how their cells are written."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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
    table: Table


def percent(share: float | None, *, unit: bool = True) -> str:
    """Write a share in percent, with a dash for none."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}{' %' if unit else ''}"


def clip(text: str, length: int) -> str:
    """Shorten a text, and write out the characters in it that would not be seen or would move others."""
    shown = "".join(_visible(character) for character in text[:length])
    return shown if len(text) <= length else f"{shown}…"


def _visible(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character not in "\t\n"
    return f"⟨U+{ord(character):04X}⟩" if is_control or character in _BIDI else character
