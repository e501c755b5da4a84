"""Means of weights: of a training's last checkpoints, and of several trainings."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from cache import write_atomically
from stages.errors import StageError
from stages.models.processes import process_index

_START = "start.json"
N_CHECKPOINTS = 10
"""Of a training: what it has learned after each tenth of its steps."""


class RunningMean:
    """The mean of models' weights, of which it keeps one copy, however many they are.

    Attributes:
        weights: By name, on the CPU; empty before the first model. What is frozen is left out.
        n: Of how many models they are the mean.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.n = 0

    def add(self, model: nn.Module) -> None:
        """Let a model's weights count as much as those of each one before."""
        self.n += 1
        for name, weights in _trained(model).items():
            mean = self.weights.setdefault(name, torch.zeros_like(weights, device="cpu"))
            mean.lerp_(weights.cpu(), 1 / self.n)

    def give_to(self, model: nn.Module) -> None:
        """Put the mean in the place of a model's weights."""
        for name, weights in _trained(model).items():
            weights.copy_(self.weights[name])


class MeanInMemory(TrainerCallback):
    """Keeps the mean of a training's last checkpoints in memory.

    Such a mean makes zero-shot transfer better and steadier (Schmidt et al. 2023, arXiv 2305.16834), and no
    validation data need to choose it.

    Attributes:
        mean: What it is so far.
    """

    def __init__(self, folder: Path, *, n: int, n_steps: int) -> None:
        """Say of what the mean is.

        Args:
            folder: Where the training keeps its checkpoints.
            n: How many checkpoints it is of, from the last; at most `N_CHECKPOINTS`.
            n_steps: Optimizer steps of the training.
        """
        tenths = range(N_CHECKPOINTS - n + 1, N_CHECKPOINTS + 1)
        self.mean = RunningMean()
        self._steps = sorted({max(1, round(tenth * n_steps / N_CHECKPOINTS)) for tenth in tenths})
        self._folder = folder

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what an interrupted run had at the checkpoint from which this one goes on."""
        n = sum(step <= state.global_step for step in self._steps)
        if n:
            file = self._file(state.global_step)
            if not file.is_file():
                raise StageError(
                    f"{file} is not there, without which checkpoint {state.global_step} cannot be gone on "
                    f"from; delete {self._folder} to train anew"
                )
            self.mean.weights, self.mean.n = load_file(file), n

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Let the step's weights into the mean; write it where the Trainer writes a checkpoint next."""
        if state.global_step in self._steps:
            self.mean.add(model)
        if control.should_save and self.mean.n and process_index() == 0:
            write_atomically(self._file(state.global_step), save(self.mean.weights))
            for file in self._files()[:-3]:  # the Trainer keeps two checkpoints, and a third while it writes
                file.unlink()

    def _file(self, step: int) -> Path:
        return self._folder / f"mean-{step}.safetensors"

    def _files(self) -> list[Path]:
        """List what is written, in the order of the steps."""
        return sorted(self._folder.glob("mean-*"), key=lambda path: int(path.stem.split("-")[1]))


def note_start(folder: Path, digest: str) -> None:
    """Note beside a model what its training began with: only means of models that began alike are of use.

    Args:
        folder: The model's.
        digest: As `weights_digest` gives it.
    """
    (folder / _START).write_text(json.dumps({"weights": digest}), encoding="utf-8")


def is_student(folder: Path) -> bool:
    """Tell whether a folder is what `note_start` noted something of."""
    return (folder / _START).is_file()


def read_start(folder: Path) -> str:
    """Read what `note_start` noted.

    Raises:
        StageError: There is no such note.
    """
    try:
        return str(json.loads((folder / _START).read_bytes())["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StageError(
            f"{folder} does not say which weights its training began with, as {_START} of a student does; "
            "train it again"
        ) from None


def weights_digest(model: nn.Module) -> str:
    """Hash a model's weights; sha256."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Give the weights that a training changes, by name."""
    return {name: weights.detach() for name, weights in model.named_parameters() if weights.requires_grad}
