"""Every command of the README and of the pages about use runs, in a clone in which `make demo` has run."""

import csv
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from clone import environment, output_of, require_what_an_experiment_runs, stages_run
from ruamel.yaml import YAML
from tiny import ROOT, examples, tiny_params, write_params

from stages.teacher.params import TeacherParams

pytestmark = pytest.mark.slow

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("commands", "ablation", "scaling", "store", "own-data", "deployment")),
]
EXCEPTIONS = {
    "make test": "it runs this test",
    "pip install": "the test tools have it all",
    "student serve": "it runs until it is stopped: tests/stages/student/test_serve.py",
    "curl": "the same",
    "docker": "there is no Docker here; the workflow builds the image",
    "recipes/xnli.yaml": "its data set and models are on the Hub; tests/test_recipes.py runs it without",
    "jhu-clsp/mmBERT-base": "it is on the Hub",
    "--engine ray": "tests/stages/teacher/labelling/test_on_ray.py has a cluster for it",
}
"""What marks the commands that are not run here, each with the reason."""


class Command(NamedTuple):
    """A line of a block of a page, or a block of Python.

    Attributes:
        language: ``shell`` or ``python``.
        text: Without the comment at its end.
        block: Number of its block, from 0.
    """

    language: str
    text: str
    block: int


def readme_commands() -> list[Command]:
    """Read the blocks of code; pictures and pieces of YAML are none."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    found = []
    for block, (kind, code) in enumerate(
        re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ):
        if kind == "python":
            found.append(Command("python", code, block))
        elif not kind and not code.startswith(" "):
            lines = re.split(r"\n(?=\S)", code) if code.count('"') % 2 == 0 and '"\n' not in code else [code]
            found += [Command("shell", re.sub(r" +# .*", "", line).strip(), block) for line in lines]
    return [command for command in found if command.text]


def is_excepted(command: Command, commands: list[Command]) -> bool:
    """Tell whether an exception's mark is in a command, or in the copying of a recipe that it needs."""
    needed = [other for other in commands if other.block == command.block and other.text.startswith("cp ")]
    return any(mark in other.text for mark in EXCEPTIONS for other in [command, *needed])


def test_few_commands_are_not_run_and_each_is_there() -> None:
    assert len(EXCEPTIONS) <= 8
    commands = readme_commands()
    assert len(commands) > 35
    for mark in EXCEPTIONS:
        assert any(mark in command.text for command in commands), mark


def wait_for_experiments(folder: Path, environment: dict[str, str]) -> None:
    """Wait for the experiments that a queue runs in the background; none may fail."""
    deadline = time.monotonic() + 240
    while True:
        status = subprocess.run(
            ["dvc", "queue", "status"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "Failed" not in status, status
        if "Running" not in status and "Queued" not in status:
            assert status.count("Success") == 2, status
            return
        assert time.monotonic() < deadline, status
        time.sleep(1)


def with_one_seed(params: dict[str, Any]) -> dict[str, Any]:
    """Let the ablation train as little as it can."""
    params["ablation"] |= {"seeds": [0]}
    params["ablation"]["sweep"] |= {"seeds": [0]}
    return params


def test_every_command_of_the_readme_runs(
    reproduced: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").create_bucket(Bucket="bucket")
    seen = environment(reproduced.parent)
    seen |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    seen |= {"PYTHONPATH": str(reproduced)}
    monkeypatch.chdir(reproduced)
    with Path("texts.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "lang"])
        rows.writerows(
            [row["text"], language] for language in ("de", "nl") for row in examples(language, "test")
        )
    write_params(with_one_seed(tiny_params()))
    output_of(reproduced, "git", "reset", "-q", "HEAD~1")  # the run is there, and is yet to be committed
    Path(".venv").mkdir()
    Path(".venv/installed").touch()
    commands = readme_commands()
    for command in commands:
        if is_excepted(command, commands):
            continue
        script = command.text
        if script.startswith("export "):
            script = f"{script.replace('/data/', f'{reproduced.parent}/data/')}; python -m pipeline cache ls"
        script = script.replace("seed=0,1,2", "seed=0,1")  # two say as much as three
        program = ["bash", "-euo", "pipefail", "-c"] if command.language == "shell" else ["python", "-c"]
        done = subprocess.run([*program, script], env=seen, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command.text}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        if script.startswith("dvc exp run") and "--queue" not in script:
            require_what_an_experiment_runs(stages_run(done.stdout))
        if script.startswith("dvc exp show"):
            assert "branches" in done.stdout
        if "dvc queue start" in script:
            wait_for_experiments(reproduced, seen)


def test_the_table_of_teachers_says_what_params_yaml_takes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\{[^`]*\})` \|", text)
    kinds = {
        next(key for key in ("base", "soft_labels", "producer", "endpoint") if key in row)
        for row in map(YAML(typ="safe").load, rows)
        if TeacherParams.model_validate(row)
    }
    assert kinds == {"base", "soft_labels", "producer", "endpoint"}
