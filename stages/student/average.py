"""The mean of several students that began with the same weights."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cache import file_digest
from stages.artifacts import replaced_folder
from stages.errors import StageError
from stages.models.averages import RunningMean, is_student, note_start, read_start
from stages.models.configuration_mblm import MBLMConfig
from stages.models.students import load_student
from stages.progress import Bar

_TEMPERATURES = ("own_temperature", "mixture_temperature")


def average(folders: Sequence[Path], *, output: Path, overwrite: bool = False) -> str:
    """Write a student whose weights are the mean of others', which adds nothing to what classifying costs.

    Models that saw the same examples in another order find weights whose mean transfers better than each of
    them, as long as they begin with the same ones, those of the new classifier too (Schmidt et al. 2023,
    arXiv 2305.16834). Their temperatures are averaged, too, since no validation data is at hand here.

    Args:
        folders: The students, as `student distill` wrote them.
        output: The folder to write.
        overwrite: Whether it may be there.

    Returns:
        One line.

    Raises:
        StageError: There are fewer than two students, one is named twice, they cannot be averaged, or the
            folder to write is there.
    """
    target = _target(folders, output, overwrite=overwrite)
    card = _card(folders[0], len(folders))
    mean = RunningMean()
    temperatures: dict[str, list[float]] = {name: [] for name in _TEMPERATURES}
    first = None
    for folder in Bar(folders, desc="average", unit="student", delay=2):
        model, tokenizer = load_student(folder)
        its = {"configurations": _facts(model.config), "tokenizers": file_digest(folder / "tokenizer.json")}
        its["weights before the training"] = read_start(folder)
        first = first or its
        for what, value in its.items():
            if value != first[what]:
                raise StageError(
                    f"{folder} and {folders[0]} have no mean, since their {what} differ; students begin "
                    "alike where encoder, variant and student.distill.init_seed are the same"
                )
        if not all(weights.isfinite().all() for weights in model.parameters()):
            raise StageError(f"{folder} has weights that are NaN or infinite; train it again")
        mean.add(model)
        for name, its_own in temperatures.items():
            its_own.append(getattr(model.config, name))
    mean.give_to(model)
    for name, all_of_them in temperatures.items():
        setattr(model.config, name, fmean(all_of_them))
    with replaced_folder(target) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        note_start(new, read_start(folders[0]))
        _keep_trainings(folders, new)
        (new / "README.md").write_text(card, encoding="utf-8")
    return f"{output}: the mean of {', '.join(map(str, folders))}"


def _keep_trainings(folders: Sequence[Path], new: Path) -> None:
    """Write beside a mean what the report says of trainings: the last one's curves, and the epochs of all."""
    for name in ("losses.json", "validation.json"):
        if (folders[-1] / name).is_file():
            shutil.copyfile(folders[-1] / name, new / name)
    notes = [folder / "training.json" for folder in folders]
    if all(note.is_file() for note in notes):  # version 0.1 wrote none
        trained = [json.loads(note.read_bytes()) for note in notes]
        total = trained[-1] | {"epochs": sum(one["epochs"] for one in trained)}
        (new / "training.json").write_text(json.dumps(total), encoding="utf-8")


def _target(folders: Sequence[Path], output: Path, *, overwrite: bool) -> Path:
    """Say where to write, which is neither a student that is read nor anything but a student.

    Raises:
        StageError: There are fewer than two students, one is named twice, or the folder may not be replaced.
    """
    if len(folders) < 2:
        raise StageError("a mean is of two students or more; name their folders")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise StageError(f"{folder} is named twice")
    target = output.resolve()
    if any(place.is_relative_to(target) for place in places):
        raise StageError(f"{output} is one of the students, or holds one; choose another --output")
    if target.exists() and not overwrite:
        raise StageError(f"{output} is there; replace it with --overwrite, or choose another --output")
    if target.exists() and not is_student(target):
        raise StageError(f"{output} is there, and is no student; choose another --output")
    return target


def _facts(config: MBLMConfig) -> dict[str, Any]:
    """Give what a student's configuration says of it, and not of how sure it is or who wrote it."""
    facts: dict[str, Any] = config.to_diff_dict()
    left_out = ("_name_or_path", "transformers_version", *_TEMPERATURES)
    of_encoder = {key: value for key, value in facts["mplm_config"].items() if key not in left_out}
    return {key: value for key, value in facts.items() if key not in left_out} | {"mplm_config": of_encoder}


def _card(first: Path, n: int) -> str:
    """Give the first student's card, which says that this is a mean of n."""
    path = first / "README.md"
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    title = re.search(r"^# .*\n", card, re.MULTILINE)
    if title is None:
        raise StageError(f"{first} is no student that `student distill` wrote: README.md has no title")
    said = f"\nThe mean of {n} students' weights. The rest is about one of them, its accuracy too.\n"
    return card[: title.end()] + said + card[title.end() :]
