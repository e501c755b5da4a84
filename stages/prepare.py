"""Prepare the task: read a source, check every example, write one Arrow file per language and split.

Nothing is normalised: the text that is hashed, labelled and trained on is the text of the source. Memory is
bounded by a window of rows and 20 bytes an example.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cache import file_digest, write_atomically
from stages.artifacts import DATA, forget_others, replaced_folder
from stages.data.classes import require_distinct_classes
from stages.data.examples import ENTITY, MANIFEST, SPLITS, UNLABELLED, data_file, has_split, may_teach
from stages.data.files import MissingColumnError
from stages.data.labels import LabelReader, Numbering
from stages.data.remarks import Prepared
from stages.data.sources import (
    Revision,
    Rows,
    hint_of,
    is_for_all,
    place_of,
    read_unlabelled,
    reader_of,
    revision_of,
)
from stages.data.tables import laid_out, mapped, some_of, write_batches
from stages.data.task import FilesSource, Split, SplitName, TableSource, TaskParams
from stages.data.unlabelled import HeldOut, Named, may_lack_column, separate, write_zero_shot
from stages.errors import StageError
from stages.progress import Bar

_Read = Callable[[str, Split], Iterator[Rows]]


def prepare(task: TaskParams) -> Prepared:
    """Write ``artifacts/data/<language>/<split>.arrow`` for all languages.

    Supervised languages need all three splits, zero-shot languages a test split, or texts without labels;
    their validation split is written where there is one, and their training split never, since zero-shot
    languages have no labels.
    Any language may have texts for pre-training: the split ``unlabelled``. Where such texts teach the
    student, that split has examples like the others, without labels.

    Raises:
        StageError: A column, split or class is missing, a text is null, or a label is not one of the classes.
    """
    with replaced_folder(DATA) as folder:
        done = _prepare(task, folder)
    forget_others(task.supervised)
    return done


def _is_aligned(task: TaskParams) -> bool:
    return isinstance(task.source, TableSource) and task.source.aligned


def _is_numbered(task: TaskParams, kinds: set[bool]) -> bool:
    """Tell whether the entities of a split are the numbers of its rows; see `Named`."""
    return _is_aligned(task) and True not in kinds


def _source_split(split: Split, share: float | None) -> Split:
    """Give the split of the source whose rows a split has."""
    return "train" if share is not None and split == "validation" else split


def _prepare(task: TaskParams, folder: Path) -> Prepared:
    require_distinct_classes(task.classes)
    revision = revision_of(task)
    others: Counter[str] = Counter()
    aligned = _is_aligned(task)
    read = reader_of(task, revision, others)
    shares = {language: _validation_share(task, read, language) for language in task.supervised}
    work = _Work(
        task,
        folder,
        revision,
        others,
        read,
        Prepared(task.classes, aligned),
        {},
        {split: set() for split in SPLITS},
        Numbering(),
        shares,
        HeldOut(max((share for share in shares.values() if share is not None), default=None)),
    )
    for language in Bar(task.languages, desc="prepare", unit="language"):
        work.write(language)
    work.done.close()
    if task.zero_shot_texts and not any(
        has_split(language, UNLABELLED, folder) for language in task.zero_shot
    ):
        raise StageError(
            "task.zero_shot_texts is true, but no zero-shot language has the split train or unlabelled; give "
            "one, or set it to false"
        )
    if aligned:
        _require_alignment(work.n_rows)
        _require_one_kind_of_validation(task, work.n_rows)
        _require_one_kind_of_entity(work.named)
    if task.unlabelled and not any(
        may_teach(task, language) and has_split(language, UNLABELLED, folder) for language in task.languages
    ):
        work.done.notes.append(
            "warning: task.unlabelled is true, but no text without a label was found: none in train, and "
            f"none that is new in {place_of(task, UNLABELLED)}"
        )
    unused = [one for one in task.supervised if not task.unlabelled and has_split(one, UNLABELLED, folder)]
    if unused and isinstance(task.source, FilesSource):
        work.done.notes.append(
            f"{', '.join(unused)}: texts of the split unlabelled are for encoders from scratch alone; with "
            "task.unlabelled: true they teach the student"
        )
    work.done.notes += [
        f"warning: {path} is a link to a folder, in which DVC sees no changes; link its files instead"
        for path in sorted(Path("data").rglob("*"))
        if path.is_symlink() and path.is_dir()
    ]
    manifest = {
        "schema": 1,
        "source": _source_of(task),
        "revision": revision,
        "examples": work.done.examples,
        "files": {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.glob("*/*.arrow"))
        },
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return work.done


def _source_of(task: TaskParams) -> dict[str, Any]:
    """Give section `task.source` as version 0.1 wrote it: newer parameters that are not set are left out."""
    newer = ("soft_label_field", "teacher_field")
    values = task.source.model_dump()
    return {key: value for key, value in values.items() if value is not None or key not in newer}


class _Work(NamedTuple):
    """What is being prepared: from where, to where, and what is noted of it."""

    task: TaskParams
    folder: Path
    revision: Revision
    others: Counter[str]
    read: _Read
    done: Prepared
    n_rows: dict[str, dict[Split, int]]
    """Rows of each language's splits in the source, of which some may be left out or become another split."""
    named: Named
    numbering: Numbering
    shares: Mapping[str, float | None]
    """Of each supervised language's training examples, the share that is its validation split."""
    held_out: HeldOut

    def write(self, language: str) -> None:
        """Write a language's files."""
        task, done = self.task, self.done
        self.n_rows[language] = {}
        supervised = language in task.supervised
        share = self.shares.get(language)
        n_held_out = self.held_out.n
        if share is not None:
            done.notes.append(f"{language}: {share:.0%} of train, by hash, are the validation split")
        missing: StageError | None = None
        for split in SPLITS if supervised else SPLITS[1:]:
            self.others.clear()
            found = self._examples(language, split, share)
            if isinstance(found, StageError):
                if supervised:
                    raise found
                missing = found if split == "test" else None
            else:
                n_rows = found.num_rows
                if split == "train" and task.unlabelled:
                    found = separate(
                        task, self.revision, language, self.folder, found, self.named, self.held_out
                    )
                whole = n_rows == found.num_rows
                kinds = self.named[_source_split(split, share)]
                numbered = _is_numbered(task, kinds)
                done.add(language, split, found, task.text_fields, is_whole=whole, is_numbered=numbered)
            self._note_strangers(language, split)
        self._write_unlabelled(language)
        if n := self.held_out.n - n_held_out:
            done.notes.append(
                f"{language}: {n:,} texts without labels are left out: they are about the same as validation "
                "examples, as translations are"
            )
        if missing and has_split(language, UNLABELLED, self.folder):
            done.notes.append(f"{language}: no test split; student evaluate estimates from its other texts")
        elif missing:
            raise StageError(f"{missing}; or give its split unlabelled, whose texts serve for an estimate")

    def _note_strangers(self, language: str, split: SplitName) -> None:
        """Note rows of other languages: of a file for all languages once, and there not the task's."""
        if not is_for_all(self.task.source):
            self.done.note_left_out(f"{language}, {split}", self.others)
        elif language == self.task.languages[0]:
            strangers = {name: n for name, n in self.others.items() if name not in self.task.languages}
            self.done.note_left_out(split, strangers)

    def _examples(self, language: str, split: Split, share: float | None) -> pa.Table | StageError:
        """Write the examples of a split, and give them; or say why there are none."""
        windows = self._windows(language, split, share)
        try:
            table = _write(windows, data_file(language, split, self.folder), self.task)
        except MissingColumnError as error:
            if language in self.task.supervised or split == "test":
                raise
            if not may_lack_column(self.task):  # the file is its own, and not for all languages
                self.done.notes.append(f"warning: {language}: no validation split, since {error}")
            return error
        return StageError(self._empty(language, split, share)) if table is None else table

    def _windows(self, language: str, split: Split, share: float | None) -> Iterator[pa.Table]:
        """Give the checked examples of a split, window by window.

        Args:
            language: One of the task's.
            split: One of its splits.
            share: Of the training examples, those that are the validation split, if there is none.

        Raises:
            StageError: An example is not what it has to be.
        """
        task = self.task
        source = _source_split(split, share)
        labels = LabelReader(task, source, self.numbering)
        aligned = _is_aligned(task)
        start = 0
        for rows in self.read(language, source):
            rows.require_texts(task.text_fields)
            self.named[source].update(entity is not None for entity in rows.entities)
            if aligned and not any(rows.entities):  # a row is what it stands for, wherever it goes from here
                rows = replace(rows, entities=[str(start + row) for row in range(len(rows.labels))])
            start += len(rows.labels)
            table = laid_out(task, rows, labels.positions(rows))
            if source == "train":
                taken = np.zeros(table.num_rows, bool) if share is None else self.held_out.has(table)
                taken &= table["label"].is_valid().to_numpy()
                wanted = taken if split == "validation" else ~taken & self.held_out.may_teach(table)
                table = table.filter(pa.array(wanted))
            if table.num_rows:
                yield table
        if start:
            self.n_rows[language][source] = start
        labels.require_zero(language)

    def _write_unlabelled(self, language: str) -> None:
        """Write a language's texts without labels, but for those out of its training split."""
        path, is_taught = data_file(language, UNLABELLED, self.folder), may_teach(self.task, language)
        is_only = language in self.task.zero_shot and not has_split(language, "test", self.folder)
        named: Named = self.named if is_taught else {"train": set()}
        if not (is_taught or is_only):
            write_batches(read_unlabelled(self.task, language), path)
        elif language not in self.task.supervised:
            held_out = self.held_out if is_taught else HeldOut(None)
            n_rows = write_zero_shot(self.task, self.revision, language, self.folder, named, held_out)
            if n_rows and is_taught:
                self.n_rows[language]["train"] = n_rows
        if path.exists():
            self.done.add_unlabelled(
                language,
                mapped(path),
                self.task.text_fields if is_taught or is_only else ["text"],
                is_taught=is_taught,
                is_numbered=_is_numbered(self.task, named["train"]),
            )

    def _empty(self, language: str, split: Split, share: float | None) -> str:
        n = self.n_rows[language].get("train", 0) if share is not None else 0
        if n and split != "test":
            taken = f"none of the {n:,} rows" if split == "validation" else f"all {n:,} rows"
            how = "raise" if split == "validation" else "lower"
            together = " (rows with the same entity go together)" if True in self.named["train"] else ""
            return (
                f"the {split} split of '{language}' is empty: task.validation_share is {share}, which takes "
                f"{taken} of train; {how} it{together}"
            )
        hint = "; task.validation_share takes a part of train" * (split == "validation" and not share)
        why = hint_of(self.task, language, split, self.others)
        return f"the {split} split of '{language}' is empty: {why}{hint}"


def _require_alignment(n_rows: Mapping[str, Mapping[Split, int]]) -> None:
    """Refuse splits whose rows cannot be translations of each other.

    Args:
        n_rows: By language and split, those of the source.

    Raises:
        StageError: A split has more rows in one language than in another.
    """
    for split in SPLITS:
        sizes = {language: counts[split] for language, counts in n_rows.items() if split in counts}
        if len(set(sizes.values())) > 1:
            raise StageError(
                f"task.source.aligned is true, but the {split} split has {max(sizes.values())} rows in "
                f"'{max(sizes, key=sizes.__getitem__)}' and {min(sizes.values())} in "
                f"'{min(sizes, key=sizes.__getitem__)}'; set it to false, or give a column 'entity'"
            )


def _require_one_kind_of_validation(task: TaskParams, n_rows: Mapping[str, Mapping[Split, int]]) -> None:
    """Refuse to take rows out of one language's training split whose translations stay in another's.

    Raises:
        StageError: Some supervised languages have a validation split; `validation_share` makes the others'.
    """
    own = [language for language in task.supervised if "validation" in n_rows[language]]
    if task.validation_share is not None and 0 < len(own) < len(task.supervised):
        without = next(language for language in task.supervised if language not in own)
        raise StageError(
            f"task.source.aligned is true, and task.validation_share makes the validation split of "
            f"'{without}' of rows that '{own[0]}', which has such a split, trains on; give all supervised "
            "languages a validation split, or none"
        )


def _require_one_kind_of_entity(named: Named) -> None:
    """Refuse rows of which some say what they are about, while the number of others stands for it.

    Raises:
        StageError: A split has both.
    """
    for split, kinds in named.items():
        if len(kinds) > 1:
            raise StageError(
                f"task.source.aligned is true, but only some rows of the {split} split, or texts without "
                "labels, have an 'entity': rows would be translations by their number here and by that "
                "column there; give it in all, or set aligned to false"
            )


def _validation_share(task: TaskParams, read: _Read, language: str) -> float | None:
    """Give the share of the training examples that is to be the validation split; None: there is one."""
    there = task.validation_share is None or any(rows.labels for rows in read(language, "validation"))
    return None if there else task.validation_share


def _write(windows: Iterator[pa.Table], path: Path, task: TaskParams) -> pa.Table | None:
    """Write the examples of a split, and give them, mapped into memory; None: there are none.

    They are written twice: whether any says what it is about is known at the end, and what a limit keeps.
    """
    draft = path.with_suffix(".draft")
    try:
        write_batches(windows, draft)
        if not draft.exists():
            return None
        table = mapped(draft)
        if table[ENTITY].null_count == table.num_rows:
            table = table.drop_columns(ENTITY)
        if task.max_examples is not None:
            table = some_of(table, task.max_examples)
        write_batches(iter([table]), path)
    finally:
        draft.unlink(missing_ok=True)
    return mapped(path)
