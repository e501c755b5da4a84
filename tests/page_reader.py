"""The report's page as its tests read it: elements, texts, and tables by their captions."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

PAGE = Path("artifacts/report/report.html")
SECTIONS = {
    *("summary", "premise", "accuracy", "branches", "confusion", "calibration", "agreement", "disagreements"),
    *("curves", "teachers", "cache", "run", "languages"),
}
HEADINGS = ("h1", "h2", "h3")
_READ = {*HEADINGS, "caption", "dd", "dt", "figcaption", "td", "th"}


class Reader(HTMLParser):
    """What a page consists of.

    Attributes:
        elements: Names and attributes, in their order.
        texts: Names and texts of those that are read, in their order.
        tables: By caption, a list of cells for each row.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._inside = ""
        self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self._rows.append([])
        elif tag in _READ:
            self._inside, self._text = tag, ""

    def handle_endtag(self, tag: str) -> None:
        if tag != self._inside:
            return
        self._inside = ""
        self.texts.append((tag, self._text))
        if tag == "caption":
            assert self._text not in self.tables
            self._rows = self.tables[self._text] = []
        elif tag in ("td", "th"):
            self._rows[-1].append(self._text)

    def handle_data(self, data: str) -> None:
        self._text += data

    def table(self, caption: str) -> dict[str, dict[str, str]]:
        """Give the one table whose caption begins so, by row and column."""
        (rows,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        head, *body = rows
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}

    def extract(self) -> dict[str, Any]:
        """Give headings, figures, facts and tables: all but running text and what lies in the charts."""
        return {
            "headings": [[tag, text] for tag, text in self.texts if tag in HEADINGS],
            "figures": [text for tag, text in self.texts if tag == "figcaption"],
            "charts": [attrs["aria-label"] for tag, attrs in self.elements if tag == "svg"],
            "facts": [text for tag, text in self.texts if tag in ("dt", "dd")],
            "tables": self.tables,
        }


def read_page() -> Reader:
    return Reader(PAGE.read_text(encoding="utf-8"))


def percent(share: float) -> str:
    """Write a share as the page does."""
    return f"{100 * share:.1f} %"
