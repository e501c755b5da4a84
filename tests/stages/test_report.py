"""The report: its numbers, what it escapes, that it needs nothing, and what a browser makes of it."""

import dataclasses
import html
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chromium import BROWSER, Page, opened
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import accuracy_score, confusion_matrix
from tiny import CLASSES, ROOT, SIZES, Run, tiny_params, write_jsonl
from written_out import calibration_error_of

from cache import SoftLabels, SoftLabelSet
from pipeline.params import PipelineParams, load_params
from stages.artifacts import PREDICTIONS, SOFT_LABELS
from stages.data.examples import SPLITS, has_split, read_examples
from stages.page.charts import spread
from stages.page.findings import Findings, find
from stages.page.sections import _most_confused, clip
from stages.report import _page
from stages.results.measures import by_confidence, fit_temperature, probabilities
from stages.results.predictions import Predictions, read_predictions, write_predictions

PAGE = Path("artifacts/report/report.html")
SECTIONS = {
    *("summary", "accuracy", "branches", "confusion", "calibration", "agreement", "disagreements"),
    *("curves", "teachers", "cache", "run"),
}
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


def loaded() -> PipelineParams:
    return load_params(Path("params.yaml"))


def found() -> Findings:
    params = loaded()
    return find(params.task, params.model_dump(exclude={"cache"}))


@pytest.fixture
def varied(finished: Path, run: Run) -> Path:
    """A finished run in which students and teachers of some skill say different things."""
    task = loaded().task
    numbers = np.random.default_rng(0)

    def logits(labels: Any, skill: float) -> Any:
        return (numbers.normal(size=(len(labels), 3)) + skill * np.eye(3)[labels]).astype("f4")

    for model in ("student", "baseline"):
        answers = [
            Predictions(language, split, branch, table, logits(table["label"].to_numpy(), 1.5))
            for language, branch in (("de", "de"), ("en", "en"), ("nl", "mixture"))
            for split in SPLITS[1:]
            for table in [read_examples(task, language, split)]
        ]
        write_predictions(task, model, answers)
    for language in task.supervised:
        table = pa.concat_tables([read_examples(task, language, split) for split in SPLITS])
        producer = SoftLabelSet.read(SOFT_LABELS / language, language=language).producers[0]
        ids = table["example_id"].combine_chunks()
        said = SoftLabels.pack(ids, logits(table["label"].to_numpy(), 3.0))
        SoftLabelSet.write(SOFT_LABELS / language, language=language, parts=[(producer, said)])
    assert run("report").code == 0
    return finished


class Reader(HTMLParser):
    """What a page consists of: its elements, and the tables in it by their caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in ("caption", "td", "th"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self._inside == "caption":
            self._caption += data
        elif self._inside:
            self._rows[-1][-1] += data

    def table(self, caption: str) -> dict[str, dict[str, str]]:
        """Give the one table whose caption begins so, by row and column."""
        (rows,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        head, *body = rows
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def read_page() -> Reader:
    return Reader(PAGE.read_text(encoding="utf-8"))


# What it holds


def test_every_section_is_there_and_every_chart_has_its_numbers(finished: Path) -> None:
    page = read_page()
    assert {attrs["id"] for tag, attrs in page.elements if tag == "section"} == SECTIONS
    targets = [attrs["href"] or "" for tag, attrs in page.elements if tag == "a"]
    assert {target.removeprefix("#") for target in targets} == SECTIONS - {"summary"}
    tags = Counter(tag for tag, _ in page.elements)
    charts = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(charts) == tags["figure"] == 10
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    figures = PAGE.read_text(encoding="utf-8").split("<figure>")[1:]
    assert all("<table>" in figure.partition("</figure>")[0] for figure in figures)
    assert tags["h1"] == 1
    assert all(attrs.get("scope") for tag, attrs in page.elements if tag == "th")


def test_it_needs_nothing_but_itself_and_is_small(finished: Path) -> None:
    page = read_page()
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base"}
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attrs.get(name) or "#").startswith("#") or (tag, attrs["href"]) == ("link", "data:,")
    text = PAGE.read_text(encoding="utf-8")
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")
    assert len(text.encode()) < 1_500_000


def test_the_same_artifacts_give_the_same_bytes(finished: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in PAGE.parent.iterdir()}
    assert run("report").code == 0
    assert {path: path.read_bytes() for path in PAGE.parent.iterdir()} == before
    assert {path.name for path in before} == {"accuracy.md", "report.html", "summary.json"}


def test_it_loads_no_model_and_no_torch(finished: Path) -> None:
    shutil.rmtree("artifacts/teachers")
    shutil.rmtree("artifacts/encoder")
    shutil.rmtree("store")
    script = (
        "import sys; sys.argv = ['pipeline', 'report']\n"
        "from pipeline.__main__ import main\n"
        "import atexit; atexit.register(lambda: print({'torch', 'transformers'} & set(sys.modules))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT), "HOME": str(finished), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["artifacts/report/report.html", "set()"]


# Its numbers


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_accuracies_are_those_of_the_predictions(varied: Path) -> None:
    task = loaded().task
    page = read_page()
    models = {"finetune": "baseline", "mblm": "student"}
    for kind, languages in (("supervised", ["de", "en"]), ("zero-shot", ["nl"])):
        rows = page.table(f"Test accuracy, {kind} languages")
        order = [name for name in rows if name != "mean"]
        accuracies = [float(rows[name]["mblm"].split()[0]) for name in order]
        assert accuracies == sorted(accuracies, reverse=True)
        assert sorted(order) == languages
        for column, model in models.items():
            predictions = read_predictions(task, model)
            expected = {
                language: accuracy_score(
                    read_examples(task, language, "test")["label"].to_numpy(),
                    predictions[language, "test"].logits.argmax(axis=1),
                )
                for language in languages
            }
            assert {name: rows[name][column] for name in languages} == {
                name: percent(value) for name, value in expected.items()
            }
            assert rows["mean"][column] == percent(float(np.mean(list(expected.values()))))
    markdown = (PAGE.parent / "accuracy.md").read_text().splitlines()
    assert markdown[0].split("|")[1:-1] == [" language               ", " teacher ", " finetune ", "  mblm "]


def test_the_summary_says_what_the_page_says(varied: Path) -> None:
    summary = json.loads((PAGE.parent / "summary.json").read_text())
    assert set(summary) == {"supervised", "zero_shot"}
    text = PAGE.read_text(encoding="utf-8")
    for share in (
        *(summary[kind]["student"] for kind in summary),
        summary["supervised"]["teachers"],
        summary["supervised"]["same_class"],
    ):
        assert f'<dd class="value">{percent(share)}</dd>' in text
    agreement = read_page().table("Student and teacher")
    alike = [float(row["same class"].split()[0]) for row in agreement.values()]
    assert np.mean(alike) == pytest.approx(100 * summary["supervised"]["same_class"], abs=0.06)


def test_teachers_are_compared_with_the_hard_labels_of_each_split(varied: Path) -> None:
    task = loaded().task
    rows = read_page().table("Teachers against the hard labels")
    for language in task.supervised:
        label_set = SoftLabelSet.read(SOFT_LABELS / language, language=language)
        for split in SPLITS:
            table = read_examples(task, language, split)
            logits = label_set.join(table["example_id"]).logits
            right = accuracy_score(table["label"].to_numpy(), logits.argmax(axis=1))
            assert rows[language][f"accuracy, {split}"] == percent(right)
    gate = read_page().table("The class-order gate")
    assert {row["gate"] for row in gate.values()} == {"passed"}


def test_the_gate_is_seen_to_refuse_a_wrong_class_order(varied: Path, run: Run) -> None:
    swapped = "{animal: colour, colour: number, number: animal}"
    assert run("report", "--set", f"teachers.de.labels={swapped}").code == 0
    gate = read_page().table("The class-order gate")
    assert [gate[name]["gate"] for name in ("de", "en")] == ["REFUTED", "passed"]
    assert "animal: " in gate["de"]["the best order"]


def test_calibration_is_fitted_on_validation_and_reported_on_test(varied: Path) -> None:
    task = loaded().task
    student = read_predictions(task, "student")
    held_out = [student[language, "validation"] for language in task.supervised]
    temperature = fit_temperature(
        np.concatenate([one.logits for one in held_out]), np.concatenate([one.labels for one in held_out])
    )
    rows = read_page().table("Expected calibration error on the test split, supervised")
    for language in task.supervised:
        one = student[language, "test"]
        assert rows[language]["mblm: temperature"] == f"{temperature:.2f}"
        for when, by in (("before", 1.0), ("after", temperature)):
            expected = calibration_error_of(one.logits / by, one.labels)
            assert rows[language][f"mblm: {when}"] == percent(expected)


def test_matrices_are_those_of_scikit_learn(varied: Path) -> None:
    task = loaded().task
    student = read_predictions(task, "student")
    tables = read_page().tables
    for language in task.languages:
        one = student[language, "test"]
        counts = confusion_matrix(one.labels, one.predicted, labels=range(3))
        shares = counts / counts.sum(axis=1, keepdims=True)
        _, *rows = tables[language]
        assert [row[0] for row in rows] == CLASSES
        expected = [[f"{100 * share:.0f}" if share else "·" for share in line] for line in shares]
        assert [row[1:] for row in rows] == expected


def test_cost_saved_is_what_the_text_says(varied: Path) -> None:
    rows = read_page().table("Soft labels, and forward passes of the teachers")
    needed = SIZES["train"] * tiny_params()["student"]["distill"]["epochs"]
    labels = sum(SIZES.values())
    assert rows["de"]["of them with a soft label"] == "100 %"
    assert rows["de"]["soft labels"] == str(labels)
    assert rows["de"]["passes without the cache"] == str(needed)
    assert rows["together"]["saved, if no run came before"] == str(2 * (needed - labels))
    assert rows["de"]["million operations per token"] == "0.0"
    assert "no teacher was in memory" in PAGE.read_text(encoding="utf-8").lower()


def test_what_was_run_is_told_with_its_digests(finished: Path) -> None:
    page = read_page()
    params = page.table("Parameters")
    assert params["student.distill.temperature"]["value"] == "2.0"
    assert not any(key.startswith("cache") for key in params)
    digests = page.table("Digests")
    assert digests["artifacts/student/model.safetensors"]
    assert sum(len(row["sha256"]) == 64 for row in digests.values()) == len(digests) == 3 + 2 + 2 + 2
    counts = page.table("Examples by language and split")
    assert counts["nl"] == {"train": "–", "validation": "9", "test": "12"}


def test_examples_are_those_on_which_student_and_teacher_differ_most(varied: Path) -> None:
    one = found()
    student, teacher = one.student["de"], one.teachers["de"].test
    pairs = zip(student.probabilities(), teacher.probabilities(), strict=True)
    bits = [jensenshannon(p, q, base=2) ** 2 for p, q in pairs]
    texts = student.examples["text"].to_pylist()
    text = PAGE.read_text(encoding="utf-8").partition('<section id="disagreements"')[2]
    german = text.partition("<h3>de</h3>")[2].partition("</ol>")[0]
    shown = [part.partition("</bdi>")[0] for part in german.split('<blockquote dir="auto"><bdi>')[1:]]
    assert shown == [texts[i] for i in np.argsort(-np.array(bits), kind="stable")[:6]]


def test_several_teachers_are_one_in_the_mean_of_their_probabilities(varied: Path, run: Run) -> None:
    folder = SOFT_LABELS / "de/more-1"
    shutil.copytree(SOFT_LABELS / "en", folder)
    first = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    table = pa.concat_tables([read_examples(loaded().task, "de", split) for split in SPLITS])
    ids = table["example_id"].combine_chunks()
    said = SoftLabels.pack(ids, np.roll(first.join(ids).logits, 1, axis=0))
    SoftLabelSet.write(folder, language="de", parts=[(first.producers[0], said)])
    teacher = {"base": "scratch", "revision": None, "finetune": True, "labels": None}
    assert run("report", "--set", f"teachers.de.more=[{json.dumps(teacher)}]").code == 0
    params = load_params(Path("params.yaml"), [f"teachers.de.more=[{json.dumps(teacher)}]"])
    test = find(params.task, params.model_dump()).teachers["de"].test
    each = [
        probabilities(part.join(ids).logits) for part in (first, SoftLabelSet.read(folder, language="de"))
    ]
    np.testing.assert_allclose(test.probabilities(), np.mean(each, axis=0)[-SIZES["test"] :], rtol=1e-6)
    assert set(read_page().table("The class-order gate")) == {"de", "de/more-1", "en"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["task.zero_shot=[]"], "no zero-shot languages"),
        (["student.distill.variant=finetune"], "it saves nothing"),
    ],
)
def test_runs_without_zero_shot_languages_or_soft_labels_are_reported(
    finished: Path, run: Run, changes: list[str], says: str
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    done = run("report", *options)
    assert done.code == 0, done.err
    assert says in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_a_student_of_one_branch_is_reported(finished: Path, run: Run) -> None:
    rows = json.loads(Path("artifacts/plots/accuracy_by_branch.json").read_text())
    mixture = [row | {"used": "mixture"} for row in rows if row["branch"] == "mixture"]
    Path("artifacts/plots/accuracy_by_branch.json").write_text(json.dumps(mixture))
    assert run("report", "--set", "student.distill.variant=distill").code == 0
    assert "The student has one branch" in PAGE.read_text(encoding="utf-8")


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    counts = 100 * np.eye(40, dtype=np.int64)
    counts[7, 30] = 5
    counts[3, 9:19] = 1
    assert _most_confused(counts) == [3, 7, *range(9, 18), 30]


# What evaluate writes for it


def test_predictions_are_the_students_logits_in_the_order_of_the_data(finished: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = loaded().task
    folder = "artifacts/student"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    predictions = read_predictions(task, "student")
    assert set(predictions) == {
        (language, split) for language in task.languages for split in SPLITS[1:] if has_split(language, split)
    }
    for language, language_id in (("en", 1), ("nl", -1)):
        one = predictions[language, "test"]
        assert one.branch == ("en" if language == "en" else "mixture")
        inputs = tokenizer(one.examples["text"].to_pylist(), padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs, language_ids=torch.full((12,), language_id)).logits
        np.testing.assert_allclose(one.logits, logits.numpy(), atol=1e-5)


def test_plots_of_dvc_hold_the_numbers_of_the_predictions(finished: Path) -> None:
    task = loaded().task
    student = read_predictions(task, "student")
    plots = {path.stem: json.loads(path.read_text()) for path in Path("artifacts/plots").iterdir()}
    one = student["nl", "test"]
    counts = [row["count"] for row in plots["confusion"] if row["kind"] == "zero_shot"]
    assert counts == confusion_matrix(one.labels, one.predicted, labels=range(3)).ravel().tolist()
    bins = by_confidence(probabilities(one.logits), one.labels)
    accuracies = [row["zero_shot"] for row in plots["calibration"]]
    assert accuracies == [a if n else None for a, n in zip(bins.accuracy, bins.counts, strict=True)]


# What it is protected from


@pytest.fixture
def hostile(finished: Path, run: Run) -> Path:
    """A run on test texts that mean mischief, in a language with a teacher and one without."""
    for language in ("de", "nl"):
        rows = [{"text": text, "label": CLASSES[i % 3]} for i, text in enumerate(HOSTILE)]
        write_jsonl(finished / f"data/{language}/test.jsonl", rows)
    for command in (["prepare"], ["teacher", "label", "--language", "de"], ["student", "evaluate"]):
        assert run(*command).code == 0
    params = loaded()
    classes = ["<script>document.title='run'</script>", "a\"b'c&d", "\u202eRTL" + "long " * 99]
    task = params.task.model_copy(update={"classes": classes})
    values = params.model_dump(exclude={"cache"}) | {"<script>": {"</td>": "<b>\u202e" + "y" * 999}}
    page = _page(dataclasses.replace(found(), task=task), values)
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


def test_long_and_invisible_texts_are_shown_as_what_they_are() -> None:
    assert clip("a\u202eb", 9) == "a⟨U+202E⟩b"
    assert clip("\x00\n", 9) == "⟨U+0000⟩\n"
    assert clip("x" * 1000, 3) == "xxx…"
    assert clip("\U0001f600 \u200d مرحبا", 99) == "\U0001f600 \u200d مرحبا"


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("artifacts/predictions/student.arrow", "student evaluate"),
        ("artifacts/predictions/baseline.arrow", "student evaluate"),
        ("artifacts/plots/accuracy_by_branch.json", "student evaluate"),
        ("artifacts/student/losses.json", "student distill"),
        ("artifacts/baseline/validation.json", "student baseline"),
        ("artifacts/soft_labels/en/manifest.json", "teacher label --language en"),
        ("artifacts/data/de/train.arrow", "prepare"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_writes_it(
    finished: Path, run: Run, path: str, command: str
) -> None:
    Path(path).unlink()
    done = run("report")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"python -m pipeline {command}")
    assert str(Path(path).parent) in line


def test_predictions_of_other_data_are_refused(finished: Path, run: Run) -> None:
    write_jsonl(finished / "data/nl/test.jsonl", [{"text": "hond", "label": "animal"}])
    assert run("prepare").code == 0
    done = run("report")
    assert done.err == (
        "error: artifacts/predictions/student.arrow is of other examples of 'nl' than artifacts/data; "
        "write it again with: python -m pipeline student evaluate\n"
    )
    path = PREDICTIONS / "student.arrow"
    path.write_bytes(path.read_bytes()[:99])
    assert "student.arrow is broken" in run("report").err


@given(st.lists(st.floats(-1e3, 1e3), max_size=12))
def test_names_at_the_ends_of_lines_keep_their_order_and_a_distance(places: list[float]) -> None:
    moved = spread(places, gap=16.0)
    order = np.argsort(places, kind="stable")
    assert np.all(np.diff(np.array(moved)[order]) >= 16.0 - 1e-6)
    if places:
        assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-6)


# What a browser makes of it

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


# What DVC does with it


def test_dvc_knows_what_the_report_is_made_of() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")
    report = stages["stages"]["report"]
    assert "artifacts/plan/report.json" in report["deps"]
    assert "stages/page/page.html" in report["deps"]
    outputs = [out for stage in stages["stages"].values() for out in stage["outs"]]
    named = [
        *stages["metrics"],
        *(file for plot in stages["plots"] for file in next(iter(plot.values()))["y"]),
    ]
    for file in named:
        assert any(f"{file}/".startswith(f"{out}/") for out in outputs), file
    for plot in stages["plots"]:
        template = next(iter(plot.values())).get("template")
        known = ("linear", "bar_horizontal", None)
        assert template in known or (ROOT / f".dvc/plots/{template}.json").is_file()
