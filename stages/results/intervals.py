"""How sure differences of accuracy are. Arrays in, two numbers out; nothing is drawn at random.

Axes: S seeds, N examples of a language, E entities (what texts are about, in whatever language).
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Key = TypeVar("Key")


_UNSEEN = 3
"""Where none of n texts differ, up to three in n may (Hanley and Lippman-Hand, 1983, JAMA 249, 1743-1745)."""
_ROUNDING = 1e-24
"""Below this, a variance of accuracies is the square of what rounding leaves."""


def numbered_entities(entities: Mapping[Key, Sequence[str | None]]) -> dict[Key, NDArray[np.int64]]:
    """Number what examples are about, the same in all languages.

    Args:
        entities: For each language, or language and split, the entity of each example; one without, of which
            the source says nothing, is one of its own.

    Returns:
        Numbers from 0, shape ``(N,)`` each.
    """
    numbers: dict[object, int] = {}
    return {
        key: np.array(
            [
                numbers.setdefault((key, row) if entity is None else entity, len(numbers))
                for row, entity in enumerate(of_one)
            ],
            dtype=np.int64,
        )
        for key, of_one in entities.items()
    }


def interval(
    differences: Sequence[NDArray[np.int64]], entities: Sequence[NDArray[np.int64]]
) -> tuple[float, float]:
    """Give the 95 % interval of a paired difference of accuracies: other seeds, and other test texts.

    Both are crossed random effects, as readers and cases are in studies of readers: each seed answers each
    text. The variance of the mean is that of seeds plus that of entities; what differs with both at once is
    in either, and is taken out of one (Hillis, 2007, Statistics in Medicine 26, 596-619). Each part has a t
    quantile, and the interval has the mean of the two, weighted by variance (Cochran, 1964, Biometrics 20,
    191-195). A single seed is taken as it is: its interval says nothing of other seeds. Few seeds may agree
    by chance; the interval is never narrower than that of these seeds as they are, and other texts.

    An entity's part is the sum of its examples' deviations from their languages' means, over all languages
    (Liang and Zeger, 1986, Biometrika 73, 13-22). So translations count as one text, and texts that only one
    language has count as different ones. Partly aligned data needs no strata: neither the size nor the mean
    of a language is in the deviations. Where some entities have more examples than others, they count as
    N² / Σ size² (Kish, 1965, Survey Sampling). A language's variance is never below that of three texts that
    differ: where models rarely do, the interval would otherwise be far too narrow.

    ``docs/coverage.py`` simulates how often the truth is within: in 93 to 98 % of 1,000 runs where seeds or
    texts decide, and in 98 to 99 % where both do at once. A bootstrap over seeds and texts is too narrow
    where a few seeds decide (88 % with five); Satterthwaite's degrees of freedom (1946) in place of
    Cochran's quantile give 92 % with three seeds and 87 % with two.

    Args:
        differences: For each language, 1 where only the model is right, -1 where only the other one is, and 0
            elsewhere, shape ``(S, N)``; N may differ. Languages count alike.
        entities: For each language, the entity of each example, at least 0, shape ``(N,)``.

    Returns:
        Lower and upper bound. They are -1 and 1 where a language has one text, which says nothing of others.
    """
    by_seed = np.mean([part.mean(axis=1) for part in differences], axis=0)  # (S,)
    mean, n_seeds = float(by_seed.mean()), len(by_seed)
    n_entities = [_effective(part) for part in entities]
    deviations, unseen = _by_entity(differences, entities, n_entities)
    of_seeds, of_entities = 0.0, float((deviations.mean(axis=0) ** 2).sum())
    of_these_seeds = of_entities + unseen
    if n_seeds > 1:
        of_both = float(deviations.var(axis=0, ddof=1).sum()) / n_seeds
        of_seeds = float(by_seed.var(ddof=1)) / n_seeds
        if of_seeds > _ROUNDING or of_both < of_entities:  # something is left
            of_entities = max(0.0, of_entities - of_both)
    of_entities += unseen
    variance = of_seeds + of_entities
    if min(n_entities) == 1:
        return -1.0, 1.0
    # The smallest language: where sizes differ, its variance is most of that of their average.
    degrees = (max(1, n_seeds - 1), max(1, min(n_entities) - 1))
    quantile = np.average(stdtrit(degrees, 0.975), weights=(of_seeds, of_entities))
    least = stdtrit(degrees[1], 0.975) * of_these_seeds**0.5
    half = float(max(quantile * variance**0.5, least))
    return max(-1.0, mean - half), min(1.0, mean + half)  # no difference is larger


def _effective(entities: NDArray[np.int64]) -> float:
    """Give how many entities of equal size would say as much, at least 1."""
    sizes = np.unique(entities, return_counts=True)[1]
    return float(len(entities) ** 2 / (sizes**2).sum())


def _by_entity(
    differences: Sequence[NDArray[np.int64]],
    entities: Sequence[NDArray[np.int64]],
    n_entities: Sequence[float],
) -> tuple[NDArray[np.float64], float]:
    """Sum what each entity adds to the deviation of the mean over languages.

    Returns:
        The sums, shape ``(S, E)``, and what languages in which few texts differ add to the variance.
    """
    total = 1 + max(int(part.max()) for part in entities)
    sums, unseen = np.zeros((len(differences[0]), total)), 0.0
    for of_language, about, n in zip(differences, entities, n_entities, strict=True):
        # n / (n - 1) makes the variance unbiased, as it does for n independent values.
        weight = (n / max(1, n - 1)) ** 0.5 / of_language.shape[1] / len(differences)
        deviations = weight * (of_language - of_language.mean(axis=1, keepdims=True))
        own = np.stack([np.bincount(about, weights=of_seed, minlength=total) for of_seed in deviations])
        unseen += max(0.0, _UNSEEN * weight**2 - float((own**2).sum(axis=1).mean()))
        sums += own
    return sums, unseen
