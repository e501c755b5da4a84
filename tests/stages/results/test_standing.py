"""Whether a student is to be used for a language: with counts whose answer is known beforehand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.results.standing import standing

N = 400
LABELS = np.tile(np.array([0, 0, 1, 2], np.int32), N // 4)
"""Half of them are of the first class."""


def says(n_right: int) -> NDArray[np.int64]:
    """Classes of which so many, spread over the labels, are right."""
    order = np.random.default_rng(0).permutation(N)
    right = np.isin(np.arange(N), order[:n_right])
    return np.where(right, LABELS, (LABELS + 1) % 3).astype(np.int64)


@pytest.mark.parametrize(
    ("student", "baseline", "teachers", "verdict"),
    [
        (360, 340, 360, "above chance"),
        (360, 340, None, "above chance"),
        (300, 340, None, "behind finetune"),
        (300, 290, 340, "behind its teacher"),
        (300, 340, 340, "behind finetune and its teacher"),
        (215, 100, None, "near chance"),  # 53.8 %, where the first class alone is half
        (100, 340, 340, "near chance"),
    ],
)
def test_the_verdict_follows_from_what_is_sure(
    student: int, baseline: int, teachers: int | None, verdict: str
) -> None:
    one = standing(
        LABELS,
        says(student),
        says(baseline),
        None if teachers is None else says(teachers),
        np.arange(N),
    )
    assert one.verdict() == verdict
    assert one.majority == 0.5
    assert one.low < one.accuracy == student / N < one.high


def test_a_difference_of_few_texts_is_not_sure() -> None:
    few = slice(0, 12)
    one = standing(LABELS[few], says(360)[few], LABELS[few].astype(np.int64), None, np.arange(12))
    assert one.accuracy < 1
    assert one.over_baseline[0] < 0 <= one.over_baseline[1]
