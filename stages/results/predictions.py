"""What a model says of labelled examples: logits on disk, so that whoever compares models needs none.

``artifacts/predictions/<model>.arrow``, written by `student evaluate`, is an Arrow IPC file with a record
batch per language and split, in the order of ``artifacts/data``: language, split, branch (the one that the
language uses), example_id, and logits as fixed_size_list<float32>[C] in the order of task.classes, which the
schema's metadata holds.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import ID_TYPE, write_atomically
from stages.artifacts import PREDICTIONS
from stages.data.examples import read_examples
from stages.data.task import Split, TaskParams
from stages.errors import StageError


class Predictions(NamedTuple):
    """What a model says of the N examples of one language and split.

    Attributes:
        language: The examples' language.
        split: Their split.
        branch: The branch that they went through, or ``mixture``.
        examples: As `stages.data.examples.read_examples` gives them.
        logits: Float32, shape ``(N, C)``, in the task's class order.
    """

    language: str
    split: Split
    branch: str
    examples: pa.Table
    logits: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int32]:
        """The hard labels, as indices into the task's classes, shape ``(N,)``."""
        labels: NDArray[np.int32] = self.examples["label"].to_numpy()
        return labels

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class with the largest logit, shape ``(N,)``."""
        predicted: NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted


def predictions_file(model: str, folder: Path = PREDICTIONS) -> Path:
    """Path of the predictions of a model: ``student``, ``baseline``, or a run of the ablation."""
    return folder / f"{model}.arrow"


def write_predictions(
    task: TaskParams,
    model: str,
    predictions: Iterable[Predictions],
    *,
    folder: Path = PREDICTIONS,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write what a model says, in place of what it said before.

    Args:
        task: Section `task` of params.yaml.
        model: The name to write it under.
        predictions: By language and split.
        folder: The folder to write to.
        made_of: What decided the model, noted in the schema's metadata; None: nothing is noted.
    """
    schema = _schema(task)
    if made_of is not None:
        schema = schema.with_metadata(
            {**schema.metadata, b"made_of": json.dumps(made_of, sort_keys=True).encode()}
        )
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, schema) as file:
        for one in predictions:
            count = len(one.logits)
            logits = pa.FixedSizeListArray.from_arrays(one.logits.ravel(), len(task.classes))
            names = [pa.repeat(name, count) for name in (one.language, one.split, one.branch)]
            columns = [*names, one.examples["example_id"].combine_chunks(), logits]
            file.write_batch(pa.record_batch(columns, schema=schema))
    write_atomically(predictions_file(model, folder), memoryview(buffer.getvalue()))


def read_predictions(
    task: TaskParams, model: str, *, folder: Path = PREDICTIONS, command: str = "student evaluate"
) -> dict[tuple[str, Split], Predictions]:
    """Read what a model says of the current data, by language and split.

    Args:
        task: Section `task` of params.yaml.
        model: The name that it was written under.
        folder: The folder that it was written to.
        command: What writes it, for messages.

    Raises:
        StageError: The file is not there, is broken, or is of other classes or examples.
    """
    path = predictions_file(model, folder)
    write_again = f"write it again with: python -m pipeline {command}"
    file = open_predictions(path, command=command)
    expected = _schema(task)
    noted = file.schema.metadata or {}
    if not file.schema.equals(expected) or noted.get(b"classes") != expected.metadata[b"classes"]:
        raise StageError(f"{path} is of other classes than params.yaml names; {write_again}")
    try:
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{path} is broken ({error}); {write_again}") from error
    found = {}
    for batch in batches:
        language, split, branch = (batch[name][0].as_py() for name in ("language", "split", "branch"))
        if language not in task.languages:
            continue
        examples = read_examples(task, language, split)
        if not examples["example_id"].combine_chunks().equals(batch["example_id"]):
            raise StageError(
                f"{path} is of other examples of '{language}' than artifacts/data; {write_again}"
            )
        logits = batch["logits"].flatten().to_numpy().reshape(-1, len(task.classes))
        found[language, split] = Predictions(language, split, branch, examples, logits)
    return found


def read_estimates(folder: Path = PREDICTIONS) -> list[dict[str, Any]]:
    """Read how good the student seems in each language without a look at labels, and how good it is.

    Where there is no test split, that is not known. Version 0.1 wrote nothing of the kind.

    Raises:
        StageError: The file is broken.
    """
    path = folder / "estimates.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError as error:
        raise StageError(
            f"{path} is broken; write it again with: python -m pipeline student evaluate"
        ) from error
    return [row for row in rows if row["split"] != "validation"]


def open_predictions(path: Path, *, command: str) -> pa.ipc.RecordBatchFileReader:
    """Open a file of predictions.

    Args:
        path: Of the file.
        command: What writes it, for messages.

    Raises:
        StageError: It is not there, or is broken.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; write it with: python -m pipeline {command}") from None
    except (OSError, pa.ArrowException) as error:
        again = f"write it again with: python -m pipeline {command}"
        raise StageError(f"{path} is broken ({error}); {again}") from error


def validation_accuracy(task: TaskParams, predictions: Iterable[Predictions]) -> dict[str, float]:
    """Average over the languages of each kind that has some, each counting alike."""
    found: dict[str, list[float]] = {}
    of_split = {one.language: one for one in predictions if one.split == "validation"}
    for kind, languages in task.groups.items():
        for one in (of_split[language] for language in languages if language in of_split):
            found.setdefault(kind, []).append(float((one.predicted == one.labels).mean()))
    return {kind: float(np.mean(accuracies)) for kind, accuracies in found.items()}


def _schema(task: TaskParams) -> pa.Schema:
    names = {name: pa.string() for name in ("language", "split", "branch")}
    columns = {**names, "example_id": ID_TYPE, "logits": pa.list_(pa.float32(), len(task.classes))}
    return pa.schema(columns, metadata={"classes": json.dumps(task.classes)})
