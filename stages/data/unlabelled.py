"""Texts without labels that teach the student: training texts that have none, and the split of that name."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.examples import ENTITY, SOFT_LABEL, TEACHER, UNLABELLED, columns_of, data_file
from stages.data.files import MissingColumnError
from stages.data.remarks import among, first_words
from stages.data.sources import Revision, read_taught
from stages.data.tables import entities_of, filtered, keys_of, laid_out, mapped, some_of, write_batches
from stages.data.task import Split, SplitName, TableSource, TaskParams
from stages.errors import StageError

Named: TypeAlias = Mapping[Split, set[bool]]
"""By split, whether some rows say what they are about, and whether some do not; what teaches is ``train``."""


@dataclass
class HeldOut:
    """The validation examples that `task.validation_share` takes: texts about the same must teach nobody.

    Attributes:
        share: See there; None: each supervised language has a validation split of its own.
        n: Texts without labels that were left out.
    """

    share: float | None
    n: int = 0

    def has(self, table: pa.Table) -> NDArray[np.bool_]:
        """Tell which examples `share` takes out of a training split: ``(N,)``."""
        keys = keys_of(table["example_id"], entities_of(table), b"validation")
        taken: NDArray[np.bool_] = keys < (self.share or 0) * 2.0**64
        return taken

    def may_teach(self, table: pa.Table) -> NDArray[np.bool_]:
        """Tell which examples have a label, or are about no validation example: ``(N,)``."""
        named = np.fromiter((entity is not None for entity in entities_of(table)), bool)
        if self.share is None or not named.any():
            return np.ones(table.num_rows, bool)
        may: NDArray[np.bool_] = ~(self.has(table) & named & table["label"].is_null().to_numpy())
        self.n += int((~may).sum())
        return may


def separate(
    task: TaskParams,
    revision: Revision,
    language: str,
    folder: Path,
    table: pa.Table,
    named: Named,
    held_out: HeldOut,
) -> pa.Table:
    """Leave the labelled examples in a training split, and write what else teaches into ``unlabelled``.

    These are training texts without a label, those whose label `max_labels` hides, and the source's split
    ``unlabelled``; each text once, and none that is there with its label.

    Args:
        task: Section `task`.
        revision: See `revision_of`.
        language: A supervised language.
        folder: Where the examples are written.
        table: All rows of the training split.
        named: See `Named`.
        held_out: What does not teach.

    Returns:
        The training split as it is now, mapped into memory.

    Raises:
        StageError: There are fewer labels than `max_labels`, or none, or an example is not what it has to be.
    """
    train, unlabelled = data_file(language, "train", folder), data_file(language, UNLABELLED, folder)
    labelled = table["label"].is_valid().to_numpy()
    if task.max_labels is not None:
        n = int(labelled.sum())
        if task.max_labels > n:
            limit = task.max_examples
            where = f" among the {limit} examples that task.max_examples keeps" if limit else ""
            raise StageError(
                f"task.max_labels is {task.max_labels}, but '{language}' has {n} training labels{where}"
            )
        keys = np.where(labelled, keys_of(table["example_id"], entities_of(table), b""), 2**64 - 1)
        labelled = np.zeros(len(keys), bool)
        labelled[np.argsort(keys, kind="stable")[: task.max_labels]] = True
    kept, drafts = train.with_suffix(".kept"), unlabelled.with_suffix(".draft")
    write_batches(filtered(table, labelled), kept)
    without = (_without_labels(task, part) for part in filtered(table, ~labelled))
    more = _of_source(task, revision, language, UNLABELLED, named, held_out)
    write_batches(chain(without, more), drafts)
    train.unlink()
    if drafts.exists():
        labelled_texts = first_words(mapped(kept)["example_id"]) if kept.exists() else np.empty(0, np.uint64)
        _write_once(task, drafts, unlabelled, besides=labelled_texts)
    if not kept.exists():
        raise StageError(f"no row of the train split of '{language}' has a label")
    kept.rename(train)
    return mapped(train)


def write_zero_shot(
    task: TaskParams, revision: Revision, language: str, folder: Path, named: Named, held_out: HeldOut
) -> int:
    """Write the texts of a zero-shot language without labels into ``unlabelled``, each once.

    These are the source's split ``unlabelled``, and its training texts, whose labels are not read, where
    `task.zero_shot_texts` lets them teach.

    Args:
        task: Section `task`.
        revision: See `revision_of`.
        language: A zero-shot language.
        folder: Where the examples are written.
        named: See `Named`.
        held_out: What does not teach.

    Returns:
        The rows of the source's training split that were read.

    Raises:
        StageError: An example is not what it has to be.
    """
    path = data_file(language, UNLABELLED, folder)
    drafts = [path.with_suffix(f".{split}") for split in ("train", "more")]
    n_rows = 0
    for split, draft in zip(("train", UNLABELLED), drafts, strict=True):
        if split == "train" and not task.zero_shot_texts:
            continue
        before = held_out.n
        with suppress(*([MissingColumnError] if may_lack_column(task) else [])):
            write_batches(_of_source(task, revision, language, split, named, held_out), draft)
        if split == "train":
            n_rows = held_out.n - before + (mapped(draft).num_rows if draft.exists() else 0)
    there = [mapped(draft) for draft in drafts if draft.exists()]
    if there:
        n = task.max_examples
        some = [table if n is None else some_of(table, n) for table in there]
        both = path.with_suffix(".draft")
        write_batches(chain.from_iterable(filtered(table, np.ones(len(table), bool)) for table in some), both)
        _write_once(
            task.model_copy(update={"max_examples": None}), both, path, besides=np.empty(0, np.uint64)
        )
    for draft in drafts:
        draft.unlink(missing_ok=True)
    return n_rows


def may_lack_column(task: TaskParams) -> bool:
    """Tell whether a file for all languages may have no column with the texts of one of them."""
    names = getattr(task.source, "text_fields", None) or []
    return any("{language}" in name for name in names)


def _write_once(task: TaskParams, drafts: Path, path: Path, *, besides: NDArray[np.uint64]) -> None:
    """Write the drafts' texts, each once, as many as there may be, and delete the drafts.

    Args:
        task: Section `task`.
        drafts: The examples as they come.
        path: The file to write.
        besides: Texts that are left out, by the first words of their ids.
    """
    drawn = mapped(drafts)
    texts = first_words(drawn["example_id"])
    once = np.zeros(len(texts), bool)
    once[np.unique(texts, return_index=True)[1]] = True
    if len(besides):
        once &= ~among(texts, besides)
    if task.max_examples is not None:
        keys = np.where(once, keys_of(drawn["example_id"], entities_of(drawn), b""), 2**64 - 1)
        once[np.argsort(keys, kind="stable")[task.max_examples :]] = False
    if drawn[ENTITY].null_count == drawn.num_rows:
        drawn = drawn.drop_columns(ENTITY)
    write_batches(filtered(drawn, once), path)
    drafts.unlink()


def _of_source(
    task: TaskParams, revision: Revision, language: str, split: SplitName, named: Named, held_out: HeldOut
) -> Iterator[pa.Table]:
    """Give a split's texts without labels; where rows are aligned, those of ``train`` by their number."""
    aligned = split == "train" and isinstance(task.source, TableSource) and task.source.aligned
    start = 0
    for rows in read_taught(task, revision, language, split):
        rows.require_texts(task.text_fields)
        n = len(rows.labels)
        kinds = {entity is not None for entity in rows.entities}
        named["train"].update(kinds if split == "train" else kinds - {False})  # other rows have no number
        if aligned and not any(rows.entities):
            rows = replace(rows, entities=[str(start + row) for row in range(n)])
        start += n
        table = laid_out(task, rows, [None] * n)
        if (may := held_out.may_teach(table)).any():
            yield table.filter(pa.array(may))


def _without_labels(task: TaskParams, table: pa.Table) -> pa.Table:
    """Take the labels out of examples, and give them the column ``entity`` where they have none."""
    columns = {name: table[name] for name in table.column_names}
    columns["label"] = pa.nulls(table.num_rows, pa.int32())
    columns.setdefault(ENTITY, pa.nulls(table.num_rows, pa.string()))
    own = columns_of(task)
    fields = [*own, pa.field(ENTITY, pa.string())]
    fields += [table.schema.field(name) for name in (SOFT_LABEL, TEACHER) if name in columns]
    return pa.table(columns, schema=pa.schema(fields, metadata=own.metadata))
