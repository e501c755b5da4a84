"""What others write down for each class, as logits: probabilities, their logarithms, votes, or logits."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logsumexp

from cache import Outputs, SoftLabels

P_TOLERANCE = 1e-3
"""By so much a probability may be above 1: it is rounding."""
SUM_TOLERANCE = 0.01
"""By so much the probabilities of an example may add up to other than 1: many classes are rounded."""


class BadValueError(Exception):
    """A value that cannot be what it is said to be, and the row that it stands in.

    Attributes:
        row: Among the rows that were given.
        reason: What is wrong with it.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row, self.reason = row, reason


class Logits(NamedTuple):
    """Soft labels of N examples, and of which classes they were given.

    Attributes:
        logits: float32, shape ``(N, C)``. Where values were probabilities or votes, their logarithms; classes
            that were not named have the same share each of what the others left.
        named: Which classes were named, shape ``(N, C)``.
    """

    logits: NDArray[np.float32]
    named: NDArray[np.bool_]


def as_logits(values: NDArray[np.float64], named: NDArray[np.bool_], *, kind: str, floor: float) -> Logits:
    """Turn values into logits whose softmax is what was meant.

    Args:
        values: Shape ``(N, C)``.
        named: Which of them were given, shape ``(N, C)``; the others are not looked at.
        kind: ``logits``, ``log_probabilities``, ``probabilities`` or ``votes``.
        floor: The least probability, above 0; logits have none.

    Raises:
        BadValueError: A row is not of this kind.
    """
    given = np.where(named, values, 0.0)
    _refuse(np.isnan(given).any(axis=1), "a value is NaN")
    _refuse(~named.any(axis=1), "it names no class")
    if kind == "logits":
        with np.errstate(over="ignore"):  # too large for float32 is infinite
            logits = np.where(named, values, 0.0).astype(np.float32)
        _refuse(~np.isfinite(logits).all(axis=1), "a logit is infinite, or too large for 32 bits")
        _refuse(~named.all(axis=1), "logits of some classes are missing, and nobody knows the others' share")
        return Logits(logits, named)
    if kind == "log_probabilities":
        _refuse((given > np.log1p(P_TOLERANCE)).any(axis=1), "the logarithm of a probability is above 0")
        probs = np.where(named, np.exp(np.minimum(values, 0.0)), 0.0)
        nothing = named.all(axis=1) & (probs < floor).all(axis=1)  # which would count for each class alike
        _refuse(nothing, f"no class has a probability of {floor:g}; take the row out, or lower floor")
    elif kind == "votes":
        _refuse(~((given >= 0) & np.isfinite(given)).all(axis=1), "votes are negative or infinite")
        sums = given.sum(axis=1, keepdims=True)
        _refuse(sums[:, 0] <= 0, "nobody voted")
        probs, named = given / sums, np.ones_like(named)  # who is not named has no votes
    else:
        _refuse((given < 0).any(axis=1), "a probability is negative")
        _refuse((given > 1 + P_TOLERANCE).any(axis=1), "a probability is above 1")
        probs = np.minimum(given, 1.0)
    left = 1 - probs.sum(axis=1)
    _refuse(left < -SUM_TOLERANCE, f"probabilities add up to more than 1 by over {SUM_TOLERANCE}")
    n_unnamed = (~named).sum(axis=1)
    if kind != "log_probabilities":  # which may leave some to no class at all
        too_little = (n_unnamed == 0) & (left > SUM_TOLERANCE)
        _refuse(too_little, f"probabilities add up to less than 1 by over {SUM_TOLERANCE}")
    share = np.maximum(left, 0.0) / np.maximum(n_unnamed, 1)
    probs = np.maximum(np.where(named, probs, share[:, None]), floor)
    logs = np.log(probs)
    if kind == "log_probabilities":  # as they are, not as they become by way of probabilities
        kept = named & (values >= np.log(floor)) & (values <= 0)
        logs = np.where(kept, values, logs)
    return Logits(logs.astype(np.float32), named)


def _refuse(bad: Any, reason: str) -> None:
    if bad.any():
        raise BadValueError(int(bad.argmax()), reason)


def keep_named(
    ids: pa.FixedSizeBinaryArray, logits: NDArray[np.float32], named: NDArray[np.bool_]
) -> SoftLabels:
    """Keep the classes that were named, and together the others, as top-k does.

    Args:
        ids: N example ids.
        logits: Shape ``(N, C)``.
        named: Shape ``(N, C)``. As many classes are kept as a row names at most; if that is all, so are they.
    """
    k = int(named.sum(axis=1).max(initial=1))
    if k == logits.shape[1]:
        return SoftLabels.pack(ids, logits)
    kept = np.argsort(~named, axis=1, kind="stable")[:, :k]
    return _of_top(ids, logits, kept)


def widened(soft_labels: SoftLabels, k: int) -> SoftLabels:
    """Keep k classes of each example in the place of fewer; what they say stays the same."""
    n_classes = soft_labels.n_classes
    logits = soft_labels.logits
    if k == n_classes or "logits" in soft_labels.columns:
        return SoftLabels.pack(soft_labels.ids, logits)
    named = np.zeros(logits.shape, bool)
    np.put_along_axis(named, soft_labels.columns["top_classes"].astype(np.int64), True, axis=1)
    return _of_top(soft_labels.ids, logits, np.argsort(~named, axis=1, kind="stable")[:, :k])


def _of_top(ids: pa.FixedSizeBinaryArray, logits: NDArray[np.float32], kept: NDArray[np.int64]) -> SoftLabels:
    """Keep some classes of each example, ``(N, k)``, and the log-sum-exp of the others."""
    of_kept = np.take_along_axis(logits, kept, axis=1)
    order = np.argsort(-of_kept, axis=1, kind="stable")
    others = logits.astype(np.float64)
    np.put_along_axis(others, kept, -np.inf, axis=1)
    columns = {
        "top_classes": np.take_along_axis(kept, order, axis=1).astype(np.uint16),
        "top_logits": np.take_along_axis(of_kept, order, axis=1),
        "log_sum_exp_rest": logsumexp(others, axis=1).astype(np.float32),
    }
    return SoftLabels(ids, columns, logits.shape[1])


def outputs_of(soft_labels: SoftLabels) -> Outputs:
    """Say what is kept in soft labels of `keep_named`."""
    if "logits" in soft_labels.columns:
        return Outputs()
    return Outputs(top_k=soft_labels.columns["top_logits"].shape[1])
