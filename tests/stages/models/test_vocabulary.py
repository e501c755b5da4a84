"""A vocabulary without what is not used: what was counted has the same tokens and states as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from stages.errors import StageError
from stages.models.scratch import build_tokenizer
from stages.models.vocabulary import Trimmer, trim_embeddings

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CORPUS = [
    f"{a}{b} {c} {a}" for a in ("low", "lower", "new", "wider") for b in ("est", "er", "") for c in "äß東"
] * 9
COUNTED = ["lower lowest", "new ä", "wider 東 new"]
OTHERS = ["newest ß", "lowerer lower 東ä", "unknown words"]


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give a tokenizer that puts texts between the two marks, as RoBERTa's do."""
    begin, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    names = dict(
        zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    options: Any = {"vocab_size": 60, "special_tokens": SPECIAL, "unk_token": "<unk>", "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(**options))
    return finished(tokenizer)


def byte_pairs() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options: Any = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": SPECIAL}
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made = finished(tokenizer)
    made.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def ends_of_words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options: Any = {"end_of_word_suffix": "</w>", "special_tokens": SPECIAL, "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=80, **options))
    return finished(tokenizer)


def word_pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=70, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finished(tokenizer)


def characters() -> PreTrainedTokenizerFast:
    return build_tokenizer(CORPUS, merges=40)


KINDS = (unigram, byte_pairs, ends_of_words, word_pieces, characters)
Kind = Callable[[], PreTrainedTokenizerFast]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_counted_has_the_same_tokens_and_states(kind: Kind, tmp_path: Path) -> None:
    before = kind()
    trimmer = Trimmer(before, what="the encoder")
    trimmer.count(COUNTED)
    after, kept = trimmer.trimmed()
    assert len(after) == len(kept) < len(before)
    assert trimmer.n_texts == len(COUNTED)
    after.save_pretrained(tmp_path)
    after = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert after.special_tokens_map == before.special_tokens_map
    model = BertModel(
        BertConfig(
            vocab_size=len(before), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1
        )
    ).eval()
    old = before(COUNTED, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(old["input_ids"], old["attention_mask"]).last_hidden_state
    trim_embeddings(model, kept)
    assert model.config.vocab_size == len(after)
    assert model.config.pad_token_id == after.pad_token_id
    new = after(COUNTED, padding=True, return_tensors="pt")
    assert [after.convert_ids_to_tokens(ids) for ids in new["input_ids"]] == [
        before.convert_ids_to_tokens(ids) for ids in old["input_ids"]
    ]
    with torch.inference_mode():
        found = model(new["input_ids"], new["attention_mask"]).last_hidden_state
    assert torch.equal(found, expected)
    pair = after("new", "lower")["input_ids"]
    assert after.convert_ids_to_tokens(pair) == before.convert_ids_to_tokens(
        before("new", "lower")["input_ids"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_lose_no_character(kind: Kind) -> None:
    before = kind()
    trimmer = Trimmer(before, what="the encoder")
    trimmer.count(COUNTED)
    after, _ = trimmer.trimmed()
    for text in OTHERS:
        unknown = [
            tokenizer(text)["input_ids"].count(tokenizer.unk_token_id) for tokenizer in (before, after)
        ]
        if kind is not word_pieces:  # which gives a word up that it has no pieces for
            assert unknown[0] == unknown[1]
        assert len(after(text)["input_ids"]) >= len(before(text)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    texts=st.lists(st.text("lowernwid sätß東", min_size=1, max_size=20), min_size=1, max_size=6)
)
def test_whatever_is_counted_has_the_same_tokens(kind: Kind, texts: list[str]) -> None:
    before = _made(kind)
    trimmer = Trimmer(before, what="the encoder")
    trimmer.count(texts)
    after, kept = trimmer.trimmed()
    assert [np.asarray(kept)[ids].tolist() for ids in after(texts)["input_ids"]] == before(texts)["input_ids"]


_MADE: dict[Any, PreTrainedTokenizerFast] = {}


def _made(kind: Kind) -> PreTrainedTokenizerFast:
    return _MADE.setdefault(kind, kind())


def test_a_tokenizer_without_a_table_cannot_be_cut() -> None:
    class InPython:
        is_fast = False

    with pytest.raises(StageError, match=r"the encoder has a tokenizer without tokenizer\.json"):
        Trimmer(InPython(), what="the encoder")
