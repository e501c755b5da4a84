"""Where a file has its values for each class: in a list, in a mapping, or in a column of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.data.classes import class_key
from stages.data.files import Input, instead_of, shown
from stages.data.rows import DECODER, Window, column
from stages.errors import StageError
from stages.teacher.labelling.values import BadValueError
from stages.teacher.params import ValuesParams

KINDS: tuple[str, ...] = get_args(get_args(ValuesParams.model_fields["values"].annotation)[0])
"""What a file may give for each class."""

_CLASS = "{class}"


class Layout(NamedTuple):
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
    def of(cls, names: Sequence[str], how: ValuesParams, classes: list[str], source: Input) -> "Layout":
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
                    by_class[place] = numbers_of(pc.struct_field(cells, name))
                return _side_by_side(by_class, len(window))
            if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
                self._require_names(0)
                lengths = pc.list_value_length(cells).fill_null(0).to_numpy(zero_copy_only=False)
                wrong = lengths != len(self.classes)
                if wrong.any():
                    row = int(wrong.argmax())
                    raise BadValueError(row, f"{lengths[row]} values for {len(self.classes)} classes")
                values, named = numbers_of(cells.flatten())
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
        return numbers_of(window[name].combine_chunks())
    cells = [row.get(name) for row in window]
    there = np.array([cell is not None and cell != "" for cell in cells])
    filled = [cell if is_there else None for cell, is_there in zip(cells, there, strict=True)]
    return _floats(filled, 0), there


def numbers_of(array: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
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
