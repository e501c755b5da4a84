"""What several teachers say together is the mean of their probabilities."""

import numpy as np
from scipy.special import softmax

from stages.results.averages import average_teachers

M, N, C = 3, 5, 4


def test_several_teachers_are_averaged_as_probabilities() -> None:
    temperature = 2.5
    logits = np.random.default_rng(0).normal(size=(M, N, C))
    logits[0, 0] = [2000, 0, -2000, 0]  # probabilities of 0
    averaged = average_teachers(logits, temperature=temperature)
    expected = softmax(logits / temperature, axis=-1).mean(axis=0)
    np.testing.assert_allclose(softmax(averaged / temperature, axis=-1), expected, atol=1e-12)


def test_a_single_teacher_says_what_it_says() -> None:
    logits = np.random.default_rng(0).normal(size=(1, N, C)).astype(np.float32)
    np.testing.assert_array_equal(average_teachers(logits, temperature=2.5), logits[0])
