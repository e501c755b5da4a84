"""What all trainings share: the Hugging Face Trainer with our sampler, progress bar and resume."""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from cache import canonical_json, write_atomically
from stages.dependencies import code_digests
from stages.errors import StageError
from stages.models.processes import n_processes, process_index
from stages.models.texts import Texts
from stages.params import TrainingParams

_CHECKPOINTS = Path(".checkpoints")
_MADE_BY = "made_by.json"
_Rows = TypeVar("_Rows", Tensor, Tensor | None)


class ByLength(Sampler[int]):
    """Random order in which neighbours have similar lengths, so that batches need little padding.

    The order depends on the seed and the epoch alone: a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, texts: Texts, *, batch_size: int, seed: int, fill: bool = False) -> None:
        """Order the examples of an epoch.

        Args:
            texts: The examples.
            batch_size: Of the whole batch, over all processes.
            seed: Decides the order.
            fill: Whether the last batch is filled up with its own examples, so that processes can share it.
        """
        self.texts = texts
        self.batch_size = batch_size
        self._seed = seed
        self._n_repeated = -len(texts) % batch_size if fill else 0

    def __len__(self) -> int:
        return len(self.texts) + self._n_repeated

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        yield from order
        yield from islice(cycle(order[len(order) // self.batch_size * self.batch_size :]), self._n_repeated)

    def order(self) -> list[int]:
        """Give the positions of this epoch's examples."""
        order: list[int] = get_length_grouped_indices(
            self.texts.lengths, self.batch_size, generator=self.generator()
        )
        return order

    def generator(self) -> torch.Generator:
        """Make the random numbers of this epoch."""
        return torch.Generator().manual_seed(self._seed * 100_003 + self.texts.epoch)


class TextTrainer(Trainer):
    """Hugging Face's Trainer, with batches by length and a stop at the first non-finite loss.

    Where torchrun starts several processes, each computes an equal part of every batch. The loss is that of
    the whole batch in each of them, so that the training is the one that a single process does.
    """

    train_dataset: Texts

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return ByLength(self.train_dataset, **self.order_options())

    def order_options(self) -> dict[str, Any]:
        """Give what every order of examples depends on."""
        args = self.args
        return {"batch_size": args.train_batch_size, "seed": args.seed, "fill": args.world_size > 1}

    def whole_batch(self, own: _Rows) -> _Rows:
        """Put together what the processes have of a training batch: the B rows that a single process has.

        A loss of these rows is the same in every process, whatever it is a mean of; its gradient flows into
        the process's own rows.

        Args:
            own: Something of this process's part of the batch, ``(B/n, …)``; None stays None.
        """
        n = self.args.world_size
        if own is None or n == 1:
            return own
        parts = list(self.accelerator.gather(own.detach()).split(len(own)))
        parts[self.args.process_index] = part = own.view_as(own)
        if part.requires_grad:
            part.register_hook(lambda gradient: gradient * n)  # DDP takes the mean of what is to be summed up
        rows = torch.cat(parts)
        n_batches, n_left = divmod(len(self.train_dataset), self.args.train_batch_size)
        if n_left and self.state.global_step % (n_batches + 1) == n_batches:
            rows = rows[:n_left]  # the others fill the last batch of the epoch up
        return rows

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do one step; a loss that is NaN or infinite ends the training before the weights change."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise StageError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; "
                "lower learning_rate, or try precision: float32"
            )
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the file after which a checkpoint counts is written next


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
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=params.batch_size,  # of all devices, as it is split_batches
        per_device_eval_batch_size=params.batch_size,
        accelerator_config={"split_batches": True},
        average_tokens_across_devices=False,  # `TextTrainer.whole_batch` does better
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
        log_level_replica="error",
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # torchrun shares a batch out, DataParallel would multiply it
    return arguments


def require_equal_shares(batch_size: int, *, key: str) -> None:
    """Refuse a batch that the processes cannot share out equally.

    Args:
        batch_size: Examples per optimizer step, over all processes.
        key: Its name in params.yaml.

    Raises:
        StageError: It is no multiple of their number.
    """
    if batch_size % n_processes():
        raise StageError(
            f"{key} is {batch_size}, which {n_processes()} processes cannot share out equally; "
            f"set it to a multiple of {n_processes()}"
        )


def run(trainer: Trainer, *, title: str) -> list[dict[str, Any]]:
    """Train to the end, from the last checkpoint of an interrupted run where there is one.

    Every process has the order of examples from the seed, and draws dropout and mixtures of its own.

    Returns:
        The Trainer's log history: one record per log, with ``step`` and ``epoch``.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    bar = OneBar(title)
    trainer.add_callback(bar)
    checkpoint = _last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if process_index():
        set_seed((trainer.args.seed + process_index()) % 2**32)
    elif checkpoint:
        tqdm.write(f"{title}: going on from {checkpoint}", file=sys.stderr)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        bar.close()  # so that an error message begins on a line of its own
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def end_all_but_the_first() -> None:
    """Wait until all processes have trained, so that the first can go on alone and delete the checkpoints."""
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.backend != "gloo":  # whose threads may now wait for the interpreter, and it for them
        processes.destroy_process_group()
    if process_index():
        os._exit(0)  # for the same reason


def _last_complete_checkpoint(folder: Path) -> str | None:
    """Find the last checkpoint that a killed run had finished writing: its state is written last."""
    complete = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            complete[int(json.loads(path.read_bytes())["global_step"])] = str(path.parent)
    return complete[max(complete)] if complete else None


class Checkpoints(NamedTuple):
    """Where a training keeps its checkpoints while it runs.

    Attributes:
        folder: What an interrupted run has left is in it.
        went_on_over: What of code and libraries had changed when the training went on all the same.
    """

    folder: Path
    went_on_over: list[str]


def checkpoints_of(name: str, facts: Any, *, file: str, resume: bool) -> Checkpoints:
    """Choose where a training keeps its checkpoints, and delete those of an interrupted run of other code.

    Outside of ``artifacts/``, because DVC deletes a stage's outputs before it runs it again. A training that
    depends on other parameters or data gets another folder, so that it never goes on from a foreign one.

    Args:
        name: The stage's name.
        facts: JSON values: the parameters and the data that the training depends on.
        file: The training's file, whose code, and what that imports, must not have changed.
        resume: Go on from a checkpoint of other code as well.
    """
    folder = _CHECKPOINTS / name / hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    now = {"code": code_digests(Path(file)), "versions": versions}
    if process_index():
        while _read_json(folder / _MADE_BY).get("now") != now:  # what the first process writes
            time.sleep(0.2)
    elif any(folder.rglob("config.json")):  # a model to go on from
        noted = _read_json(folder / _MADE_BY)
        changes = _changes(noted.get("now"), now)
        if changes and not resume:
            tqdm.write(
                f"{name}: a training that was interrupted is left in {folder}, but since then other: "
                f"{', '.join(changes)}; training starts anew (--resume goes on regardless)",
                file=sys.stderr,
            )
            shutil.rmtree(folder)
            noted, changes = {}, []
        over = [*noted.get("went_on_over", []), *changes]
    else:
        over = []
    if process_index() == 0:
        write_atomically(folder / _MADE_BY, canonical_json({"now": now, "went_on_over": over}))
    return Checkpoints(folder, _read_json(folder / _MADE_BY)["went_on_over"])


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; nothing where it is not there, as in what an older version left."""
    with suppress(FileNotFoundError, ValueError):
        values: dict[str, Any] = json.loads(path.read_bytes())
        return values
    return {}


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Say what of code and libraries is not what it was."""
    if before is None:
        return ["code of a version that did not note it"]
    files = before["code"].keys() | now["code"].keys()
    code = [file for file in sorted(files) if before["code"].get(file) != now["code"].get(file)]
    versions = [
        f"{library} {now['versions'][library]} (was {version})"
        for library, version in before["versions"].items()
        if now["versions"][library] != version
    ]
    return code + versions


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of examples whose highest logit, shape ``(N, C)``, is at their label, shape ``(N,)``."""
    predicted = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((predicted == prediction.label_ids).mean())}
