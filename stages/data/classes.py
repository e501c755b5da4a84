"""Match a teacher's classes to the task's by name, and check on labelled examples that the match is right."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from stages.errors import StageError

# Names that public checkpoints and data sets use for the same class, after `class_key`.
_SYNONYMS = {
    "contradictory": "contradiction",
    "contradicts": "contradiction",
    "entails": "entailment",
    "entailed": "entailment",
    "duplicate": "paraphrase",
    "equivalent": "paraphrase",
    "not duplicate": "not paraphrase",
    "not equivalent": "not paraphrase",
    "different": "not paraphrase",
}

# The gate stops where another reading of the classes is right on many more examples than the declared one:
# at least this share of them, and this many standard deviations of the paired difference. More deviations are
# needed where more classes are moved: the best of C^m permutations of m classes fits even noise.
_GATE_SHARE = 0.05
_GATE_DEVIATIONS = 5.0


def match_classes(
    teacher: Sequence[str], task: Sequence[str], *, names: Mapping[str, str] | None, language: str
) -> NDArray[np.int64]:
    """Find each of the task's classes among the teacher's, by name.

    Names are compared without case, with ``_`` and ``-`` inside of them as spaces, and with the usual
    synonyms.

    Args:
        teacher: Class names in the order of the teacher's logits.
        task: Class names of the task.
        names: ``teachers.<language>.labels``: the teacher's names to the task's.
        language: The teacher's language, for messages.

    Returns:
        int64, shape ``(C,)``: ``teacher_logits[:, result]`` is in the task's order.

    Raises:
        StageError: The number of classes differs, a class has no counterpart, or the teacher's classes have
            no names (``LABEL_0``) and `names` does not give them any.
    """
    key = f"teachers.{language}.labels"
    if len(teacher) != len(task):
        raise StageError(
            f"the teacher for '{language}' has {len(teacher)} classes ({', '.join(teacher)}), "
            f"the task has {len(task)} ({', '.join(task)})"
        )
    unknown = sorted(set(names or {}) - set(teacher))
    if unknown:
        raise StageError(f"{key}: the teacher has no class {unknown[0]}; it has {', '.join(teacher)}")
    if names is None and all(name.upper().startswith("LABEL_") for name in teacher):
        example = ", ".join(f"{name}: {task[0] if i == 0 else '…'}" for i, name in enumerate(teacher))
        raise StageError(
            f"the teacher for '{language}' does not name its classes ({', '.join(teacher)}); "
            f"name them in params.yaml: {key}: {{{example}}}"
        )
    position = {class_key((names or {}).get(name, name)): index for index, name in enumerate(teacher)}
    absent = [name for name in task if class_key(name) not in position]
    if absent or len(position) != len(task):
        raise StageError(
            f"the teacher for '{language}' has no class '{', '.join(absent)}' among "
            f"{', '.join(teacher)}; map its names to the task's in params.yaml: {key}"
        )
    return np.array([position[class_key(name)] for name in task])


def require_distinct_classes(task: Sequence[str]) -> None:
    """Refuse classes of a task that nobody could tell apart by name: a teacher's may be spelt otherwise.

    Raises:
        StageError: There are two such.
    """
    seen: dict[str, str] = {}
    for name in task:
        other = seen.setdefault(normalize("NFC", class_key(name)), name)
        if other is not name:
            raise StageError(
                f"task.classes: '{other}' and '{name}' are one class, since case, spaces, _ and - make no "
                "difference, and known synonyms are one; give one another name, in the data too"
            )


class ClassOrder(NamedTuple):
    """How well a teacher's declared class order fits labelled examples, and how well the best one does.

    Attributes:
        declared: Accuracy of the teacher as its classes are declared, in [0, 1].
        best: Accuracy under the permutation that fits best; no less than `declared`.
        permutation: For each class the one that it would be read as; int64, shape ``(C,)``.
        is_refuted: Whether `best` is so much better that the declared order cannot be right.
    """

    declared: float
    best: float
    permutation: NDArray[np.int64]
    is_refuted: bool

    def reading(self, classes: Sequence[str], names: Sequence[str] | None = None) -> str:
        """Say which classes the best permutation reads as others; empty where it reads none so.

        Args:
            classes: The task's C class names.
            names: The teacher's for the same classes, where they are others.
        """
        read = zip(names or classes, self.permutation, strict=True)
        return ", ".join(f"{name}: {classes[to]}" for at, (name, to) in enumerate(read) if to != at)


def weigh_class_order(confusion: NDArray[np.int64]) -> ClassOrder:
    """Compare the declared order of a teacher's classes with the one that fits labelled examples best.

    The best permutation maximises the trace of the confusion matrix (linear sum assignment). To refute the
    declared one it must beat it clearly, however many permutations could have been the best (a union bound
    over Gaussian tails), and also the share of the largest class, which a constant answer reaches.

    Args:
        confusion: Counts of labelled examples by the teacher's class and the hard label, shape ``(C, C)``.
    """
    classes, n_examples = np.arange(len(confusion)), int(confusion.sum())
    _, best = linear_sum_assignment(confusion, maximize=True)
    right = int(np.trace(confusion))
    best_right = int(confusion[classes, best].sum())
    moved = best != classes
    gained = int(confusion[classes, best][moved].sum())
    lost = int(np.diag(confusion)[moved].sum())
    majority = int(confusion.sum(axis=0).max())
    deviations = (_GATE_DEVIATIONS**2 + 2 * int(moved.sum()) * np.log(len(confusion))) ** 0.5
    margin = max(_GATE_SHARE * n_examples, deviations * (gained + lost) ** 0.5)
    is_refuted = gained - lost > margin and best_right - majority > _GATE_SHARE * n_examples
    return ClassOrder(right / n_examples, best_right / n_examples, best, is_refuted)


def check_class_order(
    confusion: NDArray[np.int64], *, classes: Sequence[str], names: Sequence[str], language: str
) -> None:
    """Stop where another permutation of the classes makes the teacher clearly more accurate.

    Args:
        confusion: Counts of labelled examples by the teacher's class and the hard label, shape ``(C, C)``.
        classes: The task's class names.
        names: The teacher's names of the same classes.
        language: The teacher's language, for messages.

    Raises:
        StageError: The declared order is clearly not the best one.
    """
    order = weigh_class_order(confusion)
    if order.is_refuted:
        raise StageError(
            f"the teacher for '{language}' is right on {order.declared:.1%} of {int(confusion.sum())} "
            f"labelled examples, but on {order.best:.1%} if its classes are read as "
            f"{{{order.reading(classes, names)}}}; check its class order and set teachers.{language}.labels "
            "in params.yaml"
        )


def class_key(name: str) -> str:
    """Give what the names of one class have in common: no case, a space for ``_`` or ``-``, one synonym.

    What stands before or behind a name, as in ``-1`` and ``A-``, is a part of it.
    """
    inside = r"(?<=\S)[-_]+(?=\S)|(?<=\s)[-_]+(?=\s)"
    plain = " ".join(re.sub(inside, " ", name.casefold().strip()).split())
    return _SYNONYMS.get(plain, plain)
