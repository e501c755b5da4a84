"""How good soft labels are, whoever made them: against the hard labels, and by how much there is of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import Index, SoftLabels
from stages.data.examples import SPLITS, UNLABELLED, has_only_texts, has_split, read_examples, taught_splits
from stages.data.task import Split, SplitName, TaskParams
from stages.errors import StageError
from stages.results.measures import (
    N_BINS,
    Bins,
    by_confidence,
    calibration_error,
    overconfidence,
    probabilities,
)

Answer = Callable[[pa.FixedSizeBinaryArray], tuple[NDArray[np.bool_], NDArray[np.floating]]]
"""Tells of which of n examples there are soft labels, ``(n,)``, and gives these in the task's class order."""

_BLOCK = 1 << 13
"""Few enough examples for the logits of thousands of classes to be in memory."""

_CLEARLY = 0.05
"""Between how sure soft labels are and how often they are right, a difference that is worth a word; of few
examples, two standard errors are."""


@dataclass(frozen=True)
class Quality:
    """How soft labels compare with the hard labels of a language, by split.

    Attributes:
        confusion: Counts by the class of the soft label (rows) and the hard one, shape ``(C, C)``.
        examples: How many there are.
        bins: The soft labels by confidence.
    """

    confusion: dict[Split, NDArray[np.int64]]
    examples: dict[Split, int]
    bins: dict[Split, Bins]

    @property
    def together(self) -> NDArray[np.int64]:
        """The counts of all splits, shape ``(C, C)``."""
        total: NDArray[np.int64] = np.sum(list(self.confusion.values()), axis=0)
        return total

    @property
    def metrics(self) -> dict[Split, dict[str, float]]:
        """Accuracy, calibration error and covered share of the splits of which there are soft labels."""
        found: dict[Split, dict[str, float]] = {}
        for split, counts in self.confusion.items():
            n = int(counts.sum())
            if n:
                found[split] = {
                    "accuracy": float(np.trace(counts) / n),
                    "calibration_error": calibration_error(self.bins[split]),
                    "coverage": n / self.examples[split],
                }
        return found

    def line(self, *, outside: float | None = None) -> str:
        """Say it in a part of a line, and what share of probability was given to no class, if any."""
        metrics = self.metrics
        if not metrics:
            return "no labelled example has one"
        accuracies = ", ".join(f"{split} {one['accuracy']:.1%}" for split, one in metrics.items())
        held_out = "validation" if "validation" in metrics else next(iter(metrics))
        parts = [f"accuracy: {accuracies}"]
        counts = self.confusion[held_out]
        if np.trace(counts) <= counts.sum(axis=0).max():
            parts.append(f"{held_out}: no better than one class for every text")
        surer = overconfidence(self.bins[held_out])
        clearly = max(_CLEARLY, self.bins[held_out].counts.sum() ** -0.5)
        how = "" if abs(surer) < clearly else ", too sure" if surer > 0 else ", not sure enough"
        parts.append(f"calibration error: {held_out} {metrics[held_out]['calibration_error']:.1%}{how}")
        partly = [
            f"{split} {metrics[split]['coverage'] if split in metrics else 0:.0%}"
            for split, n in self.examples.items()
            if n and (split not in metrics or metrics[split]["coverage"] < 1)
        ]
        parts += [f"covered: {', '.join(partly)}"] if partly else []
        parts += [f"outside the classes: {outside:.1%}"] if outside else []
        return "; ".join(parts)


def measure(task: TaskParams, language: str, answer: Answer) -> Quality:
    """Compare soft labels with the hard labels of all splits of a language.

    Args:
        task: Section `task` of params.yaml.
        language: One of the task's.
        answer: Gives the soft labels.

    Raises:
        StageError: The data is not there.
    """
    n_classes = len(task.classes)
    confusion: dict[Split, NDArray[np.int64]] = {}
    examples: dict[Split, int] = {}
    bins: dict[Split, Bins] = {}
    for split in (one for one in SPLITS if has_split(language, one)):
        table = read_examples(task, language, split)
        counts = np.zeros((n_classes, n_classes), np.int64)
        # Of each bin: predictions, and the sums of how sure and how often right they are.
        sums = np.zeros((3, N_BINS))
        for batch in table.select(["example_id", "label"]).to_batches(max_chunksize=_BLOCK):
            has, logits = answer(batch["example_id"])
            labels = batch["label"].to_numpy().astype(np.int64)[has]
            np.add.at(counts, (logits.argmax(axis=1), labels), 1)
            some = by_confidence(probabilities(logits), labels)
            sums += np.stack([some.counts, some.counts * some.confidence, some.counts * some.accuracy])
        confusion[split], examples[split] = counts, table.num_rows
        n = np.maximum(sums[0], 1)
        bins[split] = Bins(sums[0].astype(np.int64), sums[1] / n, sums[2] / n)
    return Quality(confusion, examples, bins)


def require_language(
    task: TaskParams, language: str, soft_labels: SoftLabels, *, name: str, keep_unknown: bool
) -> int:
    """Refuse soft labels most of whose texts are not the language's.

    Args:
        task: Section `task` of params.yaml.
        language: One of the task's.
        soft_labels: N of them.
        name: Of their file, for messages.
        keep_unknown: Whether they are right nevertheless.

    Returns:
        How many are of texts that the language does not have.

    Raises:
        StageError: Most of them are; or the task has no such language.
    """
    if language not in task.languages:
        raise StageError(f"--language {language} is none of the task's: {', '.join(task.languages)}")
    if not any(has_split(language, split) for split in (*SPLITS, UNLABELLED)):
        raise StageError(
            f"there is no data of '{language}' to compare with; write it: python -m pipeline prepare"
        )
    index, n = Index(soft_labels.ids), len(soft_labels)
    known = {one: _n_known(task, one, index) for one in (language, *task.languages)}
    n_unknown = n - known[language]
    if 2 * n_unknown > n and not keep_unknown:
        best = max(known, key=known.__getitem__)
        other = f", and {known[best]:,} are of '{best}'" if known[best] > known[language] else ""
        raise StageError(
            f"{n_unknown:,} of the {n:,} texts in {name} are not among those of '{language}'{other}; "
            "is it the right language? if so, say --keep-unknown"
        )
    return n_unknown


def _n_known(task: TaskParams, language: str, index: Index) -> int:
    splits: list[SplitName] = [split for split in SPLITS if has_split(language, split)]
    if UNLABELLED in taught_splits(task, language) or has_only_texts(task, language):
        splits.append(UNLABELLED)
    found = [index.positions(read_examples(task, language, s)["example_id"].combine_chunks()) for s in splits]
    positions = np.concatenate([*found, np.array([], np.int64)])
    return len(np.unique(positions[positions >= 0]))
