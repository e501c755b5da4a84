"""Soft labels that somebody else made: read from a file, checked, as logits by example id."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache import ID_TYPE, Index, Outputs, Producer, SoftLabels, TopKChange, example_ids
from cache.commands.import_ import other_values
from cache.identity.columns import SCALAR, Column
from cache.schema import require_known_schema
from stages.data.examples import SOFT_LABEL, labelled_splits, read_soft_label_column
from stages.data.files import Input, kind_of
from stages.data.rows import Window, column, placed_rows, windows
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.progress import Bar
from stages.teacher.labelling.layout import Layout, numbers_of
from stages.teacher.labelling.values import BadValueError, as_logits, keep_named, outputs_of, widened
from stages.teacher.params import ValuesParams

_WINDOW = 1 << 16
_ROWS = 1 << 12
"""Rows of text formats at a time: Python's garbage collector walks through all that are there."""
_CELLS = 1 << 22
"""Numbers in memory at a time."""


@dataclass(frozen=True)
class Imported:
    """What a file says.

    Attributes:
        path: The file.
        soft_labels: One for each distinct text, N in all.
        classes: The file's names, in the order of the logits.
        made: How values became logits, or which producer they were exported from: facts of the producer.
        outputs: What there is of the answers.
        repeated: Rows that say the same of the same text again.
        facts: What the file itself says of who made them.
        top_k_change: What it says that top-k changes.
    """

    path: Path
    soft_labels: SoftLabels
    classes: list[str]
    made: dict[str, Any]
    outputs: Outputs
    repeated: int
    facts: Mapping[str, str] = field(default_factory=dict)
    top_k_change: TopKChange | None = None

    def producer(self, facts: Mapping[str, str], text_fields: Sequence[str]) -> Producer:
        """Identify who made them, by what is said of them."""
        return Producer.of_imported(
            {**self.facts, **facts},
            classes=self.classes,
            text_fields=text_fields,
            made=self.made,
            outputs=self.outputs,
        )


def read_soft_labels(
    path: Path, how: ValuesParams, task: TaskParams, *, names: Mapping[str, str] | None = None
) -> Imported:
    """Read a file of soft labels, or one that `cache export` wrote, which says all of itself.

    Args:
        path: Parquet, JSON, CSV or TSV, the last three also as .gz or .zst.
        how: What it holds, and how it calls it.
        task: Section `task`, for text fields and classes.
        names: The file's names of classes to the task's, where they differ.

    Raises:
        StageError: A column is missing, a value is not what it is said to be, the file has other classes, or
            says two things of one text.
        ProducerError: It says of itself that it was exported, in a way that this version does not know.
    """
    if kind_of(path) is None:
        raise StageError(f"cannot read {path}: it is not one of .csv, .tsv, .jsonl, .json, .parquet")
    fields = how.text_fields or task.text_fields
    source = Input(path, None, fields, None, how.quoting, how.delimiter, as_written=False)
    _require_fields(fields, task)
    plain = how.values or how.field or how.classes or how.text_fields
    if source.format == "parquet" and not plain and (told := _told(path)) is not None:
        return _read_exported(path, told, task.text_fields)
    of_file = {name: theirs for theirs, name in (names or {}).items()}
    classes = how.classes or [of_file.get(name, name) for name in task.classes]
    parts, places = [], []
    layout: Layout | None = None
    seen: dict[str, None] = {}  # rows of JSON need not have the same columns
    with Bar(total=source.count(), desc=f"read {path.name}", unit="example", delay=2) as bar:
        for where, window in _windows(source, max(1, min(_WINDOW, _CELLS // len(classes)))):
            names_here = _names_of(window)
            if layout is None or not names_here.keys() <= seen.keys():
                seen |= names_here
                layout = Layout.of([*seen], how, classes, source)
            try:
                values, named = layout.read(window)
                logits = as_logits(values, named, kind=layout.kind, floor=how.floor)
            except BadValueError as error:
                raise StageError(f"{path}, {where[error.row]}: {error.reason}") from None
            ids = example_ids([column(window, name) for name in source.text_fields])
            parts.append(keep_named(ids, logits.logits, logits.named))
            places += where
            bar.update(len(where))
    if layout is None:
        raise StageError(f"{path} holds no examples")
    return _together(path, parts, places, classes, layout.kind, how.floor)


def read_column(task: TaskParams, language: str, how: ValuesParams) -> Imported:
    """Read the soft labels that stand in the data itself: `task.source.soft_label_field`.

    Args:
        task: Section `task` of params.yaml.
        language: A supervised language.
        how: What the values are.

    Raises:
        StageError: There is no such column, or a value is not what it is said to be.
    """
    assert how.values is not None  # held by the validation of params.yaml
    parts, places = [], []
    for split in labelled_splits(task, language):
        table = read_soft_label_column(task, language, split)
        for start in range(0, len(table), _WINDOW):
            some = table.slice(start, _WINDOW)
            cells = some[SOFT_LABEL].combine_chunks()
            values, named = numbers_of(cells.flatten())
            where = [f"{split} text {row + 1}" for row in some["row"].to_pylist()]
            try:
                logits = as_logits(
                    values.reshape(len(some), -1),
                    named.reshape(len(some), -1),
                    kind=how.values,
                    floor=how.floor,
                )
            except BadValueError as error:
                raise StageError(f"'{language}', {where[error.row]}: {error.reason}") from None
            parts.append(keep_named(some["example_id"].combine_chunks(), logits.logits, logits.named))
            places += where
    if not parts:
        raise StageError(
            f"no text of '{language}' has a soft label; name their column: task.source.soft_label_field"
        )
    name = f"the data of '{language}'"
    return _together(Path(name), parts, places, task.classes, how.values, how.floor)


def _together(
    path: Path,
    parts: Sequence[SoftLabels],
    places: Sequence[str],
    classes: list[str],
    kind: str,
    floor: float,
) -> Imported:
    """Put the windows of what was read together."""
    k = max(outputs_of(part).top_k or len(classes) for part in parts)
    together = SoftLabels.concatenate([widened(part, k) for part in parts])
    soft_labels, repeated = _distinct(path, together, places)
    made = {"values": kind, **({} if kind == "logits" else {"floor": floor})}
    return Imported(path, soft_labels, classes, made, outputs_of(together), repeated)


def _windows(source: Input, size: int) -> Iterator[tuple[list[str], Window]]:
    """Give the examples in windows, and where each stands."""
    if source.format == "parquet":
        start = 0
        for table in windows(source, size):
            yield [f"row {number}" for number in range(start + 1, start + len(table) + 1)], table
            start += len(table)
        return
    rows = placed_rows(source)
    while window := list(islice(rows, min(size, _ROWS))):
        yield [place for place, _ in window], [row for _, row in window]


def _names_of(window: Window) -> dict[str, None]:
    """Give the names of all columns that a row has, in their order."""
    if not isinstance(window, list):
        return dict.fromkeys(window.column_names)
    names: dict[str, None] = {}
    for row in window:
        if not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
    return names


def _require_fields(fields: Sequence[str], task: TaskParams) -> None:
    """Refuse text fields that cannot be those of the task."""
    if len(fields) != len(task.text_fields) or len(set(fields)) < len(fields):
        raise StageError(
            f"the file's text fields are {' and '.join(fields)}, but an example has {len(task.text_fields)}: "
            f"{' and '.join(task.text_fields)}; name each of them (cache import: --text-field)"
        )


def _distinct(path: Path, soft_labels: SoftLabels, places: Sequence[str]) -> tuple[SoftLabels, int]:
    """Leave each text once.

    Raises:
        StageError: Two rows say different things of the same text.
    """
    again, first = Index(soft_labels.ids).repeats()
    if not len(again):
        return soft_labels, 0
    one, other = soft_labels.take(again), soft_labels.take(first)
    differs = other_values(one, other)
    if differs.any():
        pair = int(differs.argmax())
        raise StageError(
            f"{path}: {places[first[pair]]} and {places[again[pair]]} are the same text with different "
            f"values, and so are {int(differs.sum()) - 1} other pairs; leave one of each"
        )
    return soft_labels.take(np.delete(np.arange(len(soft_labels)), again)), len(again)


def _told(path: Path) -> dict[str, Any] | None:
    """Give what an exported file says of itself; None: it was not exported."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        told = {key: json.loads(metadata[key.encode()]) for key in ("classes", "producer")}
        told["top_k_change"] = json.loads(metadata.get(b"top_k_change", b"null"))
    except (KeyError, OSError, RecursionError, ValueError, pa.ArrowException):
        return None
    return told


def _read_exported(path: Path, told: Mapping[str, Any], text_fields: Sequence[str]) -> Imported:
    """Read what `cache export` wrote: the same ids and the same numbers."""
    require_known_schema(str(path), told["producer"])
    original = Producer(told["producer"])
    columns = original.columns
    file = pq.ParquetFile(path)
    missing = [name for name in ("example_id", *columns) if name not in file.schema_arrow.names]
    if missing:
        raise StageError(f"{path} says that it was exported, but has no column '{missing[0]}'")
    with_texts = all(name in file.schema_arrow.names for name in text_fields)
    for name in text_fields if with_texts else []:
        if (kind := file.schema_arrow.field(name).type) not in (pa.string(), pa.large_string()):
            raise StageError(f"{path}: the column '{name}' holds {kind} and no texts, as exported")
    parts, start = [], 0
    for batch in file.iter_batches(
        _WINDOW, columns=["example_id", *columns, *(text_fields if with_texts else [])]
    ):
        try:
            ids = batch["example_id"].cast(ID_TYPE)
        except pa.ArrowException:
            ids = pa.nulls(len(batch), ID_TYPE)
        if ids.null_count:
            raise StageError(f"{path} has other ids than it was exported with; export it again")
        if with_texts:
            _require_own_texts(path, start, ids, [batch[name] for name in text_fields])
        arrays = {
            name: _exported_column(path, start, batch[name], name, wanted, len(original.classes))
            for name, wanted in columns.items()
        }
        parts.append(SoftLabels(ids, arrays, len(original.classes)))
        start += batch.num_rows
    if not parts:
        raise StageError(f"{path} holds no examples")
    together = SoftLabels.concatenate(parts)
    places = [f"row {number}" for number in range(1, len(together) + 1)]
    soft_labels, repeated = _distinct(path, together, places)
    imported = original.facts.get("imported") if original.imported is not None else {}
    how = {key: value for key, value in (imported or {}).items() if key != "facts"}
    made = {**how, "exported_from": original.id}
    facts = original.imported or {}
    change = TopKChange.decode(told["top_k_change"])
    return Imported(path, soft_labels, original.classes, made, original.outputs, repeated, facts, change)


def _exported_column(
    path: Path, start: int, array: pa.Array, name: str, wanted: Column, n_classes: int
) -> NDArray[Any]:
    """Give a column of an exported file as it was, whatever wrote the file since.

    Raises:
        StageError: It is none of this type and width, or holds a NaN.
    """
    try:
        if wanted.width == SCALAR:
            flat = array.cast(wanted.dtype)
            values: NDArray[Any] | None = flat.to_numpy(zero_copy_only=False)
        else:
            flat = array.flatten().cast(wanted.dtype)
            values = flat.to_numpy(zero_copy_only=False).reshape(len(array), wanted.width or -1)
    except (AttributeError, ValueError, pa.ArrowException):
        values = None
    if values is None or flat.null_count or array.null_count:
        width = "" if wanted.width == SCALAR else f", {wanted.width or 'equally many'} in each row"
        raise StageError(f"{path}: the column '{name}' does not hold {wanted.dtype}{width}, as exported")
    broken = ~np.isfinite(values).reshape(len(array), -1).all(axis=1)
    if broken.any():
        raise StageError(f"{path}, row {start + int(broken.argmax()) + 1}: {name} is NaN or infinite")
    if name == "top_classes" and len(values) and values.max() >= n_classes:
        raise StageError(f"{path}: the column '{name}' names classes that do not exist")
    return values


def _require_own_texts(path: Path, start: int, ids: pa.Array, texts: Sequence[pa.Array]) -> None:
    """Refuse a text whose id is another's; who exported a text that its data lacked, wrote none."""
    there = np.flatnonzero(np.logical_and.reduce([text.is_valid().to_numpy(False) for text in texts]))
    rows = pa.array(there)
    own = example_ids([text.take(rows).to_pylist() for text in texts])
    if not own.equals(ids.take(rows)):
        pairs = zip(own.to_pylist(), ids.take(rows).to_pylist(), strict=True)
        row = next(row for row, (a, b) in zip(there, pairs, strict=True) if a != b)
        raise StageError(f"{path}, row {start + row + 1}: example_id is not that of the text")
