"""Where code expects a plain model, the student is used as one: inputs, outputs, configuration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, LANGUAGES, B, C, K, T, inputs, perturbed, save_plain, student_of
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from stages.models.modeling_mblm import MBLMForSequenceClassification

OWN = torch.zeros(B, dtype=torch.int64)
MIXED = torch.tensor([0, -1, 2, 1, -1])
WITH_SEGMENTS = ("bert", "deberta-v2", "electra")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pair(family: str, tmp_path: Path) -> tuple[Any, MBLMForSequenceClassification]:
    """A plain model, and a student whose branches are still copies of it."""
    changes = {"type_vocab_size": 2} if family in WITH_SEGMENTS else {}
    plain = save_plain(family, tmp_path / "plain", initializer_range=0.5, **changes)
    return plain, student_of(tmp_path / "plain")


@pytest.fixture
def roberta(tmp_path: Path) -> MBLMForSequenceClassification:
    save_plain("roberta", tmp_path / "plain")
    return perturbed(student_of(tmp_path / "plain"))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# Inputs


@pytest.mark.parametrize("name", WITH_SEGMENTS)
def test_the_trainer_gives_the_student_the_segments_of_pairs(name: str, tmp_path: Path) -> None:
    plain = save_plain(name, tmp_path / "plain", type_vocab_size=2, initializer_range=0.5)
    student = student_of(tmp_path / "plain")
    rows = [
        {"input_ids": ids, "token_type_ids": [0, 0, 0, 1, 1, 1, 1], "labels": 0}
        for ids in inputs()["input_ids"].tolist()
    ]
    arguments = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, disable_tqdm=True)
    said = [Trainer(model, arguments).predict(rows).predictions for model in (plain, student)]  # type: ignore[arg-type]  # rows
    np.testing.assert_allclose(said[1], said[0], atol=1e-5)
    unread = plain(input_ids=inputs()["input_ids"]).logits.detach().numpy()
    assert np.abs(said[0] - unread).max() > 0.01, "segments matter"


def test_positions_segments_and_embeddings_reach_the_encoder_as_in_the_plain_model(
    pair: tuple[Any, MBLMForSequenceClassification], family: str
) -> None:
    plain, student = pair
    given: dict[str, Tensor] = {}
    if family in WITH_SEGMENTS:
        given["token_type_ids"] = (torch.arange(T) > 3).long().expand(B, T)
    if family != "distilbert":
        given["position_ids"] = torch.arange(T).flip(0).unsqueeze(0) + 2
    with torch.inference_mode():
        embedded = plain.get_input_embeddings()(inputs()["input_ids"])
        for batch in (inputs(), {**inputs(), "input_ids": None, "inputs_embeds": embedded}):
            close(student(**batch, **given, language_ids=OWN).logits, plain(**batch, **given).logits)
        without = student(**inputs(), language_ids=OWN).logits
        # A family that has none is given them by nobody who asks its tokenizer.
        ignored = {name: OWN for name in ("token_type_ids", "position_ids") if name not in given}
        if family in ("distilbert", "modernbert"):
            ignored.pop("position_ids", None)
            close(student(**inputs(), language_ids=OWN, **ignored).logits, without)


@pytest.mark.parametrize(
    "ids",
    [
        MIXED.int(),
        MIXED.to(torch.int8),
        MIXED.tolist(),
        tuple(MIXED.tolist()),
        MIXED.numpy(),
        MIXED.numpy().astype(np.int16),
    ],
    ids=str,
)
def test_language_ids_are_integers_of_any_kind(roberta: MBLMForSequenceClassification, ids: Any) -> None:
    with torch.inference_mode():
        expected = roberta(**inputs(), language_ids=MIXED).logits
        assert torch.equal(roberta(**inputs(), language_ids=ids).logits, expected)


@pytest.mark.parametrize("ids", [torch.ones(B, dtype=torch.uint8), 1, torch.tensor(1), np.int64(1)], ids=str)
def test_one_language_may_stand_for_all(roberta: MBLMForSequenceClassification, ids: Any) -> None:
    with torch.inference_mode():
        expected = roberta(**inputs(), language_ids=torch.ones(B, dtype=torch.int64)).logits
        assert torch.equal(roberta(**inputs(), language_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_ids": MIXED.float()}, r"language_ids are torch.float32, not integers"),
        ({"language_ids": [0.0, float("nan"), 0, 0, 0]}, r"language_ids are torch.float32, not integers"),
        ({"language_ids": MIXED > 0}, r"language_ids are torch.bool, not integers"),
        ({"language_ids": 3}, r"language_ids has 3 to 3; these are positions"),
        ({"language_ids": torch.full((B,), 200, dtype=torch.uint8)}, "language_ids has 200 to 200"),
        ({"language_ids": [0]}, r"language_ids has shape \(1,\) for 5 texts"),
        (
            {"mixture_weights": torch.full((B, K + 1), 0.25)},
            r"mixture_weights has shape \(5, 4\), not \(5, 3\)",
        ),
        ({"mixture_weights": [1.0, 0.0, 0.0]}, r"mixture_weights has shape \(3,\), not \(5, 3\)"),
        ({"mixture_weights": [[1.5, -0.5, 0.0]] * B}, "a row that is not of weights from 0 that add up to 1"),
        ({"mixture_weights": torch.zeros(B, K)}, "a row that is not of weights"),
        ({"mixture_weights": torch.full((B, K), float("nan"))}, "a row that is not of weights"),
        ({"mixture_weights": torch.ones(B, K)}, "a row that is not of weights"),
    ],
)
def test_ids_and_weights_that_are_none_are_refused_in_one_line(
    roberta: MBLMForSequenceClassification, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        roberta(**{**inputs(), "language_ids": MIXED, **changes})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["list", "integers", "half"])
def test_weights_may_be_lists_integers_or_halves(roberta: MBLMForSequenceClassification, kind: str) -> None:
    rows = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    given: Any = {"list": rows, "integers": torch.tensor(rows), "half": torch.tensor(rows).half()}[kind]
    with torch.inference_mode():
        said = roberta(**inputs(), language_ids=MIXED, mixture_weights=given).mixture_logits
        one_branch = roberta(**inputs(), language_ids=[0, 2, 1, 1, 2]).logits
    close(said, one_branch)


# Outputs


@pytest.mark.parametrize("wanted", [[0, 2, -1], [1], 2, [-1], [7], (0, -4), True, False, [], None])
def test_hidden_states_are_chosen_by_number_as_in_the_plain_model(
    pair: tuple[Any, MBLMForSequenceClassification], family: str, wanted: Any
) -> None:
    plain, student = pair
    if family == "deberta-v2":  # the plain one gives all, whatever is asked for
        theirs = plain(**inputs(), output_hidden_states=bool(wanted)).hidden_states
        if wanted and wanted is not True:
            numbers = [wanted] if isinstance(wanted, int) else wanted
            kept = {number % 4 for number in numbers if -4 <= number < 4}
            theirs = tuple(state if number in kept else None for number, state in enumerate(theirs))
    else:
        theirs = plain(**inputs(), output_hidden_states=wanted).hidden_states
    for ids in (OWN, None, [0, 1, 2, -1, 0]):
        ours = student(**inputs(), language_ids=ids, output_hidden_states=wanted).hidden_states
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                close(one[inputs()["attention_mask"] == 1], other[inputs()["attention_mask"] == 1])


def test_hidden_states_of_one_branch_keep_their_gradients(
    pair: tuple[Any, MBLMForSequenceClassification],
) -> None:
    _, student = pair
    seen = student(**inputs(), language_ids=OWN, output_hidden_states=True)
    for state in seen.hidden_states:
        state.retain_grad()
    seen.logits.sum().backward()
    assert all(state.grad is not None and state.grad.abs().sum() > 0 for state in seen.hidden_states)


# Configuration


def test_there_is_one_configuration_of_the_encoder(
    roberta: MBLMForSequenceClassification, tmp_path: Path
) -> None:
    roberta.save_pretrained(tmp_path / "student")
    loaded = MBLMForSequenceClassification.from_pretrained(tmp_path / "student")
    for student in (roberta, loaded, MBLMForSequenceClassification(loaded.config)):
        assert student.mblm.encoder.config is student.config.mplm_config
        student.resize_token_embeddings(57, mean_resizing=False)
        assert student.mblm.encoder.config.vocab_size == student.config.vocab_size == 57
        student.resize_token_embeddings(50, mean_resizing=False)
    plain = roberta.to_plain("de")
    assert plain.config is not roberta.config.mplm_config
    assert plain.config.num_labels == C


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_encoders_attention_may_be_chosen_in_loading(
    roberta: MBLMForSequenceClassification, attention: str, nested: bool, tmp_path: Path
) -> None:
    roberta.save_pretrained(tmp_path / "student")
    chosen: Any = {"mplm_config": attention} if nested else attention
    loaded = MBLMForSequenceClassification.from_pretrained(tmp_path / "student", attn_implementation=chosen)
    assert loaded.mblm.encoder.config._attn_implementation == attention


def test_attention_is_what_the_family_has(
    pair: tuple[Any, MBLMForSequenceClassification], tmp_path: Path
) -> None:
    plain, student = pair
    assert student.config._attn_implementation == plain.config._attn_implementation
    assert student.mblm.encoder.config._attn_implementation == plain.config._attn_implementation
    student.save_pretrained(tmp_path / "student")
    for name in ("sdpa", "flash_attention_2", "flex_attention"):
        supported = []
        for folder in (tmp_path / "plain", tmp_path / "student"):
            try:
                AutoModelForSequenceClassification.from_pretrained(
                    tmp_path / folder, attn_implementation=name
                )
                supported.append("yes")
            except (ImportError, ValueError) as error:
                supported.append(str(error).split(" ", 1)[1][:40])
        assert supported[0] == supported[1], name
    assert student._supports_sdpa == plain._supports_sdpa


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "intermediate_size": 24,
}


def test_the_configuration_has_the_standard_names(
    pair: tuple[Any, MBLMForSequenceClassification], family: str, tmp_path: Path
) -> None:
    plain, student = pair
    config = student.config
    missing = {"intermediate_size"} if family == "distilbert" else set()
    for name in SIZES.keys() - missing:
        assert getattr(config, name) == SIZES[name]
        assert config.to_dict()[name] == SIZES[name]
    assert config.pad_token_id == plain.config.pad_token_id
    assert not hasattr(config, "no_such_thing")
    config.hidden_size = 99
    assert config.mplm_config.hidden_size == 99
    config.hidden_size = 16
    config.save_pretrained(tmp_path / "config")
    saved = (tmp_path / "config/config.json").read_text()
    assert saved.count('"vocab_size"') == 1, "in the encoder's section alone, where version 0.1 reads it"
    loaded = AutoConfig.from_pretrained(
        tmp_path / "config", hidden_size=32, languages=LANGUAGES[:2], n_branches=2
    )
    assert (loaded.mplm_config.hidden_size, loaded.languages) == (32, LANGUAGES[:2])
    again = type(config)(**config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_options_of_the_encoder_are_taken_in_loading(
    roberta: MBLMForSequenceClassification, tmp_path: Path
) -> None:
    roberta.save_pretrained(tmp_path / "student")
    loaded = MBLMForSequenceClassification.from_pretrained(tmp_path / "student", hidden_dropout_prob=0.5)
    rates = {module.p for name, module in loaded.mblm.named_modules() if name.endswith("output.dropout")}
    assert rates == {0.5}


def test_another_number_of_classes_changes_the_last_layer_alone(
    pair: tuple[Any, MBLMForSequenceClassification], tmp_path: Path
) -> None:
    student = perturbed(pair[1])
    student.save_pretrained(tmp_path / "student")
    loaded = MBLMForSequenceClassification.from_pretrained(
        tmp_path / "student", num_labels=7, ignore_mismatched_sizes=True
    ).eval()
    assert loaded(**inputs()).logits.shape == (B, 7)
    before, after = student.state_dict(), loaded.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {after[name].shape[0] for name in changed} == {7}
    assert len(changed) == 2


# The tokenizer


def test_a_pipeline_cuts_where_the_student_was_trained_to(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("artifacts/student")
    assert tokenizer.model_max_length == 48
    assert AutoTokenizer.from_pretrained("artifacts/teachers/de").model_max_length > 48
    text = " ".join(f"Hund {n}" for n in range(90))
    model = AutoModelForSequenceClassification.from_pretrained("artifacts/student").eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    scores = {one["label"]: one["score"] for one in classify(text, top_k=None, truncation=True)}
    with torch.inference_mode():
        logits = model(**tokenizer(text, truncation=True, max_length=48, return_tensors="pt")).logits
    expected = dict(zip(model.config.id2label.values(), logits.softmax(-1)[0].tolist(), strict=True))
    assert scores == pytest.approx(expected, abs=1e-6)
