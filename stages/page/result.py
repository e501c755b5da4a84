"""What a model says of the labelled examples of one language, and how good that is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.results.measures import (
    Bins,
    by_confidence,
    calibration_error,
    confusion,
    interval,
    probabilities,
)


@dataclass(frozen=True)
class Result:
    """What a model says of N labelled examples of one language.

    Attributes:
        examples: As `stages.data.examples.read_examples` gives them.
        logits: In the task's class order, shape ``(N, C)``.
        temperature: What calibrates the model: fitted on validation examples of supervised languages.
    """

    examples: pa.Table
    logits: NDArray[Any]
    temperature: float = 1.0

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The hard labels, shape ``(N,)``."""
        labels: NDArray[np.int32] = self.examples["label"].to_numpy()
        return labels

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class with the largest logit, shape ``(N,)``."""
        predicted: NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted

    @property
    def accuracy(self) -> float:
        """The share of the examples on which prediction and hard label agree."""
        return float((self.predicted == self.labels).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return interval(int((self.predicted == self.labels).sum()), len(self.labels))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts by hard label and prediction, shape ``(C, C)``."""
        return confusion(self.labels, self.predicted, n_classes=self.logits.shape[1])

    def same_class(self, other: Self) -> float:
        """Give the share of the examples for which both models predict the same class."""
        return float((self.predicted == other.predicted).mean())

    def probabilities(self, *, calibrated: bool = False) -> NDArray[np.float64]:
        """Give the probability of each class, shape ``(N, C)``."""
        return probabilities(self.logits, temperature=self.temperature if calibrated else 1.0)

    def bins(self, *, calibrated: bool) -> Bins:
        """Put the predictions into bins by confidence."""
        return by_confidence(self.probabilities(calibrated=calibrated), self.labels)

    def calibration_error(self, *, calibrated: bool) -> float:
        """Give the expected calibration error."""
        return calibration_error(self.bins(calibrated=calibrated))
