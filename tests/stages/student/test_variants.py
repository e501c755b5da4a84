"""Variants that others are compared with: what each of them learns, from what, and for how long."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT, Run
from torch.nn.functional import cross_entropy

from pipeline.params import load_params
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.student.objective import hardened, objective
from stages.student.taught import taught_texts
from stages.student.variants import relevant


def test_the_divergence_from_a_hardened_soft_label_is_the_cross_entropy_with_its_class() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(2, 5, 4, generator=generator)
    found = objective(
        logits,
        torch.zeros(5, dtype=torch.long),
        teacher_logits=hardened(soft),
        mixture_logits=None,
        hidden=None,
        class_weights=None,
        temperature=1.0,
        mixture_weight=0.3,
        hard_label_weight=0.0,
        hidden_weight=0.0,
    )
    expected = cross_entropy(logits, soft.argmax(dim=1)).item()
    assert found["loss"].item() == pytest.approx(expected)


def test_pseudo_learns_the_teachers_classes_and_nothing_else_of_what_they_say(finished: Path) -> None:
    params = load_params(Path("params.yaml"))
    numbers = {}
    for variant in ("distill", "pseudo"):
        settings = params.student.distill.model_copy(update={"variant": variant})
        taught = taught_texts(params.task, params.teachers, settings)
        numbers[variant] = taught.texts.numbers["teacher_logits"]
        assert list(taught.teachers) == params.task.supervised
    soft, hard = numbers["distill"], numbers["pseudo"]
    np.testing.assert_array_equal(hard.argmax(axis=1), soft.argmax(axis=1))
    np.testing.assert_array_equal(np.sort(hard, axis=1)[:, :-1], -1e4)


def test_pseudo_does_not_depend_on_the_temperature() -> None:
    params = load_params(ROOT / "params.yaml", ["student.distill.variant=pseudo"]).student.distill
    assert relevant(params.model_copy(update={"temperature": 9.0})) == relevant(params)


def test_linear_leaves_the_encoder_as_it_is(finished: Path, run: Run) -> None:
    task = load_params(Path("params.yaml")).task
    untrained = MBLMForSequenceClassification.from_mplm(
        Path("artifacts/encoder"), languages=task.supervised, n_branches=1, branch_layers=1
    ).state_dict()
    same = {}
    for variant in ("linear", "finetune"):
        done = run("student", "distill", "--set", f"student.distill.variant={variant}")
        assert done.code == 0, done.err
        student = load_file("artifacts/student/model.safetensors")
        same[variant] = {name for name, value in student.items() if torch.equal(value, untrained[name])}
    encoder = {name for name in untrained if not name.startswith("head.")}
    assert encoder <= same["linear"]
    assert not {name for name in same["finetune"] if name.endswith("weight")}


@pytest.mark.parametrize("variant", ["linear", "finetune"])
def test_labelled_texts_are_learned_for_as_many_steps_as_all_texts_would_be(
    finished: Path, run: Run, variant: str
) -> None:
    few = ("--set", "task.unlabelled=true", "--set", "task.max_labels=6")
    assert run("prepare", *few).code == 0
    params = load_params(Path("params.yaml")).student.distill
    said = run("student", "distill", *few, "--set", f"student.distill.variant={variant}").out
    n_steps = params.epochs * -(-72 // params.batch_size)
    assert said.startswith(f"{variant}: {n_steps} steps")
    # It is validated as often, so that `keep: best` and `patience` mean the same for all variants.
    curve = json.loads(Path("artifacts/student/validation.json").read_text())
    assert [point["step"] for point in curve] == [
        (epoch + 1) * n_steps // params.epochs for epoch in range(params.epochs)
    ]
    if variant == "finetune":
        assert run("student", "baseline", *few).out.startswith(f"finetune: {n_steps} steps")


def test_the_most_probable_class_needs_no_small_logits(finished: Path, run: Run) -> None:
    for language in ("de", "en"):
        assert run("teacher", "label", "--language", language, "--set", "teacher.label.top_k=1").code == 0
    refused = run("student", "distill", "--set", "student.distill.variant=distill")
    assert refused.code == 1
    assert "keep 1 of 3 logits" in refused.err
    assert run("student", "distill", "--set", "student.distill.variant=pseudo").code == 0
    averaged = ("student.distill.variant=pseudo", "student.distill.average_translations=true")
    refused = run("student", "distill", *(part for one in averaged for part in ("--set", one)))
    assert "keep 1 of 3 logits" in refused.err
