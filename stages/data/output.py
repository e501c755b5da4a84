"""Users' examples are written here, as they were read, with columns beside them."""

import errno
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.files import COMPRESSED
from stages.data.rows import Window
from stages.errors import StageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Write = Callable[[Window, pa.Table], None]
"""Writes a window and the columns beside it."""


@dataclass(frozen=True)
class Output:
    """Where examples are written to.

    Attributes:
        path: A .jsonl file, which .gz or .zst compresses, or a .parquet file; None stands for JSONL on
            standard output.
        overwrite: Whether a file that is there may be replaced.
    """

    path: Path | None
    overwrite: bool = False

    @property
    def is_parquet(self) -> bool:
        """Whether the file has columns, each of one type."""
        return self.path is not None and self._format == ".parquet"

    @property
    def _codec(self) -> str | None:
        """How the file is compressed; None: it is not, or by itself."""
        return None if self.path is None else COMPRESSED.get(self.path.suffix.lower())

    @property
    def _format(self) -> str:
        """The suffix, the one before ``.gz`` or ``.zst``."""
        assert self.path is not None
        return (self.path.with_suffix("") if self._codec else self.path).suffix.lower()

    def require_free(self) -> None:
        """Refuse to write, before anything is computed.

        Raises:
            StageError: The file is there already, or its suffix is unknown.
        """
        if self.path is None:
            return
        if self._format not in (".jsonl", ".parquet") or (self._codec and self._format == ".parquet"):
            raise StageError(
                f"cannot write {self.path}: it is not one of .jsonl, .jsonl.gz, .jsonl.zst, .parquet"
            )
        if self.path.is_dir():
            raise StageError(f"{self.path} is a folder; name a file")
        there = next(parent for parent in self.path.absolute().parents if parent.exists())
        if not there.is_dir():
            raise StageError(f"cannot write {self.path}: {there} is no folder")
        if self.path.exists() and not self.overwrite:
            raise StageError(f"{self.path} is there already; replace it with --overwrite")

    @contextmanager
    def writing(self, columns: Mapping[str, pa.DataType] | None = None) -> Iterator[Write]:
        """Give what writes a window; a file appears once all are written, and only then.

        Args:
            columns: Of a Parquet file, what `columns_of` found; None: those of the first window.

        Raises:
            StageError: The file is there already, or values do not fit into its format.
        """
        self.require_free()
        if self.path is None:
            yield partial(_write_json, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StageError(f"cannot write {self.path}: {error.strerror}") from error
        place = self.path.resolve() if self.path.is_symlink() else self.path  # what a link names is replaced
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                if self._codec:
                    own = os.fdopen(os.dup(file.fileno()), "wb")  # the stream closes it
                    with pa.CompressedOutputStream(pa.PythonFile(own), self._codec) as stream:
                        yield partial(_write_json, stream)
                elif self._format == ".jsonl":
                    yield partial(_write_json, file)
                else:
                    parquet = _Parquet(file, dict(columns or {}), are_of_all=columns is not None)
                    try:
                        yield parquet.write
                    finally:
                        parquet.close()
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        except OSError as error:
            if error.errno not in _NO_ROOM:  # it may be of the input
                raise
            raise StageError(
                f"cannot write {self.path}: {os.strerror(error.errno)}; free some space"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def _write_json(file: IO[bytes], window: Window, beside: pa.Table) -> None:
    try:
        rows = window if isinstance(window, list) else window.to_pylist()
    except (OverflowError, ValueError) as error:  # of a time that Python has not
        raise StageError(
            f"the input has a value that JSON has not ({error}); write a .parquet file"
        ) from error
    for row, more in zip(rows, beside.to_pylist(), strict=True):
        try:
            values = {name: _finite(value) for name, value in {**row, **more}.items()}
            line = json.dumps(values, ensure_ascii=False, default=_as_json)
        except RecursionError as error:
            raise StageError(
                "the input has a value of hundreds of lists or objects in each other; leave that column out"
            ) from error
        file.write(line.encode() + b"\n")


def _finite(value: Any) -> Any:
    """Write NaN and infinity, which JSON has not, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return {name: _finite(one) for name, one in value.items()} if isinstance(value, dict) else value


def _as_json(value: Any) -> str:
    """Write what Parquet has and JSON has not, such as dates, as people do."""
    if isinstance(value, bytes):
        raise StageError("the input has bytes in a column, which JSON has not; write a .parquet file")
    return str(value)


@dataclass
class _Parquet:
    """A Parquet file whose columns are known, or are those of the first window."""

    file: IO[bytes]
    _columns: dict[str, pa.DataType]
    are_of_all: bool
    _writer: pq.ParquetWriter | None = None

    def write(self, window: Window, beside: pa.Table) -> None:
        table = self._table(window) if isinstance(window, list) else window
        for name in beside.column_names:
            table = table.append_column(name, beside[name])
        try:
            self._writer = self._writer or pq.ParquetWriter(self.file, table.schema, compression="zstd")
            self._writer.write_table(table)
        except pa.ArrowException as error:
            raise StageError(f"Parquet has no place for the input ({error}); write a .jsonl file") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        if self.are_of_all:
            return pa.table(
                {
                    name: _array(name, [row.get(name) for row in rows], of)
                    for name, of in self._columns.items()
                }
            )
        names = dict.fromkeys(name for row in rows for name in row)
        arrays = {name: _array(name, [row.get(name) for row in rows]) for name in names}
        if not self._columns:
            self._columns = {name: array.type for name, array in arrays.items()}
        for name, array in arrays.items():
            expected = self._columns.get(name, pa.null())
            if array.type != expected:
                is_number = pa.types.is_integer(array.type) and pa.types.is_floating(expected)
                if not (pa.types.is_null(array.type) or is_number):
                    raise _unfit(name, f"{array.type} in some examples, {expected} in others")
                arrays[name] = _cast(name, array, expected)
        for name, expected in self._columns.items():
            arrays.setdefault(name, pa.nulls(len(rows), expected))
        return pa.table({name: arrays[name] for name in self._columns})


def columns_of(windows: Iterable[Window]) -> dict[str, pa.DataType]:
    """Find out what Parquet columns all rows of a file fit into, before there is anything to lose.

    Raises:
        StageError: There are none.
    """
    columns: dict[str, pa.DataType] = {}
    for rows in windows:
        for name in dict.fromkeys(name for row in rows for name in row):
            found = _array(name, [row.get(name) for row in rows]).type
            known = columns.get(name, pa.null())
            try:
                columns[name] = pa.unify_schemas(
                    [pa.schema({name: known}), pa.schema({name: found})], promote_options="permissive"
                )[0].type
            except pa.ArrowException as error:
                raise _unfit(name, f"{found} in some examples, {known} in others") from error
    return columns


def _array(name: str, values: list[Any], of: pa.DataType | None = None) -> pa.Array:
    try:
        return pa.array(values, of)
    except (OverflowError, pa.ArrowException) as error:
        raise _unfit(name, str(error).partition("\n")[0]) from error


def _cast(name: str, array: pa.Array, expected: pa.DataType) -> pa.Array:
    try:
        return array.cast(expected)
    except pa.ArrowException as error:
        raise _unfit(name, str(error)) from error


def _unfit(name: str, why: str) -> StageError:
    return StageError(f"column '{name}' fits into no Parquet column ({why}); write a .jsonl file")
