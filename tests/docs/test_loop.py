"""docs/loop.py trains the student that stage two trains, step by step."""

import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from labels import CLASS_NAMES, producer, soft_labels
from tiny import CLASSES, ROOT, examples, tiny_params, write_params

from cache import SoftLabelSet
from pipeline.params import load_params
from stages.prepare import prepare
from stages.student import distill, trainer
from stages.student.objective import objective

PAGE = str(ROOT / "docs/loop.py")
LANGUAGES = ["nl", "de", "en"]  # not in the order of their names; a text has two others to mix

OTHER_SETTINGS: dict[str, Any] = {
    "warmup_share": 0.0,
    "temperature": 3.0,
    "hard_label_weight": 8.0,  # so much that gradients are clipped
    "mixture": {
        "loss_weight": 0.6,
        "ramp_share": 0.5,
        "weights": {"nl": 1.0, "de": 2.0, "en": 5.0},
        "own_branch": True,
        "of": "logits",
    },
}


def write_run(dropout: float, changes: dict[str, Any]) -> None:
    """Write what stage two reads: three languages, whose teachers differ in classes and are not all alike."""
    params = tiny_params()
    params["task"] |= {"supervised": LANGUAGES, "zero_shot": []}
    params["student"]["distill"] |= {"epochs": 4, "learning_rate": 5e-3, "weight_decay": 0.5, **changes}
    params["student"]["distill"]["subword_dropout"] = dropout
    for shift, language in enumerate(LANGUAGES):
        labels = dict(zip(CLASS_NAMES, CLASSES[shift:] + CLASSES[:shift], strict=True))
        params["teachers"][language] = {"base": "scratch", "labels": labels}
        texts = [row["text"] for split in ("train", "validation") for row in examples(language, split)]
        random.Random(shift).shuffle(texts)
        folder = Path("artifacts/soft_labels") / language
        SoftLabelSet.write(folder, language=language, parts=[(producer(), soft_labels(texts))])
    write_params(params)
    prepare(load_params(Path("params.yaml")).task)
    config = Path("artifacts/encoder/config.json")
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config.write_text(json.dumps(json.loads(config.read_text()) | rates))


@pytest.mark.parametrize(
    ("dropout", "changes"),
    [(0.0, {}), (0.0, OTHER_SETTINGS), (0.1, {})],
    ids=["as in params.yaml", "other settings", "with dropout"],
)
def test_the_page_has_the_losses_of_stage_two(
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dropout: float,
    changes: dict[str, Any],
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # the page computes on the CPU
    write_run(dropout, changes)
    params = load_params(Path("params.yaml"))
    expected = []

    def recorded(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        losses = objective(*args, **kwargs)
        expected.append({name: loss.item() for name, loss in losses.items()})
        return losses

    monkeypatch.setattr(trainer, "objective", recorded)
    trained = distill.distill(params.task, params.teachers, params.student.distill)
    found = runpy.run_path(PAGE)["train"](params)
    assert len(found) == len(expected) >= 50
    for step, losses in enumerate(found):
        assert losses == pytest.approx(expected[step], rel=0, abs=1e-5), f"step {step + 1}"
    accuracies = trained.line().partition("; ")[2]
    assert capsys.readouterr().out.splitlines()[-1] == f"epoch 4 of 4; {accuracies}"


def run_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [PAGE])
    runpy.run_path(PAGE, run_name="__main__")


def test_the_page_runs_after_the_pipeline_and_writes_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(SystemExit, match="0"):
        run_page(monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert "step 10 of 18: loss 0." in capsys.readouterr().out


def test_the_page_refuses_what_it_leaves_out(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    params["teachers"]["en"]["more"] = [{"base": "scratch"}]
    params["student"]["distill"] |= {"class_weights": "balanced", "variant": "branches", "runs": 2}
    write_params(params)
    with pytest.raises(SystemExit, match="leaves out class_weights, more, runs, variant; use: "):
        run_page(monkeypatch)
