"""The task: its text fields, classes and languages, and its examples as `prepare` wrote them."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from stages.artifacts import DATA
from stages.base import Params, StageError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNLABELLED = "unlabelled"
"""Name of the optional fourth split: text without labels, for pre-training."""
ENTITY = "entity"
"""Name of the optional column that says what a text is about: equal ones are translations of each other."""

Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$")]
"""A BCP 47 tag as in the data, such as ``de`` or ``zh-Hans``."""


class NamesSource(Params):
    """The built-in task: what kind of thing does this CLDR name denote?"""

    kind: Literal["names"]


class HubSource(Params):
    """A data set on the Hugging Face Hub, or a folder that is laid out like one."""

    kind: Literal["hub"]
    dataset: str
    """Hub id or local folder."""
    config: str | None
    """Configuration name; ``{language}`` stands for the language."""
    revision: str | None
    """Branch, tag or commit; null takes the newest."""
    label_field: str


class FilesSource(Params):
    """CSV, TSV, JSONL or Parquet files."""

    kind: Literal["files"]
    pattern: str
    """Glob with ``{language}`` and ``{split}`` in it, such as ``data/{language}/{split}*.jsonl``."""
    label_field: str

    @model_validator(mode="after")
    def _is_watched_and_complete(self) -> Self:
        for placeholder in ("{language}", "{split}"):
            if placeholder not in self.pattern:
                raise ValueError(f"pattern needs {placeholder} in it")
        if not self.pattern.startswith("data/"):
            raise ValueError("pattern must begin with data/, which DVC watches; link your files there")
        return self


class TaskParams(Params):
    """Section `task` of params.yaml."""

    source: Annotated[NamesSource | HubSource | FilesSource, Field(discriminator="kind")]
    text_fields: Annotated[list[str], Field(min_length=1, max_length=2)]
    """One column, or two for text pairs, in the order in which models read them."""
    classes: Annotated[list[str], Field(min_length=2)]
    """Class names; their order is that of the student's logits."""
    supervised: Annotated[list[Language], Field(min_length=1)]
    """Languages with labelled training data and a teacher. Their order is that of the branches."""
    zero_shot: list[Language]
    """Languages that are only evaluated."""
    max_examples: PositiveInt | None
    """Keep at most this many examples per language and split; null keeps all."""

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        for what, names in (
            ("text field", self.text_fields),
            ("class", self.classes),
            ("language", self.languages),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what} '{name}' is named twice")
        for name in ("example_id", "label", ENTITY):
            if name in self.text_fields:
                raise ValueError(f"no text field may be called {name}, which is a column of our own")
        return self

    @property
    def languages(self) -> list[str]:
        """All languages, supervised ones first."""
        return [*self.supervised, *self.zero_shot]

    def columns(self) -> pa.Schema:
        """Columns of ``artifacts/data/<language>/<split>.arrow``; the metadata holds the classes.

        Where the source has it, the column ``entity`` follows.
        """
        fields = {name: pa.string() for name in self.text_fields}
        columns = {"example_id": pa.binary(16), **fields, "label": pa.int32()}
        return pa.schema(columns, metadata={"classes": json.dumps(self.classes)})

    def require_supervised(self, language: str) -> None:
        """Refuse a language that has no teacher.

        Raises:
            StageError: The language is not supervised.
        """
        if language not in self.supervised:
            known = ", ".join(self.supervised)
            raise StageError(f"'{language}' is not in task.supervised; these are: {known}")


def data_file(language: str, split: str, folder: Path = DATA) -> Path:
    """Path of the examples of one language and split."""
    return folder / language / f"{split}.arrow"


def has_split(language: str, split: str) -> bool:
    """Tell whether `prepare` wrote this split of this language."""
    return data_file(language, split).is_file()


def read_examples(task: TaskParams, language: str, split: Split) -> pa.Table:
    """Read the examples of one language and split.

    Returns:
        A table with the columns of ``task.columns()``, mapped into memory.

    Raises:
        StageError: `prepare` has not written the file, or wrote it for another task.
    """
    path = data_file(language, split)
    table = _open(path)
    if ENTITY in table.column_names:
        table = table.drop_columns(ENTITY)
    if not table.schema.equals(task.columns(), check_metadata=True):
        raise StageError(
            f"{path} was written for other text fields or classes than params.yaml names; "
            "write it again with: python -m pipeline prepare"
        )
    return table


def read_entities(language: str, split: Split) -> list[str | None]:
    """Give what the examples of one language and split are about, in their order; None: the source is silent.

    Raises:
        StageError: `prepare` has not written the file.
    """
    table = _open(data_file(language, split))
    return table[ENTITY].to_pylist() if ENTITY in table.column_names else [None] * table.num_rows


def all_examples(task: TaskParams) -> pa.Table | None:
    """Read the examples of all languages and splits that `prepare` wrote; None where it wrote none.

    Returns:
        Columns ``example_id``, ``language``, ``split``, the text fields and ``class``, the label's name.
    """
    tables = []
    for language in task.languages:
        for split in SPLITS:
            if has_split(language, split):
                table = read_examples(task, language, split)
                names = pa.array(task.classes).take(table["label"].combine_chunks())
                table = table.drop_columns("label").append_column("class", names)
                for position, (name, value) in enumerate({"language": language, "split": split}.items()):
                    table = table.add_column(1 + position, name, pa.repeat(value, table.num_rows))
                tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables) if tables else None


def pretraining_texts(task: TaskParams, language: str) -> dict[str, str]:
    """Give a language's texts for pre-training by the entity that they name; equal entities are translations.

    Where the task has no unlabelled text, these are the training texts of a supervised language, which are
    entities of their own, and nothing of a zero-shot language.

    Raises:
        StageError: `prepare` has not run.
    """
    if has_split(language, UNLABELLED):
        table = _open(data_file(language, UNLABELLED))
        return dict(zip(table[ENTITY].to_pylist(), table["text"].to_pylist(), strict=True))
    if language not in task.supervised:
        return {}
    table = read_examples(task, language, "train")
    texts = [text for field in task.text_fields for text in table[field].to_pylist()]
    return {f"{language}:{index}": text for index, text in enumerate(texts)}


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
    for name in ("example_id", "label"):
        for chunk in examples[name].chunks:
            digest.update(chunk.buffers()[1])
    return digest.hexdigest()
