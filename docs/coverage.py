"""How often do the ablation's 95 % intervals hold the truth? Simulated models, whose truth is known.

    python docs/coverage.py

Two models answer 200 texts in each of four languages, with one to five seeds. An answer is right where a
sum of normal effects is above zero: the model's skill, how hard the text is, how well the text suits the
model (`texts`), what the seed does to the model (`seeds`) and to its answer about this text (`both`), and
chance. Translations share the effects of their text. With one seed, the truth is that of this seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import ndtr

from stages.results.intervals import interval

_SKILL = np.array([0.5, 0.7])  # of the two models
_N_LANGUAGES, _N_TEXTS = 4, 200
_HARDER = 0.7  # how much the texts are that one language alone has


class Effects(NamedTuple):
    """Standard deviations of what differs between the models, besides chance, which has 1."""

    texts: float
    seeds: float
    both: float


EFFECTS = {
    "texts": Effects(texts=2.0, seeds=0.0, both=0.0),
    "seeds": Effects(texts=0.0, seeds=0.5, both=0.0),
    "both at once": Effects(texts=0.0, seeds=0.0, both=3.0),
    "all of them": Effects(texts=1.5, seeds=0.15, both=1.0),
}


class World(NamedTuple):
    """What a run of the simulation sees, and the truth.

    Attributes:
        differences: By language, shape ``(S, N)``, as `stages.results.intervals.interval` takes them.
        entities: By language, shape ``(N,)``.
        truth: The difference of accuracies that all seeds and texts have.
    """

    differences: list[NDArray[np.int64]]
    entities: list[NDArray[np.int64]]
    truth: float


def main(n_runs: int = 1000, seeds: str = "1,2,3,5") -> None:
    """Print the share of runs whose interval holds the truth: by what decides, kind of texts, and seeds."""
    counts = [int(count) for count in seeds.split(",")]
    typer.echo("| what decides | test texts               |" + "".join(f"{_seeds(n):>9} |" for n in counts))
    typer.echo("|--------------|--------------------------|" + "---------:|" * len(counts))
    for name, effects in EFFECTS.items():
        for texts, share, is_known in (
            ("translations", 1.0, True),
            ("half are translations", 0.5, True),
            ("different", 0.0, True),
            ("translations, not known", 1.0, False),
        ):
            held = [coverage(effects, share, is_known=is_known, n_seeds=n, n_runs=n_runs) for n in counts]
            cells = "".join(f" {100 * one:6.1f} % |" for one in held)
            typer.echo(f"| {name:12} | {texts:24} |{cells}")


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def coverage(effects: Effects, share: float, *, is_known: bool, n_seeds: int, n_runs: int) -> float:
    """Give the share of runs whose interval holds the truth.

    Args:
        effects: What decides.
        share: Of a language's texts that all languages have: 1, 0.5 or 0.
        is_known: Whether translations have the same entity, or are taken for different texts.
        n_seeds: Of each model.
        n_runs: Of the simulation.
    """
    generator = np.random.default_rng(0)
    n_held = 0
    for _ in range(n_runs):
        world = draw(generator, effects, share, n_seeds=n_seeds)
        entities = world.entities if is_known else _all_different(world.entities)
        low, high = interval(world.differences, entities)
        n_held += low <= world.truth <= high
    return n_held / n_runs


def draw(generator: np.random.Generator, effects: Effects, share: float, *, n_seeds: int) -> World:
    """Draw seeds, texts and answers. How many texts a language has is drawn as well."""
    n_shared = generator.binomial(2 * _N_TEXTS, share / 2)
    n_own = generator.binomial(2 * _N_TEXTS, (1 - share) / 2, size=_N_LANGUAGES)
    owner = np.concatenate([np.full(n_shared, -1), np.repeat(np.arange(_N_LANGUAGES), n_own)])  # (E,)
    skill = _SKILL[:, None] + effects.seeds * generator.normal(size=(2, n_seeds))  # (M, S)
    of_texts = generator.normal(size=len(owner)) - _HARDER * (owner >= 0)
    of_texts = of_texts + effects.texts * generator.normal(size=(2, len(owner)))  # (M, E)
    of_both = effects.both * generator.normal(size=(2, n_seeds, len(owner)))
    effect = skill[..., None] + of_texts[:, None] + of_both  # (M, S, E)
    differences, entities = [], []
    for language in range(_N_LANGUAGES):
        here = np.flatnonzero((owner == language) | (owner == -1))
        right = (effect[..., here] + generator.normal(size=(2, n_seeds, len(here))) > 0).astype(np.int64)
        differences.append(right[1] - right[0])
        entities.append(here)
    # How hard a text is and chance have a variance of 1 each.
    variance = 2 + effects.texts**2 + effects.both**2 + (effects.seeds**2 if n_seeds > 1 else 0)
    skill = _SKILL if n_seeds > 1 else skill[:, 0]
    accuracy = share * ndtr(skill / variance**0.5) + (1 - share) * ndtr((skill - _HARDER) / variance**0.5)
    return World(differences, entities, truth=float(accuracy[1] - accuracy[0]))


def _all_different(entities: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    starts = np.cumsum([0, *map(len, entities)])
    return [np.arange(start, start + len(part)) for start, part in zip(starts, entities, strict=False)]


if __name__ == "__main__":
    typer.run(main)
