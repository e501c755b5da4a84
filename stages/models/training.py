"""What all trainings share: the Hugging Face Trainer with our sampler and progress bar."""

import gc
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from stages.errors import StageError
from stages.models.checkpoints import last_complete_checkpoint
from stages.models.layers import freeze, optimizer_groups, require_layers
from stages.models.processes import n_processes, process_index
from stages.models.reporting import reporters
from stages.models.texts import Texts
from stages.params import TrainingParams
from stages.progress import Bar, say

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

    Attributes:
        share: How much of the batch's loss is what `compute_loss` is computing: all of it, or a piece.
    """

    train_dataset: Texts

    def __init__(self, params: TrainingParams, **kwargs: Any) -> None:
        """Freeze what is to be frozen, and take what the Trainer takes.

        Args:
            params: The training's section of params.yaml.
            kwargs: As the Trainer's.

        Raises:
            StageError: More is to be frozen than there is.
        """
        freeze(kwargs["model"], params.freeze)
        super().__init__(**kwargs)
        self.params = params
        self.share = 1.0
        self._rows: slice | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW, with learning rates by layer where these differ."""
        model = model or self.model
        alike = self.params.head_learning_rate is None and self.params.layer_decay == 1
        if alike or self.optimizer is not None:
            return super().create_optimizer(model)
        if self.params.layer_decay < 1:
            require_layers(model, key="layer_decay")
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        decayed = set(self.get_decay_parameter_names(model))
        self.optimizer = kind(optimizer_groups(model, self.params, decayed), **options)
        return self.optimizer

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
        real = self._real_rows(len(own)).to(rows.device)
        return rows[real] if 0 < len(real) < len(rows) else rows  # where none is real, none counts: `weight`

    def _real_rows(self, n: int) -> Tensor:
        """Tell which rows of a whole batch, or of a piece of it, do not just fill the epoch's last batch up.

        Args:
            n: Rows that this process has of it.
        """
        if self.args.world_size == 1:
            return torch.arange(n)
        each = self.args.train_batch_size // self.args.world_size
        start = self._rows.start if self._rows else 0
        places = torch.cat([rank * each + start + torch.arange(n) for rank in range(self.args.world_size)])
        n_batches, n_left = divmod(len(self.train_dataset), self.args.train_batch_size)
        is_last = n_left and self.state.global_step % (n_batches + 1) == n_batches
        return torch.nonzero(places < (n_left if is_last else self.args.train_batch_size)).squeeze(1)

    def weight(self, labels: Tensor) -> Tensor | int:
        """Say how much some examples of a batch count in its loss, all processes together.

        Args:
            labels: Of the examples that this process has of them.
        """
        return len(self._real_rows(len(labels)))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Do one step; a loss that is NaN or infinite ends the training before the weights change."""
        if self.params.gradient_accumulation > 1:
            loss = self._step_in_pieces(model, inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise StageError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; "
                "lower learning_rate, or try precision: float32"
            )
        return loss

    def _step_in_pieces(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Send a batch through the model piece by piece; gives the loss of the whole batch.

        A mean over the batch is the sum of the pieces' means, each with the weight of its examples.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        n = len(inputs["labels"])
        size = -(-n // self.params.gradient_accumulation)
        self._rows = slice(0, n)
        of_all = self.weight(inputs["labels"])
        total = torch.zeros((), device=self.args.device)
        for start in range(0, n, size):
            self._rows = slice(start, start + size)
            piece = {name: value[self._rows] for name, value in inputs.items()}
            self.share = float(self.weight(piece["labels"]) / of_all)
            # Processes exchange gradients once, with the last piece.
            with nullcontext() if start + size >= n else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, piece)
                    loss = loss * self.share
                self.accelerator.backward(loss)
            total += loss.detach()
        self._rows, self.share = None, 1.0
        return total

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Begin no epoch where a training has ended: after an interruption, the Trainer would do a step."""
        if self.state.global_step >= self.args.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the file after which a checkpoint counts is written next


class OneBar(ProgressCallback):
    """A progress bar with the latest loss in it, instead of a line for each log."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self.training_bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Open the bar under its title."""
        if state.is_world_process_zero:
            self.training_bar = Bar(total=state.max_steps, desc=self._title, unit="step", dynamic_ncols=True)
        self.current_step = 0

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
    if params.gradient_checkpointing:
        # The word that this version of transformers has for it.
        new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        more |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
        more |= {"ddp_find_unused_parameters": True}  # a batch without a language leaves out its branch
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=params.batch_size,  # of all devices, as it is split_batches
        per_device_eval_batch_size=params.batch_size,
        accelerator_config={"split_batches": True},
        average_tokens_across_devices=False,  # `TextTrainer.whole_batch` does better
        learning_rate=params.learning_rate,
        max_grad_norm=params.max_grad_norm,
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
    """Refuse a batch that the processes cannot share out equally, and several processes on one card.

    Args:
        batch_size: Examples per optimizer step, over all processes.
        key: Its name in params.yaml.

    Raises:
        StageError: It is no multiple of their number, or this machine has a card, but none for each of them.
    """
    n_cards, n_here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < n_cards < n_here:
        raise StageError(
            f"torchrun has started {n_here} processes here, and there are cards for {n_cards}; set "
            f"--nproc-per-node {n_cards}, or CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if batch_size % n_processes():
        raise StageError(
            f"{key} is {batch_size}, which {n_processes()} processes cannot share out equally; "
            f"set it to a multiple of {n_processes()}"
        )


def run(trainer: TextTrainer, *, title: str) -> list[dict[str, Any]]:
    """Train to the end, from the last checkpoint of an interrupted run where there is one.

    Every process has the order of examples from the seed, and draws dropout and mixtures of its own.

    Returns:
        The Trainer's log history: one record per log, with ``step`` and ``epoch``.

    Raises:
        StageError: The loss, or a weight, is NaN or infinite.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    bar = OneBar(title)
    trainer.add_callback(bar)
    folder = Path(str(trainer.args.output_dir))
    checkpoint = last_complete_checkpoint(folder)
    if process_index() == 0 and trainer.params.report_to:
        name = "-".join([folder.parts[1], *folder.parts[3:]])  # of .checkpoints/<name>/<digest>/<fold>
        for callback in reporters(trainer.params.report_to, name, resumed=checkpoint is not None):
            trainer.add_callback(callback)
    if process_index():
        set_seed((trainer.args.seed + process_index()) % 2**32)
    elif checkpoint:
        say(f"{title}: going on from {checkpoint}")
    if torch.cuda.is_available():
        gc.collect()  # a model in bfloat16 refers to itself, and the last one may still be on the card
    gc.freeze()  # the Trainer asks for a garbage collection, which takes half a second over all modules
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        bar.close()
        kept = last_complete_checkpoint(folder)
        how = f"goes on from {kept}" if kept else "begins it anew, since there is no checkpoint yet"
        if process_index() == 0:
            step = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
            say(f"{title}: stopped at {step}; the same command {how}")
        raise
    finally:
        gc.unfreeze()
        bar.close()  # so that an error message begins on a line of its own
    model: Any = trainer.model
    if not all(weights.isfinite().all() for weights in model.parameters()):
        raise StageError(
            "the last step made weights NaN or infinite; lower learning_rate, or try precision: float32"
        )
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


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of examples whose highest logit, shape ``(N, C)``, is at their label, shape ``(N,)``."""
    predicted = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((predicted == prediction.label_ids).mean())}
