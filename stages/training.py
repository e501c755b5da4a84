"""What all trainings share: the Hugging Face Trainer with our sampler, progress bar and resume."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from cache import canonical_json
from stages.base import StageError, TrainingParams
from stages.texts import Texts

_CHECKPOINTS = Path(".checkpoints")


class ByLength(Sampler[int]):
    """Random order in which neighbours have similar lengths, so that batches need little padding.

    The order depends on the seed and the epoch alone: a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, texts: Texts, *, batch_size: int, seed: int) -> None:
        self.texts = texts
        self.batch_size = batch_size
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Change the order, and the splits of words with it. The Trainer calls it before each epoch."""
        self.texts.epoch = epoch

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        yield from get_length_grouped_indices(self.texts.lengths, self.batch_size, generator=generator)

    def generator(self) -> torch.Generator:
        """Make the random numbers of this epoch."""
        return torch.Generator().manual_seed(self._seed * 100_003 + self.texts.epoch)


class TextTrainer(Trainer):
    """Hugging Face's Trainer, with batches by length and a stop at the first non-finite loss."""

    train_dataset: Texts

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return ByLength(self.train_dataset, batch_size=self.args.train_batch_size, seed=self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do one step; a loss that is NaN or infinite ends the training before the weights change."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise StageError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; "
                "lower learning_rate, or try precision: float32"
            )
        return loss


class OneBar(ProgressCallback):
    """A progress bar with the latest loss in it, instead of a line for each log."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Open the bar under its title."""
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self._title)
            self.training_bar.unit = "step"

    def close(self) -> None:
        """Close the bar, also where the training ended early."""
        if self.training_bar is not None:
            self.training_bar.close()

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show no second bar for validation."""

    def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show losses and accuracies beside the bar."""
        if self.training_bar is not None:
            shown = {k: f"{v:.3f}" for k, v in (logs or {}).items() if k.endswith(("loss", "accuracy"))}
            self.training_bar.set_postfix(shown, refresh=False)


def training_arguments(
    params: TrainingParams, folder: Path, *, max_steps: int, **more: Any
) -> TrainingArguments:
    """Translate a section of params.yaml for the Trainer; 50 logs in a run, nothing sent anywhere."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        warmup_steps=math.ceil(params.warmup_share * max_steps),
        weight_decay=params.weight_decay,
        bf16=params.precision == "bfloat16",
        seed=params.seed,
        logging_steps=max(1, max_steps // 50),
        logging_nan_inf_filter=False,
        save_total_limit=2,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),  # bfloat16 on a CPU is refused without it
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )


def run(trainer: Trainer, *, title: str) -> list[dict[str, Any]]:
    """Train to the end, from the last checkpoint of an interrupted run where there is one.

    Returns:
        The Trainer's log history: one record per log, with ``step`` and ``epoch``.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    bar = OneBar(title)
    trainer.add_callback(bar)
    checkpoint = _last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if checkpoint:
        tqdm.write(f"{title}: going on from {checkpoint}", file=sys.stderr)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        bar.close()  # so that an error message begins on a line of its own
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def _last_complete_checkpoint(folder: Path) -> str | None:
    """Find the last checkpoint that a killed run had finished writing: its state is written last."""
    complete = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            complete[int(json.loads(path.read_bytes())["global_step"])] = str(path.parent)
    return complete[max(complete)] if complete else None


def checkpoint_folder(name: str, facts: Any) -> Path:
    """Choose where a training keeps its checkpoints while it runs.

    Outside of ``artifacts/``, because DVC deletes a stage's outputs before it runs it again. A training that
    depends on other facts gets another folder, so that it never goes on from a foreign checkpoint.

    Args:
        name: The stage's name.
        facts: JSON values: everything that the training depends on.
    """
    return _CHECKPOINTS / name / hashlib.sha256(canonical_json(facts)).hexdigest()[:16]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of examples whose highest logit, shape ``(N, C)``, is at their label, shape ``(N,)``."""
    predicted = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((predicted == prediction.label_ids).mean())}
