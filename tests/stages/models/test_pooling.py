"""What represents a text: its first token, its last, or the mean of all; in students and their exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, LANGUAGES, B, C, inputs, perturbed, save_plain, student_of
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from stages.models.modeling_mblm import MBLMForSequenceClassification

POOLINGS = ("first", "mean", "last")
LENGTHS = [7, 4, 7, 2, 7]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.param
    save_plain(name, tmp_path / "plain", initializer_range=0.5)
    return name


def by_hand(states: Tensor, pooling: str) -> Tensor:
    """Pool hidden states, ``(B, T, H)``."""
    rows = [state[:length] for state, length in zip(states, LENGTHS, strict=True)]
    chosen = {"first": lambda row: row[0], "last": lambda row: row[-1], "mean": lambda row: row.mean(dim=0)}
    return torch.stack([chosen[pooling](row) for row in rows])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_text_is_represented_as_asked(family: str, pooling: str, tmp_path: Path) -> None:
    student = perturbed(student_of(tmp_path / "plain", pooling=pooling))
    language_ids = torch.tensor([0, 1, 2, 1, 0])
    with torch.inference_mode():
        seen = student.mblm(**inputs(), language_ids=language_ids)
        expected = by_hand(seen.last_hidden_state, pooling)
        torch.testing.assert_close(seen.pooler_output, expected)
        mixed = student.mblm(**inputs())  # states of several branches have masks of their own
        pooled = by_hand(mixed.last_hidden_state, pooling)
        torch.testing.assert_close(mixed.pooler_output, pooled)
        without_mask = student.mblm(inputs()["input_ids"], language_ids=language_ids)
    whole = {"first": 0, "last": -1}.get(pooling)
    states = without_mask.last_hidden_state
    expected = states.mean(dim=1) if whole is None else states[:, whole]
    torch.testing.assert_close(without_mask.pooler_output, expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_branch_alone_says_the_same_out_of_its_folder(family: str, pooling: str, tmp_path: Path) -> None:
    student = perturbed(student_of(tmp_path / "plain", pooling=pooling))
    one = student.to_plain("en")
    is_plain = pooling == "first" or (pooling == "mean" and family.startswith("modernbert"))
    assert (one.config.model_type != "mblm") == is_plain
    one.save_pretrained(tmp_path / "en")
    assert (tmp_path / "en/modeling_mblm.py").is_file() == (not is_plain)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "en").eval()
    with torch.inference_mode():
        expected = student(**inputs(), language_ids=1).logits
        assert expected.shape == (B, C)
        torch.testing.assert_close(loaded(**inputs()).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_plain_models_own_way_is_what_a_student_does_unasked(family: str, tmp_path: Path) -> None:
    asked = "mean" if family == "modernbert, mean" else "first"
    alike = [student_of(tmp_path / "plain", **options) for options in ({}, {"pooling": asked})]
    with torch.inference_mode():
        first, second = (perturbed(student)(**inputs()).logits for student in alike)
    assert torch.equal(first, second)
    assert alike[0].config.pooling is None


def test_another_way_is_refused(tmp_path: Path) -> None:
    save_plain("bert", tmp_path / "plain")
    with pytest.raises(ValueError, match="pooling is 'max': first, mean, last or null"):
        student_of(tmp_path / "plain", pooling="max")


def test_a_student_of_one_branch_has_its_language_alone(tmp_path: Path) -> None:
    save_plain("roberta", tmp_path / "plain")
    one = student_of(tmp_path / "plain", pooling="mean").to_plain(LANGUAGES[1])
    assert isinstance(one, MBLMForSequenceClassification)
    assert (one.config.languages, one.config.n_branches) == ([LANGUAGES[1]], 1)
    assert one.config.id2label == dict(enumerate("abcd"))
