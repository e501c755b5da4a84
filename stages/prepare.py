"""Prepare the task: read a source, check every example, write one Arrow file per language and split.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source. Memory is
bounded by a window of rows and 20 bytes an example.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import example_ids, file_digest, write_atomically
from stages.artifacts import DATA, replaced_folder
from stages.data.examples import ENTITY, MANIFEST, SPLITS, UNLABELLED, columns_of, data_file
from stages.data.files import MissingColumnError
from stages.data.labels import LabelReader
from stages.data.remarks import Prepared, first_words
from stages.data.sources import WINDOW, Rows, hint_of, read_unlabelled, reader_of, revision_of
from stages.data.task import Split, TableSource, TaskParams
from stages.errors import StageError
from stages.progress import Bar

_Read = Callable[[str, Split], Iterator[Rows]]


def prepare(task: TaskParams) -> Prepared:
    """Write ``artifacts/data/<language>/<split>.arrow`` for all languages.

    Supervised languages need all three splits, zero-shot languages a test split; their validation split is
    written where there is one, and their training split never, since zero-shot languages have no labels.
    Any language may have texts for pre-training: the split ``unlabelled``.

    Raises:
        StageError: A column, split or class is missing, a text is null, or a label is not one of the classes.
    """
    with replaced_folder(DATA) as folder:
        return _prepare(task, folder)


def _prepare(task: TaskParams, folder: Path) -> Prepared:
    revision = revision_of(task)
    others: Counter[str] = Counter()
    read = reader_of(task, revision, others)
    aligned = isinstance(task.source, TableSource) and task.source.aligned
    done = Prepared(task.classes, aligned)
    for language in Bar(task.languages, desc="prepare", unit="language"):
        supervised = language in task.supervised
        share = _validation_share(task, read, language) if supervised else None
        if share is not None:
            done.notes.append(f"{language}: {share:.0%} of train, by hash, are the validation split")
        for split in SPLITS if supervised else SPLITS[1:]:
            others.clear()
            windows = _windows(task, read, language, split, share)
            table = None
            # A zero-shot language needs no validation split: its column may be missing from another's.
            with suppress(*([] if supervised or split == "test" else [MissingColumnError])):
                table = _write(windows, data_file(language, split, folder), task)
            if table is not None:
                done.add(language, split, table, task.text_fields)
            elif supervised or split == "test":
                hint = "; task.validation_share takes a part of train" * (split == "validation" and not share)
                why = hint_of(task, language, split, others)
                raise StageError(f"the {split} split of '{language}' is empty: {why}{hint}")
            if language == task.languages[0]:
                done.note_left_out(split, {n: k for n, k in others.items() if n not in task.languages})
        unlabelled = data_file(language, UNLABELLED, folder)
        _write_batches(read_unlabelled(task, language), unlabelled)
        done.unlabelled[language] = _mapped(unlabelled).num_rows if unlabelled.exists() else 0
    done.close()
    examples = done.examples
    if aligned:
        _require_alignment(examples)
    manifest = {
        "schema": 1,
        "source": task.source.model_dump(),
        "revision": revision,
        "examples": examples,
        "files": {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.glob("*/*.arrow"))
        },
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return done


def _require_alignment(examples: Mapping[str, Mapping[Split, int]]) -> None:
    """Refuse splits whose rows cannot be translations of each other.

    Raises:
        StageError: A split has more rows in one language than in another.
    """
    for split in SPLITS:
        sizes = {language: counts[split] for language, counts in examples.items() if split in counts}
        if len(set(sizes.values())) > 1:
            raise StageError(
                f"task.source.aligned is true, but the {split} split has {max(sizes.values())} rows in "
                f"'{max(sizes, key=sizes.__getitem__)}' and {min(sizes.values())} in "
                f"'{min(sizes, key=sizes.__getitem__)}'; set it to false, or give a column 'entity'"
            )


def _validation_share(task: TaskParams, read: _Read, language: str) -> float | None:
    """Give the share of the training examples that is to be the validation split; None: there is one."""
    there = task.validation_share is None or any(rows.labels for rows in read(language, "validation"))
    return None if there else task.validation_share


def _windows(
    task: TaskParams, read: _Read, language: str, split: Split, share: float | None
) -> Iterator[pa.Table]:
    """Give the checked examples of a split, window by window.

    Args:
        task: Section `task`.
        read: Reads the source.
        language: One of the task's.
        split: One of its splits.
        share: Of the training examples, those that are the validation split, if there is none.

    Raises:
        StageError: An example is not what it has to be.
    """
    labels = LabelReader(task)
    aligned = isinstance(task.source, TableSource) and task.source.aligned
    start = 0
    for rows in read(language, "train" if share is not None and split == "validation" else split):
        rows.require_texts(task.text_fields)
        arrays = [example_ids(rows.texts), *rows.texts, labels.positions(rows), rows.entities]
        schema = columns_of(task).append(pa.field(ENTITY, pa.string()))
        table = pa.Table.from_arrays(
            [pa.array(a, type=f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
        )
        n = table.num_rows
        if share is not None and split != "test":
            numbers = [str(start + row) for row in range(n)] if aligned else [None] * n
            entities = [one or number for one, number in zip(rows.entities, numbers, strict=True)]
            is_validation = _keys(table["example_id"], entities, b"validation") < share * 2.0**64
            table = table.filter(pa.array(is_validation == (split == "validation")))
        start += n
        if table.num_rows:
            yield table
    if split == "train":
        labels.require_zero(language)


def _keys(ids: pa.ChunkedArray, entities: Iterable[str | None], purpose: bytes) -> NDArray[np.uint64]:
    """Hash what examples are about, or their text, into numbers by which some are chosen: ``(N,)``."""
    keys = first_words(ids)
    for row, entity in enumerate(entities):
        if entity is not None:
            digest = hashlib.blake2b(entity.encode(), digest_size=16, person=purpose).digest()
            keys[row] = int.from_bytes(digest[:8])
    return keys


def _write(windows: Iterator[pa.Table], path: Path, task: TaskParams) -> pa.Table | None:
    """Write the examples of a split, and give them, mapped into memory; None: there are none.

    They are written twice: whether any says what it is about is known at the end, and what a limit keeps.
    """
    draft = path.with_suffix(".draft")
    try:
        _write_batches(windows, draft)
        if not draft.exists():
            return None
        table = _mapped(draft)
        if table[ENTITY].null_count == table.num_rows:
            table = table.drop_columns(ENTITY)
            if isinstance(task.source, TableSource) and task.source.aligned:
                table = table.append_column(ENTITY, pa.array(map(str, range(table.num_rows)), pa.string()))
        if task.max_examples is not None:
            table = _some(table, task.max_examples)
        _write_batches(iter([table]), path)
    finally:
        draft.unlink(missing_ok=True)
    return _mapped(path)


def _write_batches(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables into one Arrow file, which is not made where there are none."""
    first = next(tables, None)
    if first is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table, max_chunksize=WINDOW)
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _some(table: pa.Table, n: int) -> pa.Table:
    """Choose `n` rows by a hash of what they are about, or of their text, and leave them in their order."""
    chunks = table[ENTITY].iterchunks() if ENTITY in table.column_names else ()
    entities = (name for chunk in chunks for name in chunk.to_pylist())
    keys = _keys(table["example_id"], entities, b"")
    return table.take(pa.array(np.sort(np.argsort(keys, kind="stable")[:n]))).combine_chunks()
