"""Where a task's examples come from: the built-in names, people's files, or a data set on the Hub.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source.
"""

import contextlib
import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from stages.data.examples import ENTITY, UNLABELLED
from stages.data.names import CLASSES, read_names, split_of
from stages.data.task import FilesSource, HubSource, NamesSource, Split, TaskParams
from stages.errors import StageError
from stages.hub import resolve_commit

Columns = Mapping[str, list[Any]]
"""Column name to values, as a source gives them: the text fields, ``label`` and, if it has it, ``entity``."""


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


def reader_of(task: TaskParams, revision: str | None) -> Callable[[str, Split], Columns | None]:
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


def hint_of(task: TaskParams) -> str:
    """Say which parameter names the source, for messages."""
    source = task.source
    if isinstance(source, FilesSource):
        return f"task.source.pattern is {source.pattern}"
    return f"task.source is {source.dataset}" if isinstance(source, HubSource) else "task.source"


def _read_names_split(language: str, split: Split) -> Columns:
    names = [name for name in read_names(language) if split_of(name.entity) == split]
    return {name: [getattr(n, name) for n in names] for name in ("text", "label", ENTITY)}


def read_unlabelled(task: TaskParams, language: str) -> pa.Table | None:
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
    require_texts(columns, where)
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


def require_texts(columns: Columns, where: str) -> None:
    """Refuse what is no text.

    Raises:
        StageError: A value is null, or of another type.
    """
    for field, values in columns.items():
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise StageError(f"{where}, row {row}: {field} is {value!r}, not a text")
