"""What `cache import` does: read a file, look at it as stage one looks at a teacher, and store it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache import Index, Store, StoreError
from cache.commands.import_ import import_
from cache.commands.name import give_name
from cache.names import name_of, require_name
from stages.data.classes import check_class_order, match_classes
from stages.data.task import Split, TaskParams
from stages.errors import StageError
from stages.results.teachers import outside_classes
from stages.teacher.labelling.from_files import Imported, read_soft_labels
from stages.teacher.params import LabelParams, OneTeacher, ValuesParams
from stages.teacher.quality import measure, require_language


class ImportOptions(NamedTuple):
    """Options of `cache import`, as they were given.

    Attributes:
        values: As in `ValuesParams`.
        fact: ``name=value`` each.
        facts: A YAML file of facts.
        name: What to call the producer in the store.
        keep_unknown: Whether it is right that most texts are not the language's.
    """

    values: Mapping[str, Any]
    fact: Sequence[str]
    facts: Path | None
    name: str | None
    keep_unknown: bool


@dataclass(frozen=True)
class ImportedFile:
    """What was imported.

    Attributes:
        producer: Its id.
        name: What the store calls it; None: nothing.
        language: Of the texts.
        examples: Distinct texts in the file.
        new: Soft labels that were written; the store had the others.
        unknown: Texts that the language's data does not have.
        repeated: Rows that say the same again.
        quality: By split, as `Quality.metrics`.
        outside: The share of probability that no class got; None: nobody could tell.
        summary: The last two in words.
    """

    producer: str
    name: str | None
    language: str
    examples: int
    new: int
    unknown: int
    repeated: int
    quality: Mapping[Split, dict[str, float]]
    outside: float | None
    summary: str

    def line(self) -> str:
        """Say it in one line."""
        called = f"'{self.name}' ({self.producer[:12]})" if self.name else self.producer[:12]
        unknown = f", {self.unknown:,} of texts that the data does not have" if self.unknown else ""
        return (
            f"{self.language}: {self.examples:,} soft labels of {called}, {self.new:,} of them new{unknown}; "
            f"{self.summary}"
        )


def import_file(
    task: TaskParams,
    teacher: OneTeacher | None,
    params: LabelParams,
    root: str,
    language: str,
    file: Path,
    options: ImportOptions,
) -> ImportedFile:
    """Read a file of soft labels, check it, and write it to a store: all of it, or nothing.

    Args:
        task: Section `task` of params.yaml.
        teacher: Section `teachers.<language>`, for what it says of class names.
        params: Section `teacher.label`, for the shards' format.
        root: The store.
        language: Of the texts.
        file: The file.
        options: How to read it, and what to call it.

    Raises:
        StageError: The file cannot be read, its classes are others or evidently in another order, or most of
            its texts are not the language's.
        CacheError: The store says otherwise of a text, has the name already, or cannot be used.
    """
    facts = _facts(options)
    # A teacher that is a model has names of its own, which are not the file's.
    names = teacher.labels if teacher and teacher.base is None else None
    found = read_soft_labels(file, _values(options.values), task, names=names)
    if not facts and "exported_from" not in found.made:
        raise StageError(
            "who made these soft labels? say so: --fact name=… --fact version=…, or --facts FILE"
        )
    producer = found.producer(facts, task.text_fields)
    own = options.name or "@".join(facts[key] for key in ("name", "version") if facts.get(key))
    name = options.name or name_of(root, producer.id) or own or None  # one that was given is left
    if name is not None:
        _require_name(root, producer.id, name, given=options.name is not None)
    order = match_classes(found.classes, task.classes, names=names, language=language)
    n_unknown = require_language(
        task, language, found.soft_labels, name=str(file), keep_unknown=options.keep_unknown
    )
    quality = measure(task, language, answer_of(found, order))
    if quality.metrics:
        named = [found.classes[position] for position in order]
        check_class_order(quality.together, classes=task.classes, names=named, language=language)
    done = import_(root, producer, found.soft_labels, format_=params.format, top_k_change=found.top_k_change)
    Store(root, producer).note_use(teacher=name or str(file), language=language)
    if name is not None and name != name_of(root, producer.id):
        give_name(root, producer.id, name)
    outside = outside_classes(producer, found.soft_labels.logits)
    return ImportedFile(
        producer.id,
        name,
        language,
        len(found.soft_labels),
        done.new,
        n_unknown,
        found.repeated,
        quality.metrics,
        outside,
        quality.line(outside=outside),
    )


def answer_of(found: Imported, order: NDArray[np.int64]) -> Any:
    """Give what looks soft labels of a file up, in the task's class order."""
    index = Index(found.soft_labels.ids)

    def answer(ids: pa.FixedSizeBinaryArray) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
        positions = index.positions(ids)
        has = positions >= 0
        return has, found.soft_labels.take(positions[has]).logits[:, order]

    return answer


def _require_name(root: str, producer_id: str, name: str, *, given: bool) -> None:
    try:
        require_name(root, producer_id, name)
    except StoreError as error:
        raise StageError(str(error) if given else f"{error}; or name it here: --name") from None


def _values(values: Mapping[str, Any]) -> ValuesParams:
    try:
        return ValuesParams(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(f"--{first['loc'][0]}: {first['msg']}") from None


def _facts(options: ImportOptions) -> dict[str, str]:
    """Put the facts of the file and of the command line together.

    Raises:
        StageError: They are no facts.
    """
    facts: dict[str, str] = {}
    if options.facts is not None:
        try:
            told = YAML(typ="safe").load(options.facts.read_text(encoding="utf-8"))
        except (OSError, ValueError, YAMLError) as error:  # such as a date that there is not
            raise StageError(f"cannot read --facts {options.facts}: {str(error).splitlines()[0]}") from error
        if not isinstance(told, dict):
            raise StageError(f"--facts {options.facts} is no mapping of names to texts")
        for key, value in told.items():
            if not isinstance(value, str | int) or isinstance(value, bool):  # 2026.10 would become 2026.1
                raise StageError(f"--facts {options.facts}: {key} is {value}, which is no text; quote it")
        facts |= {str(key): str(value) for key, value in told.items()}
    for one in options.fact:
        key, mark, value = one.partition("=")
        if not (key and mark and value):
            raise StageError(f"--fact {one}: write it as name=value")
        facts[key] = value
    return facts
