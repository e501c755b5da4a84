"""The page in a browser, and what it is protected from: markup, control characters, long texts."""

import dataclasses
import html
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import BROWSER, Page, opened
from page_reader import PAGE, SECTIONS, Reader
from tiny import CLASSES, Run, write_jsonl

from pipeline.params import load_params
from stages.page.findings import find
from stages.report import _page

HOSTILE = [
    "<script>document.title = 'run'</script>",
    "\"'><img src=x onerror=\"document.title='run'\">",
    "&amp; & &lt;b&gt; {{ 7 * 7 }} $x^2$",
    "abc \u202egnihton fo tuo\u202c def",
    "\u0645\u0631\u062d\u0628\u0627 \u2067x\u2069",
    "x" * 20_000,
    "\U0001f600",
    "\x07 bell\x1b[31m",
    "line\nbreak\ttab",
    "‮",
    "]]></svg></style>",
    "ordinary",
]
_OVERLAPS = """
(() => {
  const found = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const outer = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, a], i) => {
      if (a.left < outer.left - 1 || a.right > outer.right + 1) found.push(text + " leaves its chart");
      if (a.top < outer.top - 1 || a.bottom > outer.bottom + 1) found.push(text + " leaves its chart");
      for (const [other, b] of boxes.slice(i + 1))
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
          found.push(text + " covers " + other);
    });
  }
  return found;
})()
"""
_CONTRASTS = """
(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const light = colour => {  // relative luminance, as WCAG defines it
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const texts = ".heat td, p, th, dt, dd, summary, a, figcaption, caption";
  return [...document.querySelectorAll(texts)].map(one => {
    const style = getComputedStyle(one);
    const behind = style.backgroundColor === "rgba(0, 0, 0, 0)" ? paper : style.backgroundColor;
    const [a, b] = [light(style.color), light(behind)];
    return Math.max(a, b) / Math.min(a, b);
  });
})()
"""


@pytest.fixture
def hostile(finished: Path, run: Run) -> Path:
    """A run on test texts that mean mischief, in a language with a teacher and one without."""
    for language in ("de", "nl"):
        rows = [{"text": text, "label": CLASSES[i % 3]} for i, text in enumerate(HOSTILE)]
        write_jsonl(finished / f"data/{language}/test.jsonl", rows)
    for command in (["prepare"], ["teacher", "label", "--language", "de"], ["student", "evaluate"]):
        assert run(*command).code == 0
    params = load_params(Path("params.yaml"))
    classes = ["<script>document.title='run'</script>", "a\"b'c&d", "\u202eRTL" + "long " * 99]
    task = params.task.model_copy(update={"classes": classes})
    values = params.model_dump(exclude={"cache"}) | {"<script>": {"</td>": "<b>\u202e" + "y" * 999}}
    page = _page(dataclasses.replace(find(params.task, params.teachers, values), task=task), values)
    PAGE.write_text(page, encoding="utf-8")
    return finished


def test_texts_and_names_are_escaped_shortened_and_kept_apart(hostile: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    page = Reader(text)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b>"}
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "&lt;script&gt;" in text
    assert f"{'x' * 280}… (20,000 characters)<" in text
    assert not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x07\x1b")
    params = page.table("Parameters")
    assert html.unescape("&lt;script&gt;.&lt;/td&gt;") in params
    outside = Counter(tag for tag, _ in Reader(PAGE.read_text(encoding="utf-8")).elements)
    assert outside["blockquote"] == outside["bdi"] - 3 * outside["blockquote"] == 12


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if BROWSER is None or shutil.which("bash") is None:
        pytest.skip("needs Chromium or Chrome, and Bash")
    with opened(PAGE, tmp_path / "profile") as page:
        yield page


def look_at(page: Page) -> None:
    """Look at a page on a desk, in the dark, on a telephone and on paper."""
    for width, dark in ((1200, False), (1200, True), (390, False)):
        page.look(width=width, dark=dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(_OVERLAPS) == []
        assert min(page.run(_CONTRASTS)) >= 4.5
    heights = page.run("[...document.querySelectorAll('section')].map(one => one.offsetHeight)")
    assert len(heights) == len(SECTIONS)
    assert min(heights) > 100
    assert page.printed().startswith(b"%PDF")
    assert page.requests == [PAGE.absolute().as_uri()]
    assert page.complaints == []
    assert page.run("document.title") == "MBLM report"


def test_a_browser_shows_it_without_a_word_and_without_a_network(varied: Path, browser: Page) -> None:
    look_at(browser)


def test_a_browser_runs_nothing_of_what_is_written_in_the_data(hostile: Path, browser: Page) -> None:
    look_at(browser)
