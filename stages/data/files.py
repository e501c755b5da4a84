"""Where users' examples come from: a file or standard input, in one of five formats."""

import difflib
import io
import re
import reprlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.task import Quoting
from stages.errors import StageError

_BY_SUFFIX = {
    ".txt": "plain",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_FORMATS = ("plain", "jsonl", "csv", "tsv", "parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


class MissingColumnError(StageError):
    """A column that is needed is not there."""


@dataclass(frozen=True)
class Input:
    """Where examples are read from.

    Attributes:
        path: A file, which may be compressed by gzip or Zstandard; ``-`` is standard input, and so is None,
            unless that is a terminal.
        format_name: ``plain`` (one text per line), ``jsonl`` (an object per line, or one array of objects),
            ``csv``, ``tsv`` or ``parquet``; None goes by the file's suffix, and is ``plain`` for standard
            input.
        text_fields: The columns that the model reads, in its order.
        language_field: The column with each example's language, where there is one.
        quoting: Of CSV and TSV: ``csv`` (fields may be in double quotes) or ``none``; None stands for ``csv``
            in CSV and ``none`` in TSV, where fields that look quoted are then refused.
        delimiter: What separates the fields of CSV; None: a comma, and a tab in TSV.
        columns: Names of the columns of CSV and TSV without a header line; None: the first line names them.
        needed: Columns that must be there besides these.
        only: The columns that are read, of Parquet, whose others cost nothing; None: all.
        as_written: Whether a number of JSON knows how it was written, as a label must; it takes longer.
        skip_blank: Whether a blank line of plain text is no text.
    """

    path: Path | None
    format_name: str | None
    text_fields: Sequence[str]
    language_field: str | None
    quoting: str | None = None
    delimiter: str | None = None
    columns: Sequence[str] | None = None
    needed: Sequence[str] = ()
    only: Sequence[str] | None = None
    as_written: bool = True
    skip_blank: bool = False

    def __post_init__(self) -> None:
        if self.quoting not in (None, *get_args(Quoting)):
            raise StageError(f"--quoting {self.quoting} is none of {', '.join(get_args(Quoting))}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise StageError(f"--delimiter {self.delimiter!r} is not one character")

    @property
    def is_stdin(self) -> bool:
        """Whether standard input is read."""
        return self.path is None or str(self.path) == "-"

    @property
    def is_file(self) -> bool:
        """Whether it can be read again, as standard input and pipes cannot."""
        return self.path is not None and not self.is_stdin and self.path.is_file()

    @property
    def name(self) -> str:
        """How messages call it."""
        return "standard input" if self.is_stdin else str(self.path)

    @property
    def format(self) -> str:
        """The format, by name or by the file's suffix.

        Raises:
            StageError: It is unknown, or does not fit what is asked for.
        """
        format_ = self._format()
        if format_ == "plain" and len(self.text_fields) > 1:
            raise StageError(
                f"{self.name}: plain text has one text per line, but an example has {len(self.text_fields)}, "
                f"{' and '.join(self.text_fields)}; use JSONL, CSV, TSV or Parquet"
            )
        if self.columns is not None and format_ not in ("csv", "tsv"):
            raise StageError(f"only CSV and TSV have columns without names, and {self.name} is {format_}")
        return format_

    def _format(self) -> str:
        known = ", ".join(_FORMATS)
        if self.format_name is not None:
            if self.format_name not in _FORMATS:
                raise StageError(f"--format {self.format_name} is none of {known}")
            return self.format_name
        if self.is_stdin:
            return "plain"
        assert self.path is not None
        kind = kind_of(self.path)
        if kind is None:
            raise StageError(
                f"the suffix of {self.path} is none of {', '.join(_BY_SUFFIX)}; "
                f"name the format with --format: {known}"
            )
        return kind

    @property
    def compression(self) -> str | None:
        """The suffix that says how it is compressed, if it is."""
        suffix = "" if self.is_stdin or self.path is None else self.path.suffix.lower()
        return suffix if suffix in COMPRESSED else None

    def count(self) -> int | None:
        """Count the examples of a file quickly, for a progress bar: of text formats, the lines."""
        path = self.path
        if path is None or self.is_stdin or not path.is_file() or self.compression:
            return None
        if self.format == "parquet":
            try:
                return int(pq.read_metadata(path).num_rows)
            except (OSError, pa.ArrowException):
                return None  # the reader will say what is wrong
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b"")) or None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it; what is compressed is read as what it was before.

        Raises:
            StageError: It cannot be opened, or there is no input.
        """
        if self.is_stdin and sys.stdin is None:
            raise StageError("standard input is closed; name a file")
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
            with file, self._decompressed(file) as content:
                yield content
        elif self.format == "parquet":
            with tempfile.TemporaryFile() as copy:  # Parquet is read from its end
                shutil.copyfileobj(sys.stdin.buffer, copy)
                yield copy
        else:
            yield sys.stdin.buffer

    @contextmanager
    def _decompressed(self, file: IO[bytes]) -> Iterator[IO[bytes]]:
        compression = self.compression
        if compression is None:
            yield file
        elif self.format == "parquet":
            raise StageError(f"cannot read {self.name}: Parquet is compressed within; unpack it")
        else:
            with io.BufferedReader(pa.CompressedInputStream(file, COMPRESSED[compression])) as content:
                yield content

    def require_columns(self, names: Sequence[str], reserved: Sequence[str]) -> None:
        """Refuse a table whose columns are not those that are needed.

        Raises:
            StageError: A column is missing, is there twice, or has a reserved name.
        """
        wanted = [*self.text_fields, *self.needed, *([self.language_field] if self.language_field else [])]
        for name in wanted:
            if name not in names:
                hint = self.hint_of_delimiter(names) or instead_of(name, names, taken=wanted)
                raise MissingColumnError(f"{self.name} has no column '{name}'; {hint}")
        for name in names:
            if names.count(name) > 1 and not name:
                raise StageError(
                    f"{self.name} has {names.count(name)} columns without a name; name or delete them, and "
                    "delimiters at the ends of lines"
                )
            if names.count(name) > 1:
                raise StageError(f"{self.name} has two columns '{name}'")
            self.require_free(name, reserved, self.name)

    def hint_of_delimiter(self, values: Sequence[str]) -> str | None:
        """Say what separates the fields of CSV, where a line looks like one field that holds several."""
        found = [mark for mark in (";", "\t", ",") if len(values) == 1 and mark in values[0]]
        if not found:
            return None
        where = "task.source.delimiter (student predict: --delimiter)"
        return f"are its fields separated by {found[0]!r}? say so in {where}"

    def require_free(self, name: str, reserved: Sequence[str], where: str) -> None:
        """Refuse a column whose name is reserved.

        Raises:
            StageError: It is.
        """
        if name in reserved:
            raise StageError(
                f"{where} has a column '{name}' already; give the new columns other names: "
                "--prefix predicted_"
            )

    def require_texts(self, row: dict[str, Any], where: str) -> None:
        """Refuse an example whose texts or language are something else.

        Raises:
            StageError: A text is missing or no text, or the language is no text.
        """
        wanted = (*self.text_fields, *self.needed)
        for name in wanted:
            if name not in row:
                hint = instead_of(name, list(row), taken=wanted)
                raise MissingColumnError(f"{where} has no column '{name}'; {hint}")
        for name in self.text_fields:
            if not isinstance(row[name], str):
                raise StageError(f"{where}: {name} is {shown(row[name])}, not a text")
        if self.language_field is not None:
            language = row.get(self.language_field)
            if language is not None and not isinstance(language, str):
                raise StageError(f"{where}: {self.language_field} is {shown(language)}, not a language")


def kind_of(path: Path) -> str | None:
    """Give a file's format by its suffix, the one before ``.gz`` or ``.zst``; None: it has no known one."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return _BY_SUFFIX.get(inner.suffix.lower())


def shown(value: Any) -> str:
    """Write a value for a message, shortened; what is not there is called null, as in JSON and Parquet."""
    return "null" if value is None else reprlib.repr(value)


def without_zeros(number: str) -> str:
    """Write 3.0, which is pandas' 3 in a column with gaps, as 3; anything else stays as it is."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", number)


def instead_of(name: str, names: Sequence[str], *, taken: Sequence[str] = ()) -> str:
    """Say which column may be meant, none of those that are taken, or which there are."""
    close = difflib.get_close_matches(name, [one for one in names if one not in taken], n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names) or 'none'}"
