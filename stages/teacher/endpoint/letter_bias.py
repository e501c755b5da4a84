"""Letter bias: what a teacher prefers before it has read anything, and how it is taken off its answers.

Contextual calibration (Zhao et al., 2021): with p the mean of what the teacher says of texts without content,
each class's logit gets -log p. The vector is one per producer; the soft labels stay as they came.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp


def letter_bias(content_free: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Give what is to be added to logits.

    Args:
        content_free: The logits of texts without content, shape ``(N, C)``.

    Returns:
        C numbers with the mean 0.
    """
    logs = log_softmax(np.asarray(content_free, np.float64), axis=1)
    prior = logsumexp(logs, axis=0) - np.log(len(logs))
    return tuple(float(value) for value in prior.mean() - prior)
