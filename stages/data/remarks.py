"""What people want to know of their data: counts, and what may be wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tabulate import tabulate

from stages.data.examples import ENTITY, SPLITS
from stages.data.task import Split, SplitName

_NAMED = 5
"""Languages of which rows are left out that are named."""

_MANY = 10
"""Examples per class, on average, from which on a class without one is worth a note."""

_FEW = 10
"""Examples with the same value of ``entity``, on average, from which on a column may mean something else."""


@dataclass
class Prepared:
    """What was written.

    Attributes:
        classes: The task's.
        aligned: Whether rows are translations of each other by their number in a split, which another split
            has as well.
        examples: Examples per language and split.
        overlap: Per supervised language, the test examples whose text is also in the training split.
        unlabelled: Per language, texts without labels.
        by_class: Per supervised language, training examples of each class.
        notes: What people want to know of their data, a line each.
    """

    classes: Sequence[str]
    aligned: bool = False
    examples: dict[str, dict[Split, int]] = field(default_factory=dict)
    overlap: dict[str, int] = field(default_factory=dict)
    unlabelled: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _rows: dict[Split, tuple[str, NDArray[np.int32]]] = field(default_factory=dict)
    _labels: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    _seen: dict[tuple[str, SplitName], "_Seen"] = field(default_factory=dict)

    def add(
        self,
        language: str,
        split: Split,
        table: pa.Table,
        text_fields: Sequence[str],
        *,
        is_whole: bool,
        is_numbered: bool,
    ) -> None:
        """Count the examples of one language and split, and note what may be wrong with them.

        Args:
            language: Theirs.
            split: Theirs.
            table: The examples.
            text_fields: Columns with texts.
            is_whole: Whether it has all rows of the source, in its order.
            is_numbered: Whether entities are numbers of rows, which another split has as well.
        """
        self.examples.setdefault(language, {})[split] = table.num_rows
        entities = np.empty(0, np.int64) if is_numbered else _entities(table)
        seen = self._seen[language, split] = _Seen(first_words(table["example_id"]), entities)
        self._note_empty(language, f"{split} examples", table, text_fields)
        if ENTITY in table.column_names and table[ENTITY].null_count:
            n = table[ENTITY].null_count
            self.notes.append(f"{language}: {n:,} of {table.num_rows:,} {split} examples have no {ENTITY}")
        labels = table["label"].to_numpy()
        if split == "train":
            n = len(np.unique(entities[entities != 0]))
            if 0 < n <= table.num_rows // _FEW:
                self.notes.append(
                    f"{language}: the {table.num_rows:,} training examples have {n:,} values of {ENTITY}; "
                    "where some are chosen, those with the same value go together"
                )
            self._note_classes(language, labels, seen.texts)
            self._labels[language] = labels
        else:
            missing = self._missing(np.bincount(labels, minlength=len(self.classes)).tolist())
            if missing and table.num_rows >= _MANY * len(self.classes):
                self.notes.append(
                    f"{language}: no {split} example of {', '.join(missing)}; is the source sorted?"
                )
        if self.aligned and is_whole:
            self._note_alignment(language, split, labels)

    def add_unlabelled(
        self,
        language: str,
        table: pa.Table,
        text_fields: Sequence[str],
        *,
        is_taught: bool,
        is_numbered: bool,
    ) -> None:
        """Count a language's texts without labels; those that teach the student are compared with the others.

        Args:
            language: Theirs.
            table: The texts, with their ids where they teach.
            text_fields: Columns with texts.
            is_taught: Whether they do.
            is_numbered: As `add`.
        """
        self.unlabelled[language] = table.num_rows
        self._note_empty(language, "unlabelled texts", table, text_fields)
        if is_taught:
            entities = np.empty(0, np.int64) if is_numbered else _entities(table)
            self._seen[language, "unlabelled"] = _Seen(first_words(table["example_id"]), entities)

    def _note_empty(self, language: str, what: str, table: pa.Table, text_fields: Sequence[str]) -> None:
        empty = [pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table[name])), 0) for name in text_fields]
        n = pc.sum(empty[0] if len(empty) == 1 else pc.or_(*empty)).as_py()
        if n:
            self.notes.append(f"{language}: {n:,} {what} have an empty text")

    def note_left_out(self, where: str, strangers: Mapping[str, int]) -> None:
        """Note rows of languages that are not read there: how many each has."""
        named = sorted(strangers, key=lambda name: -strangers[name])[:_NAMED]
        self.notes += [f"{where}: {strangers[name]:,} rows of '{name}' are left out" for name in named]
        if more := len(strangers) - len(named):
            self.notes.append(f"{where}: so are rows of {more:,} other languages")

    def _missing(self, counts: Sequence[int]) -> list[str]:
        """Name the classes of which there is no example."""
        return [name for name, n in zip(self.classes, counts, strict=True) if not n]

    def _note_classes(self, language: str, labels: NDArray[np.int32], texts: NDArray[np.uint64]) -> None:
        """Count the classes of a training split, and note missing ones and labels that contradict."""
        self.by_class[language] = np.bincount(labels, minlength=len(self.classes)).tolist()
        if missing := self._missing(self.by_class[language]):
            self.notes.append(f"warning: {language}: no training example of {', '.join(missing)}")
        repeated = len(texts) - len(np.unique(texts))
        if repeated:
            self.notes.append(f"{language}: {repeated:,} training texts are repetitions of others")
        contradictory = len(_with_several_labels(texts, labels))
        if contradictory:
            self.notes.append(f"{language}: {contradictory:,} training texts stand there with several labels")

    def _note_alignment(self, language: str, split: Split, labels: NDArray[np.int32]) -> None:
        """Note where rows that are to be translations of each other have other labels."""
        other, first = self._rows.setdefault(split, (language, labels))
        n = int((first != labels).sum()) if len(first) == len(labels) else 0  # or it is refused
        if n:
            self.notes.append(
                f"warning: {n:,} of {len(labels):,} {split} rows have another label in '{language}' than in "
                f"'{other}'; are they aligned?"
            )

    def _note_translations(self, train: Mapping[str, "_Seen"]) -> None:
        """Note entities that have one training label in each language, and not the same in all."""
        named = [
            (seen.entities[seen.entities != 0], self._labels[language][seen.entities != 0])
            for language, seen in train.items()
            if len(seen.entities)
        ]
        if self.aligned or len(named) < 2:
            return
        entities, labels = (np.concatenate(arrays) for arrays in zip(*named, strict=True))
        within = np.concatenate([_with_several_labels(*own) for own in named])
        n = len(_with_several_labels(entities, labels)) - len(np.unique(within))
        if n:
            self.notes.append(
                f"warning: {n:,} entities have another training label in one language than in another; are "
                "their texts translations?"
            )

    def close(self) -> None:
        """Note, once all splits are there, which texts are training texts of any language as well."""
        train = {language: seen for (language, split), seen in self._seen.items() if split == "train"}
        self._note_translations(train)
        self._note_missing_entities(train)
        for (language, split), seen in self._seen.items():
            if split in ("train", "unlabelled"):
                continue
            self._note_taught(language, split, seen)
            if split == "validation" and (test := self._seen.get((language, "test"))):
                n = among(seen.texts, test.texts).sum()
                self.notes += [f"{language}: {n:,} validation texts are test texts"] if n else []
            own, foreign, translated = np.zeros((3, len(seen.texts)), bool)
            for other, there in train.items():
                found = among(seen.texts, there.texts)
                own |= found & (other == language)
                foreign |= found & (other != language)
                if len(seen.entities) and len(there.entities):
                    translated |= among(seen.entities, there.entities) & (seen.entities != 0)
            if split == "test" and language in train:
                self.overlap[language] = int(own.sum())
            elif own.any():
                self.notes.append(f"{language}: {own.sum():,} {split} texts are training texts")
            if foreign.any():
                self.notes.append(
                    f"{language}: {foreign.sum():,} {split} texts are another language's training texts"
                )
            translated &= ~own & ~foreign
            if translated.any():
                self.notes.append(
                    f"{language}: {translated.sum():,} {split} texts are about the same as a training text, "
                    "as translations are"
                )

    def _note_missing_entities(self, train: Mapping[str, "_Seen"]) -> None:
        """Note languages whose training examples say nothing of what they are about, as others' do."""
        silent = [language for language, seen in train.items() if not len(seen.entities)]
        if not self.aligned and 0 < len(silent) < len(train):
            self.notes.append(
                f"{', '.join(silent)}: no training example has an {ENTITY}, as those of other languages have"
            )

    def _note_taught(self, language: str, split: SplitName, seen: "_Seen") -> None:
        """Note which texts of a split the student learns without labels, or texts about the same."""
        found, translated = np.zeros((2, len(seen.texts)), bool)
        for (_, other), there in self._seen.items():
            if other == "unlabelled":
                found |= among(seen.texts, there.texts)
                if len(seen.entities) and len(there.entities):
                    translated |= among(seen.entities, there.entities) & (seen.entities != 0)
        if found.any():
            self.notes.append(
                f"{language}: the unlabelled texts that are taught hold {found.sum():,} of the {split} texts"
            )
        translated &= ~found
        if translated.any():
            self.notes.append(
                f"{language}: {translated.sum():,} {split} texts are about the same as an unlabelled text "
                "that is taught, as translations are"
            )

    def table(self) -> str:
        """Lay out the counts, one language a line, then those of the classes, and the notes."""
        rows = [
            [
                language,
                *(self.examples.get(language, {}).get(split) for split in SPLITS),
                self.overlap.get(language),
                *([self.unlabelled.get(language)] if any(self.unlabelled.values()) else []),
            ]
            for language in dict.fromkeys([*self.examples, *self.unlabelled])
        ]
        unlabelled = ["unlabelled"] if any(self.unlabelled.values()) else []
        classes = [
            [name, *(counts[index] for counts in self.by_class.values())]
            for index, name in enumerate(self.classes)
        ]
        tables = [
            tabulate(
                cells,
                head,
                tablefmt="plain",
                stralign="right",
                colalign=("left",),
                missingval="–",
                disable_numparse=True,
            )
            for cells, head in (
                (rows, ["language", *SPLITS, "test in train", *unlabelled]),
                (classes, ["class, in train", *self.by_class]),
            )
        ]
        return "\n\n".join([*tables, *(["\n".join(self.notes)] if self.notes else [])])


@dataclass(frozen=True)
class _Seen:
    """A split's texts and entities as 64-bit hashes, by which they are counted; 0: no entity."""

    texts: NDArray[np.uint64]
    entities: NDArray[np.int64]


def _entities(table: pa.Table) -> NDArray[np.int64]:
    if ENTITY not in table.column_names:
        return np.empty(0, np.int64)
    names = (name for chunk in table[ENTITY].iterchunks() for name in chunk.to_pylist())
    return np.fromiter((hash(name) if name else 0 for name in names), np.int64, table.num_rows)


def _with_several_labels(
    keys: NDArray[np.uint64] | NDArray[np.int64], labels: NDArray[np.int32]
) -> NDArray[Any]:
    """Give the keys, each once, that stand beside several labels."""
    order = np.lexsort((labels, keys))
    keys, labels = keys[order], labels[order]
    return np.unique(keys[1:][(keys[1:] == keys[:-1]) & (labels[1:] != labels[:-1])])


def among(values: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which values are among others; NumPy's `isin` takes a hundred times as long."""
    ordered = np.sort(others)
    places = np.searchsorted(ordered, values)
    found: NDArray[np.bool_] = ordered[np.minimum(places, len(ordered) - 1)] == values
    return found


def first_words(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Give the first eight bytes of each example's id as a number, uint64, shape ``(N,)``."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], ">u8", 2 * len(chunk), 16 * chunk.offset)[::2]
        for chunk in ids.iterchunks()
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, ">u8"), *chunks]).astype(np.uint64)
