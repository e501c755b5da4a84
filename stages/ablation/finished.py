"""Finished runs: on which examples they were right, from their predictions or from a folder of kept runs.

Kept runs hold no text and no label, and are small enough for a repository:

- ``predictions/<run>-<seed>.arrow``, of a sweep's runs ``sweep/…``: an Arrow IPC file with the column
  ``right``. The schema's metadata ``mblm`` (JSON) holds ``parts``, a language, a split and a number of rows
  each, in the order of the rows; ``examples``, digests of the examples, such as those of ``de/test``; and
  ``made_of``, as in predictions, parameters and digests.
- ``entities.arrow``: likewise, with the column ``entity``, a number of what each example is about; with
  ``teachers``, their accuracies by language and split; and with ``soft_labels``, the digest of what they say.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import write_atomically
from stages.artifacts import ABLATION, METRICS
from stages.data.examples import SPLITS, examples_digest, has_split, read_entities, read_examples
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.results.intervals import numbered_entities
from stages.results.predictions import open_predictions, read_predictions

By = tuple[str, Split]
"""Language and split."""

ENTITIES = "entities.arrow"
_KEEP = "write it with: python -m pipeline ablation keep"

_PARTS = {
    "encoder": "another encoder",
    "training_texts": "other training texts",
    "soft_labels": "other soft labels",
}
"""What runs that are compared have in common, as `made_of` and as messages call it."""


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


def read_finished(
    task: TaskParams,
    runs: Mapping[str, list[int]],
    *,
    sweep: bool,
    wanted: Mapping[str, Mapping[str, Any]],
    soft_labels: str,
) -> Finished:
    """Read what `ablation train` wrote.

    Args:
        task: Section `task` of params.yaml.
        runs: Seeds by the run's name.
        sweep: Whether these are runs of the sweep.
        wanted: By the run's name: the parameters that it must have been made with, by section.
        soft_labels: Digest of those that it must have been made with.

    Raises:
        StageError: Predictions of a run are not there, are not of the current data, or were made with other
            parameters than was wanted or of something else than the others.
    """
    found = {}
    same = Comparable(wanted, soft_labels)
    for run, seed in ((run, seed) for run, seeds in runs.items() for seed in seeds):
        found[f"{run}-{seed}"], made_of = read_run(task, run, seed, sweep=sweep)
        if made_of is not None:
            same.require(ABLATION / kind_of(sweep) / f"{run}-{seed}.arrow", made_of, run, seed)
    kinds = SPLITS[1:2] if sweep else SPLITS[1:]
    for name, right in found.items():
        lacking = [by for by in evaluated(task) if by[1] in kinds and by not in right]
        if lacking:
            run, number = name.rsplit("-", 1)
            raise StageError(
                f"run {name} has no predictions of {'/'.join(lacking[0])}; "
                f"train it again with: python -m pipeline ablation train --run {run} --seed {number}"
            )
    return Finished(found, entities_of(task), teachers_of(task))


def read_kept(
    runs: Mapping[str, list[int]],
    folder: Path,
    *,
    sweep: bool,
    wanted: Mapping[str, Mapping[str, Any]],
) -> Finished:
    """Read runs that were kept; no data is needed.

    Args:
        runs: Seeds by the run's name.
        folder: What `ablation.kept` names.
        sweep: Whether these are runs of the sweep.
        wanted: By the run's name: the parameters that it must have been made with, by section.

    Raises:
        StageError: One of them was not kept, was made of something else than was wanted or than the others,
            or is of other examples.
    """
    if sweep and not (folder / kind_of(sweep)).is_dir():
        raise StageError(
            f"{folder} has no runs of a sweep; run some with: make sweep; then keep them with: "
            "python -m pipeline ablation keep"
        )
    entities, facts = read_column(folder / ENTITIES, "entity", write_again=_KEEP)
    found = {}
    same = Comparable(wanted, facts.get("soft_labels"))
    for run, seed in ((run, seed) for run, seeds in runs.items() for seed in seeds):
        path = folder / kind_of(sweep) / f"{run}-{seed}.arrow"
        right, of_run = read_column(path, "right", write_again=_KEEP)
        same.require(path, of_run["made_of"], run, seed)
        splits = {split for _, split in right}
        for by in sorted({*facts["examples"], *of_run["examples"]}):
            digests = {one["examples"].get(by) for one in (facts, of_run)}
            if by.partition("/")[2] in splits and len(digests) > 1:
                raise StageError(f"{path} is of other examples of {by} than {folder / ENTITIES}; {_KEEP}")
        found[f"{run}-{seed}"] = right
    numbers = {by: of_one.astype(np.int64) for by, of_one in entities.items()}
    return Finished(found, numbers, facts["teachers"])


class Comparable:
    """Runs that may be compared with each other: made with the parameters of params.yaml, and of the same."""

    def __init__(self, wanted: Mapping[str, Mapping[str, Any]], soft_labels: str | None) -> None:
        """Say what runs must be made of.

        Args:
            wanted: By the run's name: its parameters, by section.
            soft_labels: Digest of those whose accuracies stand beside the runs; None: an earlier version kept
                none.
        """
        self._wanted = wanted
        self._soft_labels = soft_labels
        self._first: dict[str, tuple[Path, str]] = {}

    def require(self, path: Path, made_of: Mapping[str, Any], run: str, seed: int) -> None:
        """Refuse a run with other parameters, or made of something else than one before it.

        Args:
            path: Of the run.
            made_of: What it was made of; an earlier version noted no digests of parts.
            run: Its name.
            seed: Its seed, whose runs have one encoder.

        Raises:
            StageError: It is one.
        """
        for section, name in (("task", "task"), ("distill", "student.distill")):
            values, other = self._wanted[run][section], made_of[section]
            for key in (*values, *other):
                if values.get(key) != other.get(key):
                    here, there = (one.get(key, "the default") for one in (values, other))
                    changed = f"{name}.{key}: {there}, not {here}"
                    raise StageError(f"{path} was made with another {changed}; train it again: make ablation")
        its = made_of.get("soft_labels")
        if None not in (its, self._soft_labels) and its != self._soft_labels:
            raise StageError(
                f"{path} was made with other soft labels than those that the teachers' accuracies are of; "
                "train it again: make ablation"
            )
        for part, said in _PARTS.items():
            if part in made_of:
                of = f"{part}-{seed}" if part == "encoder" else part
                before, digest = self._first.setdefault(of, (path, made_of[part]))
                if made_of[part] != digest:
                    raise StageError(
                        f"{path} was made with {said} than {before}; train both again: make ablation"
                    )


def kind_of(sweep: bool) -> str:
    """Name the folder of the predictions of variants, or of a sweep's runs."""
    return "sweep" if sweep else "predictions"


def read_run(
    task: TaskParams, run: str, seed: int, *, sweep: bool
) -> tuple[dict[By, NDArray[np.bool_]], dict[str, Any] | None]:
    """Read where a run was right and what it was made of: from its predictions, or as it was kept and taken.

    Raises:
        StageError: The file is not there, is broken, or is of other examples.
    """
    path = ABLATION / kind_of(sweep) / f"{run}-{seed}.arrow"
    command = f"ablation train --run {run} --seed {seed}"
    write_again = f"write it with: python -m pipeline {command}"
    file = open_predictions(path, command=command)
    if "right" not in file.schema.names:
        said = read_predictions(task, path.stem, folder=path.parent, command=command)
        made_of = (file.schema.metadata or {}).get(b"made_of")
        return {by: one.predicted == one.labels for by, one in said.items()}, made_of and json.loads(made_of)
    right, facts = read_column(path, "right", write_again=write_again)
    right = {by: values for by, values in right.items() if by in evaluated(task)}
    for of, digest in digests_of(task, right).items():
        if facts["examples"].get(of) != digest:
            raise StageError(f"{path} is of other examples of {of} than artifacts/data; {write_again}")
    return right, facts["made_of"]


def read_column(
    path: Path, column: str, *, write_again: str
) -> tuple[dict[By, NDArray[Any]], dict[str, Any]]:
    """Read a column by language and split, and the facts in the schema's metadata.

    Raises:
        StageError: The file is not there, or is broken.
    """
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        facts = json.loads(file.schema.metadata[b"mblm"])
        values = file.read_all()[column].to_numpy()
        parts = [(language, split, int(size)) for language, split, size in facts["parts"]]
        if not parts or {"examples", "made_of" if column == "right" else "teachers"} - facts.keys():
            raise ValueError("it does not say what it is of")
    except FileNotFoundError:
        raise StageError(f"{path} is not there; {write_again}") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is broken ({error}); {write_again}") from error
    ends = np.cumsum([size for _, _, size in parts])
    if len(values) != ends[-1]:
        raise StageError(f"{path} is broken: it has {len(values)} rows in place of {ends[-1]}; {write_again}")
    pieces = np.split(values, ends[:-1])
    return {
        (language, split): piece for (language, split, _), piece in zip(parts, pieces, strict=True)
    }, facts


def write_column(
    path: Path, column: str, values: Mapping[By, NDArray[Any]], facts: Mapping[str, Any]
) -> None:
    """Write a column, language by language and split by split, and facts about it."""
    kind = pa.bool_() if column == "right" else pa.int32()
    parts = [[*by, len(of_one)] for by, of_one in values.items()]
    metadata = {"mblm": json.dumps({**facts, "parts": parts}, sort_keys=True)}
    schema = pa.schema({column: kind}, metadata=metadata)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        together = pa.array(np.concatenate([*values.values()]), kind)
        file.write_batch(pa.record_batch([together], schema=schema))
    write_atomically(path, memoryview(buffer.getvalue()))


def entities_of(task: TaskParams) -> dict[By, NDArray[np.int64]]:
    """Number what examples are about; a text of which the source says nothing is one of its own."""
    return numbered_entities({by: read_entities(*by) for by in evaluated(task)})


def evaluated(task: TaskParams) -> list[By]:
    """List what runs are evaluated on."""
    return [(name, split) for name in task.languages for split in SPLITS[1:] if has_split(name, split)]


def digests_of(task: TaskParams, of: Iterable[By]) -> dict[str, str]:
    """Hash the examples of some languages and splits, such as ``de/test``."""
    return {
        f"{language}/{split}": examples_digest(read_examples(task, language, split)) for language, split in of
    }


def teachers_of(task: TaskParams) -> dict[str, dict[str, float]]:
    """Read the teachers' accuracies by language and split.

    Raises:
        StageError: They are not there.
    """
    accuracies = {}
    for language in task.supervised:
        path = METRICS / "teachers" / f"{language}.json"
        command = f"python -m pipeline teacher label --language {language}"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StageError(f"{path} is not there; write it with: {command}") from None
        except ValueError as error:
            raise StageError(f"{path} is broken; write it again with: {command}") from error
        # Of a part of the examples alone it would be compared with that of others.
        whole = {split: one for split, one in found.items() if one.get("coverage", 1) == 1}
        accuracies[language] = {split: one["accuracy"] for split, one in whole.items()}
    return accuracies
