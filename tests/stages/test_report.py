"""The report as a whole: what it holds, what it needs, and what DVC does with it."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from page_reader import PAGE, SECTIONS, read_page
from ruamel.yaml import YAML
from tiny import ROOT, Run

from pipeline.params import load_params
from stages.page.findings import _data


def test_every_section_is_there_and_every_chart_has_its_numbers(finished: Path) -> None:
    page = read_page()
    assert {attrs["id"] for tag, attrs in page.elements if tag == "section"} == SECTIONS
    targets = [attrs["href"] or "" for tag, attrs in page.elements if tag == "a"]
    assert {target.removeprefix("#") for target in targets} == SECTIONS - {"summary"}
    tags = Counter(tag for tag, _ in page.elements)
    charts = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(charts) == tags["figure"] == 11
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


def test_a_run_without_zero_shot_languages_is_reported(finished: Path, run: Run) -> None:
    assert run("report", "--set", "task.zero_shot=[]").code == 0
    assert "no zero-shot languages" in _said()


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("linear", "The variant linear reads no soft labels: it saves nothing"),
        ("branches", "The student is the variant <b>branches</b>"),
    ],
)
def test_the_report_calls_the_student_what_it_was_trained_as(
    finished: Path, run: Run, variant: str, says: str
) -> None:
    training = Path("artifacts/student/training.json")
    assert json.loads(training.read_text()) == {"variant": "mblm", "epochs": 2}
    training.write_text(json.dumps({"variant": variant, "epochs": 2}))
    assert run("report", "--set", "student.distill.variant=mblm").code == 0
    assert says in _said()


def test_a_student_of_version_0_1_is_what_params_say(finished: Path, run: Run) -> None:
    Path("artifacts/student/training.json").unlink()
    assert run("report", "--set", "student.distill.variant=finetune").code == 0
    assert "The variant finetune reads no soft labels: it saves nothing" in _said()


def test_files_that_are_missing_or_broken_are_named_with_their_command(finished: Path, run: Run) -> None:
    for name, command in (
        ("plots/accuracy_by_branch.json", "student evaluate"),
        ("predictions/estimates.json", "student evaluate"),
        ("student/losses.json", "student distill"),
        ("baseline/config.json", "student baseline"),
    ):
        path = Path("artifacts", name)
        before = path.read_bytes()
        path.write_bytes(before[: len(before) // 2])
        done = run("report")
        assert (done.code, done.err.splitlines()[-1]) == (
            1,
            f"error: {path} is broken; write it again with: python -m pipeline {command}",
        )
        path.write_bytes(before)
    path.unlink()
    assert (
        "artifacts/baseline/config.json is not there; write it with: python -m pipeline student baseline"
        in (run("report").err)
    )


def test_texts_of_zero_shot_languages_that_taught_are_counted(finished: Path, run: Run) -> None:
    shutil.copy("artifacts/data/de/test.arrow", "artifacts/data/nl/unlabelled.arrow")
    task = load_params(Path("params.yaml")).task
    teaching = task.model_copy(update={"unlabelled": True, "zero_shot_texts": True})
    assert _data(task)[0]["nl"] == {"validation": 9, "test": 12}
    assert _data(teaching)[0]["nl"] == {"validation": 9, "test": 12, "unlabelled": 12}


def test_dvc_knows_what_the_report_is_made_of() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")
    report = stages["stages"]["report"]
    assert "artifacts/plan/report.json" in report["deps"]
    layout = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stages/page").glob("*.html")}
    assert layout == {path for path in report["deps"] if path.endswith(".html")}
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


def _said() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())
