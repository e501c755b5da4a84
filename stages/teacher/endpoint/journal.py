"""Answers on this machine's disk as they come, until the store has them: a killed run pays for none again.

A line is written for each answer, without waiting for the disk: it outlives the process, but no power cut.
What a killed run left behind goes to the store when the next one begins.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from stages.locks import lock
from stages.teacher.endpoint.wording import LARGEST


class Line(NamedTuple):
    """An answer: the example's id in hexadecimal, the C logits, and how many letters were missing."""

    id: str
    logits: list[float]
    missing: int


class Journal:
    """The journal of one process for one producer. It is locked while the process lives."""

    def __init__(self, folder: Path, producer_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{producer_id}-{secrets.token_hex(8)}.jsonl"
        new = self._path.with_suffix(".new")  # which nobody takes for one that was left behind
        self._file: IO[bytes] = new.open("wb", buffering=0)
        lock(self._file)
        new.rename(self._path)

    def add(self, line: Line) -> None:
        """Write an answer."""
        self._file.write(json.dumps(line).encode() + b"\n")

    def clear(self) -> None:
        """Forget what was written: the store has it."""
        self._file.truncate(0)
        self._file.seek(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path.stat().st_size == 0:
            self._path.unlink(missing_ok=True)
        self._file.close()


def left_behind(folder: Path, producer_id: str) -> Iterator[list[Line]]:
    """Give the answers in each journal whose process is gone; a journal is deleted once they were taken.

    Where the file system has no locks, nothing tells whose process is gone, and none is taken. What another
    user left is that user's.
    """
    for path in sorted(folder.glob(f"{producer_id}-*.jsonl")):
        # Another process may have taken it meanwhile.
        with suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:
            if lock(file) and path.exists():
                yield [line for line in map(_read, file) if line is not None]
                path.unlink()


def _read(line: bytes) -> Line | None:
    """Read a line; None where a process or a machine died while it was written, or no store can hold it."""
    if not line.endswith(b"\n"):
        return None
    try:
        id_, logits, missing = json.loads(line)
        bytes.fromhex(id_)
        if not all(abs(one) <= LARGEST for one in logits):
            return None
        return Line(id_, [float(one) for one in logits], int(missing))
    except (TypeError, ValueError):
        return None
