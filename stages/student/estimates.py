"""How often a student may be right where there are no labels: how sure it is, and how much of one mind."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from stages.results.measures import probabilities


class Estimate(NamedTuple):
    """What texts say without their labels.

    Attributes:
        confidence: Mean probability of the class that is predicted, after calibration. Where the student is
            calibrated, so many of its answers are right.
        agreement: Share of the branches that say what the student says, on average; None where there are not
            two of them.
    """

    confidence: float
    agreement: float | None


def estimate(logits: NDArray[Any], by_branch: NDArray[Any], *, temperature: float) -> Estimate:
    """Estimate a student's accuracy on N texts.

    Args:
        logits: What it says of them, shape ``(N, C)``.
        by_branch: What each of its branches says, shape ``(K, N, C)``.
        temperature: What calibrates `logits`.
    """
    said = logits.argmax(axis=-1)
    return Estimate(
        confidence=float(probabilities(logits, temperature=temperature).max(axis=1).mean()),
        agreement=float((by_branch.argmax(axis=-1) == said).mean()) if len(by_branch) > 1 else None,
    )
