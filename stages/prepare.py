"""Prepare the task: read a source, check every example, write one Arrow file per language and split.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tabulate import tabulate

from cache import example_ids, file_digest, write_atomically
from stages.artifacts import DATA, replaced_folder
from stages.data.examples import ENTITY, MANIFEST, SPLITS, UNLABELLED, columns_of, data_file
from stages.data.sources import Rows, hint_of, read_unlabelled, reader_of, require_texts, revision_of
from stages.data.task import Split, TableSource, TaskParams
from stages.errors import StageError
from stages.progress import Bar


@dataclass
class Prepared:
    """What was written.

    Attributes:
        classes: The task's.
        examples: Examples per language and split.
        overlap: Per language, the test examples whose text is also in the training split.
        by_class: Per supervised language, training examples of each class.
        notes: What people want to know of their data, a line each.
    """

    classes: Sequence[str]
    examples: dict[str, dict[Split, int]] = field(default_factory=dict)
    overlap: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Lay out the counts, one language a line, then those of the classes, and the notes."""
        rows = [
            [language, *(counts.get(split) for split in SPLITS), self.overlap.get(language)]
            for language, counts in self.examples.items()
        ]
        classes = [
            [name, *(counts[index] for counts in self.by_class.values())]
            for index, name in enumerate(self.classes)
        ]
        tables = [
            tabulate(
                cells,
                head,
                tablefmt="plain",
                stralign="right",
                colalign=("left",),
                missingval="–",
                disable_numparse=True,
            )
            for cells, head in (
                (rows, ["language", *SPLITS, "test in train"]),
                (classes, ["class, in train", *self.by_class]),
            )
        ]
        return "\n\n".join([*tables, *(["\n".join(self.notes)] if self.notes else [])])


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
    done = Prepared(task.classes)
    ids: dict[tuple[str, Split], list[bytes]] = {}
    for language in Bar(task.languages, desc="prepare", unit="language"):
        supervised = language in task.supervised
        tables: dict[Split, pa.Table] = {}
        for split in SPLITS if supervised else SPLITS[1:]:
            rows = read(language, split)
            table = None if rows is None else _checked(task, rows, language, split)
            if table is not None and table.num_rows:
                tables[split] = table
            elif supervised or split == "test":
                raise StageError(f"the {split} split of '{language}' is empty; {hint_of(task)}")
        for split, table in tables.items():
            _write(table, data_file(language, split, folder))
            ids[language, split] = table["example_id"].to_pylist()
            texts = zip(*(table[name].to_pylist() for name in task.text_fields), strict=True)
            if n_empty := sum(not all(text.strip() for text in fields) for fields in texts):
                done.notes.append(f"{language}: {n_empty:,} {split} examples have an empty text")
        done.examples[language] = {split: table.num_rows for split, table in tables.items()}
        if supervised:
            train = set(ids[language, "train"])
            done.overlap[language] = sum(i in train for i in ids[language, "test"])
            _note_classes(done, language, tables["train"])
        if (unlabelled := read_unlabelled(task, language)) is not None:
            _write(unlabelled, data_file(language, UNLABELLED, folder))
    _note_training_texts_elsewhere(done, ids)
    examples = done.examples
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


def _note_classes(done: Prepared, language: str, train: pa.Table) -> None:
    """Count the classes of a training split, and note those that are missing and labels that contradict."""
    labels = train["label"].to_pylist()
    counts = Counter(labels)
    done.by_class[language] = [counts[index] for index in range(len(done.classes))]
    missing = [name for index, name in enumerate(done.classes) if not counts[index]]
    if missing:
        done.notes.append(f"warning: {language}: no training example of {', '.join(missing)}")
    ids = train["example_id"].to_pylist()
    said = Counter(i for i, _ in set(zip(ids, labels, strict=True)))
    contradictory = sum(n > 1 for n in said.values())
    if contradictory:
        done.notes.append(f"{language}: {contradictory:,} training texts stand there with several labels")


def _note_training_texts_elsewhere(done: Prepared, ids: Mapping[tuple[str, Split], list[bytes]]) -> None:
    """Note validation texts that are training texts, and test texts that are another language's."""
    train = {language: set(found) for (language, split), found in ids.items() if split == "train"}
    for (language, split), found in ids.items():
        own = sum(i in train.get(language, ()) for i in found)
        if split == "validation" and own:
            done.notes.append(f"{language}: {own:,} validation texts are training texts")
        others = [name for name in train if name != language]
        foreign = sum(any(i in train[name] for name in others) for i in found)
        if split != "train" and foreign:
            done.notes.append(f"{language}: {foreign:,} {split} texts are another language's training texts")


def _checked(task: TaskParams, rows: Rows, language: str, split: Split) -> pa.Table:
    require_texts(rows, task.text_fields)
    texts = [rows.columns[name] for name in task.text_fields]
    arrays = [example_ids(texts), *texts, _labels(task, rows, language, split)]
    table = pa.Table.from_arrays(
        [pa.array(a, type=f.type) for a, f in zip(arrays, columns_of(task), strict=True)],
        schema=columns_of(task),
    )
    entities = rows.columns[ENTITY] if any(rows.columns[ENTITY]) else None
    if entities is None and isinstance(task.source, TableSource) and task.source.aligned:
        entities = list(map(str, range(table.num_rows)))
    if entities is not None:
        table = table.append_column(ENTITY, pa.array(entities, pa.string()))
    return table if task.max_examples is None else _some(table, task.max_examples)


def _some(table: pa.Table, n: int) -> pa.Table:
    """Choose `n` rows by a hash of what they are about, or of their text, and leave them in their order."""
    keys = table["example_id"].to_pylist()
    if ENTITY in table.column_names:
        entities = table[ENTITY].to_pylist()
        keys = [
            key if entity is None else hashlib.blake2b(entity.encode(), digest_size=16).digest()
            for key, entity in zip(keys, entities, strict=True)
        ]
    return table.take(sorted(sorted(range(len(keys)), key=keys.__getitem__)[:n]))


def _labels(task: TaskParams, rows: Rows, language: str, split: Split) -> list[int]:
    """Turn labels into positions in the task's classes: by name, or by number where nothing has a name.

    Raises:
        StageError: A label is no class, or numbers may begin with another than 0.
    """
    by_name = {name: position for position, name in enumerate(task.classes)}
    may_be_numbers = not rows.by_name and not any(name.lstrip("-").isdigit() for name in task.classes)
    first = task.source.first_class_number if isinstance(task.source, TableSource) else None
    numbers = {str(position + (first or 0)): position for position in range(len(task.classes))}
    index = numbers | by_name if may_be_numbers else by_name
    labels: list[Any] = rows.columns["label"]
    found = []
    for row, label in enumerate(labels):
        if str(label) not in index:
            raise StageError(
                f"{rows.at(row)}: label {label!r} ({labels.count(label)} times) is not one of task.classes: "
                f"{', '.join(task.classes)}{_hint_of_number(label, first, may_be_numbers, task.classes)}"
            )
        found.append(index[str(label)])
    used = {str(label) for label in labels} - by_name.keys()
    if split == "train" and first is None and used and "0" not in used:
        raise StageError(
            f"the training labels of '{language}' are the numbers {', '.join(sorted(used))} and never 0; say "
            "task.source.first_class_number: 0 or 1"
        )
    return found


def _hint_of_number(label: Any, first: int | None, may_be_numbers: bool, classes: Sequence[str]) -> str:
    """Say what to type where a number is one beyond the classes, as if they began with 1."""
    if may_be_numbers and first is None and str(label) == str(len(classes)):
        return "; if their numbers begin with 1, say task.source.first_class_number: 1"
    return ""


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(path, memoryview(sink.getvalue()))
