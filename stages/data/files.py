"""Users' examples are read here: strictly, a line or a window at a time, and every column.

Memory is bounded by a window, not by the file. Nothing is normalised; in CSV and TSV every value is a text.
"""

import csv
import difflib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.task import Quoting
from stages.errors import StageError

Window: TypeAlias = pa.Table | list[dict[str, Any]]
"""Some examples in their order: of Parquet a table, otherwise the values of each by column name."""

Rows: TypeAlias = Iterator[tuple[int, dict[str, Any]]]
"""The number of the line on which an example begins, and its values by column name."""

_BY_SUFFIX = {
    ".txt": "plain",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_FORMATS = ("plain", "jsonl", "csv", "tsv", "parquet")
_QUOTED_FIRST = 10_000
"""Rows that are looked at for quotes before the first is given."""


@dataclass(frozen=True)
class Input:
    """Where examples are read from.

    Attributes:
        path: A file; ``-`` is standard input, and so is None, unless that is a terminal.
        format: ``plain`` (one text per line), ``jsonl``, ``csv``, ``tsv`` or ``parquet``; None goes by the
            file's suffix, and is ``plain`` for standard input.
        text_fields: The columns that the model reads, in its order.
        language_field: The column with each example's language, where there is one.
        quoting: Of CSV and TSV: ``csv`` (fields may be in double quotes) or ``none``; None stands for ``csv``
            in CSV and ``none`` in TSV, where fields that look quoted are then refused.
        needed: Columns that must be there besides these.
    """

    path: Path | None
    format: str | None
    text_fields: Sequence[str]
    language_field: str | None
    quoting: str | None = None
    needed: Sequence[str] = ()

    @property
    def is_stdin(self) -> bool:
        """Whether standard input is read."""
        return self.path is None or str(self.path) == "-"

    @property
    def name(self) -> str:
        """How messages call it."""
        return "standard input" if self.is_stdin else str(self.path)

    @contextmanager
    def windows(self, size: int, *, reserved: Sequence[str]) -> Iterator[Iterator[Window]]:
        """Open it, and give its examples in windows of at most `size`.

        Args:
            size: Examples.
            reserved: Names that no column may have.

        Raises:
            StageError: It cannot be read, or an example is not what it has to be; then when it is reached.
        """
        format_ = self._format()
        if format_ == "plain" and len(self.text_fields) > 1:
            raise StageError(
                f"plain text has one text per line, but an example has {len(self.text_fields)}, "
                f"{' and '.join(self.text_fields)}; use JSONL, CSV, TSV or Parquet"
            )
        with self._open() as file:
            if format_ == "parquet":
                yield _parquet_windows(self, file, size, reserved)
            else:
                yield _windows((row for _, row in _READERS[format_](self, file, reserved)), size)

    def rows(self) -> Rows:
        """Give the examples of a text format, one after the other.

        Raises:
            StageError: As `windows`.
        """
        with self._open() as file:
            yield from _READERS[self._format()](self, file, ())

    def count(self) -> int | None:
        """Count the examples of a file quickly, for a progress bar: of text formats, the lines."""
        path = self.path
        if path is None or self.is_stdin or not path.is_file():
            return None
        if self._format() == "parquet":
            try:
                return int(pq.read_metadata(path).num_rows)
            except (OSError, pa.ArrowException):
                return None  # the reader will say what is wrong
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b"")) or None

    def __post_init__(self) -> None:
        if self.quoting not in (None, *get_args(Quoting)):
            raise StageError(f"--quoting {self.quoting} is none of {', '.join(get_args(Quoting))}")

    def _format(self) -> str:
        known = ", ".join(_FORMATS)
        if self.format is not None:
            if self.format not in _FORMATS:
                raise StageError(f"--format {self.format} is none of {known}")
            return self.format
        if self.is_stdin:
            return "plain"
        assert self.path is not None
        suffix = self.path.suffix.lower()
        if suffix not in _BY_SUFFIX:
            raise StageError(
                f"the suffix of {self.path} is none of {', '.join(_BY_SUFFIX)}; "
                f"name the format with --format: {known}"
            )
        return _BY_SUFFIX[suffix]

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        if self.path is None and sys.stdin.isatty():
            raise StageError(
                "there is no input; name a file, or pipe texts in: "
                "echo Hallo | python -m pipeline student predict"
            )
        if not self.is_stdin:
            assert self.path is not None
            try:
                file = self.path.open("rb")
            except OSError as error:
                raise StageError(f"cannot read {self.path}: {error.strerror}") from error
            with file:
                yield file
        elif self._format() == "parquet":
            with tempfile.TemporaryFile() as copy:  # Parquet is read from its end
                shutil.copyfileobj(sys.stdin.buffer, copy)
                yield copy
        else:
            yield sys.stdin.buffer

    def require_columns(self, names: Sequence[str], reserved: Sequence[str]) -> None:
        """Refuse a table whose columns are not those that are needed.

        Raises:
            StageError: A column is missing, is there twice, or has a reserved name.
        """
        wanted = [*self.text_fields, *self.needed, *([self.language_field] if self.language_field else [])]
        for name in wanted:
            if name not in names:
                hint = instead_of(name, names)
                if len(names) == 1 and ";" in names[0]:
                    hint = "its columns are separated by semicolons; separate them by commas or tabs"
                raise StageError(f"{self.name} has no column '{name}'; {hint}")
        for name in names:
            if names.count(name) > 1:
                raise StageError(f"{self.name} has two columns '{name}'")
            _require_free(name, reserved, self.name)

    def require_texts(self, row: dict[str, Any], where: str) -> None:
        """Refuse an example whose texts or language are something else.

        Raises:
            StageError: A text is missing or no text, or the language is no text.
        """
        for name in (*self.text_fields, *self.needed):
            if name not in row:
                raise StageError(f"{where} has no column '{name}'; {instead_of(name, list(row))}")
        for name in self.text_fields:
            if not isinstance(row[name], str):
                raise StageError(f"{where}: {name} is {row[name]!r}, not a text")
        if self.language_field is not None:
            language = row.get(self.language_field)
            if language is not None and not isinstance(language, str):
                raise StageError(f"{where}: {self.language_field} is {language!r}, not a language")


def instead_of(name: str, names: Sequence[str]) -> str:
    """Say which column may be meant, or which there are."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names) or 'none'}"


def column(window: Window, name: str) -> list[Any]:
    """Give a column's values; None where an example has none."""
    return [row.get(name) for row in window] if isinstance(window, list) else window[name].to_pylist()


def _require_free(name: str, reserved: Sequence[str], where: str) -> None:
    if name in reserved:
        raise StageError(
            f"{where} has a column '{name}' already; give the new columns other names: --prefix predicted_"
        )


def _windows(rows: Iterator[dict[str, Any]], size: int) -> Iterator[Window]:
    while window := list(islice(rows, size)):
        yield window


def _lines(source: Input, file: IO[bytes]) -> Iterator[str]:
    """Decode line by line, so that a message can say which; the ends of lines stay."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise StageError(f"{source.name}, line {number}: not UTF-8 ({error.reason})") from error


def _plain_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Rows:
    [name] = source.text_fields
    source.require_columns([name], reserved)
    for number, line in enumerate(_lines(source, file), 1):
        yield number, {name: line.removesuffix("\n").removesuffix("\r")}


def _json_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Rows:
    for number, line in enumerate(_lines(source, file), 1):
        where = f"{source.name}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except UnicodeEncodeError as error:
            raise StageError(f"{where}: not Unicode ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise StageError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
        except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
            raise StageError(f"{where}: not JSON that can be read ({error})") from error
        if not isinstance(row, dict):
            raise StageError(f"{where}: {line.strip()[:40]} is no JSON object")
        for name in row:
            _require_free(name, reserved, where)
        source.require_texts(row, where)
        yield number, row


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _csv_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Rows:
    csv.field_size_limit(2**31 - 1)  # a text may be long
    tabs = source._format() == "tsv"  # has no quotes: IANA text/tab-separated-values
    quoting = source.quoting or ("none" if tabs else "csv")
    reader = csv.reader(
        _lines(source, file),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        names = next(reader, None)
        if names is None:
            return
        source.require_columns(names, reserved)
        rows = _values(source, reader, len(names))
        for number, values in rows if source.quoting or not tabs else _unquoted(source, rows):
            yield number, dict(zip(names, values, strict=True))
    except csv.Error as error:
        reason = "lines end with CR alone; end them with LF" if "newline" in str(error) else error
        raise StageError(f"{source.name}, line {reader.line_num}: {reason}") from error


def _values(source: Input, reader: Any, n_columns: int) -> Iterator[tuple[int, list[str]]]:
    """Give the rows of a CSV reader, each with the number of its first line; an empty line is none.

    Raises:
        StageError: A row has more or fewer values than there are columns, or its quotes are not closed.
    """
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "newline" in str(error):
                raise
            lines = f"lines {first} to {reader.line_num}" if reader.line_num > first else f"line {first}"
            raise StageError(
                f"{source.name}, {lines}: {error}; a quote may be missing or too much (a quote in a quoted "
                'field is written twice: "")'
            ) from error
        if values is None:
            return
        if values and len(values) != n_columns:
            raise StageError(f"{source.name}, line {first}: {len(values)} values in {n_columns} columns")
        if values:
            yield first, values


def _unquoted(source: Input, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Give the rows of a TSV file, whose quotes are part of the texts, unless they look like CSV's quoting.

    Raises:
        StageError: Two fields or more are as CSV quotes what holds quotes, and not a tenth as many have
            other quotes.
    """
    quoted = others = 0
    last = 0

    def look_at(number: int, values: list[str]) -> None:
        nonlocal quoted, others, last
        for value in values:
            if '"' not in value:
                continue
            inner = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
            if len(inner) < len(value) and '"' not in inner.replace('""', ""):
                if '""' in inner:
                    quoted, last = quoted + 1, number
            else:
                others += 1

    def require_no_quoting() -> None:
        if quoted >= 2 and others * 10 <= quoted:
            raise StageError(
                f"{source.name}: {quoted} fields look quoted, the last on line {last}; are quotes part of "
                "the texts? say task.source.quoting: none or csv (student predict: --quoting)"
            )

    begin = list(islice(rows, _QUOTED_FIRST))
    for row in begin:
        look_at(*row)
    require_no_quoting()
    yield from begin
    for row in rows:
        look_at(*row)
        yield row
    require_no_quoting()


_READERS = {"plain": _plain_rows, "jsonl": _json_rows, "csv": _csv_rows, "tsv": _csv_rows}


def _parquet_windows(source: Input, file: IO[bytes], size: int, reserved: Sequence[str]) -> Iterator[Window]:
    try:
        parquet = pq.ParquetFile(file)
        source.require_columns(parquet.schema_arrow.names, reserved)
        start = 0
        for batch in parquet.iter_batches(size):
            checked = [*source.text_fields, *([source.language_field] if source.language_field else [])]
            for number, row in enumerate(batch.select(checked).to_pylist(), start + 1):
                source.require_texts(row, f"{source.name}, row {number}")
            start += batch.num_rows
            if batch.num_rows:
                yield pa.Table.from_batches([batch])
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise StageError(f"cannot read {source.name}: {str(error).partition(chr(10))[0]}") from error
