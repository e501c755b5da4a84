"""Where each stage writes. Paths are relative to the folder that the pipeline runs in, as in dvc.yaml."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import StageError
from stages.locks import lock

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


def forget_others(supervised: Collection[str]) -> None:
    """Delete what stage one wrote of languages that are supervised no more: stages read the whole folders.

    The store has their soft labels.
    """
    for folder in (SOFT_LABELS, METRICS / "teachers"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir() and path.name not in supervised:
                shutil.rmtree(path)
            elif path.suffix == ".json" and path.stem not in supervised:
                path.unlink()


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, and put it in the place of `folder` once it is complete.

    Its files may be read and written by whom the umask allows it. A link stays: what it names is replaced.

    Raises:
        StageError: Another run is writing it.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    new, old, path = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            is_ours = lock(file) is not False and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:  # another run had it until now
            is_ours = False
        if not is_ours:
            raise StageError(
                f"another run is writing {folder}; let it end, then run this again (with DVC, keep what it "
                "wrote before that: dvc commit)"
            )
        _settle(folder, new, old)
        new.mkdir()
        try:
            yield new
            for one in new.rglob("*"):  # transformers writes weights that only their owner may read
                if one.is_file() and one.stat().st_nlink == 1:  # others are files of the user's, too
                    one.chmod(new.stat().st_mode & 0o666)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            if old.exists():
                old.rename(new)  # so that only a whole folder ever has the old one's name
        finally:
            _settle(folder, new, old)
            path.unlink(missing_ok=True)


def _settle(folder: Path, new: Path, old: Path) -> None:
    """Delete what a run leaves behind.

    If it ended between its two renames, the new folder was complete and takes its place; the old one does,
    if there is no new one.
    """
    if old.exists() and not folder.exists():
        (new if new.exists() else old).rename(folder)
    for left_behind in (new, old):
        shutil.rmtree(left_behind, ignore_errors=True)
