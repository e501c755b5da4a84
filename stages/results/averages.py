"""What several teachers of a language say together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp


def average_teachers(
    logits: NDArray[Any] | Sequence[NDArray[Any]],
    *,
    temperature: float = 1.0,
    weights: NDArray[np.float64] | None = None,
    by_confidence: bool = False,
) -> NDArray[Any]:
    """Average the probabilities of several teachers, as logits of one.

    Args:
        logits: Of M teachers, raw, in the same class order, each of shape ``(N, C)``.
        temperature: τ at which they are compared with others, above 0.
        weights: How much each counts for each example, at least 0 and not all 0, shape ``(M, N)``; None: all
            alike.
        by_confidence: Whether a teacher counts as much more as it is sure: 1 - H(p) / log C, with the entropy
            H of its probabilities p at temperature 1, of C classes.

    Returns:
        t, shape ``(N, C)``, float64: softmax(t/τ) is the weighted mean of the teachers' softmax(t_m/τ). What
        a single teacher says is given as it is.
    """
    if len(logits) == 1:
        alone: NDArray[Any] = logits[0]
        return alone
    each = np.stack([log_softmax(one.astype(np.float64) / temperature, axis=1) for one in logits])
    if (weights is None or (weights == weights[:1]).all()) and not by_confidence:
        alike: NDArray[np.float64] = temperature * (logsumexp(each, axis=0) - np.log(len(each)))
        return alike
    counted = np.ones(each.shape[:2]) if weights is None else weights
    if by_confidence:
        sure = counted * np.stack([_confidence(one) for one in logits])
        counted = np.where(sure.sum(axis=0) > 0, sure, counted)
    shares = counted / counted.sum(axis=0)
    together: NDArray[np.float64] = temperature * logsumexp(each, axis=0, b=shares[:, :, None])
    return together


def _confidence(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Give 1 less the entropy's share of the largest, in [0, 1], shape ``(N,)``."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    entropy = -(np.exp(logs) * logs).sum(axis=1)
    sure: NDArray[np.float64] = np.clip(1 - entropy / np.log(logits.shape[1]), 0, 1)
    return sure
