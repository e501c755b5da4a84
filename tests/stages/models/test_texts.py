"""Texts on their way into a model: splitting of words, batches by length, order of training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from stages.errors import StageError
from stages.models.scratch import build_tokenizer
from stages.models.texts import SPLIT_MARK, Collator, Texts, require_splittable, split_randomly
from stages.models.training import ByLength

WORDS = ["Donaudampfschiff", "schiff", "Dampf", "Donau", "北京", ""]


def test_splits_keep_the_text_and_have_the_chance_asked_for() -> None:
    generator = np.random.default_rng(0)
    text = "x" * 10_001
    marked = split_randomly(text, 0.3, generator)
    assert marked.replace(SPLIT_MARK, "") == text
    assert marked.count(SPLIT_MARK) / 10_000 == pytest.approx(0.3, abs=0.02)
    assert split_randomly("", 0.9, generator) == ""
    assert split_randomly("x", 0.9, generator) == "x"


def test_the_tokenizer_splits_at_the_mark_and_drops_it() -> None:
    tokenizer = build_tokenizer(WORDS, merges=40)
    assert tokenizer.tokenize("Dampf") == ["▁Dampf"]
    marked = tokenizer.tokenize(f"Da{SPLIT_MARK}mpf")
    assert len(marked) > 1
    assert "".join(marked) == "▁Dampf"
    assert tokenizer.unk_token not in tokenizer.tokenize(f"北{SPLIT_MARK}京")


def test_splits_depend_on_seed_epoch_and_example_alone() -> None:
    def texts(seed: int, epoch: int) -> list[str]:
        data = Texts([WORDS], {}, subword_dropout=0.5, seed=seed)
        data.epoch = epoch
        data[3]
        return [data[i]["texts"][0] for i in range(len(data))]

    assert texts(0, 0) == texts(0, 0)
    assert texts(0, 0) != texts(0, 1)
    assert texts(0, 0) != texts(1, 0)


def test_subword_dropout_is_refused_for_other_tokenizers() -> None:
    foreign = BertTokenizer(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4})
    require_splittable(foreign, 0.0)
    require_splittable(build_tokenizer(WORDS, merges=5), 0.1)
    with pytest.raises(StageError, match=r"set it to 0.0 in params.yaml"):
        require_splittable(foreign, 0.1)


def test_a_batch_is_padded_to_its_longest_and_carries_its_numbers() -> None:
    tokenizer = build_tokenizer(WORDS, merges=40)
    labels = np.arange(5)
    logits = np.arange(15, dtype=np.float32).reshape(5, 3)
    data = Texts([WORDS[:5], WORDS[1:]], {"labels": labels, "teacher_logits": logits})
    batch = Collator(tokenizer, max_tokens=12)([data[4], data[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(dim=1).max() <= 12
    assert batch["labels"].tolist() == [4, 1]
    assert batch["teacher_logits"].tolist() == [[12, 13, 14], [3, 4, 5]]


def test_the_order_of_training_is_random_by_length_and_repeatable() -> None:
    words = ["x" * int(n) for n in np.random.default_rng(0).integers(1, 60, size=203)]
    texts = Texts([words], {})

    def order(seed: int, epoch: int) -> list[int]:
        sampler = ByLength(texts, batch_size=8, seed=seed)
        texts.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(203))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    lengths = np.array(texts.lengths)[order(0, 0)][:200].reshape(-1, 8)
    assert np.ptp(lengths, axis=1).mean() < 15


@pytest.mark.parametrize(("n", "batch_size"), [(203, 8), (16, 8), (3, 8)])
def test_a_batch_that_processes_share_is_filled_up_with_its_own_examples(n: int, batch_size: int) -> None:
    texts = Texts([["x" * i for i in range(n)]], {})
    order = list(ByLength(texts, batch_size=batch_size, seed=0))
    filled = ByLength(texts, batch_size=batch_size, seed=0, fill=True)
    assert list(filled)[:n] == order
    assert len(list(filled)) == len(filled) == -(-n // batch_size) * batch_size
    assert set(list(filled)[n:]) <= set(order[n // batch_size * batch_size :])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_that_are_kept_are_those_of_each_batch(pairs: bool, side: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(WORDS, merges=40)
    tokenizer.padding_side = side
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fields = [WORDS, WORDS[::-1]] if pairs else [WORDS]
    numbers = {"labels": np.arange(len(WORDS))}
    without, kept = Texts(fields, numbers), Texts(fields, numbers)
    kept.keep_tokens(tokenizer, 8, tmp_path)
    collator = Collator(tokenizer, max_tokens=8)

    def batch_of(texts: Texts, rows: list[int]) -> dict[str, torch.Tensor]:
        return collator(texts.__getitems__(rows))

    for rows in ([0, 3, 5], [4, 4], [5], list(range(6)), [2, 0]):
        expected, found = batch_of(without, rows), batch_of(kept, rows)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    kept.fields = []  # all are known: no text is looked at again
    assert batch_of(kept, [1, 2])["labels"].tolist() == [1, 2]
