"""Prepare the task: read a source, check every example, write one Arrow file per language and split.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from tabulate import tabulate

from cache import example_ids, file_digest, write_atomically
from stages.artifacts import DATA, replaced_folder
from stages.data.examples import ENTITY, MANIFEST, SPLITS, UNLABELLED, columns_of, data_file
from stages.data.sources import Columns, hint_of, read_unlabelled, reader_of, require_texts, revision_of
from stages.data.task import Split, TableSource, TaskParams
from stages.errors import StageError
from stages.progress import Bar


@dataclass(frozen=True)
class Prepared:
    """Counts of what was written.

    Attributes:
        examples: Examples per language and split.
        overlap: Per language, the test examples whose text is also in the training split.
    """

    examples: dict[str, dict[Split, int]]
    overlap: dict[str, int]

    def table(self) -> str:
        """Lay out the counts, one language a line."""
        rows = [
            [language, *(counts.get(split) for split in SPLITS), self.overlap.get(language)]
            for language, counts in self.examples.items()
        ]
        head = ["language", *SPLITS, "test in train"]
        return tabulate(
            rows,
            head,
            tablefmt="plain",
            stralign="right",
            colalign=("left",),
            missingval="–",
            disable_numparse=True,
        )


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
    read = reader_of(task, revision)
    examples: dict[str, dict[Split, int]] = {}
    overlap = {}
    for language in Bar(task.languages, desc="prepare", unit="language"):
        supervised = language in task.supervised
        tables: dict[Split, pa.Table] = {}
        for split in SPLITS if supervised else SPLITS[1:]:
            columns = read(language, split)
            table = None if columns is None else _checked(task, columns, f"{language}/{split}")
            if table is not None and table.num_rows:
                tables[split] = table
            elif supervised or split == "test":
                raise StageError(f"the {split} split of '{language}' is empty; {hint_of(task)}")
        for split, table in tables.items():
            _write(table, data_file(language, split, folder))
        examples[language] = {split: table.num_rows for split, table in tables.items()}
        if supervised:
            train = set(tables["train"]["example_id"].to_pylist())
            overlap[language] = sum(i in train for i in tables["test"]["example_id"].to_pylist())
        if (unlabelled := read_unlabelled(task, language)) is not None:
            _write(unlabelled, data_file(language, UNLABELLED, folder))
    if isinstance(task.source, TableSource) and task.source.aligned:
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
    return Prepared(examples, overlap)


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


def _checked(task: TaskParams, columns: Columns, where: str) -> pa.Table:
    require_texts({field: columns[field] for field in task.text_fields}, where)
    texts = [columns[field] for field in task.text_fields]
    labels = list(_label_indices(task.classes, columns["label"], where))
    arrays = [example_ids(texts), *texts, labels]
    table = pa.Table.from_arrays(
        [pa.array(a, type=f.type) for a, f in zip(arrays, columns_of(task), strict=True)],
        schema=columns_of(task),
    )
    entities = columns.get(ENTITY)
    if entities is None and isinstance(task.source, TableSource) and task.source.aligned:
        entities = list(map(str, range(table.num_rows)))
    if entities is not None:
        table = table.append_column(ENTITY, pa.array(entities, pa.string()))
    return table if task.max_examples is None else table.slice(0, task.max_examples)


def _label_indices(classes: list[str], labels: list[Any], where: str) -> Iterable[int]:
    """Turn labels into positions in the task's classes: by name, or by number where no name is a number."""
    index = {name: position for position, name in enumerate(classes)}
    if not any(name.lstrip("-").isdigit() for name in classes):
        index |= {str(position): position for position in range(len(classes))}
    for row, label in enumerate(labels):
        if str(label) not in index:
            count = sum(other == label for other in labels)
            raise StageError(
                f"{where}, row {row}: label {label!r} ({count} times) is not one of "
                f"task.classes: {', '.join(classes)}"
            )
        yield index[str(label)]


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(path, memoryview(sink.getvalue()))
