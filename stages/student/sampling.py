"""How often each language is seen in an epoch. Without a temperature above 1 this is not used."""

from typing import Any

import torch
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices

from stages.models.texts import Texts
from stages.models.training import ByLength


class ByLanguage(ByLength):
    """Order by length of an epoch in which small languages have a larger share than in the data.

    Which examples are seen depends on the seed and the epoch alone, like their order.
    """

    def __init__(self, texts: Texts, *, temperature: float, **options: Any) -> None:
        super().__init__(texts, **options)
        self._languages = torch.from_numpy(texts.languages)
        self._temperature = temperature

    def order(self) -> list[int]:
        """Give the positions of this epoch's examples."""
        generator = self.generator()
        drawn = draw_examples(self._languages, temperature=self._temperature, generator=generator).tolist()
        lengths = [self.texts.lengths[index] for index in drawn]
        order = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        return [drawn[position] for position in order]


def draw_examples(languages: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw the N examples of an epoch, so that language l has a share of them in proportion to n_l^(1/T).

    Within a language, no example is drawn again before each of the others has been drawn as often.

    Args:
        languages: Of the N examples, their numbers, int64, shape ``(N,)``; language l has n_l of them.
        temperature: T, at least 1.
        generator: Decides which examples are drawn.

    Returns:
        Positions of examples, language by language, int64, shape ``(N,)``.
    """
    drawn = []
    sizes = epoch_sizes(torch.bincount(languages), temperature=temperature)
    for language, size in enumerate(sizes):
        examples = (languages == language).nonzero().squeeze(1)
        while size > 0:
            order = torch.randperm(len(examples), generator=generator)[:size]
            drawn.append(examples[order])
            size -= len(order)
    return torch.cat(drawn)


def epoch_sizes(counts: Tensor, *, temperature: float) -> list[int]:
    """Share out an epoch of as many examples as there are.

    Args:
        counts: n_l, the examples of each language; N in sum.
        temperature: T, at least 1.

    Returns:
        Numbers in proportion to n_l^(1/T), rounded by largest remainders, N in sum.
    """
    shares = counts.double() ** (1 / temperature)
    exact = counts.sum() * shares / shares.sum()
    sizes = exact.long()
    n_left = int(counts.sum() - sizes.sum())
    sizes[(exact - sizes).argsort(descending=True, stable=True)[:n_left]] += 1
    return sizes.tolist()
