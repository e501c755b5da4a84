"""Where a task's examples come from: the built-in names, people's files, or a data set on the Hub.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source. Memory is
bounded by a window of rows.
"""

import contextlib
import datetime
import decimal
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet

from stages.data.examples import ENTITY, SPLITS, UNLABELLED
from stages.data.files import COMPRESSED, Input, MissingColumnError, instead_of, kind_of, shown, without_zeros
from stages.data.names import CLASSES, read_names, split_of
from stages.data.rows import Placed, column, placed_rows, windows
from stages.data.task import FilesSource, HubSource, NamesSource, Split, SplitName, TableSource, TaskParams
from stages.errors import StageError
from stages.hub import first_line, resolve_commit

WINDOW = 1 << 16
"""Rows in memory at a time."""


Revision: TypeAlias = str | Mapping[str, str] | None
"""See `revision_of`."""


@dataclass(frozen=True)
class Rows:
    """A window of a split's rows, as the source gives them.

    Attributes:
        texts: Per text field, in the task's order, its values.
        labels: Names or numbers; None in unlabelled text.
        entities: What the rows are about; None: the source is silent.
        file: Where they stand.
        places: Where in the file, such as ``line 7``.
        by_name: Whether labels are class names, and not numbers that may stand for any.
        noted: The names that the file itself notes for its numbers, in their order.
        soft: What a soft-label column says of each row, by class; None: there is no such column.
        teachers: Which teacher each row is for; None: there is no such column.
    """

    texts: Sequence[list[Any]]
    labels: list[Any]
    entities: list[str | None]
    file: str
    places: Sequence[str]
    by_name: bool = False
    noted: Sequence[str] = ()
    soft: list[Any] | None = None
    teachers: list[Any] | None = None

    def at(self, row: int) -> str:
        """Say where a row stands."""
        return f"{self.file}, {self.places[row]}"

    def require_texts(self, fields: Sequence[str]) -> None:
        """Refuse what is no text.

        Raises:
            StageError: A value is null, or of another type.
        """
        for name, values in zip(fields, self.texts, strict=True):
            for row, value in enumerate(values):
                if not isinstance(value, str):
                    raise StageError(f"{self.at(row)}: {name} is {shown(value)}, not a text")


@dataclass(frozen=True)
class _Fields:
    """How a source calls what is read of it."""

    texts: Sequence[str]
    label: str | None
    entity: str | None
    language: str | None
    needed: Sequence[str]
    """Columns that must be there besides the texts."""
    soft: Mapping[str, str] | str | None = None
    """The column with soft labels, or that of each class."""
    teacher: str | None = None

    @classmethod
    def of(cls, source: TableSource, task: TaskParams, language: str, split: SplitName) -> "_Fields":
        texts: Sequence[str] = task.text_fields
        named = [*(source.text_fields or texts), source.label_field, source.entity_field or ENTITY]
        *texts, label, entity = (name.replace("{language}", language) for name in named)
        needed = [label, *([entity] if source.entity_field else []), *([source.language_field or label])]
        found = None if entity == label else entity
        needed += [source.teacher_field] if source.teacher_field and split == "train" else []
        soft: Mapping[str, str] | str | None = source.soft_label_field
        if isinstance(soft, str):
            soft = soft.replace("{language}", language)
            by_class = {name: soft.replace("{class}", name) for name in task.classes}
            soft = by_class if "{class}" in soft else soft
        needed = list(dict.fromkeys(needed))
        return cls(texts, label, found, source.language_field, needed, soft, source.teacher_field)

    def columns(self) -> list[str]:
        """Give all columns that may be read."""
        soft = [self.soft] if isinstance(self.soft, str) else [*(self.soft or {}).values()]
        others = (self.label, self.entity, self.language, self.teacher)
        return [*self.texts, *self.needed, *soft, *(name for name in others if name)]

    def require_each_class(self, names: Collection[str], where: str) -> None:
        """Refuse soft labels of some classes: the others would have none anywhere.

        Raises:
            StageError: A class has no column, and another has.
        """
        if not isinstance(self.soft, Mapping):
            return
        missing = [name for name in self.soft.values() if name not in names]
        if missing and len(missing) < len(self.soft):
            hint = instead_of(missing[0], list(names), taken=self.columns())
            raise StageError(f"{where} has no column '{missing[0]}'; {hint}")

    def soft_of(self, row: Mapping[str, Any]) -> Any:
        """Give what a row says of each class; a file need not have such columns."""
        if isinstance(self.soft, str):
            return row.get(self.soft)
        return {name: row.get(column) for name, column in (self.soft or {}).items()}


def revision_of(task: TaskParams) -> str | dict[str, str] | None:
    """Find out which version of the data the source stands for today.

    Returns:
        The commit of a data set on the Hub, by language where each has one of its own; the package of the
        built-in task and its version; None for files.

    Raises:
        StageError: The Hub knows no such data set, or cannot be reached.
    """
    source = task.source
    if isinstance(source, NamesSource):
        return f"babel {version('babel')}"
    if isinstance(source, FilesSource):
        return None
    if "{language}" not in source.dataset:
        return _commit_of(source.dataset, source)
    commits = {language: _commit_of(_dataset_of(source, language), source) for language in task.languages}
    return {language: commit for language, commit in commits.items() if commit} or None


def _dataset_of(source: HubSource, language: str) -> str:
    return source.dataset.replace("{language}", language)


def _commit_of(dataset: str, source: HubSource) -> str | None:
    folder = Path(dataset)
    if folder.exists():
        if ".." in folder.parts or not folder.absolute().is_relative_to(Path("data").absolute()):
            raise StageError(
                f"task.source.dataset is {dataset}, a folder outside data/, where DVC sees no changes; put "
                "it, or a link per file, below data/"
            )
        return None
    return resolve_commit(dataset, source.revision, key="task.source.dataset", kind="dataset")


def reader_of(
    task: TaskParams, revision: Revision, others: Counter[str]
) -> Callable[[str, Split], Iterator[Rows]]:
    """Choose how a language and split is read; a split that does not exist has no rows.

    Args:
        task: Section `task`.
        revision: See `revision_of`.
        others: Counts rows that are left out, by what they say that their language is.

    Raises:
        StageError: The source cannot be of this task, or two languages have the same file.
    """
    source = task.source
    if isinstance(source, NamesSource):
        if tuple(task.classes) != CLASSES or task.text_fields != ["text"]:
            raise StageError(
                f"task 'names' needs task.text_fields: [text] and task.classes: [{', '.join(CLASSES)}]"
            )
        return _read_names_split
    if isinstance(source, HubSource):
        commits = revision if isinstance(revision, Mapping) else dict.fromkeys(task.languages, revision)
        return lambda language, split: _read_hub(
            source,
            _Fields.of(source, task, language, split),
            language,
            split,
            commits.get(language),
            others,
        )
    _require_own_files(source, task.languages)
    return lambda language, split: _read_files(
        source, _Fields.of(source, task, language, split), language, split, others
    )


def hint_of(task: TaskParams, language: str, split: Split, others: Counter[str]) -> str:
    """Say why a split has no rows, for messages: no file, or none of a language; and what there is."""
    source = task.source
    if isinstance(source, NamesSource):
        return "task.source"
    if isinstance(source, HubSource):
        pattern = _dataset_of(source, language)
    else:
        pattern = _pattern_of(source, language, split)
    if others:
        there = ", ".join(name for name, _ in others.most_common(5))
        return f"{pattern} has no row with {source.language_field} '{language}'; there are: {there}"
    if isinstance(source, HubSource):
        return f"task.source is {pattern}"
    if any(Path().glob(pattern)):
        return f"{pattern} has no rows"
    folder = Path(pattern).parent
    beside = sorted(str(path) for path in folder.glob("*") if path.is_file())
    listed = ", ".join([*beside[:5], *(["…"] if len(beside) > 5 else [])])
    return f"there is no file {pattern}, and in {folder}: {listed or 'nothing'}"


def _pattern_of(source: FilesSource, language: str, split: SplitName) -> str:
    called = source.splits.get(split, split)
    return source.pattern.replace("{language}", language).replace("{split}", called)


def _require_own_files(source: FilesSource, languages: Sequence[str]) -> None:
    """Refuse a file that a pattern finds for two languages, as ``{language}*`` finds that of de-AT for de."""
    if is_for_all(source) or source.language_field is not None:
        return
    for split in (*SPLITS, UNLABELLED):
        owners: dict[Path, str] = {}
        for language in languages:
            for path in Path().glob(_pattern_of(source, language, split)):
                if owners.setdefault(path, language) != language:
                    raise StageError(
                        f"task.source.pattern finds {path} for '{owners[path]}' and for '{language}'; write "
                        "one that finds a file for one language"
                    )


def is_for_all(source: TableSource | NamesSource) -> bool:
    """Tell whether all languages stand in the same files."""
    if isinstance(source, HubSource):
        return "{language}" not in f"{source.dataset} {source.config}"
    return not isinstance(source, FilesSource) or "{language}" not in source.pattern


def place_of(task: TaskParams, split: SplitName) -> str:
    """Say where a split of all languages stands, for messages."""
    source = task.source
    if isinstance(source, FilesSource):
        return _pattern_of(source, "{language}", split)
    return f"split {split} of {source.dataset if isinstance(source, HubSource) else 'task.source'}"


def _read_names_split(language: str, split: Split) -> Iterator[Rows]:
    names = [name for name in read_names(language) if split_of(name.entity) == split]
    yield Rows(
        [[name.text for name in names]],
        [name.label for name in names],
        [name.entity for name in names],
        f"names ({language}, {split})",
        [f"row {n}" for n in range(1, len(names) + 1)],
        by_name=True,
    )


def read_taught(
    task: TaskParams, revision: Revision, language: str, split: SplitName = UNLABELLED
) -> Iterator[Rows]:
    """Read a language's texts that are to teach without a label, if it has any, with the task's text fields.

    Args:
        task: Section `task`.
        revision: See `revision_of`.
        language: One of the task's.
        split: ``unlabelled``, or ``train``, whose labels are not read.
    """
    source = task.source
    if isinstance(source, NamesSource):
        if split == "train":
            yield from _read_names_split(language, split)
        return
    fields = _Fields.of(source, task, language, split)
    needed = [name for name in fields.needed if name not in (fields.label, fields.teacher)]
    fields = replace(fields, label=None, needed=needed)
    if isinstance(source, HubSource):
        commit = revision.get(language) if isinstance(revision, Mapping) else revision
        yield from _read_hub(source, fields, language, split, commit, Counter())
        return
    if split == UNLABELLED and source.columns is not None and source.label_field in source.columns:
        columns = [name for name in source.columns if name != source.label_field]
        source = source.model_copy(update={"columns": columns})
    by_column = any("{language}" in name for name in source.text_fields or ())
    for rows in _read_files(source, fields, language, split, Counter()):
        if not by_column:
            _require_language(source, rows)
        yield rows


def _require_language(source: FilesSource, rows: Rows) -> None:
    if "{language}" not in source.pattern and source.language_field is None:
        raise StageError(f"{rows.file}: of which language? write {{language}} into task.source.pattern")


def read_corpus(pattern: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """Read texts out of files of any kind that examples may have, window by window.

    Args:
        pattern: Glob of the files.
        columns: Of tables, those with texts; a text file has a text per line.

    Raises:
        StageError: There is no such file, or it cannot be read.
    """
    paths = sorted(path for path in Path().glob(pattern) if path.is_file())
    if not paths:
        raise StageError(f"student.pretrain.vocabulary.texts is {pattern}: there is no such file")
    for path in paths:
        if kind_of(path) is None:
            raise StageError(
                f"cannot read {path}: it is not one of .txt, .csv, .tsv, .jsonl, .json, .parquet"
            )
        names = ["text"] if kind_of(path) == "plain" else columns
        found = Input(path, None, names, None, only=names, skip_blank=True)
        for window in windows(found, WINDOW):
            yield [text for name in names for text in column(window, name)]


def read_unlabelled(task: TaskParams, language: str) -> Iterator[pa.Table]:
    """Read a language's texts for pre-training, if it has any: columns ``text`` and ``entity``.

    Files may have them in a column ``text``, and with `task.unlabelled` also in the task's text field.
    """
    source = task.source
    if isinstance(source, NamesSource):
        names = [name for name in read_names(language) if split_of(name.entity) == "train"]
        yield pa.table({"text": [n.text for n in names], ENTITY: [n.entity for n in names]})
    if not isinstance(source, FilesSource):
        return
    places = ["text"]
    if source.columns is not None:  # there is no label in it to have a column
        source = source.model_copy(update={"columns": ["text"]})
    elif task.unlabelled:
        own = [name.replace("{language}", language) for name in source.text_fields or task.text_fields]
        places = [*(own if len(own) == 1 else []), "text"]
    for place in dict.fromkeys(places):
        tables = _texts_alone(source, place, language)
        try:
            first = next(tables, None)
        except MissingColumnError:
            if place == "text" and not (task.unlabelled and is_for_all(source)):
                raise
            continue  # of a file for all languages, no row is of this one
        if first is not None:
            yield from chain([first], tables)
        return


def _texts_alone(source: FilesSource, text: str, language: str) -> Iterator[pa.Table]:
    """Give the column `text` of a language's split ``unlabelled``, with what the texts are about."""
    entity = (source.entity_field or ENTITY).replace("{language}", language)
    of = source.language_field
    fields = _Fields([text], None, entity, of, [of] if of else [])
    start = 0
    has_entities: bool | None = None
    for rows in _read_files(source, fields, language, UNLABELLED, Counter()):
        if text == "text" or "{language}" not in f"{source.text_fields}":
            _require_language(source, rows)
        rows.require_texts([text])
        entities = rows.entities
        has_entities = any(entities) if has_entities is None else has_entities
        for row, one in enumerate(entities):
            if (one is not None) != has_entities:
                raise StageError(
                    f"{rows.at(row)}: {entity} is given in some rows and not in all; give each one, or none"
                )
        if not has_entities:
            entities = [f"{language}:{start + i}" for i in range(len(entities))]
        columns = {"text": rows.texts[0], ENTITY: entities}
        yield pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        start += len(entities)


def _read_hub(
    source: HubSource,
    fields: _Fields,
    language: str,
    split: SplitName,
    revision: str | None,
    others: Counter[str],
) -> Iterator[Rows]:
    import datasets  # slow import

    name = _dataset_of(source, language)
    config = source.config and source.config.replace("{language}", language)
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        builder.download_and_prepare()
    except Exception as error:  # of many types, the network's among them
        raise StageError(f"cannot load {name} for '{language}': {_reason(error)}") from error
    called = source.splits.get(split, split)
    if called not in builder.info.splits:
        return
    data = builder.as_dataset(split=called)
    names = getattr(data.features.get(fields.label), "names", None)
    start = 0
    for table in data.with_format("arrow").iter(WINDOW):
        rows = _of_table(table, fields, names, f"{name} ({language}, {called})", start, language, others)
        start += table.num_rows
        if rows.labels:
            yield rows


def _reason(error: Exception) -> str:
    """Give the reason behind what `datasets` says of a file that it cannot read, or an error's first line."""
    import datasets  # slow import

    if not isinstance(error, datasets.exceptions.DatasetGenerationError):
        return first_line(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, datasets.table.CastError):  # whose first line says nothing
        return f"its files must have the same columns, but {cause.details()}"
    return first_line(cause if isinstance(cause, Exception) else error)


def _read_files(
    source: FilesSource, fields: _Fields, language: str, split: SplitName, others: Counter[str]
) -> Iterator[Rows]:
    """Read the files of a split, in the order of their names; in CSV and TSV, every value is a text.

    Unlabelled text may always be a text file.

    Raises:
        MissingColumnError: No file has a column.
        StageError: Some have it, or a file cannot be read.
    """
    pattern = _pattern_of(source, language, split)
    paths = set(Path().glob(pattern))
    if split == UNLABELLED:
        paths |= {path for path in Path().glob(str(_as_text_file(Path(pattern)))) if path.is_file()}
    lacking: MissingColumnError | None = None
    is_first = True
    for path in sorted(paths):
        try:
            yield from _read_file(path, source, fields, language, others)
        except MissingColumnError as error:
            if not is_first and lacking is None:
                raise StageError(f"{error}; give it what other files of the split have") from None
            lacking = lacking or error
        else:
            if lacking is not None:
                raise StageError(f"{lacking}; give it what other files of the split have")
        is_first = False
    if lacking is not None:
        raise lacking


def _read_file(
    path: Path, source: FilesSource, fields: _Fields, language: str, others: Counter[str]
) -> Iterator[Rows]:
    """Read a file. In Parquet, labels have the names that `datasets` noted in it, if it did."""
    kind = kind_of(path)
    if kind is None or (kind == "plain" and fields.label is not None):
        raise StageError(f"cannot read {path}: it is not one of .csv, .tsv, .jsonl, .json, .parquet")
    columns, needed = (None, []) if kind == "plain" else (source.columns, fields.needed)
    is_mixed = kind != "plain" and fields.language is not None  # texts of other languages may be anything
    found = Input(
        path,
        None,
        [] if is_mixed else fields.texts,
        None,
        source.quoting,
        source.delimiter,
        columns,
        [*fields.texts, *needed] if is_mixed else needed,
        only=fields.columns(),
        skip_blank=True,
    )
    n_rows = 0
    if kind == "parquet":
        for table in windows(found, WINDOW):
            assert isinstance(table, pa.Table)
            names = _noted_names(table.schema, fields.label)
            rows = _of_table(table, fields, names, str(path), n_rows, language, others)
            n_rows += table.num_rows
            if rows.labels:
                yield rows
    else:
        for rows in _of_rows(placed_rows(found), fields, str(path), language, others):
            yield rows
            n_rows += len(rows.labels)
    if not n_rows and fields.language is None:
        raise StageError(f"{path} holds no examples; delete it if that is right")


def _as_text_file(path: Path) -> Path:
    """Give the .txt file that may stand in the place of another, ``de.train.txt`` for ``de.train.csv.gz``."""
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.with_suffix(".txt") if path.suffix else path.with_name(f"{path.name}.txt")


def _of_rows(
    placed: Placed, fields: _Fields, file: str, language: str, others: Counter[str]
) -> Iterator[Rows]:
    """Pick texts, labels and entities out of rows, of one language where they say theirs."""
    found = placed
    if fields.language is not None:
        found = _of_language(placed, fields.language, language, others)
    while window := list(islice(found, WINDOW)):
        places = [place for place, _ in window]
        for place, row in window if fields.soft else ():
            fields.require_each_class(row, f"{file}, {place}")
        about = [row.get(fields.entity) if fields.entity else None for _, row in window]
        yield Rows(
            [[row[name] for _, row in window] for name in fields.texts],
            [row[fields.label] if fields.label else None for _, row in window],
            _entities(about, fields, file, places),
            file,
            places,
            soft=[fields.soft_of(row) for _, row in window] if fields.soft else None,
            teachers=[row.get(fields.teacher) for _, row in window] if fields.teacher else None,
        )


def _of_language(placed: Placed, field: str, language: str, others: Counter[str]) -> Placed:
    for place, row in placed:
        if row[field] == language:
            yield place, row
        else:
            others[str(row[field])] += 1


def _of_table(
    table: pa.Table,
    fields: _Fields,
    names: list[str] | None,
    file: str,
    start: int,
    language: str,
    others: Counter[str],
) -> Rows:
    """Pick texts, labels and entities out of a table, the labels by name where they have names."""
    for name in (*fields.texts, *fields.needed):
        if name not in table.column_names:
            raise MissingColumnError(f"{file} has no column '{name}'; {instead_of(name, table.column_names)}")
    places = [f"row {number}" for number in range(start + 1, start + table.num_rows + 1)]
    if fields.language is not None:
        said = _values(table, fields.language, file)
        kept = [i for i, one in enumerate(said) if one == language]
        others.update(str(one) for one in said if one != language)
        table, places = table.take(pa.array(kept, pa.int64())), [places[i] for i in kept]
    labels = _values(table, fields.label, file)
    known: dict[Any, str] = dict(enumerate(names or ()))
    if all(name == str(number) for number, name in known.items()):
        known = {}  # names that say no more than the numbers
    return Rows(
        [_values(table, name, file) for name in fields.texts],
        [known.get(one, one) if isinstance(one, int | float) else one for one in labels],
        _entities(_values(table, fields.entity, file), fields, file, places),
        file,
        places,
        by_name=bool(known),
        noted=tuple(known.values()),
        soft=_soft_of_table(table, fields, file) if fields.soft else None,
        teachers=_values(table, fields.teacher, file) if fields.teacher else None,
    )


def _values(table: pa.Table, name: str | None, file: str) -> list[Any]:
    """Give a column's values; None in each row of a table that has no such column.

    Raises:
        StageError: A value is nothing that Python has, such as a day in the year 10000.
    """
    if name not in table.column_names:
        return [None] * table.num_rows
    try:
        values: list[Any] = table[name].to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise StageError(f"cannot read column '{name}' of {file}: {first_line(error)}") from error
    return values


def _soft_of_table(table: pa.Table, fields: _Fields, file: str) -> list[Any]:
    fields.require_each_class(table.column_names, file)
    names = {fields.soft} if isinstance(fields.soft, str) else set((fields.soft or {}).values())
    there = {name: _values(table, name, file) for name in table.column_names if name in names}
    rows = [dict(zip(there, row, strict=True)) for row in zip(*there.values(), strict=True)]
    return [fields.soft_of(row) for row in rows] if there else [None] * table.num_rows


_ENTITY_TYPES = (str, int, float, decimal.Decimal, datetime.date, datetime.time, uuid.UUID)


def _entities(values: list[Any], fields: _Fields, file: str, places: Sequence[str]) -> list[str | None]:
    """Give the text of what each row says that it is about; None: it is silent.

    3.0 is 3: pandas writes whole numbers so where one is missing, in one language and not in another.

    Raises:
        StageError: It is a list or the like, in a column that `entity_field` names. A column that is called
            ``entity`` by chance may hold anything.
    """
    found: list[str | None] = []
    for value, place in zip(values, places, strict=True):
        plain = isinstance(value, _ENTITY_TYPES) and not isinstance(value, bool)
        if value is not None and not plain and fields.entity in fields.needed:
            raise StageError(
                f"{file}, {place}: {fields.entity} is {shown(value)}, which cannot say what a text is about; "
                "give a text or a number"
            )
        found.append((without_zeros(str(value)) or None) if plain and value == value else None)
    return found


def _noted_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Read the class names of a column out of the metadata that `datasets` writes into Parquet files."""
    noted = (schema.metadata or {}).get(b"huggingface")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        names = json.loads(noted or b"{}")["info"]["features"][label]["names"]
        return [str(name) for name in names]
    return None
