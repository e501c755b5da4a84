"""How good, how sure and how alike classifiers are. Arrays in, numbers out; N examples, C classes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax

N_BINS = 15
"""Bins of confidence, each as wide as the others, as Guo et al. (2017) take them."""

_TEMPERATURES = (0.02, 50.0)  # the range that is searched; the loss has one minimum over 1 / temperature


class Bins(NamedTuple):
    """Predictions by confidence, the probability of the class that was predicted; each of shape (N_BINS,).

    Attributes:
        counts: Predictions in the bin.
        confidence: Their mean confidence, in [0, 1]; 0 where there is none.
        accuracy: The share of them that is right, in [0, 1]; 0 where there is none.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def probabilities(logits: NDArray[Any], *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Give the softmax of logits ``(N, C)``, divided by the temperature, in double precision."""
    probs: NDArray[np.float64] = softmax(logits.astype(np.float64) / temperature, axis=1)
    return probs


def confusion(labels: NDArray[Any], predicted: NDArray[Any], *, n_classes: int) -> NDArray[np.int64]:
    """Count examples by hard label (rows) and predicted class (columns); shape ``(C, C)``."""
    from sklearn.metrics import confusion_matrix  # slow import

    counts: NDArray[np.int64] = confusion_matrix(labels, predicted, labels=range(n_classes))
    return counts


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Find the temperature that makes held-out labels most likely (Guo et al., 2017, section 4.2).

    It changes no prediction, only how sure each is.

    Args:
        logits: Of examples that the classifier was not trained on, shape ``(N, C)``.
        labels: Their hard labels, shape ``(N,)``.

    Returns:
        What the logits are to be divided by, in [0.02, 50]: above 1 where the classifier is too sure. 1 where
        it is never wrong: the likelihood then only grows, and nothing says how sure it may be.
    """
    return fit_temperature_of(lambda _: logits, labels)


def fit_temperature_of(logits: Callable[[float], NDArray[Any]], labels: NDArray[Any]) -> float:
    """As `fit_temperature`, of what has other logits at each temperature: an average of several classifiers.

    Args:
        logits: Gives them, of shape ``(N, C)``.
        labels: Hard labels, shape ``(N,)``.
    """
    if (logits(1.0).argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        scaled = log_softmax(logits(temperature).astype(np.float64) / temperature, axis=1)
        return -float(scaled[rows, labels].mean())

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def by_confidence(probs: NDArray[np.float64], labels: NDArray[Any]) -> Bins:
    """Put predictions into bins by their confidence.

    Args:
        probs: Shape ``(N, C)``, rows that add up to 1.
        labels: Hard labels, shape ``(N,)``.
    """
    confidence = probs.max(axis=1)
    right = probs.argmax(axis=1) == labels
    # Bin i holds the confidences in (i / N_BINS, (i + 1) / N_BINS].
    place = np.clip(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    counts = np.bincount(place, minlength=N_BINS)
    some = np.maximum(counts, 1)
    return Bins(
        counts,
        np.bincount(place, weights=confidence, minlength=N_BINS) / some,
        np.bincount(place, weights=right, minlength=N_BINS) / some,
    )


def calibration_error(bins: Bins) -> float:
    """Give the expected calibration error: the mean gap of confidence and accuracy (Guo et al., 2017, eq. 3).

    Returns:
        In [0, 1]; 0 where predictions of confidence p are right in p of the cases.
    """
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float((bins.counts * gaps).sum() / max(bins.counts.sum(), 1))


def overconfidence(bins: Bins) -> float:
    """Give the mean confidence less the accuracy, in [-1, 1]: below 0, predictions are right more often."""
    n = max(bins.counts.sum(), 1)
    return float((bins.counts * (bins.confidence - bins.accuracy)).sum() / n)


def by_coverage(probs: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Say how accurate a classifier is that answers only the k texts of which it is the surest, for each k.

    Args:
        probs: Shape ``(N, C)``, rows that add up to 1.
        labels: Hard labels, shape ``(N,)``.

    Returns:
        Accuracies in [0, 1], shape ``(N,)``: of the surest answer, of the two surest, up to all of them.
    """
    order = np.argsort(-probs.max(axis=1), kind="stable")
    right = probs.argmax(axis=1) == labels
    accuracies: NDArray[np.float64] = np.cumsum(right[order]) / np.arange(1, len(labels) + 1)
    return accuracies


def divergence(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the Jensen-Shannon divergence of two distributions for each example (Lin, 1991).

    Args:
        one: Probabilities, shape ``(N, C)``.
        other: Of the same shape.

    Returns:
        Bits in [0, 1], shape ``(N,)``: 0 where both say the same, 1 where they share no class.
    """
    # Not scipy.spatial.distance.jensenshannon: rounding makes it NaN where both are almost equal.
    middle = (one + other) / 2
    nats = (rel_entr(one, middle) + rel_entr(other, middle)).sum(axis=1) / 2
    bits: NDArray[np.float64] = np.clip(nats / np.log(2), 0, 1)
    return bits


def entropy(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the entropy of each example's distribution ``(N, C)`` in bits, shape ``(N,)``."""
    from scipy.stats import entropy as shannon_entropy  # slow import

    bits: NDArray[np.float64] = shannon_entropy(probs, base=2, axis=1)
    return bits


def interval(n_right: int, n: int) -> tuple[float, float]:
    """Give the 95 % interval of a share of `n_right` in `n` examples (Wilson, 1927)."""
    from scipy.stats import binomtest  # slow import

    found = binomtest(n_right, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
