"""The mean of a training's weights: what its last checkpoints have in common."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from cache import write_atomically
from stages.models.processes import process_index

N_CHECKPOINTS = 10
"""Of a training: what it has learned after each tenth of its steps."""


class MeanInMemory(TrainerCallback):
    """Keeps the mean of the last checkpoints' weights in memory, one copy, however many they are.

    Such a mean makes zero-shot transfer better and steadier (Schmidt et al. 2023, arXiv 2305.16834), and no
    validation data need to choose it.
    """

    def __init__(self, folder: Path, *, n: int, n_steps: int) -> None:
        """Say of what the mean is.

        Args:
            folder: Where the training keeps its checkpoints.
            n: How many checkpoints it is of, from the last; at most `N_CHECKPOINTS`.
            n_steps: Optimizer steps of the training.
        """
        tenths = range(N_CHECKPOINTS - n + 1, N_CHECKPOINTS + 1)
        self._steps = sorted({max(1, round(tenth * n_steps / N_CHECKPOINTS)) for tenth in tenths})
        self._folder = folder
        self._mean: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what an interrupted run had at the checkpoint from which this one goes on."""
        file = self._file(state.global_step)
        self._mean = load_file(file) if file.is_file() else {}

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Let the step's weights into the mean; write it where the Trainer writes a checkpoint next."""
        if state.global_step in self._steps:
            share = 1 / (self._steps.index(state.global_step) + 1)
            for name, weights in _trained(model).items():
                mean = self._mean.setdefault(name, torch.zeros_like(weights, device="cpu"))
                mean.lerp_(weights.cpu(), share)
        if control.should_save and self._mean and process_index() == 0:
            write_atomically(self._file(state.global_step), save(self._mean))
            for file in self._files()[:-3]:  # the Trainer keeps two checkpoints, and a third while it writes
                file.unlink()

    def restore(self, model: nn.Module) -> None:
        """Give a model the mean in the place of its weights."""
        for name, weights in _trained(model).items():
            weights.copy_(self._mean[name])

    def _file(self, step: int) -> Path:
        return self._folder / f"mean-{step}.safetensors"

    def _files(self) -> list[Path]:
        """List what is written, in the order of the steps."""
        return sorted(self._folder.glob("mean-*"), key=lambda path: int(path.stem.split("-")[1]))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Give the weights that a training changes, by name."""
    return {name: weights.detach() for name, weights in model.named_parameters() if weights.requires_grad}
