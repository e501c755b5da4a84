"""The student in other hands: PEFT, torch.export, accelerate, Captum."""

from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from families import B, C, inputs, perturbed, save_plain, student_of
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from stages.models.modeling_mblm import MBLMForSequenceClassification

MIXED = torch.tensor([0, -1, 2, 1, -1])
peft_of_before = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft 0.20 asks transformers 5.23 for it
)


@pytest.fixture
def student(tmp_path: Path) -> MBLMForSequenceClassification:
    """A student whose branches differ."""
    save_plain("xlm-roberta", tmp_path / "plain", initializer_range=0.5)
    return perturbed(student_of(tmp_path / "plain"))


def logits_of(model: Any, **changes: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**{**inputs(), "language_ids": MIXED, **changes}).logits
    return logits


def trained(model: Any) -> Any:
    """Make a few steps on one batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.arange(B) % C
    for _ in range(3):
        model(**inputs(), language_ids=MIXED, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@peft_of_before
def test_lora_adapts_trunk_and_branches(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "student")
    before = logits_of(student)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["head"])
    adapted = trained(get_peft_model(student, config))
    branched = [name for name, p in adapted.named_parameters() if "layer.2.1." in name and p.requires_grad]
    assert branched, "a branch's layer has adapters of its own"
    expected = logits_of(adapted)
    assert (expected - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    again = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(again), expected)
    torch.testing.assert_close(logits_of(again.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


@peft_of_before
def test_prompts_are_tuned(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    before = logits_of(student)
    tuned = trained(get_peft_model(student, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)))
    expected = logits_of(tuned)
    assert expected.shape == (B, C)
    assert (expected - before).abs().max() > 1e-3
    tuned.save_pretrained(tmp_path / "prompt")
    assert (tmp_path / "prompt/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("language", [None, "en"])
def test_torch_exports_it(student: MBLMForSequenceClassification, language: str | None) -> None:
    student.set_default_language(language)
    batch = torch.export.Dim("batch", min=2, max=64)
    length = torch.export.Dim("length", min=2, max=32)
    shape = {0: batch, 1: length}
    program = torch.export.export(
        student, (), inputs(), dynamic_shapes={"input_ids": shape, "attention_mask": shape}
    )
    other = {name: value[:3, :5] for name, value in inputs().items()}
    with torch.inference_mode():
        torch.testing.assert_close(
            program.module()(**other).logits, student(**other).logits, atol=1e-5, rtol=1e-5
        )


def test_accelerate_places_it(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "student")
    placed = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", device_map="auto"
    ).eval()
    torch.testing.assert_close(logits_of(placed), logits_of(student))


@pytest.mark.parametrize("language_id", [1, -1], ids=["own branch", "mixture"])
def test_captum_attributes_to_tokens(student: MBLMForSequenceClassification, language_id: int) -> None:
    given = inputs()
    rest = (given["attention_mask"], torch.full((B,), language_id))
    baseline = torch.zeros_like(given["input_ids"])

    def logit(input_ids: Tensor, mask: Tensor, language_ids: Tensor) -> Any:
        return student(input_ids=input_ids, attention_mask=mask, language_ids=language_ids).logits[:, 2]

    method = LayerIntegratedGradients(logit, student.get_input_embeddings())
    attributions = method.attribute(
        given["input_ids"], baseline, additional_forward_args=rest, n_steps=400, internal_batch_size=100
    )
    with torch.inference_mode():
        expected = logit(given["input_ids"], *rest) - logit(baseline, *rest)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(attributions.sum(dim=(1, 2)), expected, atol=5e-3, rtol=2e-2)


def test_captum_attributes_to_layers(student: MBLMForSequenceClassification) -> None:
    given = inputs()
    layers = student.mblm.encoder.encoder.layer

    def logit(input_ids: Tensor, mask: Tensor) -> Any:
        ids = torch.ones(B, dtype=torch.int64)
        return student(input_ids=input_ids, attention_mask=mask, language_ids=ids).logits[:, 2]

    def scores(layer: torch.nn.Module) -> Any:
        method = LayerGradientXActivation(logit, layer)
        return method.attribute(given["input_ids"], additional_forward_args=given["attention_mask"])

    for layer in (layers[0], layers[1], layers[1][1]):  # the trunk's, a branched one, the branch's own
        attributed = scores(layer)
        assert attributed.shape == (B, 7, 16)
        assert attributed.abs().sum() > 0
    torch.testing.assert_close(scores(layers[1]), scores(layers[1][1]))
