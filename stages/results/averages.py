"""What several teachers of a language say together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp


def average_teachers(
    logits: NDArray[Any] | Sequence[NDArray[Any]], *, temperature: float = 1.0
) -> NDArray[Any]:
    """Average the probabilities of several teachers, as logits of one.

    Args:
        logits: Of M teachers, raw, in the same class order, each of shape ``(N, C)``.
        temperature: τ at which they are compared with others, above 0.

    Returns:
        t, shape ``(N, C)``, float64: softmax(t/τ) is the mean of the teachers' softmax(t_m/τ). What a single
        teacher says is given as it is.
    """
    if len(logits) == 1:
        alone: NDArray[Any] = logits[0]
        return alone
    each = [log_softmax(one.astype(np.float64) / temperature, axis=1) for one in logits]
    together: NDArray[np.float64] = temperature * (logsumexp(each, axis=0) - np.log(len(each)))
    return together
