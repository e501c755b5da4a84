"""Stage two: train the student from soft labels on disk. No teacher is loaded here."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, set_seed

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS, STUDENT, TRUNK, replaced_folder
from stages.base import StageError
from stages.classes import match_classes
from stages.source import loading, model_digests, model_folder, require_max_tokens
from stages.student.modeling_mblm import MBLMForSequenceClassification
from stages.student.objective import mixture_weights, objective
from stages.student.params import DistillParams
from stages.task import TaskParams, examples_digest, read_examples
from stages.texts import Collator, Texts, require_splittable
from stages.training import (
    TextTrainer,
    accuracy,
    checkpoint_folder,
    run,
    training_arguments,
)

ClassMaps = Mapping[str, Mapping[str, str] | None]
"""By language, ``teachers.<language>.labels``: the teacher's class names to the task's."""


@dataclass(frozen=True)
class Trained:
    """What a run of stage two did.

    Attributes:
        variant: Which of the four variants was trained.
        steps: Optimizer steps.
        accuracy: On the validation split, by supervised language, each through its own branch.
    """

    variant: str
    steps: int
    accuracy: dict[str, float]

    def line(self) -> str:
        """Say it in one line."""
        accuracies = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        return f"{self.variant}: {self.steps} steps; validation accuracy: {accuracies}"


def distill(
    task: TaskParams, class_maps: ClassMaps, params: DistillParams, *, output: Path = STUDENT
) -> Trained:
    """Train a student and write it to `output` as a Hugging Face model, with its learning curves.

    Raises:
        StageError: The data or the MPLM is missing, the teachers' classes are not the task's, or the loss is
            NaN.
        CacheError: Soft labels are missing or damaged.
    """
    train, digests = _training_texts(task, class_maps, params)
    trunk = model_folder(TRUNK, command="student pretrain")
    facts = [task.model_dump(), params.model_dump(), digests, model_digests(trunk)]
    checkpoints = checkpoint_folder(f"student-{output.name}", facts)
    set_seed(params.seed)
    with loading(f"the encoder in {trunk} as a student"):
        tokenizer = AutoTokenizer.from_pretrained(trunk)
        model = _student(task, params, trunk)
    require_splittable(tokenizer, params.subword_dropout)
    require_max_tokens(
        params.max_tokens, tokenizer, model.mblm.encoder.config, key="student.distill.max_tokens"
    )
    trainer = _DistillTrainer(
        params,
        model=model,
        args=training_arguments(
            params,
            checkpoints,
            max_steps=params.epochs * -(-len(train) // params.batch_size),
            eval_strategy="epoch",
            save_strategy="steps",
            save_steps=params.save_steps,
        ),
        train_dataset=train,
        eval_dataset={
            language: _texts(task, {language: read_examples(task, language, "validation")})
            for language in task.supervised
        },
        data_collator=Collator(tokenizer, params.max_tokens),
        compute_metrics=accuracy,
    )
    history = run(trainer, title=f"student ({params.variant})")
    last_step = [log for log in history if log["step"] == trainer.state.max_steps]
    if not any(f"eval_{task.supervised[-1]}_accuracy" in log for log in last_step):
        trainer.evaluate()  # the run was killed between its last step and its last validation
        history = trainer.state.log_history
    with replaced_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        last = _write_curves(history, task.supervised, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Trained(params.variant, trainer.state.global_step, last)


def _training_texts(
    task: TaskParams, class_maps: ClassMaps, params: DistillParams
) -> tuple[Texts, list[str]]:
    """Join the training splits of all supervised languages with their soft labels, once, in memory.

    Returns:
        The examples, and digests of everything that was read.
    """
    tables = {language: read_examples(task, language, "train") for language in task.supervised}
    digests = [examples_digest(table) for table in tables.values()]
    if params.variant == "finetune":
        return _texts(task, tables, params=params), digests
    logits = []
    for language, table in tables.items():
        soft_labels = SoftLabelSet.read(SOFT_LABELS / language, language=language)
        order = match_classes(
            soft_labels.producer.classes,
            task.classes,
            names=class_maps.get(language),
            language=language,
        )
        logits.append(soft_labels.join(table["example_id"]).logits[:, order])
        digests.append(hashlib.sha256(logits[-1].tobytes()).hexdigest())
    return _texts(task, tables, params=params, teacher_logits=np.concatenate(logits)), digests


def _texts(
    task: TaskParams,
    tables: Mapping[str, Any],
    *,
    params: DistillParams | None = None,
    **numbers: Any,
) -> Texts:
    """Put the examples of several languages one behind the other, with language ids and labels."""
    languages = [task.supervised.index(language) for language in tables]
    sizes = [table.num_rows for table in tables.values()]
    return Texts(
        [
            [text for table in tables.values() for text in table[field].to_pylist()]
            for field in task.text_fields
        ],
        {
            "language_ids": np.repeat(languages, sizes),
            "labels": np.concatenate([t["label"].to_numpy() for t in tables.values()]).astype("i8"),
            **numbers,
        },
        subword_dropout=params.subword_dropout if params else 0.0,
        seed=params.seed if params else 0,
    )


def _student(task: TaskParams, params: DistillParams, trunk: Path) -> MBLMForSequenceClassification:
    branches = params.variant in ("branches", "mblm")
    if params.variant == "mblm" and len(task.supervised) < 2 and not params.mixture.own_branch:
        raise StageError(
            "student.distill.variant mblm mixes the branches of other languages, but task.supervised names "
            f"only {task.supervised[0]}; add a language, or set student.distill.mixture.own_branch: true"
        )
    return MBLMForSequenceClassification.from_mplm(
        trunk,
        languages=task.supervised,
        n_branches=len(task.supervised) if branches else 1,
        branch_layers=params.branch_layers,
        mixing=params.mixture.of,
        id2label=dict(enumerate(task.classes)),
    )


class _DistillTrainer(TextTrainer):
    """The Trainer with the objective of stage two; logs each part of the loss under its own name."""

    def __init__(self, params: DistillParams, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._params = params
        self._n_branches: int = kwargs["model"].config.n_branches
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward, losses, log; the Trainer does backward and step."""
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        outputs = model(**inputs, mixture_weights=self._mixture_weights(inputs["language_ids"]))
        losses = objective(
            outputs.logits,
            labels,
            teacher_logits=teacher_logits,
            mixture_logits=outputs.mixture_logits,
            temperature=self._params.temperature,
            mixture_weight=self._params.mixture.loss_weight,
            hard_label_weight=self._params.hard_label_weight,
        )
        for name, loss in losses.items():
            if name != "loss":
                self._parts[f"{name}_loss"].append(loss.detach())
        return losses["loss"]

    def _mixture_weights(self, language_ids: Tensor) -> Tensor | None:
        mixture = self._params.mixture
        if self._params.variant != "mblm":
            return None
        return mixture_weights(
            language_ids,
            n_branches=self._n_branches,
            weights=mixture.weights,
            own_branch=mixture.own_branch,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the parts of the loss since the last log."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(v).mean()) for name, v in self._parts.items()}
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, Tensor, Tensor]:
        """Classify validation examples through their own branches."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.inference_mode():
            return None, model(**inputs).logits, labels


def _write_curves(history: list[dict[str, Any]], languages: list[str], folder: Path) -> dict[str, float]:
    """Write losses and validation accuracies by step; returns the last accuracies."""
    losses = [
        {key: value for key, value in log.items() if key == "step" or key.endswith("loss")}
        for log in history
        if "loss" in log
    ]
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for log in history:
        for language in languages:
            if f"eval_{language}_accuracy" in log:
                by_step[log["step"]][language] = log[f"eval_{language}_accuracy"]
    curves = [
        {"step": step, "average": float(np.mean(list(values.values()))), **values}
        for step, values in by_step.items()
    ]
    last = by_step[max(by_step)]
    (folder / "losses.json").write_text(json.dumps(losses, indent=1), encoding="utf-8")
    (folder / "validation.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    return last
