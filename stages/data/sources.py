"""Where a task's examples come from: the built-in names, people's files, or a data set on the Hub.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source.
"""

import contextlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from stages.data.examples import ENTITY, UNLABELLED
from stages.data.files import Input, instead_of
from stages.data.names import CLASSES, read_names, split_of
from stages.data.task import FilesSource, HubSource, NamesSource, Split, TaskParams
from stages.errors import StageError
from stages.hub import resolve_commit


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    Attributes:
        columns: Column name to values, as a source gives them: the text fields, ``label`` and ``entity``.
        places: Where they stand: each file with its numbers of lines or rows, such as ``a.csv, line``.
        by_name: Whether labels are class names, and not numbers that may stand for any.
    """

    columns: Mapping[str, list[Any]]
    places: Sequence[tuple[str, Sequence[int]]]
    by_name: bool = False

    def at(self, row: int) -> str:
        """Say where a row stands."""
        for file, numbers in self.places:
            if row < len(numbers):
                return f"{file} {numbers[row]}"
            row -= len(numbers)
        raise IndexError(row)


_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def revision_of(task: TaskParams) -> str | None:
    """Find out which version of the data the source stands for today.

    Returns:
        The commit of a data set on the Hub; the package of the built-in task and its version; None for files.

    Raises:
        StageError: The Hub knows no such data set, or cannot be reached.
    """
    source = task.source
    if isinstance(source, NamesSource):
        return f"babel {version('babel')}"
    if isinstance(source, FilesSource) or Path(source.dataset).exists():
        return None
    return resolve_commit(source.dataset, source.revision, key="task.source.dataset", kind="dataset")


def reader_of(task: TaskParams, revision: str | None) -> Callable[[str, Split], Rows | None]:
    """Choose how a language and split is read; None stands for a split that does not exist."""
    source = task.source
    if isinstance(source, NamesSource):
        if tuple(task.classes) != CLASSES or task.text_fields != ["text"]:
            raise StageError(
                f"task 'names' needs task.text_fields: [text] and task.classes: [{', '.join(CLASSES)}]"
            )
        return _read_names_split
    if isinstance(source, HubSource):
        return lambda language, split: _read_hub(source, task, language, split, revision)
    return lambda language, split: _read_files(source, task.text_fields, source.label_field, language, split)


def hint_of(task: TaskParams) -> str:
    """Say which parameter names the source, for messages."""
    source = task.source
    if isinstance(source, FilesSource):
        return f"task.source.pattern is {source.pattern}"
    return f"task.source is {source.dataset}" if isinstance(source, HubSource) else "task.source"


def _read_names_split(language: str, split: Split) -> Rows:
    names = [name for name in read_names(language) if split_of(name.entity) == split]
    columns = {name: [getattr(n, name) for n in names] for name in ("text", "label", ENTITY)}
    return Rows(columns, [(f"names ({language}, {split}), row", range(len(names)))], by_name=True)


def read_unlabelled(task: TaskParams, language: str) -> pa.Table | None:
    """Read a language's texts for pre-training: columns ``text`` and ``entity``; None: it has none."""
    source = task.source
    if isinstance(source, NamesSource):
        names = [name for name in read_names(language) if split_of(name.entity) == "train"]
        return pa.table({"text": [n.text for n in names], ENTITY: [n.entity for n in names]})
    if not isinstance(source, FilesSource):
        return None
    rows = _read_files(source, ["text"], None, language, UNLABELLED)
    if rows is None:
        return None
    require_texts(rows, ["text"])
    texts = rows.columns["text"]
    entities = rows.columns[ENTITY]
    if not any(entities):
        entities = [f"{language}:{i}" for i in range(len(texts))]
    elif None in entities:
        raise StageError(f"{rows.at(entities.index(None))}: {ENTITY} is empty; give each row one, or none")
    return pa.table({"text": texts, ENTITY: entities})


def _read_hub(
    source: HubSource, task: TaskParams, language: str, split: Split, revision: str | None
) -> Rows | None:
    import datasets  # slow import

    config = source.config and source.config.replace("{language}", language)
    try:
        builder = datasets.load_dataset_builder(source.dataset, config, revision=revision)
        builder.download_and_prepare()
    except Exception as error:  # of many types, the network's among them
        reason = str(error).strip().partition("\n")[0]
        raise StageError(f"cannot load {source.dataset} for '{language}': {reason}") from error
    if split not in builder.info.splits:
        return None
    data = builder.as_dataset(split=split)
    names = getattr(data.features.get(source.label_field), "names", None)
    where = f"{source.dataset} ({language}, {split})"
    return _of_table(data.with_format("arrow")[:], task.text_fields, source.label_field, names, where)


def _read_files(
    source: FilesSource, texts: list[str], label: str | None, language: str, split: str
) -> Rows | None:
    """Read the files of a split, in the order of their names; None where there are none."""
    pattern = source.pattern.replace("{language}", language).replace("{split}", split)
    read = [_read_file(path, source, texts, label) for path in sorted(Path().glob(pattern))]
    if not read:
        return None
    columns = {name: [value for one in read for value in one.columns[name]] for name in read[0].columns}
    places = [place for one in read for place in one.places]
    return Rows(columns, places, by_name=all(one.by_name for one in read))


def _read_file(path: Path, source: FilesSource, texts: list[str], label: str | None) -> Rows:
    """Read a file; in CSV and TSV, texts and labels are text whatever they look like.

    In Parquet, labels have the names that `datasets` noted in the file, if it did.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise StageError(f"cannot read {path}: it is not one of {', '.join(_SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        try:
            table = pa.parquet.read_table(path)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise StageError(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error
        return _of_table(table, texts, label, _noted_names(table.schema, label), str(path))
    found = Input(path, None, texts, None, quoting=source.quoting, needed=[label] if label else [])
    columns: dict[str, list[Any]] = {name: [] for name in (*texts, "label", ENTITY)}
    numbers = array("q")
    for number, row in found.rows():
        numbers.append(number)
        for name in texts:
            columns[name].append(row[name])
        columns["label"].append(row[label] if label else None)
        columns[ENTITY].append(None if label == ENTITY else _as_entity(row.get(ENTITY)))
    return Rows(columns, [(f"{path}, line", numbers)])


def _of_table(
    table: pa.Table, texts: list[str], label: str | None, names: list[str] | None, where: str
) -> Rows:
    """Pick texts, labels and entities out of a table, the labels by name where they have names."""
    n = table.num_rows
    for name in (*texts, *([label] if label else [])):
        if name not in table.column_names:
            raise StageError(f"{where} has no column '{name}'; {instead_of(name, table.column_names)}")
    columns = {name: table[name].to_pylist() for name in texts}
    labels = table[label].to_pylist() if label else [None] * n
    known: dict[Any, str] = dict(enumerate(names or ()))
    if all(name == str(number) for number, name in known.items()):
        known = {}  # names that say no more than the numbers
    columns["label"] = [known.get(one, one) for one in labels]
    has_entities = ENTITY in table.column_names and label != ENTITY
    columns[ENTITY] = [_as_entity(one) for one in table[ENTITY].to_pylist()] if has_entities else [None] * n
    return Rows(columns, [(f"{where}, row", range(1, n + 1))], by_name=bool(known))


def _as_entity(value: Any) -> str | None:
    """Give the text of what a row says that it is about; a column of that name may hold something else."""
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return (str(value) or None) if plain else None


def _noted_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Read the class names of a column out of the metadata that `datasets` writes into Parquet files."""
    noted = (schema.metadata or {}).get(b"huggingface")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        names = json.loads(noted or b"{}")["info"]["features"][label]["names"]
        return [str(name) for name in names]
    return None


def require_texts(rows: Rows, fields: Sequence[str]) -> None:
    """Refuse what is no text.

    Raises:
        StageError: A value is null, or of another type.
    """
    for name in fields:
        for row, value in enumerate(rows.columns[name]):
            if not isinstance(value, str):
                raise StageError(f"{rows.at(row)}: {name} is {value!r}, not a text")
