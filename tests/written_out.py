"""What the tests compare measures with: definitions, word by word."""

from typing import Any

import numpy as np

from stages.results.measures import N_BINS


def calibration_error_of(logits: Any, labels: Any) -> float:
    """Guo et al. (2017), equation 3, word by word."""
    error = 0.0
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    for m in range(1, N_BINS + 1):
        inside = (confidence > (m - 1) / N_BINS) & (confidence <= m / N_BINS)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)
