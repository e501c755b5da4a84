"""Clones of the working tree in which tests start DVC."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tiny import ROOT
from warm import warm_python

DVC_STAGES = {
    *(f"teacher-{what}@{language}" for what in ("finetune", "label") for language in ("de", "en")),
    *("plan", "prepare", "teacher-silver", "report"),
    *("student-pretrain", "student-distill", "student-baseline", "student-evaluate"),
}
"""The stages of the small task."""

NO_NETWORK = ("unshare", "-rn")
"""What starts a command without a network, where `tiny.may_unshare` says that it can."""

TEACHERS = {stage for stage in DVC_STAGES if stage.startswith("teacher") and "@" in stage}


def clone(folder: Path) -> None:
    """Copy what Git tracks, or would, without the locks and what older versions wrote."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if name.startswith("tests/golden/"):
            continue
        compiled = importlib.util.cache_from_source(name) if name.endswith(".py") else name
        for path in {name, compiled}:  # of the same time, or Python compiles it again
            if (ROOT / path).exists():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, folder / path)
    for project in (folder, folder / "ablation"):
        (project / "dvc.lock").unlink(missing_ok=True)


def commit_all(folder: Path, message: str, *before: list[str]) -> None:
    """Run Git commands, then commit what there is."""
    for command in (*before, ["add", "-A"], ["commit", "-qm", message]):
        output_of(folder, "git", *command)


def environment(home: Path) -> dict[str, str]:
    """Give what commands in a clone see: DVC and its stages are forked where their imports are done."""
    programs = [str(Path(warm_python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        **os.environ,
        "PATH": os.pathsep.join(programs),
        "PYTHON_EXEC": warm_python(),  # what torchrun starts
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MBLM_TEACHER_CACHE": str(home / "store"),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }


def dvc(folder: Path, *arguments: str) -> str:
    return output_of(folder, "dvc", *arguments)


def output_of(folder: Path, *command: str) -> str:
    """Run a command in a clone."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder.parent), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def stages_run(output: str) -> set[str]:
    marker = "Running stage '"
    return {line.split("'")[1] for line in output.splitlines() if line.startswith(marker)}


def require_what_an_experiment_runs(ran: set[str]) -> None:
    """Check which stages an experiment has run: those that its parameter decides."""
    assert {"plan", "student-distill"} <= ran
    assert not ran & (TEACHERS | {"prepare", "student-pretrain", "student-baseline"})


def make(folder: Path, *arguments: str, before: tuple[str, ...] = ()) -> str:
    """Run make as after its installation, with a command before it that starts it."""
    installed = ("--no-print-directory", "--old-file", ".venv/installed")
    return output_of(folder, *before, "make", *installed, *arguments)


def change(folder: Path, **values: Any) -> None:
    """Change section student.distill of a clone's params.yaml."""
    path = folder / "params.yaml"
    params = YAML(typ="safe").load(path)
    params["student"]["distill"] |= values
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
