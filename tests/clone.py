"""Clones of the working tree in which tests start DVC."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tiny import ROOT


def clone(folder: Path) -> None:
    """Copy what Git tracks, or would, without the locks and what older versions wrote."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if name.startswith("tests/golden/"):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for project in (folder, folder / "ablation"):
        (project / "dvc.lock").unlink(missing_ok=True)


def commit_all(folder: Path, message: str, *before: list[str]) -> None:
    """Run Git commands, then commit what there is."""
    for command in (*before, ["add", "-A"], ["commit", "-qm", message]):
        output_of(folder, "git", *command)


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MBLM_TEACHER_CACHE": str(home / "store"),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def dvc(folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    return output_of(folder, *prefix, "dvc", *arguments)


def output_of(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder.parent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def stages_run(output: str) -> set[str]:
    marker = "Running stage '"
    return {line.split("'")[1] for line in output.splitlines() if line.startswith(marker)}
