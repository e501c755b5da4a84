"""Users' examples are read here: strictly, one after the other or in windows.

Memory is bounded by a window, not by the file. Nothing is normalised; in CSV and TSV every value is a text.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.files import Input, MissingColumnError
from stages.errors import StageError

Window: TypeAlias = pa.Table | list[dict[str, Any]]
"""Some examples in their order: of Parquet a table, otherwise the values of each by column name."""

Placed: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
"""Where an example begins, such as ``line 7``, and its values by column name."""

_QUOTED_FIRST = 10_000
"""Rows that are looked at for quotes before the first is given."""
_BLOCK = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")


def windows(source: Input, size: int, *, reserved: Sequence[str] = ()) -> Iterator[Window]:
    """Give the examples of a source in windows of at most `size`.

    Args:
        source: Where they are.
        size: Examples.
        reserved: Names that no column may have.

    Raises:
        StageError: It cannot be read, or an example is not what it has to be; then when it is reached.
    """
    if source.format == "parquet":
        yield from _parquet_windows(source, size, reserved)
        return
    rows = (row for _, row in placed_rows(source, reserved=reserved))
    while window := list(islice(rows, size)):
        yield window


def placed_rows(source: Input, *, reserved: Sequence[str] = ()) -> Placed:
    """Give the examples of a text format, one after the other, and where each begins.

    Raises:
        StageError: As `windows`.
    """
    readers = {"plain": _plain_rows, "jsonl": _json_rows, "csv": _csv_rows, "tsv": _csv_rows}
    with source.open() as file:
        try:
            yield from readers[source.format](source, file, reserved)
        except OSError as error:  # a disk that fails, or what is compressed and cut
            hint = "; is it whole, and compressed as its suffix says?" if source.compression else ""
            raise StageError(f"cannot read {source.name}: {error}{hint}") from error


def column(window: Window, name: str) -> list[Any]:
    """Give a column's values; None where an example has none."""
    return [row.get(name) for row in window] if isinstance(window, list) else window[name].to_pylist()


class _Number(float):
    """A number of JSON that knows how it was written, as one of CSV does."""

    def __new__(cls, text: str) -> "_Number":
        number = super().__new__(cls, text)
        number._text = text
        return number

    def __str__(self) -> str:
        return self._text

    _text: str


def _lines(source: Input, file: IO[bytes]) -> Iterator[str]:
    """Decode line by line, so that a message can say which; the ends of lines stay."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf_8(f"{source.name}, line {number}", error) from error


def _not_utf_8(where: str, error: UnicodeDecodeError) -> StageError:
    return StageError(f"{where}: not UTF-8 ({error.reason}); convert it, for example with iconv")


def _plain_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Placed:
    [name] = source.text_fields
    source.require_columns([name], reserved)
    for number, line in enumerate(_lines(source, file), 1):
        if not source.skip_blank or line.strip():
            yield f"line {number}", {name: line.removesuffix("\n").removesuffix("\r")}


def _json_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Placed:
    rows = _array_objects(source, file) if _begins_an_array(file) else _line_objects(source, file)
    name_of_source = source.name
    wanted, is_first = {*source.text_fields, *source.needed}, True
    for place, row, text in rows:
        where = f"{name_of_source}, {place}"
        if not isinstance(row, dict):
            raise StageError(f"{where}: {text.strip()[:40]} is no JSON object")
        try:
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except UnicodeEncodeError as error:
            raise StageError(f"{where}: not Unicode ({error.reason})") from error
        for name in row if reserved else ():
            source.require_free(name, reserved, where)
        try:
            source.require_texts(row, where)
        except MissingColumnError as error:  # the file's, only if no row has it
            if is_first and not _some_has(rows, wanted):
                raise
            raise StageError(str(error)) from None
        is_first = False
        yield place, row


def _some_has(rows: Iterator[tuple[str, Any, str]], columns: set[str]) -> bool:
    """Tell whether a row has all columns, among those that can be read."""
    with suppress(StageError):
        return any(isinstance(row, dict) and columns <= row.keys() for _, row, _ in rows)
    return False


def _begins_an_array(file: Any) -> bool:
    begin: bytes = file.peek(_BLOCK)
    return begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _line_objects(source: Input, file: IO[bytes]) -> Iterator[tuple[str, Any, str]]:
    decode = _DECODERS[source.as_written].decode
    for number, line in enumerate(_lines(source, file), 1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except (RecursionError, ValueError) as error:
            where = f"{source.name}, line {number}"
            if isinstance(error, json.JSONDecodeError):
                hint = "; write one object a line, or one array" if line.strip() == "{" else ""
                raise StageError(f"{where}: not JSON ({_why(error)}, column {error.colno}){hint}") from error
            raise StageError(f"{where}: not JSON that can be read ({error})") from error
        yield f"line {number}", row, line


def _array_objects(source: Input, file: IO[bytes]) -> Iterator[tuple[str, Any, str]]:
    """Give the items of one array, of which a block more than the longest item is in memory."""
    text = _Text(source, file)
    text.skip("[")
    number = 0
    closed = text.skip("]")
    while not closed:
        number += 1
        row, place, written = text.value(number)
        yield place, row, written
        closed = text.skip("]")
        if not closed and not text.skip(","):
            raise StageError(f"{text.where()}: not JSON (a comma or ] is missing after item {number})")
    if not text.at_end():
        raise StageError(f"{text.where()}: not JSON (something follows the array)")


class _Text:
    """A text that is read in blocks and forgotten once it was passed."""

    def __init__(self, source: Input, file: IO[bytes]) -> None:
        self._source, self._file = source, file
        self._decoder = _DECODERS[source.as_written]
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at = "", 0
        self._lines, self._counted = 1, 0
        self._is_read = False

    def skip(self, character: str) -> bool:
        """Pass spaces and then the character, if it is there."""
        there = not self.at_end() and self._text[self._at] == character
        self._at += there
        return there

    def at_end(self) -> bool:
        """Pass spaces, and tell whether nothing follows."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or self._is_read:
                return self._at == len(self._text)
            self._read()

    def value(self, number: int) -> tuple[Any, str, str]:
        """Pass the array's item of this number; give it, where it is, and how it is written.

        Raises:
            StageError: It is no JSON.
        """
        self.at_end()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (RecursionError, ValueError) as error:
                if not self._is_read and self._may_be_cut(error):
                    self._read()
                    continue
                why = _why(error)
                if self._is_read and self._is_cut(error):
                    why += "; the file ends there"
                where = f"{self.where()} (item {number})"
                raise StageError(f"{where}: not JSON that can be read ({why})") from error
            place = f"line {self._line()} (item {number})"
            begin, self._at = self._at, end
            return value, place, self._text[begin:end]

    def where(self) -> str:
        """Say on which line it is."""
        return f"{self._source.name}, line {self._line()}"

    def _line(self) -> int:
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def _is_cut(self, error: Exception) -> bool:
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated") or error.pos >= len(self._text.rstrip())
        )

    def _may_be_cut(self, error: Exception) -> bool:
        """Tell whether a value may only be incomplete: in the middle of a text, or close to the end."""
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
        )

    def _read(self) -> None:
        self._line()
        rest = self._text[self._at :]
        self._text, self._at, self._counted = rest, 0, 0
        data = self._file.read(max(_BLOCK, len(rest)))  # what doubles is not looked at too often
        self._is_read = not data
        try:
            self._text += self._decode(data, final=self._is_read)
        except UnicodeDecodeError as error:
            line = self._lines + rest.count("\n") + error.object.count(b"\n", 0, error.start)
            raise _not_utf_8(f"{self._source.name}, line {line}", error) from error


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at").removesuffix(" starting")
    return str(error)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODERS = {
    as_written: json.JSONDecoder(
        object_pairs_hook=_without_repetition,
        parse_float=_Number if as_written else None,
        parse_constant=_refuse_constant,
    )
    for as_written in (True, False)
}
DECODER = _DECODERS[False]
"""Reads JSON strictly: no NaN, and no name twice in an object."""


def _csv_rows(source: Input, file: IO[bytes], reserved: Sequence[str]) -> Placed:
    csv.field_size_limit(2**31 - 1)  # a text may be long
    tabs = source.format == "tsv"  # has no quotes: IANA text/tab-separated-values
    quoting = source.quoting or ("none" if tabs else "csv")
    reader = csv.reader(
        _lines(source, file),
        delimiter=source.delimiter or ("\t" if tabs else ","),
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        names = source.columns or next(reader, None)
        if names is None:
            return
        source.require_columns(names, reserved)
        rows = _values(source, reader, len(names))
        for number, values in rows if source.quoting or not tabs else _unquoted(source, rows):
            if source.columns and number == 1 and values == list(names):
                raise StageError(f"{source.name} has a header line; do not name its columns beside it")
            yield f"line {number}", dict(zip(names, values, strict=True))
    except csv.Error as error:
        reason = "it has a CR alone; end lines with LF, or quote it" if "newline" in str(error) else error
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
                f"{source.name}, {lines}: {error}; a quote may be missing, or one too many (a quote in a "
                'quoted field is written twice: "")'
            ) from error
        if values is None:
            return
        if values and len(values) != n_columns:
            hint = source.hint_of_delimiter(values)
            said = f"{len(values)} values in {n_columns} columns{f'; {hint}' if hint else ''}"
            raise StageError(f"{source.name}, line {first}: {said}")
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


def _parquet_windows(source: Input, size: int, reserved: Sequence[str]) -> Iterator[Window]:
    language = [source.language_field] if source.language_field else []
    checked = list(dict.fromkeys([*source.text_fields, *source.needed, *language]))
    start = 0
    with source.open() as file:
        try:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            source.require_columns(names, reserved)
            only = [name for name in names if source.only is None or name in (*source.only, *checked)]
            for batch in parquet.iter_batches(size, columns=only):
                for number, row in enumerate(batch.select(checked).to_pylist(), start + 1):
                    source.require_texts(row, f"{source.name}, row {number}")
                start += batch.num_rows
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise StageError(f"cannot read {source.name}: {str(error).partition(chr(10))[0]}") from error
