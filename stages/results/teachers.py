"""What a language's teachers say: each one's soft labels, read from disk, and all of them together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logsumexp

from cache import Producer, SoftLabelSet
from stages.artifacts import SOFT_LABELS, of_each_teacher
from stages.data.classes import match_classes
from stages.data.examples import read_asked, read_examples
from stages.data.task import SplitName, TaskParams
from stages.errors import StageError
from stages.results.averages import average_teachers


class NamedTeacher(Protocol):
    """What params.yaml says of a teacher."""

    @property
    def name(self) -> str | None:
        """By which examples ask for it."""

    @property
    def title(self) -> str:
        """What the teacher is called for people."""

    @property
    def is_trained(self) -> bool:
        """Whether it is fine-tuned here."""

    @property
    def labels(self) -> Mapping[str, str] | None:
        """The teacher's class names to the task's."""

    @property
    def weight(self) -> float:
        """How much it counts in the average."""


class Teachers(Protocol):
    """Section `teachers.<language>` of params.yaml."""

    @property
    def all(self) -> Sequence[NamedTeacher]:
        """The language's teachers."""

    @property
    def combine(self) -> str:
        """How they speak together."""


class OneSays(NamedTuple):
    """What one teacher says of N examples.

    Attributes:
        folder: Where its soft labels lie.
        label_set: Its soft labels.
        has: Of which examples there are any, shape ``(N,)``.
        logits: In the task's class order, shape ``(N, C)``; 0 where there are none.
        hidden: Its hidden states, shape ``(N, H)``, where kept and of all examples.
        letter_bias: What was added to the logits, shape ``(C,)``; None: nothing.
    """

    folder: Path
    label_set: SoftLabelSet
    has: NDArray[np.bool_]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float16] | None
    letter_bias: NDArray[np.float32] | None = None

    def outside(self) -> float | None:
        """Give the share of probability that it gives to no class, on average; None: nobody can tell."""
        producer = self.label_set.producers[0]
        logits = self.logits[self.has]
        as_told = logits if self.letter_bias is None else logits - self.letter_bias
        return outside_classes(producer, as_told) if self.has.any() else None


def outside_classes(producer: Producer, logits: NDArray[np.float32]) -> float | None:
    """Give the share of probability that was given to no class, on average.

    Args:
        producer: Of soft labels. Only log-probabilities tell, imported ones or an endpoint's.
        logits: At least one example's, shape ``(N, C)``.

    Returns:
        In [0, 1]; None: nobody can tell.
    """
    told = (producer.endpoint or {}).get("shape") == "chat-logprobs"
    imported = {"values": "log_probabilities"} if told else producer.facts.get("imported")
    if not isinstance(imported, dict) or imported.get("values") != "log_probabilities":
        return None
    if producer.outputs.top_k is not None:
        return 0.0  # what was left went to the classes that were not named
    return float(np.maximum(1 - np.exp(logsumexp(logits.astype(np.float64), axis=1)), 0).mean())


class Said(NamedTuple):
    """What a language's teachers say of N examples.

    Attributes:
        each: What each one says.
        has: Of which examples all have soft labels that are to be asked, shape ``(N,)``.
        weights: How much each teacher counts for each of those examples, shape ``(M, n)``.
        by_confidence: Whether it counts as much more as it is sure.
    """

    each: list[OneSays]
    has: NDArray[np.bool_]
    weights: NDArray[np.float64]
    by_confidence: bool

    def together(self, temperature: float = 1.0) -> NDArray[np.floating]:
        """Give what they say together of those examples, as logits t of one teacher, shape ``(n, C)``.

        Args:
            temperature: τ, for which softmax(t/τ) is the mean of their probabilities. Of several teachers,
                each has another t, whose softmax(t) is no mean.
        """
        return average_teachers(
            [one.logits if self.has.all() else one.logits[self.has] for one in self.each],
            temperature=temperature,
            weights=self.weights,
            by_confidence=self.by_confidence,
        )


def require_some(has: NDArray[np.bool_], language: str) -> None:
    """Refuse to go on where no training text of a language has a soft label, whose mean would be none.

    Raises:
        StageError: None has.
    """
    if not has.any():
        raise StageError(
            f"no training text of '{language}' has a soft label; write them with: "
            f"python -m pipeline teacher label --language {language}"
        )


def said_by(
    task: TaskParams,
    teachers: Teachers,
    language: str,
    splits: Sequence[SplitName],
    *,
    folder: Path = SOFT_LABELS,
) -> Said:
    """Read what a language's teachers say of the N examples of some splits, one behind the other.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers.<language>`.
        language: One with teachers.
        splits: Those of the language.
        folder: In which the languages' soft labels are.

    Raises:
        StageError: The data is not there, a teacher's classes are not the task's, or an example is for a
            teacher that is not there.
        CacheError: The soft labels are not there or not readable.
    """
    tables = [read_examples(task, language, split) for split in splits]
    ids = pa.concat_tables(tables)["example_id"].combine_chunks()
    asked = read_asked(language, splits, [teacher.name for teacher in teachers.all])
    each = []
    folders = of_each_teacher(folder / language, len(teachers.all))
    for place, teacher in zip(folders, teachers.all, strict=True):
        label_set = SoftLabelSet.read(place, language=language)
        order = match_classes(label_set.classes, task.classes, names=teacher.labels, language=language)
        has, soft_labels = label_set.find(ids)
        logits = soft_labels.logits[:, order]
        hidden = soft_labels.hidden
        if not has.all():
            wide = np.zeros((len(has), len(order)), np.float32)
            wide[has] = logits
            logits, hidden = wide, None
        bias = None if label_set.letter_bias is None else label_set.letter_bias[order]
        each.append(OneSays(place, label_set, has, logits, hidden, bias))
    weights = weights_of(teachers, asked, len(ids))
    has = np.logical_and.reduce([one.has | (of_one == 0) for one, of_one in zip(each, weights, strict=True)])
    return Said(each, has, weights[:, has], teachers.combine == "confidence")


def weights_of(teachers: Teachers, asked: NDArray[np.bool_] | None, n: int) -> NDArray[np.float64]:
    """Say how much each teacher counts for each example.

    Args:
        teachers: M of them.
        asked: Whether each is asked about each example, shape ``(M, N)``; None: always.
        n: N.

    Returns:
        Shape ``(M, N)``; 0 for who is not asked.
    """
    own = np.array([[teacher.weight] for teacher in teachers.all])
    return np.broadcast_to(own, (len(own), n)) if asked is None else own * asked
