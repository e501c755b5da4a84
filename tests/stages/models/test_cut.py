"""Texts that are longer than a model may read are counted, and people are told."""

import re

import pytest
from transformers import ByT5Tokenizer

from stages.models import cut
from stages.models.batches import tokenize
from stages.models.cut import say_cut
from stages.models.scratch import build_tokenizer

WORDS = ["Donau", "schiff"]


@pytest.mark.parametrize("backend", ["fast", "python"])
@pytest.mark.parametrize("pairs", [False, True])
def test_texts_that_are_cut_are_counted(
    backend: str, pairs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer(WORDS, merges=40) if backend == "fast" else ByT5Tokenizer()
    fields = [["Donau " * n for n in range(1, 12)], ["schiff"] * 11][: 1 + pairs]
    lengths = [len(ids) for ids in tokenizer(*fields)["input_ids"]]
    assert len(set(lengths)) == 11
    for max_tokens in lengths:
        longer = sum(length > max_tokens for length in lengths)
        # A tokenizer written in Python does not tell a text that just fits from one that was cut.
        fitting = 0 if backend == "fast" else 1
        assert tokenize(tokenizer, fields, max_tokens=max_tokens).n_cut == longer + fitting
    say_cut(tokenizer, fields, max(lengths) + 1, key="a.b")
    assert capsys.readouterr().err == ""
    say_cut(tokenizer, fields, max(lengths) - 1, key="a.b")
    said = f"1 of 11 training texts are longer than a.b, {max(lengths) - 1}, and are cut"
    assert capsys.readouterr().err.strip() == said


def test_of_very_many_texts_a_sample_tells_how_many_are_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cut, "_SAMPLE", 40)
    fields = [["Donau " * (9 if n % 4 == 0 else 1) for n in range(400)]]
    say_cut(build_tokenizer(WORDS, merges=40), fields, 8, key="a.b")
    share = re.fullmatch(r"about ([\d.]+)% of 400 training .*", capsys.readouterr().err.strip())
    assert share is not None
    assert 10 < float(share[1]) < 40
