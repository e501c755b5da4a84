"""Prepare the task: read a source, check every example, write one Arrow file per language and split.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source.
"""

import contextlib
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from tqdm import tqdm

from cache import example_ids, file_digest, write_atomically
from stages.artifacts import DATA, replaced_folder
from stages.base import StageError
from stages.examples import ENTITY, MANIFEST, SPLITS, UNLABELLED, columns_of, data_file
from stages.names import CLASSES, read_names, split_of
from stages.source import resolve_commit
from stages.task import FilesSource, HubSource, NamesSource, Split, TableSource, TaskParams

Columns = Mapping[str, list[Any]]
"""Column name to values, as a source gives them: the text fields, ``label`` and, if it has it, ``entity``."""

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


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
        lines = [f"{'language':<12}{'train':>10}{'validation':>12}{'test':>10}{'test in train':>15}"]
        for language, counts in self.examples.items():
            cells = [counts.get(split, 0) or "–" for split in SPLITS]
            overlap = self.overlap.get(language, "–")
            lines.append(f"{language:<12}{cells[0]:>10}{cells[1]:>12}{cells[2]:>10}{overlap:>15}")
        return "\n".join(lines)


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
    revision = _revision(task)
    read = _reader(task, revision)
    examples: dict[str, dict[Split, int]] = {}
    overlap = {}
    for language in tqdm(task.languages, desc="prepare", unit="language", leave=False):
        supervised = language in task.supervised
        tables: dict[Split, pa.Table] = {}
        for split in SPLITS if supervised else SPLITS[1:]:
            columns = read(language, split)
            table = None if columns is None else _checked(task, columns, f"{language}/{split}")
            if table is not None and table.num_rows:
                tables[split] = table
            elif supervised or split == "test":
                raise StageError(f"the {split} split of '{language}' is empty; {_source_hint(task)}")
        for split, table in tables.items():
            _write(table, data_file(language, split, folder))
        examples[language] = {split: table.num_rows for split, table in tables.items()}
        if supervised:
            train = set(tables["train"]["example_id"].to_pylist())
            overlap[language] = sum(i in train for i in tables["test"]["example_id"].to_pylist())
        if (unlabelled := _read_unlabelled(task, language)) is not None:
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


def _revision(task: TaskParams) -> str | None:
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


def _reader(task: TaskParams, revision: str | None) -> Callable[[str, Split], Columns | None]:
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
    return lambda language, split: _read_files(source, task, language, split)


def _source_hint(task: TaskParams) -> str:
    source = task.source
    if isinstance(source, FilesSource):
        return f"task.source.pattern is {source.pattern}"
    return f"task.source is {source.dataset}" if isinstance(source, HubSource) else "task.source"


def _read_names_split(language: str, split: Split) -> Columns:
    names = [name for name in read_names(language) if split_of(name.entity) == split]
    return {name: [getattr(n, name) for n in names] for name in ("text", "label", ENTITY)}


def _read_unlabelled(task: TaskParams, language: str) -> pa.Table | None:
    """Read a language's texts for pre-training: columns ``text`` and ``entity``; None: it has none."""
    source = task.source
    if isinstance(source, NamesSource):
        names = [name for name in read_names(language) if split_of(name.entity) == "train"]
        return pa.table({"text": [n.text for n in names], ENTITY: [n.entity for n in names]})
    if not isinstance(source, FilesSource):
        return None
    read = _read_tables(source, ["text", ENTITY], language, UNLABELLED)
    if read is None:
        return None
    table, where = read
    if ENTITY not in table.column_names:
        table = table.append_column(ENTITY, pa.array([f"{language}:{i}" for i in range(table.num_rows)]))
    columns = _pick(table, ["text", ENTITY], where)
    _require_texts(columns, where)
    return pa.table(columns)


def _read_hub(
    source: HubSource, task: TaskParams, language: str, split: Split, revision: str | None
) -> Columns | None:
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
    table = data.with_format("arrow")[:]
    return _columns(task, table, source.label_field, names, f"{source.dataset} ({language}, {split})")


def _read_files(source: FilesSource, task: TaskParams, language: str, split: Split) -> Columns | None:
    read = _read_tables(source, task.text_fields, language, split)
    return None if read is None else _columns(task, read[0], source.label_field, None, read[1])


def _read_tables(
    source: FilesSource, text_fields: list[str], language: str, split: str
) -> tuple[pa.Table, str] | None:
    """Read the files of a split as one table, and give their names; None where there are none."""
    pattern = source.pattern.replace("{language}", language).replace("{split}", split)
    paths = sorted(Path().glob(pattern))
    if not paths:
        return None
    tables = [_read_file(path, source, text_fields) for path in paths]
    names = ", ".join(map(str, paths))
    try:
        return pa.concat_tables(tables, promote_options="permissive"), names
    except pa.ArrowException as error:
        raise StageError(f"the columns of {names} do not fit together: {error}") from error


def _read_file(path: Path, source: FilesSource, text_fields: list[str]) -> pa.Table:
    """Read one file; in CSV and TSV, texts and labels are text whatever they look like."""
    texts = pa.schema(dict.fromkeys(text_fields, pa.string()))
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix in (".jsonl", ".json"):
            options = pa.json.ParseOptions(explicit_schema=texts)
            table = pa.json.read_json(path, parse_options=options)
            # A column that the schema names and the file has not is full of nulls.
            absent = [name for name in texts.names if table[name].null_count == table.num_rows]
            return table.drop_columns(absent)
        if path.suffix in (".csv", ".tsv"):
            tabs = path.suffix == ".tsv"  # has no quotes: IANA text/tab-separated-values
            as_texts = [*text_fields, ENTITY, source.label_field]
            return pa.csv.read_csv(
                path,
                parse_options=pa.csv.ParseOptions(
                    delimiter="\t" if tabs else ",",
                    quote_char=False if tabs else '"',
                    newlines_in_values=not tabs,
                ),
                convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(as_texts, pa.string())),
            )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise StageError(f"cannot read {path}: {error}") from error
    raise StageError(f"cannot read {path}: it is not one of {', '.join(_SUFFIXES)}")


def _columns(
    task: TaskParams, table: pa.Table, label_field: str, label_names: list[str] | None, where: str
) -> Columns:
    """Pick the text fields and the labels out of a table, the labels by name where they have names."""
    columns = _pick(table, [*task.text_fields, label_field], where)
    labels = columns[label_field]
    if label_names is not None:
        known = dict(enumerate(label_names))
        labels = [known.get(label, label) for label in labels]
    columns = {**columns, "label": labels}
    if ENTITY in table.column_names and label_field != ENTITY:
        with contextlib.suppress(pa.ArrowException):  # a column of that name may hold something else
            columns[ENTITY] = [entity or None for entity in table[ENTITY].cast(pa.string()).to_pylist()]
    return columns


def _pick(table: pa.Table, fields: list[str], where: str) -> dict[str, list[Any]]:
    for field in fields:
        if field not in table.column_names:
            close = difflib.get_close_matches(field, table.column_names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(table.column_names)}"
            raise StageError(f"{where} has no column '{field}'; {hint}")
    return {field: table[field].to_pylist() for field in fields}


def _require_texts(columns: Columns, where: str) -> None:
    for field, values in columns.items():
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise StageError(f"{where}, row {row}: {field} is {value!r}, not a text")


def _checked(task: TaskParams, columns: Columns, where: str) -> pa.Table:
    _require_texts({field: columns[field] for field in task.text_fields}, where)
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
