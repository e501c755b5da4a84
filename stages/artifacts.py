"""Where each stage writes. Paths are relative to the folder that the pipeline runs in, as in dvc.yaml."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import StageError

ARTIFACTS = Path("artifacts")
PLAN = Path("artifacts/plan")
DATA = Path("artifacts/data")
TEACHERS = Path("artifacts/teachers")
SOFT_LABELS = Path("artifacts/soft_labels")
SILVER = Path("artifacts/silver")
SILVER_LABELS = Path("artifacts/silver/soft_labels")
ENCODER = Path("artifacts/encoder")
STUDENT = Path("artifacts/student")
BASELINE = Path("artifacts/baseline")
METRICS = Path("artifacts/metrics")
PREDICTIONS = Path("artifacts/predictions")
PLOTS = Path("artifacts/plots")
REPORT = Path("artifacts/report")

ABLATION = Path("ablation/artifacts")
"""Beside ablation/dvc.yaml: the ablation is a DVC project of its own."""


def of_each_teacher(folder: Path, count: int) -> list[Path]:
    """Give the folders of a language's teachers, or of their soft labels.

    Args:
        folder: The first teacher's, in which those of the others lie.
        count: Number of teachers.
    """
    return [folder, *(folder / f"more-{index}" for index in range(1, count))]


def of_each_fold(folder: Path, count: int) -> list[Path]:
    """Give the folders of the models that are one teacher together, each for a fold of the examples.

    Args:
        folder: The teacher's; of a single model it is the model's too.
        count: Number of folds.
    """
    return [folder] if count == 1 else [folder / f"fold-{index}" for index in range(count)]


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, and put it in the place of `folder` once it is complete.

    Its files may be read and written by whom the umask allows it.

    Raises:
        StageError: Another run is writing it.
    """
    new, old, lock = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # another run has it, or had it until now
            is_ours = False
        if not is_ours:
            raise StageError(f"another run is writing {folder}; let it end, then run this again")
        for left_behind in (new, old):
            shutil.rmtree(left_behind, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            for path in new.rglob("*"):  # transformers writes weights that only their owner may read
                if path.is_file() and path.stat().st_nlink == 1:  # others are files of the user's, too
                    path.chmod(new.stat().st_mode & 0o666)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            for done_with in (new, old):
                shutil.rmtree(done_with, ignore_errors=True)
            lock.unlink(missing_ok=True)
