"""Folds of a language's examples, for teachers that label what they were not trained on."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import id_words


@dataclass(frozen=True)
class Fold:
    """One of several parts of a language's examples, to which an example belongs by its id alone.

    Attributes:
        index: Which one, from 0.
        of: How many there are; a single one holds all examples.
    """

    index: int
    of: int

    def holds(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.bool_]:
        """Tell which of N examples are in it, shape ``(N,)``."""
        found: NDArray[np.bool_] = id_words(ids)[:, 1] % np.uint64(self.of) == self.index
        return found
