"""Match a teacher's classes to the task's by name, and check on labelled examples that the match is right."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from stages.base import StageError

# Names that public checkpoints and data sets use for the same class, after `_key`.
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
# at least this share of them, and this many standard deviations of the paired difference.
_GATE_SHARE = 0.05
_GATE_DEVIATIONS = 5.0


def match_classes(
    teacher: Sequence[str], task: Sequence[str], *, names: Mapping[str, str] | None, language: str
) -> NDArray[np.int64]:
    """Find each of the task's classes among the teacher's, by name.

    Names are compared without case, with ``_`` and ``-`` as spaces, and with the usual synonyms.

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
    position = {_key((names or {}).get(name, name)): index for index, name in enumerate(teacher)}
    absent = [name for name in task if _key(name) not in position]
    if absent or len(position) != len(task):
        raise StageError(
            f"the teacher for '{language}' has no class '{', '.join(absent)}' among "
            f"{', '.join(teacher)}; map its names to the task's in params.yaml: {key}"
        )
    return np.array([position[_key(name)] for name in task])


def check_class_order(confusion: NDArray[np.int64], *, classes: Sequence[str], language: str) -> None:
    """Stop where another permutation of the classes makes the teacher clearly more accurate.

    The best permutation maximises the trace of the confusion matrix (linear sum assignment). It must beat
    the declared one clearly, and so must the share of the largest class, which a constant answer reaches.

    Args:
        confusion: Counts of labelled examples by the teacher's class and the hard label, shape ``(C, C)``.
        classes: The task's class names.
        language: The teacher's language, for messages.

    Raises:
        StageError: The declared order is clearly not the best one.
    """
    n_classes, n_examples = len(classes), int(confusion.sum())
    _, best = linear_sum_assignment(confusion, maximize=True)
    right = int(np.trace(confusion))
    best_right = confusion[np.arange(n_classes), best].sum()
    moved = best != np.arange(n_classes)
    gained = int(confusion[np.arange(n_classes), best][moved].sum())
    lost = int(np.diag(confusion)[moved].sum())
    majority = confusion.sum(axis=0).max()
    margin = max(_GATE_SHARE * n_examples, _GATE_DEVIATIONS * (gained + lost) ** 0.5)
    if gained - lost > margin and best_right - majority > _GATE_SHARE * n_examples:
        order = ", ".join(f"{classes[i]}: {classes[best[i]]}" for i in range(n_classes) if best[i] != i)
        raise StageError(
            f"the teacher for '{language}' is right on {right / n_examples:.1%} of {n_examples} "
            f"labelled examples, but on {best_right / n_examples:.1%} if its classes are read as "
            f"{{{order}}}; check its class order and set teachers.{language}.labels in params.yaml"
        )


def _key(name: str) -> str:
    plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    return _SYNONYMS.get(plain, plain)
