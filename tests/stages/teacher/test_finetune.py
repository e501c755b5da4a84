"""Fine-tuning: the best epoch's weights are kept, few checkpoints are written, and a stop changes nothing."""

from pathlib import Path
from typing import Any

import pytest
from tiny import Run, tiny_params, write_params
from torch import Tensor

from cache import file_digest
from stages.models.checkpoints import BestInMemory
from stages.models.training import TextTrainer

FINETUNE = ("teacher", "finetune", "--language", "de")
WEIGHTS = Path("artifacts/teachers/de/model.safetensors")


@pytest.fixture
def accuracies(finished: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation accuracies by epoch of a training whose best epoch is not the last: they rise, then fall."""
    params = tiny_params()
    params["teacher"]["finetune"] |= {"epochs": 5}
    write_params(params)
    told = iter([0.2, 0.4, 0.9, 0.3, 0.1] * 3)
    seen: list[float] = []
    on_evaluate = BestInMemory.on_evaluate

    def tell(self: BestInMemory, *args: Any, **kwargs: Any) -> None:
        seen.append(next(told))
        args[1].log_history[-1]["eval_accuracy"] = seen[-1]
        on_evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BestInMemory, "on_evaluate", tell)
    return seen


def stop_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    training_step = TextTrainer.training_step

    def maybe_stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == step and self.args.max_steps > 2:  # not while it is pre-trained
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    patch.setattr(TextTrainer, "training_step", maybe_stop)


def test_the_weights_of_the_best_epoch_are_kept_without_a_checkpoint(
    accuracies: list[float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(*FINETUNE)
    assert accuracies == [0.2, 0.4, 0.9, 0.3, 0.1]
    assert done.out == "teacher 'de': 90.0% of 9 validation examples\n"
    best = file_digest(WEIGHTS)
    # One that ends right after its best epoch has the same weights: six steps an epoch.
    with monkeypatch.context() as patch:
        stop_at_step(patch, 18)
        patch.setattr("stages.models.checkpoints._SECONDS", 0)
        accuracies.clear()
        assert run(*FINETUNE).code == 130
    assert len(list(Path(".checkpoints").glob("teacher-finetune-de/*/steps-0/checkpoint-18"))) == 1
    (kept,) = Path(".checkpoints").glob("teacher-finetune-de/*/steps-0/checkpoint-18/model.safetensors")
    assert file_digest(kept) == best


def test_a_stopped_training_goes_on_and_ends_with_the_same_weights(
    accuracies: list[float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*FINETUNE)
    uninterrupted = file_digest(WEIGHTS)
    assert not list(Path(".checkpoints").rglob("checkpoint-*"))
    monkeypatch.setattr("stages.models.checkpoints._SECONDS", 0)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 26)  # in the last epoch, behind the best one
        assert run(*FINETUNE).code == 130
    monkeypatch.setattr("stages.models.checkpoints._SECONDS", 300)
    done = run(*FINETUNE)
    assert "going on from" in done.err
    assert done.out == "teacher 'de': 90.0% of 9 validation examples\n"
    assert file_digest(WEIGHTS) == uninterrupted
