"""Soft labels that somebody else made: read from a file, checked, as logits by example id."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache import ID_TYPE, Index, Outputs, Producer, SoftLabels, example_ids
from cache.identity.columns import SCALAR, Column
from stages.data.classes import class_key
from stages.data.examples import SOFT_LABEL, read_soft_label_column, taught_splits
from stages.data.files import Input, instead_of, shown
from stages.data.rows import DECODER, Window, column, placed_rows, windows
from stages.data.task import SplitName, TaskParams
from stages.errors import StageError
from stages.progress import Bar
from stages.teacher.labelling.values import BadValueError, as_logits, keep_named, outputs_of, widened
from stages.teacher.params import ValuesParams

KINDS: tuple[str, ...] = get_args(get_args(ValuesParams.model_fields["values"].annotation)[0])
"""What a file may give for each class."""

_CLASS = "{class}"
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
    """

    path: Path
    soft_labels: SoftLabels
    classes: list[str]
    made: dict[str, Any]
    outputs: Outputs
    repeated: int
    facts: Mapping[str, str] = field(default_factory=dict)

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
        path: Parquet, JSONL, CSV or TSV, the last three also as .gz or .zst.
        how: What it holds, and how it calls it.
        task: Section `task`, for text fields and classes.
        names: The file's names of classes to the task's, where they differ.

    Raises:
        StageError: A column is missing, a value is not what it is said to be, the file has other classes, or
            says two things of one text.
        ProducerError: It says of itself that it was exported, in a way that this version does not know.
    """
    fields = how.text_fields or task.text_fields
    source = Input(path, None, fields, None, how.quoting, how.delimiter, as_written=False)
    _require_fields(fields, task)
    plain = how.values or how.field or how.classes or how.text_fields
    if source.format == "parquet" and not plain and (told := _told(path)) is not None:
        return _read_exported(path, told, task.text_fields)
    of_file = {name: theirs for theirs, name in (names or {}).items()}
    classes = how.classes or [of_file.get(name, name) for name in task.classes]
    parts, places = [], []
    layout: _Layout | None = None
    seen: dict[str, None] = {}  # rows of JSON need not have the same columns
    with Bar(total=source.count(), desc=f"read {path.name}", unit="example", delay=2) as bar:
        for where, window in _windows(source, max(1, min(_WINDOW, _CELLS // len(classes)))):
            names_here = _names_of(window)
            if layout is None or not names_here.keys() <= seen.keys():
                seen |= names_here
                layout = _Layout.of([*seen], how, classes, source)
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
    splits: list[SplitName] = [*taught_splits(task, language), "validation", "test"]
    parts, places = [], []
    for split in splits:
        table = read_soft_label_column(task, language, split)
        for start in range(0, len(table), _WINDOW):
            some = table.slice(start, _WINDOW)
            cells = some[SOFT_LABEL].combine_chunks()
            values, named = _of_array(cells.flatten())
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


class _Layout(NamedTuple):
    """Where the values of the C classes stand.

    Attributes:
        kind: What they are.
        field: The column with a list or a mapping, where it is one.
        columns: Otherwise each class's own column; None for a class that has none.
        classes: The file's names.
        ordered: Whether the names are in the order of lists.
    """

    kind: str
    field: str
    columns: list[str | None]
    classes: list[str]
    ordered: bool

    @classmethod
    def of(cls, names: Sequence[str], how: ValuesParams, classes: list[str], source: Input) -> "_Layout":
        """Find the values among a file's columns.

        Raises:
            StageError: They are not there, may be several, or are of other classes.
        """
        others = [name for name in names if name not in source.text_fields]
        field = how.field
        if field is None:
            found = [kind for kind in KINDS if kind in others and how.values in (None, kind)]
            keys = {class_key(name) for name in others}
            field = found[0] if len(found) == 1 else _CLASS
            if len(found) > 1 or (not found and not all(class_key(name) in keys for name in classes)):
                raise StageError(
                    f"{source.name}: in which column are the soft labels? name it with field (cache import: "
                    f"--field), or write {_CLASS} into its name; there are: {', '.join(others) or 'none'}"
                )
        kind = how.values or (field if field in KINDS else None)
        if kind is None:
            raise StageError(
                f"{source.name}: what are the values in '{field}'? say values (cache import: --values): "
                f"{', '.join(KINDS)}"
            )
        columns: list[str | None] = []
        if _CLASS in field:
            columns = _columns_of_classes(others, field, classes, source)
        elif field not in others:
            raise StageError(f"{source.name} has no column '{field}'; {instead_of(field, others)}")
        return cls(kind, field, columns, classes, ordered=how.classes is not None)

    def read(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Give the values of a window, ``(n, C)``, and which of them are there.

        Raises:
            BadValueError: A row has something else.
        """
        if self.columns:
            each = [None if name is None else _numbers(window, name) for name in self.columns]
            return _side_by_side(each, len(window))
        if not isinstance(window, list):
            type_ = window.schema.field(self.field).type
            cells = window[self.field].combine_chunks()
            if pa.types.is_struct(type_):
                index = _places_of(cells.type.names, self.classes, 0)
                by_class: list[Any] = [None] * len(self.classes)
                for name, place in index.items():
                    by_class[place] = _of_array(pc.struct_field(cells, name))
                return _side_by_side(by_class, len(window))
            if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
                self._require_names(0)
                lengths = pc.list_value_length(cells).fill_null(0).to_numpy(zero_copy_only=False)
                wrong = lengths != len(self.classes)
                if wrong.any():
                    row = int(wrong.argmax())
                    raise BadValueError(row, f"{lengths[row]} values for {len(self.classes)} classes")
                values, named = _of_array(cells.flatten())
                return values.reshape(len(window), -1), named.reshape(len(window), -1)
        is_map = not isinstance(window, list) and pa.types.is_map(window.schema.field(self.field).type)
        return self._of_cells(column(window, self.field), is_map=is_map)

    def _of_cells(
        self, cells: Sequence[Any], *, is_map: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        rows: list[list[Any]] = []
        index: dict[str, int] = {name: place for place, name in enumerate(self.classes)}
        exact = set(index)
        for row, cell in enumerate(cells):
            if isinstance(cell, str):
                cell = _from_json(cell, row)
            if is_map or isinstance(cell, Mapping):
                cell = _as_mapping(cell, row)
                if not cell.keys() <= exact:  # names of another spelling
                    index |= _places_of(cell, self.classes, row)
                values: list[Any] = [None] * len(self.classes)
                for name, value in cell.items():
                    values[index[name]] = value
                rows.append(values)
            elif isinstance(cell, list):
                self._require_names(row)
                if len(cell) != len(self.classes):
                    raise BadValueError(row, f"{len(cell)} values for {len(self.classes)} classes")
                rows.append(cell)
            else:
                raise BadValueError(row, f"{self.field} is {shown(cell)}, not a list or a mapping of numbers")
        numbers = _floats(rows, 1)
        named = ~np.isnan(numbers)
        if not named.all():  # a class that is not named, or a NaN
            named = np.array([[value is not None for value in values] for values in rows])
        return numbers, named

    def _require_names(self, row: int) -> None:
        if not self.ordered:
            raise BadValueError(
                row,
                f"{self.field} is a list, which does not say which value is of which class; name the classes "
                "in its order with classes (cache import: --classes)",
            )


def _columns_of_classes(
    names: Sequence[str], field: str, classes: Sequence[str], source: Input
) -> list[str | None]:
    """Find each class's column, by the name in it.

    Raises:
        StageError: None has one, or a column is named after another class.
    """
    before, _, after = field.partition(_CLASS)
    alike = [name for name in names if name.startswith(before) and name.endswith(after)]
    alike = [name for name in alike if len(name) > len(before) + len(after)]
    by_key: dict[str, str] = {}
    known = {class_key(name) for name in classes}
    for name in alike:
        key = class_key(name[len(before) : len(name) - len(after)])
        if key in by_key and key in known:
            raise StageError(f"{source.name} has two columns of one class: {by_key[key]} and {name}")
        by_key[key] = name
    found = [by_key.get(class_key(name)) for name in classes]
    if not any(found):
        raise StageError(
            f"{source.name} has no column {field} of a class: {', '.join(classes)}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    strangers = [name for name in alike if name not in found]
    if strangers and field != _CLASS:
        raise StageError(
            f"{source.name} has a column '{strangers[0]}', and no class is called so; "
            f"there are: {', '.join(classes)}"
        )
    return found


def _places_of(names: Any, classes: Sequence[str], row: int) -> dict[str, int]:
    """Find where names of classes stand among the classes."""
    places = {class_key(name): place for place, name in enumerate(classes)}
    for name in names:
        if class_key(str(name)) not in places:
            raise BadValueError(row, f"{shown(name)} is none of the classes: {', '.join(classes)}")
    found = {name: places[class_key(str(name))] for name in names}
    if len(set(found.values())) < len(found):
        raise BadValueError(row, f"two names of one class among {', '.join(map(str, found))}")
    return found


def _side_by_side(
    each: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]] | None], n: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Put each class's values and whether they are there, ``(n,)``, beside each other."""
    absent = np.full(n, np.nan), np.zeros(n, bool)
    values, named = zip(*(absent if one is None else one for one in each), strict=True)
    return np.stack(values, axis=1), np.stack(named, axis=1)


def _numbers(window: Window, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give the numbers of one column, and which are there."""
    if not isinstance(window, list):
        return _of_array(window[name].combine_chunks())
    cells = [row.get(name) for row in window]
    there = np.array([cell is not None and cell != "" for cell in cells])
    filled = [cell if is_there else None for cell, is_there in zip(cells, there, strict=True)]
    return _floats(filled, 0), there


def _of_array(array: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give Arrow's numbers, and which are there."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array)), np.zeros(len(array), bool)
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_kind(array.type) for is_kind in kinds):
        raise BadValueError(0, f"{array.type} where a number must be")
    values = pc.fill_null(array.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False)
    return values, array.is_valid().to_numpy(zero_copy_only=False)


def _floats(rows: Sequence[Any], depth: int) -> NDArray[np.float64]:
    """Make an array of numbers, some of which may be absent, and find the row that has something else.

    Args:
        rows: Of a number each, or of a list of numbers.
        depth: 0 for numbers, 1 for lists.
    """
    try:
        numbers = np.array(rows, dtype=np.float64)
        if numbers.ndim == depth + 1 or not len(rows):
            return numbers
    except (OverflowError, TypeError, ValueError):
        pass
    for row, cell in enumerate(rows):
        try:
            fits = np.array(cell, dtype=np.float64).ndim == depth
        except (OverflowError, TypeError, ValueError):
            fits = False
        if not fits:
            raise BadValueError(row, f"{shown(cell)} where {'numbers' if depth else 'a number'} must be")
    raise BadValueError(0, "rows of different lengths")


def _as_mapping(cell: Any, row: int) -> Mapping[Any, Any]:
    """Give a mapping by class, which Arrow's maps are only once their keys are found to differ."""
    pairs = [*cell.items()] if isinstance(cell, Mapping) else [*(cell or ())]
    by_class = dict(pairs)
    if len(by_class) < len(pairs):
        raise BadValueError(row, "a class is named twice")
    return by_class


def _from_json(cell: str, row: int) -> Any:
    try:
        return DECODER.decode(cell)
    except (RecursionError, ValueError):
        raise BadValueError(row, f"{shown(cell)} is no list or mapping in JSON") from None


def _distinct(path: Path, soft_labels: SoftLabels, places: Sequence[str]) -> tuple[SoftLabels, int]:
    """Leave each text once.

    Raises:
        StageError: Two rows say different things of the same text.
    """
    again, first = Index(soft_labels.ids).repeats()
    if not len(again):
        return soft_labels, 0
    one, other = soft_labels.take(again), soft_labels.take(first)
    differs = np.zeros(len(again), bool)
    for name, values in one.columns.items():
        differs |= (values != other.columns[name]).reshape(len(again), -1).any(axis=1)
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
    except (KeyError, OSError, RecursionError, ValueError, pa.ArrowException):
        return None
    return told


def _read_exported(path: Path, told: Mapping[str, Any], text_fields: Sequence[str]) -> Imported:
    """Read what `cache export` wrote: the same ids and the same numbers."""
    original = Producer(told["producer"])
    columns = original.columns
    file = pq.ParquetFile(path)
    missing = [name for name in ("example_id", *columns) if name not in file.schema_arrow.names]
    if missing:
        raise StageError(f"{path} says that it was exported, but has no column '{missing[0]}'")
    with_texts = all(name in file.schema_arrow.names for name in text_fields)
    parts, start = [], 0
    for batch in file.iter_batches(
        _WINDOW, columns=["example_id", *columns, *(text_fields if with_texts else [])]
    ):
        ids = batch["example_id"].cast(ID_TYPE)
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
    return Imported(path, soft_labels, original.classes, made, original.outputs, repeated, facts)


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
