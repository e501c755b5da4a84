"""Finished runs: on which examples they were right. Kept, they are small enough for a repository.

The folder that `ablation.kept` names holds no text and no label:

- ``predictions/<run>-<seed>.arrow``, of a sweep's runs ``sweep/…``: an Arrow IPC file with a record batch per
  language and split: language, split, right. The schema's metadata holds ``made_of``, a digest of all that
  decides the run but code, and ``examples``, digests of the examples, such as those of ``de/test``.
- ``entities.arrow``: likewise, with the number of what each example is about in the place of right.
- ``teachers.json``: accuracies by language and split.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import write_atomically
from stages.ablation.params import AblationParams
from stages.artifacts import ABLATION, METRICS
from stages.data.examples import (
    SPLITS,
    examples_digest,
    has_split,
    read_entities,
    read_examples,
    taught_splits,
)
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.models.encoders import read_note
from stages.models.pins import model_digests, model_folder
from stages.results.predictions import read_predictions

By = tuple[str, Split]
"""Language and split."""

_KEEP = "write it with: python -m pipeline ablation keep"


@dataclass(frozen=True)
class Finished:
    """Runs that are finished, and what is needed to compare them.

    Attributes:
        right: By run and seed, as in ``mblm-0``: whether each of N examples was classified rightly, ``(N,)``.
        entities: What each example is about, as numbers, ``(N,)``; translations have the same number.
        teachers: Accuracy by supervised language and split.
    """

    right: dict[str, dict[By, NDArray[np.bool_]]]
    entities: dict[By, NDArray[np.int64]]
    teachers: dict[str, dict[str, float]]


def read_finished(task: TaskParams, runs: Mapping[str, list[int]], *, sweep: bool) -> Finished:
    """Read what `ablation train` wrote.

    Args:
        task: Section `task` of params.yaml.
        runs: Seeds by the run's name.
        sweep: Whether these are runs of the sweep.

    Raises:
        StageError: Predictions of a run are not there, or are not of the current data.
    """
    found = {}
    for run, seeds in runs.items():
        for seed in seeds:
            path = ABLATION / ("sweep" if sweep else "predictions") / f"{run}-{seed}.arrow"
            found[f"{run}-{seed}"] = _right(task, path, command=f"ablation train --run {run} --seed {seed}")
    return Finished(found, _entities(task), {name: _teacher(name) for name in task.supervised})


def read_kept(runs: Mapping[str, list[int]], folder: Path, *, sweep: bool) -> Finished:
    """Read runs that were kept; no data is needed.

    Raises:
        StageError: One of them was not kept.
    """
    found = {}
    for name in (f"{run}-{seed}" for run, seeds in runs.items() for seed in seeds):
        path = folder / ("sweep" if sweep else "predictions") / f"{name}.arrow"
        found[name] = _read(path, "right", write_again=_KEEP)[0]
    numbers, _ = _read(folder / "entities.arrow", "entity", write_again=_KEEP)
    entities = {by: of_one.astype(np.int64) for by, of_one in numbers.items()}
    return Finished(found, entities, json.loads((folder / "teachers.json").read_text(encoding="utf-8")))


def keep(task: TaskParams, params: AblationParams) -> str:
    """Write runs that are finished to the folder that `ablation.kept` names, beside those that are there.

    Returns:
        One line.

    Raises:
        StageError: No folder is named, or no run is finished.
    """
    if params.kept is None:
        raise StageError("ablation.kept is null; name a folder, such as recipes/mine")
    folder = Path(params.kept)
    runs = dict.fromkeys(params.variants, params.seeds)
    swept = {run.name: params.sweep.seeds for run in params.sweep.runs}
    n_kept = 0
    for of_kind, named in (("predictions", runs), ("sweep", swept)):
        for run, seed in ((run, seed) for run, seeds in named.items() for seed in seeds):
            path = ABLATION / of_kind / f"{run}-{seed}.arrow"
            if path.is_file():
                right = _right(task, path, command=f"ablation train --run {run} --seed {seed}")
                facts = {"made_of": made_of(task, run, seed), "examples": _digests(task, right)}
                _write(folder / of_kind / path.name, "right", right, facts)
                n_kept += 1
    if not n_kept:
        raise StageError(f"no run in {ABLATION} is finished; run them with: make ablation")
    entities = _entities(task)
    _write(folder / "entities.arrow", "entity", entities, {"examples": _digests(task, entities)})
    teachers = {name: _teacher(name) for name in task.supervised}
    write_atomically(folder / "teachers.json", json.dumps(teachers, indent=1).encode())
    return f"{folder}: {n_kept} runs"


def taken(task: TaskParams, params: AblationParams, output: Path, *, run: str, seed: int) -> bool:
    """Take a run from those that were kept, where one is made of the same; tells whether there was one.

    Args:
        task: Section `task` of params.yaml.
        params: Section `ablation`.
        output: Where its predictions are to lie.
        run: Its name.
        seed: Its seed.

    Raises:
        StageError: The file is broken.
    """
    if params.kept is None:
        return False
    path = Path(params.kept) / output.parent.name / output.name
    if not path.is_file():
        return False
    right, facts = _read(path, "right", write_again="delete it")
    splits = {split for _, split in right}
    wanted = _digests(task, [by for by in _evaluated(task) if by[1] in splits])
    if facts["made_of"] != made_of(task, run, seed) or not wanted.items() <= facts["examples"].items():
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, output)
    return True


def made_of(task: TaskParams, run: str, seed: int) -> str:
    """Give a digest of all but code that decides a run: parameters, soft labels, encoder, training texts.

    Raises:
        StageError: There is no plan, or no encoder of the seed.
    """
    plan = ABLATION / "plan" / "runs" / f"{run}.json"
    if not plan.is_file():
        raise StageError(f"{plan} is not there; write it with: python -m pipeline ablation plan")
    encoder = ABLATION / "encoders" / str(seed)
    facts: list[Any] = [seed, json.loads(plan.read_text(encoding="utf-8")), read_note(encoder)["pooling"]]
    facts.append(model_digests(model_folder(encoder, command=f"ablation pretrain --seed {seed}")))
    for language in task.supervised:
        for split in (*taught_splits(task, language), "validation"):
            facts.append(examples_digest(read_examples(task, language, split)))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _right(task: TaskParams, path: Path, *, command: str) -> dict[By, NDArray[np.bool_]]:
    """Read where a run was right: from its predictions, or from what was kept and taken.

    Raises:
        StageError: The file is not there, is broken, or is of other examples.
    """
    write_again = f"write it with: python -m pipeline {command}"
    if "right" not in _opened(path, write_again).schema.names:
        said = read_predictions(task, path.stem, folder=path.parent, command=command)
        return {by: one.predicted == one.labels for by, one in said.items()}
    right, facts = _read(path, "right", write_again=write_again)
    right = {by: values for by, values in right.items() if by[0] in task.languages}
    for of, digest in _digests(task, right).items():
        if facts["examples"].get(of) != digest:
            raise StageError(f"{path} is of other examples of {of} than artifacts/data; {write_again}")
    return right


def _opened(path: Path, write_again: str) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; {write_again}") from None
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{path} is broken ({error}); {write_again}") from error


def _read(path: Path, column: str, *, write_again: str) -> tuple[dict[By, NDArray[Any]], dict[str, Any]]:
    """Read a column by language and split, and the facts in the schema's metadata."""
    file = _opened(path, write_again)
    try:
        facts = json.loads(file.schema.metadata[b"mblm"])
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        found = {
            (batch["language"][0].as_py(), batch["split"][0].as_py()): batch[column].to_numpy(
                zero_copy_only=False
            )
            for batch in batches
        }
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is broken ({error}); {write_again}") from error
    return found, facts


def _write(path: Path, column: str, values: Mapping[By, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write a column by language and split, and facts about it."""
    kind = pa.bool_() if column == "right" else pa.int32()
    columns = {"language": pa.string(), "split": pa.string(), column: kind}
    schema = pa.schema(columns, metadata={"mblm": json.dumps(facts, sort_keys=True)})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        for by, of_one in values.items():
            names = [pa.repeat(name, len(of_one)) for name in by]
            file.write_batch(pa.record_batch([*names, pa.array(of_one, kind)], schema=schema))
    write_atomically(path, memoryview(buffer.getvalue()))


def _entities(task: TaskParams) -> dict[By, NDArray[np.int64]]:
    """Number what examples are about; a text of which the source says nothing is one of its own."""
    numbers: dict[Any, int] = {}
    return {
        (language, split): np.array(
            [
                numbers.setdefault((by, row) if entity is None else entity, len(numbers))
                for by in [(language, split)]
                for row, entity in enumerate(read_entities(language, split))
            ],
            dtype=np.int64,
        )
        for language, split in _evaluated(task)
    }


def _evaluated(task: TaskParams) -> list[By]:
    """List what runs are evaluated on."""
    return [(name, split) for name in task.languages for split in SPLITS[1:] if has_split(name, split)]


def _digests(task: TaskParams, of: Iterable[By]) -> dict[str, str]:
    """Hash the examples of some languages and splits, such as ``de/test``."""
    return {
        f"{language}/{split}": examples_digest(read_examples(task, language, split)) for language, split in of
    }


def _teacher(language: str) -> dict[str, float]:
    """Read a teacher's accuracy by split."""
    path = METRICS / "teachers" / f"{language}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        command = f"python -m pipeline teacher label --language {language}"
        raise StageError(f"{path} is not there; write it with: {command}") from None
    return {split: one["accuracy"] for split, one in found.items()}
