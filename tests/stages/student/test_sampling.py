"""How often each language is seen in an epoch: shares, batches by length, and the same again."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.models.texts import Texts
from stages.student.sampling import ByLanguage, draw_examples, epoch_sizes

COUNTS = (150, 40, 10)
IDS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


def _draw(temperature: float, seed: int = 0) -> Tensor:
    return draw_examples(IDS, temperature=temperature, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0, 5.0, 1e6])
def test_a_languages_share_is_its_size_to_the_power_of_one_over_the_temperature(temperature: float) -> None:
    powers = [n ** (1 / temperature) for n in COUNTS]
    sizes = epoch_sizes(torch.tensor(COUNTS), temperature=temperature)
    assert sum(sizes) == sum(COUNTS)
    for size, power in zip(sizes, powers, strict=True):
        assert abs(size - sum(COUNTS) * power / sum(powers)) < 1
    assert torch.bincount(IDS[_draw(temperature)]).tolist() == sizes


def test_at_temperature_1_every_example_is_drawn_once() -> None:
    assert sorted(_draw(1.0).tolist()) == list(range(len(IDS)))


def test_no_example_is_drawn_again_before_the_others_of_its_language_are() -> None:
    drawn = Counter(_draw(4.0).tolist())
    times = [{drawn[i] for i in range(len(IDS)) if IDS[i] == language} for language in range(3)]
    assert times[0] == {0, 1}
    assert times[2] == {4, 5}
    assert all(max(some) - min(some) <= 1 for some in times)


def test_over_the_epochs_every_example_is_seen() -> None:
    assert len({int(i) for seed in range(12) for i in _draw(4.0, seed)}) == len(IDS)


def test_a_language_without_examples_is_not_drawn() -> None:
    ids = torch.tensor([0, 2, 2])
    drawn = draw_examples(ids, temperature=3.0, generator=torch.Generator().manual_seed(0))
    assert set(ids[drawn].tolist()) <= {0, 2}
    assert len(drawn) == 3


def _texts() -> Texts:
    words = ["x" * int(n) for n in np.random.default_rng(0).integers(1, 60, size=len(IDS))]
    return Texts([words], {}, languages=IDS.numpy())


def _order(texts: Texts, seed: int, epoch: int) -> list[int]:
    sampler = ByLanguage(texts, temperature=3.0, batch_size=8, seed=seed)
    texts.set_epoch(epoch)
    assert len(sampler) == len(texts)
    return list(sampler)


def test_an_epoch_is_decided_by_seed_and_epoch_alone() -> None:
    texts = _texts()
    before = _order(texts, 0, 1)
    _order(texts, 0, 2)
    assert _order(_texts(), 0, 1) == before
    assert len({tuple(_order(texts, s, e)) for s in range(3) for e in range(3)}) == 9
    assert len({tuple(sorted(_order(texts, 0, e))) for e in range(3)}) == 3


def test_batches_stay_by_length() -> None:
    texts = _texts()
    lengths = np.array(texts.lengths)[_order(texts, 0, 0)].reshape(-1, 8)
    assert np.ptp(lengths, axis=1).mean() < 15
