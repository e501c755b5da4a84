"""What a training begins and ends with: errors before the first step, the baseline, sound weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Run

from stages.models.training import TextTrainer
from stages.student.distill import Trained

START = ("student", "distill", "--set", "student.distill.start=baseline")


@pytest.fixture
def n_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the steps of all trainings."""
    steps: list[None] = []
    step = TextTrainer.training_step

    def count(self: TextTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(None)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(TextTrainer, "training_step", count)
    return lambda: len(steps)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("soft labels", "soft labels"),
        ("branch_layers=9", "branch_layers is 9"),
        ("freeze=2", "freeze is 2, but the model has branches of 1 of its 2 layers"),
        ("average_translations=true", "no two training texts have the same entity"),
    ],
)
def test_nothing_is_trained_before_an_error_of_what_comes_after_the_baseline(
    finished: Path, run: Run, n_steps: Callable[[], int], change: str, said: str
) -> None:
    if change == "soft labels":
        shutil.rmtree("artifacts/soft_labels/en")
    options = () if change == "soft labels" else ("--set", f"student.distill.{change}")
    done = run(*START, *options)
    assert done.code == 1
    assert said in done.err
    assert n_steps() == 0


def test_students_of_one_init_seed_start_as_the_same_baseline_and_have_a_mean(
    finished: Path, run: Run
) -> None:
    options = [part for one in ("init_seed=5", "epochs=1") for part in ("--set", f"student.distill.{one}")]
    for seed in (1, 2):
        done = run(*START, *options, "--set", f"student.distill.seed={seed}")
        assert done.code == 0, done.err
        shutil.move("artifacts/student", f"of-{seed}")
    name = "head.classifier.out_proj.weight"
    one, two = (load_file(f"of-{seed}/model.safetensors")[name] for seed in (1, 2))
    assert not torch.equal(one, two)
    done = run("student", "average", "of-1", "of-2", "--output", "mean")
    assert (done.code, done.out) == (0, "mean: the mean of of-1, of-2\n")


def test_texts_are_read_once_for_all_runs(finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[None] = []
    monkeypatch.setattr("stages.student.distill.taught_texts", _counted(read))
    options = [part for one in ("runs=2", "epochs=1") for part in ("--set", f"student.distill.{one}")]
    assert run("student", "distill", *options).code == 0
    assert len(read) == 1


def test_weights_that_the_last_step_broke_are_not_kept(finished: Path, run: Run) -> None:
    shutil.rmtree("artifacts/student")
    changes = ("learning_rate=1e38", "warmup_share=0", "epochs=1", "batch_size=99")  # one step
    options = [part for one in changes for part in ("--set", f"student.distill.{one}")]
    done = run("student", "distill", *options)
    assert done.code == 1
    assert "error: the last step made weights NaN or infinite; lower learning_rate" in done.err
    assert not Path("artifacts/student").exists()


def test_a_long_training_leaves_a_checkpoint_in_time(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_file("artifacts/student/model.safetensors")
    average = ("--set", "student.distill.save_steps=1000", "--set", "student.distill.average=8")
    assert run("student", "distill", *average).code == 0
    mean = load_file("artifacts/student/model.safetensors")
    step = TextTrainer.training_step

    def stop(self: TextTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    for options, expected in ((average[:2], before), (average, mean)):
        with monkeypatch.context() as patch:
            patch.setattr(TextTrainer, "training_step", stop)
            patch.setattr("stages.models.checkpoints._SECONDS", 0)
            stopped = run("student", "distill", *options)
        assert stopped.code == 130
        assert "stopped at step 12 of 18; the same command goes on from .checkpoints/" in stopped.err
        done = run("student", "distill", *options)
        assert "checkpoint-10" in done.err
        found = load_file("artifacts/student/model.safetensors")
        for name, weights in expected.items():
            torch.testing.assert_close(found[name], weights, atol=1e-6, rtol=1e-5)


def test_runs_that_patience_ended_say_how_long_they_were() -> None:
    assert Trained("mblm", [28, 42], {"de": 0.5}).line() == (
        "mblm: the mean of 2 runs of 28 to 42 steps; validation accuracy: de 50.0%"
    )


def _counted(calls: list[None]) -> Callable[..., Any]:
    from stages.student.taught import taught_texts

    def count(*args: Any) -> Any:
        calls.append(None)
        return taught_texts(*args)

    return count
