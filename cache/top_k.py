"""What a student learns differently where only the largest logits were kept, as measured by stage one.

The distribution of the classes kept is exact at temperature 1. At others it is not: the classes left out
share what is left evenly, though they differ, and at a higher temperature they weigh more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.errors import CacheError
from cache.folder import Folder
from cache.identity.columns import Outputs
from cache.identity.digests import canonical_json
from cache.identity.example_id import ID_TYPE
from cache.soft_labels import SoftLabels

TOP_K = "top_k.json"
"""Where a store keeps the measurement, beside ``producer.json``."""

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_NOISE = 1e-6
"""Changes below this, in nats or probability, are those of float32."""

_MAX_JSON = 1 << 16  # bytes


class Change(NamedTuple):
    """What changes at one temperature τ, as means over examples.

    With p = softmax(t/τ) of all logits t, q that of the logits that top-k gives back, and u the uniform
    distribution. The distillation loss of a student that answers z has the gradient (softmax(z/τ) - p) · τ,
    so p - q is what top-k changes in it, whatever the student. A student that knows nothing answers u, and
    what it has to learn, p - u, is what the change is compared with.

    Attributes:
        divergence: KL(p ‖ q), in nats.
        divergence_uniform: KL(p ‖ u), in nats.
        gradient: Euclidean norm of p - q.
        gradient_uniform: Euclidean norm of p - u.
    """

    divergence: float
    divergence_uniform: float
    gradient: float
    gradient_uniform: float

    @property
    def relative(self) -> float:
        """The larger change, as a share of what a student that knows nothing has to learn."""
        pairs = ((self.divergence, self.divergence_uniform), (self.gradient, self.gradient_uniform))
        return max(changed / max(whole, _NOISE) if changed > _NOISE else 0.0 for changed, whole in pairs)


@dataclass(frozen=True)
class TopKChange:
    """A measurement of what top-k changes.

    Attributes:
        examples: Of how many examples all logits were known.
        by_temperature: What changes at each temperature, which rise.
    """

    examples: int
    by_temperature: Mapping[float, Change]

    WANTED: ClassVar[int] = 1000
    """Examples that make a measurement, if there are so many."""

    @classmethod
    def measure(cls, logits: NDArray[np.float32], outputs: Outputs) -> Self:
        """Compare logits, ``(N, C)``, with what is left of them where `outputs` keeps the largest."""
        nobody = pa.array([bytes(16)] * len(logits), ID_TYPE)
        kept = SoftLabels.pack(nobody, logits, outputs=outputs).logits.astype(np.float64)
        n_classes = logits.shape[1]
        changes = {}
        for temperature in TEMPERATURES:
            log_p, log_q = (_log_softmax(t / temperature) for t in (logits.astype(np.float64), kept))
            p, q = np.exp(log_p), np.exp(log_q)
            of_each = (
                (p * (log_p - log_q)).sum(axis=1),
                (p * (log_p + np.log(n_classes))).sum(axis=1),
                np.linalg.norm(p - q, axis=1),
                np.linalg.norm(p - 1 / n_classes, axis=1),
            )
            changes[temperature] = Change(*(float(values.mean()) for values in of_each))
        return cls(len(logits), changes)

    def __add__(self, other: Self) -> Self:
        """Put measurements of different examples together, of the temperatures that both have."""
        total = self.examples + other.examples
        shares = np.array([self.examples, other.examples]) / total
        changes = {
            temperature: Change(*(shares @ np.array([change, other.by_temperature[temperature]])).tolist())
            for temperature, change in self.by_temperature.items()
            if temperature in other.by_temperature
        }
        return type(self)(total, changes)

    def relative(self, temperature: float) -> float | None:
        """Give the relative change at a temperature, see `Change.relative`.

        Between two temperatures that were measured it is the larger one's, and below the lowest the lowest's.

        Returns:
            A share; None above the highest temperature that was measured.
        """
        higher = [measured for measured in self.by_temperature if measured >= temperature]
        if not higher:
            return None
        nearest = {min(higher)}
        if temperature not in nearest:
            nearest |= {max((one for one in self.by_temperature if one < temperature), default=min(higher))}
        return max(self.by_temperature[one].relative for one in nearest)

    def encode(self) -> dict[str, Any]:
        """Give JSON values."""
        changes = {str(temperature): change._asdict() for temperature, change in self.by_temperature.items()}
        return {"examples": self.examples, "by_temperature": changes}

    @classmethod
    def decode(cls, values: Any) -> Self | None:
        """Read what `encode` gave; None where it makes no sense."""
        try:
            changes = {
                float(temperature): Change(**{name: float(value) for name, value in change.items()})
                for temperature, change in values["by_temperature"].items()
            }
            n_examples = int(values["examples"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None
        is_finite = np.isfinite([list(change) for change in changes.values()]).all()
        return cls(n_examples, dict(sorted(changes.items()))) if is_finite and n_examples > 0 else None

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """Read what a store has of a producer; None where that is nothing, or makes no sense."""
        try:
            return cls.decode(json.loads(folder.read(TOP_K, limit=_MAX_JSON)))
        except (CacheError, OSError, RecursionError, ValueError):
            return None

    def note(self, folder: Folder) -> None:
        """Keep it in a store; a read-only store still serves."""
        try:
            folder.write(TOP_K, canonical_json(self.encode()))
        except (CacheError, OSError):
            return

    def is_enough(self, n_examples: int) -> bool:
        """Tell whether it stands for so many examples: a random draw may have missed its number by half."""
        return 2 * self.examples >= min(n_examples, self.WANTED)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
