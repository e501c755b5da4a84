"""The task's examples, as `prepare` wrote them: one Arrow file per language and split.

``manifest.json`` beside them holds ``schema``, ``source`` (as in params.yaml), ``revision`` (a data set's
commit on the Hub, the version of the package behind the built-in task, or null), ``examples`` (counts by
language and split) and ``files`` (their sha256).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.artifacts import DATA
from stages.data.task import Split, SplitName, TaskParams
from stages.errors import StageError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNLABELLED: SplitName = "unlabelled"
"""Name of the optional fourth split: text without labels, for pre-training, and to teach the student."""
NO_LABEL = -100
"""What stands for the label of an example that has none, as in PyTorch's cross-entropy."""
MANIFEST = "manifest.json"
ENTITY = "entity"
"""Name of the optional column that says what a text is about: equal ones are translations of each other."""
SOFT_LABEL = "_soft_label"
"""Name of the optional column with a value for each class, null for those that were not named."""
TEACHER = "_teacher"
"""Name of the optional column that says which teacher is to be asked; null: all of them."""
OPTIONAL = (ENTITY, SOFT_LABEL, TEACHER)


def columns_of(task: TaskParams) -> pa.Schema:
    """Give the columns of ``artifacts/data/<language>/<split>.arrow``; the metadata holds the classes.

    Where the source has them, the columns ``entity``, ``_soft_label`` and ``_teacher`` follow.
    """
    fields = {name: pa.string() for name in task.text_fields}
    columns = {"example_id": pa.binary(16), **fields, "label": pa.int32()}
    return pa.schema(columns, metadata={"classes": json.dumps(task.classes)})


def data_file(language: str, split: str, folder: Path = DATA) -> Path:
    """Path of the examples of one language and split."""
    return folder / language / f"{split}.arrow"


def has_split(language: str, split: str, folder: Path = DATA) -> bool:
    """Tell whether `prepare` wrote this split of this language."""
    return data_file(language, split, folder).is_file()


def may_teach(task: TaskParams, language: str) -> bool:
    """Tell whether a language's texts without labels teach the student, if there are any."""
    return task.unlabelled and (language in task.supervised or task.zero_shot_texts)


def has_only_texts(task: TaskParams, language: str, folder: Path = DATA) -> bool:
    """Tell whether a language has no labels to be evaluated with: its texts serve for an estimate."""
    there = {split for split in ("test", UNLABELLED) if has_split(language, split, folder)}
    return language in task.zero_shot and there == {UNLABELLED}


def taught_splits(task: TaskParams, language: str) -> list[SplitName]:
    """List the splits of a language that teach the student; of a zero-shot one, at most ``unlabelled``."""
    labelled: list[SplitName] = ["train"] if language in task.supervised else []
    return [
        *labelled,
        *([UNLABELLED] if may_teach(task, language) and has_split(language, UNLABELLED) else []),
    ]


def read_examples(task: TaskParams, language: str, split: SplitName) -> pa.Table:
    """Read the examples of one language and split.

    Returns:
        A table with the columns of `columns_of`, mapped into memory; labels of unlabelled ones are null.

    Raises:
        StageError: `prepare` has not written the file, or wrote it for another task.
    """
    path = data_file(language, split)
    table = _open(path)
    table = table.drop_columns([name for name in OPTIONAL if name in table.column_names])
    if not table.schema.equals(columns_of(task), check_metadata=True):
        raise StageError(
            f"{path} was written for other text fields or classes than params.yaml names; "
            "write it again with: python -m pipeline prepare"
        )
    return table


def read_entities(language: str, split: SplitName) -> list[str | None]:
    """Give what the examples of one language and split are about, in their order; None: the source is silent.

    Raises:
        StageError: `prepare` has not written the file.
    """
    table = _open(data_file(language, split))
    return table[ENTITY].to_pylist() if ENTITY in table.column_names else [None] * table.num_rows


def read_soft_label_column(task: TaskParams, language: str, split: SplitName) -> pa.Table:
    """Give the soft labels that stand in the data of one language and split.

    Returns:
        Columns ``example_id``, ``_soft_label`` and ``row``, the example's place from 0; without those that
        have none.

    Raises:
        StageError: `prepare` has not written the file.
    """
    table = _open(data_file(language, split))
    if SOFT_LABEL not in table.column_names:
        cells = pa.nulls(table.num_rows, pa.list_(pa.float64(), len(task.classes)))
        table = table.append_column(SOFT_LABEL, cells)
    table = table.select(["example_id", SOFT_LABEL]).append_column("row", pa.array(range(table.num_rows)))
    return table.filter(table[SOFT_LABEL].is_valid())


def read_asked(
    language: str, splits: Sequence[SplitName], names: Sequence[str | None]
) -> NDArray[np.bool_] | None:
    """Tell which of a language's teachers are to be asked about each example of some splits.

    Args:
        language: A supervised one.
        splits: One behind the other.
        names: Of the language's teachers.

    Returns:
        Whether each of the M teachers is to be asked about each example, shape ``(M, N)``; None: always all.

    Raises:
        StageError: `prepare` has not written a file, or examples are for teachers that are not there.
    """
    tables = [_open(data_file(language, split)) for split in splits]
    if not any(TEACHER in table.column_names for table in tables):
        return None
    places = {name: place for place, name in enumerate(names) if name is not None}
    asked = []
    for table in tables:
        said = table[TEACHER] if TEACHER in table.column_names else pa.nulls(table.num_rows, pa.string())
        asked += said.to_pylist()
    strangers = Counter(name for name in asked if name is not None and name not in places)
    if strangers:
        (name, count), *others = strangers.most_common()
        more = f", and {len(others)} more names" if others else ""
        raise StageError(
            f"{count:,} examples of '{language}' are for teacher '{name}'{more}; teachers.{language} has: "
            f"{', '.join(places) or 'none with a name'}"
        )
    positions = np.array([-1 if name is None else places[name] for name in asked], np.int64)
    is_asked: NDArray[np.bool_] = (positions == np.arange(len(names))[:, None]) | (positions < 0)
    return is_asked


def all_examples(task: TaskParams, *, first: str | None = None) -> pa.Table | None:
    """Read the examples of all languages and splits that `prepare` wrote; None where it wrote none.

    Args:
        task: Section `task`.
        first: The language to begin with.

    Returns:
        Columns ``example_id``, ``language``, ``split``, the text fields and ``class``, the label's name, or
        null.
    """
    tables = []
    for language in sorted(task.languages, key=lambda one: one != first):
        for split in dict.fromkeys([*SPLITS, *taught_splits(task, language)]):
            if has_split(language, split):
                table = read_examples(task, language, split)
                names = pa.array(task.classes).take(table["label"].combine_chunks())
                table = table.drop_columns("label").append_column("class", names)
                for position, (name, value) in enumerate({"language": language, "split": split}.items()):
                    table = table.add_column(1 + position, name, pa.repeat(value, table.num_rows))
                tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables) if tables else None


def labelled_splits(task: TaskParams, language: str) -> list[SplitName]:
    """List the splits that a teacher labels: what the student learns, and what there is to compare it on."""
    held_out: tuple[SplitName, ...] = ("validation", "test")
    there = [split for split in held_out if language in task.supervised or has_split(language, split)]
    return [*taught_splits(task, language), *there]


def pretraining_texts(task: TaskParams, language: str) -> dict[str, str]:
    """Give a language's texts for pre-training by the entity that they name; equal entities are translations.

    Where the task has no unlabelled text, these are the training texts of a supervised language, which are
    entities of their own, and nothing of a zero-shot language. Where that text teaches the student, these are
    all that it learns from.

    Raises:
        StageError: `prepare` has not run.
    """
    splits = [UNLABELLED] if has_only_texts(task, language) else taught_splits(task, language)
    if has_split(language, UNLABELLED) and UNLABELLED not in splits:
        path = data_file(language, UNLABELLED)
        table = _open(path)
        if not {"text", ENTITY} <= set(table.column_names):
            raise StageError(
                f"{path} was written with task.unlabelled: true; write it again with: "
                "python -m pipeline prepare"
            )
        texts, entities = table["text"].to_pylist(), table[ENTITY].to_pylist()
    else:
        tables = [read_examples(task, language, split) for split in splits]
        texts = [text for field in task.text_fields for table in tables for text in table[field].to_pylist()]
        entities = [None] * len(texts)
        if task.unlabelled and len(task.text_fields) == 1:
            entities = [entity for split in splits for entity in read_entities(language, split)]
    named: dict[str, str] = {}
    for index, (entity, text) in enumerate(zip(entities, texts, strict=True)):
        named[f"{language}:{index}" if entity is None or entity in named else entity] = text
    return named


def training_texts(task: TaskParams, language: str) -> list[str]:
    """Give all texts of a language that anything may be trained on, with labels or without.

    Raises:
        StageError: `prepare` has not run.
    """
    texts = list(pretraining_texts(task, language).values())
    if language in task.supervised and has_split(language, UNLABELLED) and not task.unlabelled:
        table = read_examples(task, language, "train")
        texts += [text for field in task.text_fields for text in table[field].to_pylist()]
    return texts


def _open(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise StageError(f"{path} is not there; write it with: python -m pipeline prepare") from None
    except (OSError, pa.ArrowException) as error:
        raise StageError(
            f"{path} is broken ({error}); write it again with: python -m pipeline prepare"
        ) from error


def examples_digest(examples: pa.Table) -> str:
    """Hash the examples' texts, by their ids, and labels, in their order."""
    digest = hashlib.sha256()
    for column in (examples["example_id"], examples["label"].fill_null(NO_LABEL)):
        for chunk in column.chunks:
            digest.update(chunk.buffers()[1])
    return digest.hexdigest()
