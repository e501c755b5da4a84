"""The examples that a teacher is asked about: their ids are in memory, their texts stay on disk."""

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache import ID_TYPE, Index, id_words
from stages.artifacts import DATA
from stages.data.examples import labelled_splits, read_asked, read_examples, taught_splits
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.teacher.folds import Fold


class Part(NamedTuple):
    """One of several parts of a language's examples, which machines label side by side."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``3/16``, the third of sixteen.

        Raises:
            StageError: It is written otherwise, or there is no such part.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise StageError(f"--part {text}: write it as 3/16, for the third of sixteen; the first is 1")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Examples:
    """The distinct examples of a language, of all splits and without labels, or of one part of them.

    Attributes:
        task: Section `task`.
        language: Of the examples.
        ids: Of the N examples, in the order of the data.
        rows: Where each stands in the data, the splits one behind the other, int64, shape ``(N,)``, rising.
    """

    task: TaskParams
    language: str
    ids: pa.FixedSizeBinaryArray
    rows: NDArray[np.int64]

    @classmethod
    def read(cls, task: TaskParams, language: str, part: Part | None = None) -> Self:
        """Read the ids.

        Which part an example belongs to is decided by its id alone, so no two parts have an example in
        common, whoever prepared the data in whichever order.

        Raises:
            StageError: The data is not there.
        """
        chunks = [
            chunk
            for split in labelled_splits(task, language)
            for chunk in read_examples(task, language, split)["example_id"].chunks
            if len(chunk)
        ]
        ids = pa.concat_arrays(chunks) if chunks else pa.array([], ID_TYPE)
        kept = np.ones(len(ids), bool)
        again, _ = Index(ids).repeats()
        kept[again] = False
        if part is not None:
            kept &= id_words(ids)[:, 0] % np.uint64(part.of) == part.number - 1
        rows = np.flatnonzero(kept)
        return cls(task, language, ids if len(rows) == len(ids) else ids.take(pa.array(rows)), rows)

    def at(self, positions: NDArray[np.int64]) -> Self:
        """Leave the examples at some positions, which rise."""
        return replace(self, ids=self.ids.take(pa.array(positions)), rows=self.rows[positions])

    def of_fold(self, fold: Fold) -> Self:
        """Leave the examples of one fold, which its model has not been trained on."""
        if fold.of == 1:
            return self
        return self.at(np.flatnonzero(fold.holds(self.ids)))

    def of_teacher(self, place: int, names: Sequence[str | None]) -> Self:
        """Leave the examples that a teacher is to be asked about.

        Args:
            place: Its place among the language's teachers.
            names: Of all of them.

        Raises:
            StageError: Examples are for teachers that are not there.
        """
        asked = self.asked(names)
        if asked is None:
            return self
        return self.at(np.flatnonzero(asked[place]))

    def asked(self, names: Sequence[str | None]) -> NDArray[np.bool_] | None:
        """Tell which teachers are to be asked about each example: those that any row with its text asks for.

        Returns:
            Shape ``(M, N)``; None: always all.

        Raises:
            StageError: Examples are for teachers that are not there.
        """
        splits = labelled_splits(self.task, self.language)
        asked = read_asked(self.language, splits, names)
        if asked is None:
            return None
        tables = [read_examples(self.task, self.language, split) for split in splits]
        places = Index(self.ids).positions(pa.concat_tables(tables)["example_id"].combine_chunks())
        found = np.zeros((len(names), len(self)), bool)
        for teacher, of_rows in enumerate(asked):
            found[teacher, places[of_rows & (places >= 0)]] = True
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def sizes(self) -> NDArray[np.int32]:
        """Measure the texts, in bytes of UTF-8, without reading them; shape ``(N,)``."""
        total = np.zeros(int(self.rows[-1]) + 1 if len(self) else 0, np.int32)
        for first, table in self._splits():
            for field in self.task.text_fields:
                n_bytes = pc.binary_length(table[field]).to_numpy()
                total[first : first + len(n_bytes)] += n_bytes[: max(len(total) - first, 0)]
        return total[self.rows]

    def texts(self, positions: NDArray[np.int64]) -> list[list[str]]:
        """Read the texts of some examples from disk.

        Args:
            positions: Among these N examples, rising, shape ``(n,)``.

        Returns:
            One list of n texts for each text field.

        Raises:
            StageError: Other examples stand there by now.
        """
        rows = self.rows[positions]
        fields: list[list[str]] = [[] for _ in self.task.text_fields]
        ids = []
        for first, table in self._splits():
            wanted = rows[(rows >= first) & (rows < first + table.num_rows)] - first
            if len(wanted):
                span = table.slice(wanted[0], wanted[-1] - wanted[0] + 1)
                mask = np.zeros(span.num_rows, bool)
                mask[wanted - wanted[0]] = True
                some = span.filter(pa.array(mask))
                ids += some["example_id"].chunks
                for texts, field in zip(fields, self.task.text_fields, strict=True):
                    texts += some[field].to_pylist()
        if len(positions) and not pa.chunked_array(ids, ID_TYPE).combine_chunks().equals(
            self.ids.take(pa.array(positions))
        ):
            raise self.changed()
        return fields

    def require(self, has: NDArray[np.bool_], what: str) -> None:
        """Refuse a teacher that does not say something of every text that teaches the student.

        Args:
            has: Of which of the N examples it does, shape ``(N,)``.
            what: The teacher, for the message.

        Raises:
            StageError: It lacks some.
        """
        splits = taught_splits(self.task, self.language)
        n_rows = sum(read_examples(self.task, self.language, split).num_rows for split in splits)
        taught = self.rows < n_rows
        missing = np.flatnonzero(taught & ~has)
        if len(missing):
            text = reprlib.repr(" | ".join(texts[0] for texts in self.texts(missing[:1])))
            raise StageError(
                f"{what} has no soft label for {len(missing):,} of the {int(taught.sum()):,} texts of "
                f"'{self.language}' that teach the student, such as {text}"
            )

    def changed(self) -> StageError:
        """Say that the data is no longer that whose ids were read."""
        return StageError(
            f"the examples of '{self.language}' in {DATA} changed while they were labelled; "
            "run the same command again"
        )

    def _splits(self) -> Iterator[tuple[int, pa.Table]]:
        """Map each split's file into memory, for as long as the caller holds it, with its first row."""
        first = 0
        for split in labelled_splits(self.task, self.language):
            table = read_examples(self.task, self.language, split)
            yield first, table
            first += table.num_rows
