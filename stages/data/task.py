"""Section `task` of params.yaml: text fields, classes and languages. It declares, and does nothing."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stages.params import Params, WatchedPath

_Taken = Literal[
    "example_id",
    "label",
    "entity",
    "_soft_label",
    "_teacher",
    "language",  # this and the next two are columns of what `cache export` writes, beside those of the store
    "split",
    "class",
    "logits",
    "top_classes",
    "top_logits",
    "log_sum_exp_rest",
    "hidden",
]
"""Names of columns that no text field may have."""

Split = Literal["train", "validation", "test"]

SplitName = Literal["train", "validation", "test", "unlabelled"]

Quoting = Literal["csv", "none"]
"""How fields of CSV and TSV are written."""

Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$")]
"""A BCP 47 tag as in the data, such as ``de`` or ``zh-Hans``."""


class NamesSource(Params):
    """The built-in task: what kind of thing does this CLDR name denote?"""

    kind: Literal["names"]


class TableSource(Params):
    """What the sources that people bring have in common: rows of texts with labels."""

    text_fields: Annotated[list[str], Field(min_length=1, max_length=2)] | None = None
    """What the source calls the task's text fields, in their order; null: as the task does. In a name,
    ``{language}`` stands for the language; so it does in the next two."""
    label_field: str = "label"
    """The column with the hard label."""
    entity_field: str | None = None
    """The column that says what a text is about; equal values are translations. Null: ``entity``, where there
    is such a column."""
    soft_label_field: str | None = None
    """The column with what somebody else's teacher said: a mapping by class; or, with ``{class}`` in it, such
    as ``votes_{class}``, one column per class. `teachers.<language>.soft_labels` says what the values are."""
    teacher_field: str | None = None
    """The column with the name of the teacher that is to be asked about a text, such as the text's domain;
    where it is empty, all teachers of the language are. Null: all of them, always."""
    language_field: str | None = None
    """The column with a row's language, of which rows of other languages are left out."""
    aligned: bool = False
    """Whether row i of a split is the same text in every language, as in XNLI. Translations are then known
    without a column ``entity``: intervals count them as one text, and `average_translations` finds them."""
    first_class_number: NonNegativeInt | None = None
    """The number of the first class where labels are numbers without names. Null stands for 0, and each
    training split must then have it."""


class HubSource(TableSource):
    """A data set on the Hugging Face Hub, or a folder that is laid out like one."""

    kind: Literal["hub"]
    dataset: str
    """Hub id, or a folder below ``data/``; ``{language}`` stands for the language where each has its own."""
    config: str | None = None
    """Configuration name; ``{language}`` stands for the language."""
    revision: str | None = None
    """Branch, tag or commit; null takes the newest, whose commit prepare notes."""
    splits: dict[SplitName, str] = {}
    """What the data set calls splits that have another name there, such as ``validation: dev``."""


class FilesSource(TableSource):
    """CSV, TSV, JSONL or Parquet files, or JSON arrays; all but Parquet may be compressed: .gz or .zst."""

    kind: Literal["files"]
    pattern: WatchedPath
    """Glob with ``{language}`` and ``{split}`` in it, such as ``data/{language}/{split}*.jsonl``."""
    splits: dict[SplitName, str] = {}
    """What ``{split}`` stands for where files have other names, such as ``validation: dev``."""
    quoting: Quoting | None = None
    """Whether fields of CSV and TSV may be in double quotes, ``csv``, or quotes are a part of the texts,
    ``none``. Null stands for ``csv`` in CSV and ``none`` in TSV; TSV that looks quoted is then refused."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the fields of CSV, such as ``;``; null: a comma, and a tab in TSV."""
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the columns of CSV and TSV without a header line. Unlabelled files then have one: texts; those
    that teach the student have all but the label."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if "{split}" not in self.pattern:
            raise ValueError("pattern needs {split} in it")
        for split, called in self.splits.items():
            if ".." in called.split("/"):
                raise ValueError(
                    f"splits.{split} is {called}, which leaves its folder; link your files there"
                )
        if any("**" in part and part != "**" for part in self.pattern.split("/")):
            raise ValueError(f"pattern is {self.pattern}: ** must stand alone between two /")
        by_column = self.text_fields is not None and all("{language}" in name for name in self.text_fields)
        if not ("{language}" in self.pattern or self.language_field is not None or by_column):
            raise ValueError(
                "pattern needs {language} in it; or name the column with the language, language_field, "
                'or one column per language: text_fields: ["text_{language}"]'
            )
        return self


class TaskParams(Params):
    """Section `task` of params.yaml."""

    source: Annotated[NamesSource | HubSource | FilesSource, Field(discriminator="kind")]
    text_fields: Annotated[list[str], Field(min_length=1, max_length=2)] = ["text"]
    """One column, or two for text pairs, in the order in which models read them."""
    classes: Annotated[list[str], Field(min_length=2)]
    """Class names; their order is that of the student's logits."""
    supervised: Annotated[list[Language], Field(min_length=1)]
    """Languages with labelled training data and a teacher. Their order is that of the branches."""
    zero_shot: list[Language] = []
    """Languages that are only evaluated. Where one has only unlabelled texts, `student evaluate` estimates
    how often the student is right."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """This share of the training examples is the validation split of a supervised language that has none. A
    hash chooses them, as for `max_examples`."""
    unlabelled: bool = False
    """Whether texts without labels teach the student too, by their soft labels: training rows then need no
    label, and supervised languages may have the split ``unlabelled``, with the task's text fields."""
    zero_shot_texts: bool = False
    """Whether texts of zero-shot languages teach the student too: training rows, whose labels are not read,
    and the split ``unlabelled``. Those with the entity of a text that teaches say what it says; others need
    a teacher in `teachers.<language>`. Needs `unlabelled`."""
    max_labels: PositiveInt | None = None
    """Keep this many labels in each training split; the other examples become texts without labels. The same
    hash chooses as for `max_examples`."""
    max_examples: PositiveInt | None = None
    """Keep at most this many examples per language and split; null keeps all. A hash chooses them: of the
    column ``entity`` where there is one, which keeps translations together, otherwise of the text."""

    @model_validator(mode="after")
    def _a_data_set_tells_languages_apart(self) -> Self:
        source = self.source
        if not isinstance(source, HubSource) or source.language_field is not None or len(self.languages) == 1:
            return self
        by_column = source.text_fields is not None and all(
            "{language}" in name for name in source.text_fields
        )
        if not ("{language}" in f"{source.dataset} {source.config}" or by_column):
            raise ValueError(
                "source.dataset or source.config needs {language} in it, or each language has the same rows; "
                "or name the column with the language, language_field, or one column per language: "
                'text_fields: ["text_{language}"]'
            )
        return self

    @model_validator(mode="after")
    def _hidden_labels_are_of_use(self) -> Self:
        if self.max_labels is not None and not self.unlabelled:
            raise ValueError(f"max_labels is {self.max_labels}, which needs unlabelled: true")
        return self

    @model_validator(mode="after")
    def _texts_of_zero_shot_languages_have_no_labels(self) -> Self:
        if self.zero_shot_texts and not (self.unlabelled and self.zero_shot):
            missing = "zero-shot languages" if self.unlabelled else "unlabelled: true"
            raise ValueError(f"zero_shot_texts is true, which needs {missing}")
        return self

    @model_validator(mode="after")
    def _languages_are_told_apart_however_they_are_written(self) -> Self:
        tags: dict[str, str] = {}
        for name in self.languages:
            other = tags.setdefault(name.replace("_", "-").casefold(), name)
            if other != name:
                raise ValueError(f"'{other}' and '{name}' are the same language; leave one out")
        return self

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
        for name in self.text_fields:
            if "{language}" in name:
                raise ValueError(f"{name}: columns with a language in their names go into source.text_fields")
        for name in self.text_fields:
            if name in get_args(_Taken):
                raise ValueError(
                    f"no text field may be called {name}, which is a column of our own; where a file calls "
                    "its column so, say that in source.text_fields"
                )
        return self

    @model_validator(mode="after")
    def _the_sources_columns_are_as_many_and_no_labels(self) -> Self:
        if not isinstance(self.source, TableSource) or self.source.text_fields is None:
            return self
        names = self.source.text_fields
        if len(names) != len(self.text_fields):
            raise ValueError(
                f"source.text_fields names {len(names)} columns, and text_fields {len(self.text_fields)}"
            )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source.text_fields names {name} twice; name another column")
            if name == self.source.label_field:
                raise ValueError(f"source.text_fields has {name}, the column with the label; name another")
        return self

    @property
    def languages(self) -> list[str]:
        """All languages, supervised ones first."""
        return [*self.supervised, *self.zero_shot]

    @property
    def groups(self) -> dict[str, list[Language]]:
        """The languages by kind. Metrics and plots write the second kind as ``zero_shot``."""
        return {"supervised": self.supervised, "zero-shot": self.zero_shot}
