"""Measures are those of the literature."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm
from sklearn.metrics import confusion_matrix, log_loss
from written_out import calibration_error_of

from stages.results.measures import (
    by_confidence,
    calibration_error,
    confusion,
    divergence,
    entropy,
    fit_temperature,
    interval,
    overconfidence,
    probabilities,
)


@pytest.fixture
def answers() -> tuple[Any, Any]:
    """Logits and labels of 53 examples, 5 classes, from a classifier that is three times too sure."""
    numbers = np.random.default_rng(1)
    logits = numbers.normal(size=(53, 5))
    labels = np.array([numbers.choice(5, p=row) for row in probabilities(logits)])
    return 3 * logits, labels


def test_probabilities_are_the_softmax_of_logits_over_the_temperature(answers: tuple[Any, Any]) -> None:
    logits, _ = answers
    powers = np.exp(logits / 2.5)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(logits, temperature=2.5), expected, atol=1e-12)
    far_apart = probabilities(np.array([[2000, 0, -2000]], np.float32))
    assert far_apart.dtype == np.float64
    np.testing.assert_array_equal(far_apart, [[1, 0, 0]])


def test_the_calibration_error_is_that_of_guo(answers: tuple[Any, Any]) -> None:
    logits, labels = answers
    bins = by_confidence(probabilities(logits), labels)
    assert calibration_error(bins) == pytest.approx(calibration_error_of(logits, labels))


def test_overconfidence_is_how_sure_less_how_often_right(answers: tuple[Any, Any]) -> None:
    logits, labels = answers
    for scale in (1, 0.01):
        probs = probabilities(scale * logits)
        surer = probs.max(axis=1).mean() - (probs.argmax(axis=1) == labels).mean()
        assert overconfidence(by_confidence(probs, labels)) == pytest.approx(surer)
        assert (surer > 0) == (scale == 1)


def test_confusion_counts_pairs_of_label_and_prediction(answers: tuple[Any, Any]) -> None:
    logits, labels = answers
    predicted = logits.argmax(axis=1)
    counts = confusion(labels, predicted, n_classes=7)  # of which two never occur
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert counts.tolist() == [[pairs[label, said] for said in range(7)] for label in range(7)]
    assert np.array_equal(
        confusion(labels, predicted, n_classes=5), confusion_matrix(labels, predicted, labels=range(5))
    )


def test_divergence_is_the_squared_jensen_shannon_distance_in_bits(answers: tuple[Any, Any]) -> None:
    logits, _ = answers
    probs, others = probabilities(logits), probabilities(np.roll(logits, 1, axis=0))
    expected = [jensenshannon(p, q, base=2) ** 2 for p, q in zip(probs, others, strict=True)]
    np.testing.assert_allclose(divergence(probs, others), expected, atol=1e-12)
    certain = np.eye(5)
    np.testing.assert_allclose(divergence(certain, np.roll(certain, 1, axis=0)), 1)
    np.testing.assert_array_equal(divergence(certain, certain), 0)


def test_divergence_of_what_is_alike_but_for_rounding_is_zero(answers: tuple[Any, Any]) -> None:
    logits, _ = answers
    probs = probabilities(logits)
    bits = divergence(probs, np.nextafter(probs, 1))  # of which SciPy's distance is NaN in some places
    assert np.all((bits >= 0) & (bits < 1e-12))


def test_entropy_is_in_bits(answers: tuple[Any, Any]) -> None:
    logits, _ = answers
    probs = probabilities(logits)
    np.testing.assert_allclose(entropy(probs), -(probs * np.log2(probs)).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(entropy(np.full((2, 4), 0.25)), 2)
    np.testing.assert_array_equal(entropy(np.eye(4)), 0)


@pytest.mark.parametrize(("n_right", "n"), [(0, 1), (1, 1), (0, 53), (8, 10), (17, 53), (53, 53)])
def test_the_interval_is_that_of_wilson(n_right: int, n: int) -> None:
    share, z = n_right / n, norm.ppf(0.975)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = interval(n_right, n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_the_interval_of_eight_in_ten_is_that_of_the_tables() -> None:
    assert interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_the_temperature_makes_held_out_labels_most_likely(answers: tuple[Any, Any]) -> None:
    logits, labels = answers
    temperature = fit_temperature(logits, labels)
    assert temperature > 1.5
    best = log_loss(labels, probabilities(logits, temperature=temperature), labels=range(5))
    for other in np.linspace(0.5, 9, 50):
        assert best <= log_loss(labels, probabilities(logits, temperature=other), labels=range(5)) + 1e-6


@pytest.mark.parametrize("n", [0, 40])
def test_without_a_mistake_nothing_says_how_sure_to_be(n: int) -> None:
    assert fit_temperature(np.tile([2.0, 0.0], (n, 1)), np.zeros(n, np.int64)) == 1
