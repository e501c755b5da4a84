"""Stage two: train the student from soft labels on disk. No teacher is loaded here."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, set_seed

from stages.artifacts import ENCODER, STUDENT, replaced_folder
from stages.data.examples import NO_LABEL, examples_digest, read_examples
from stages.data.origin import data_source
from stages.data.task import TaskParams
from stages.dependencies import departures
from stages.errors import StageError
from stages.models.averages import MeanInMemory, RunningMean, note_start, weights_digest
from stages.models.checkpoints import BestInMemory, Checkpoints, InTime, checkpoints_of, delete_finished
from stages.models.cut import say_cut
from stages.models.encoders import read_note
from stages.models.layers import freeze
from stages.models.loading import loading, require_embeddings, require_max_tokens, say_new
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.pins import model_digests, model_folder
from stages.models.precision import say_if_slower
from stages.models.processes import process_index
from stages.models.texts import Collator, Texts, require_splittable
from stages.models.training import (
    accuracy,
    end_all_but_the_first,
    require_equal_shares,
    run,
    training_arguments,
)
from stages.results.teachers import Teachers
from stages.student.calibration import fitted_temperatures
from stages.student.card import TeacherFacts, model_card
from stages.student.objective import balanced_class_weights
from stages.student.params import DistillParams
from stages.student.taught import Taught, admitted, n_taught, taught_texts, texts_of
from stages.student.trainer import DistillTrainer
from stages.student.translations import inherited
from stages.student.variants import HARD_ONLY, relevant, require_branches


@dataclass(frozen=True)
class Trained:
    """What a run of stage two did.

    Attributes:
        variant: Which of the variants was trained.
        steps: Optimizer steps of each training that the student is the mean of.
        accuracy: On the validation split, by supervised language, each through its own branch.
    """

    variant: str
    steps: list[int]
    accuracy: dict[str, float]

    def line(self) -> str:
        """Say it in one line."""
        accuracies = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        fewest, most = min(self.steps), max(self.steps)
        steps = f"{most} steps" if fewest == most else f"{fewest} to {most} steps"
        runs = f"the mean of {len(self.steps)} runs of " if len(self.steps) > 1 else ""
        return f"{self.variant}: {runs}{steps}; validation accuracy: {accuracies}"


def distill(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    params: DistillParams,
    *,
    encoder: Path = ENCODER,
    output: Path = STUDENT,
    resume: bool = False,
) -> Trained:
    """Train a student and write it to `output` as a Hugging Face model, with its card and learning curves.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`, for what it says of class names.
        params: Section `student.distill`.
        encoder: What `student pretrain` wrote.
        output: The folder to write.
        resume: Go on from the checkpoint of an interrupted run though code or libraries are others by now.

    Raises:
        StageError: The data, the encoder or hidden states are missing, the teachers' classes are not the
            task's, a class that is to be balanced has no example, processes cannot share the batches, another
            run is writing `output`, or a loss or weight is NaN.
        CacheError: Soft labels are missing or damaged.
    """
    require_equal_shares(params.batch_size, key="student.distill.batch_size")
    task, teachers = admitted(task, teachers, params)
    start, name = None, f"student-{output.name}"
    with replaced_folder(output) if process_index() == 0 else nullcontext(output) as folder:
        taught = taught_texts(task, teachers, params)
        if params.start == "baseline" and params.variant not in HARD_ONLY:
            _require_student(task, params, encoder)
            # Students that are to be averaged begin with the same baseline.
            same = {"variant": "finetune", "runs": 1, "seed": _init_seed(params)}
            finetune = params.model_copy(update=same)
            labelled = taught_texts(task, teachers, finetune)
            start = _fit(task, teachers, labelled, finetune, encoder, name=f"{name}-start", resume=resume)
            del labelled
        fitted = _fit_all(task, teachers, taught, params, encoder, name, resume=resume, start=start)
        checkpoints = [*fitted.checkpoints, *(start.checkpoints if start else [])]
        end_all_but_the_first()
        temperatures = fitted_temperatures(fitted.model.eval(), fitted.tokenizer, task, params)
        fitted.model.config.own_temperature = temperatures.own
        fitted.model.config.mixture_temperature = temperatures.mixture
        fitted.model.save_pretrained(folder)
        fitted.tokenizer.model_max_length = params.max_tokens  # where truncation cuts, as in training
        fitted.tokenizer.save_pretrained(folder)
        note_start(folder, fitted.began_with)
        last = _write_curves(fitted.history, task.supervised, folder, fitted.kept)
        n_steps = -(-n_taught(task, teachers) // params.batch_size)
        trained = {"variant": params.variant, "epochs": round(sum(fitted.steps) / n_steps)}
        (folder / "training.json").write_text(json.dumps(trained), encoding="utf-8")
        card = model_card(
            task,
            params,
            name=output.name,
            config=fitted.model.config,
            encoder=read_note(encoder),
            accuracy=last,
            counts=_validation_counts(task),
            others=temperatures.others,
            teachers=fitted.teachers,
            data=data_source(task),
            translations=list(inherited(task, teachers).tables),
            went_on_over=list(dict.fromkeys(over for one in checkpoints for over in one.went_on_over)),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    delete_finished(one.folder for one in checkpoints)
    return Trained(params.variant, fitted.steps, last)


class _Fitted(NamedTuple):
    """A student that was trained, and is in memory.

    Attributes:
        model: The student.
        tokenizer: The encoder's.
        history: The Trainer's log history, of the last training.
        steps: Optimizer steps of each training.
        began_with: Digest of the weights before the training.
        kept: After which of its steps the weights were the best; None: they are the last.
        teachers: Where the soft labels come from.
        checkpoints: Of each training, what it would have gone on from.
    """

    model: MBLMForSequenceClassification
    tokenizer: Any
    history: list[dict[str, Any]]
    steps: list[int]
    began_with: str
    kept: int | None
    teachers: dict[str, list[TeacherFacts]]
    checkpoints: list[Checkpoints]


def _fit_all(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    taught: Taught,
    params: DistillParams,
    encoder: Path,
    name: str,
    *,
    resume: bool,
    start: _Fitted | None,
) -> _Fitted:
    """Train as many students as there are to be runs, and make the last one their mean.

    A run that is finished leaves its last checkpoint until all are, so that none is trained again.
    """
    if params.runs == 1:
        return _fit(task, teachers, taught, params, encoder, name=name, resume=resume, start=start)
    mean, checkpoints, steps = RunningMean(), [], []
    for number in range(1, params.runs + 1):
        seed = (params.seed * params.runs + number - 1) % 2**32
        one = params.model_copy(update={"seed": seed, "init_seed": _init_seed(params), "runs": 1})
        is_last = number == params.runs
        fitted = _fit(
            task,
            teachers,
            taught,
            one,
            encoder,
            name=f"{name}-run-{number}",
            resume=resume,
            start=start,
            title=f", run {number} of {params.runs}",
            others=mean if is_last else None,
        )
        checkpoints += fitted.checkpoints
        steps += fitted.steps
        if is_last:
            return fitted._replace(checkpoints=checkpoints, steps=steps)
        mean.add(fitted.model)
        del fitted  # the next one needs the memory
    raise AssertionError("there is a last run")


def _init_seed(params: DistillParams) -> int:
    """Give the seed of what a training starts with."""
    return params.seed if params.init_seed is None else params.init_seed


def _require_student(task: TaskParams, params: DistillParams, encoder: Path) -> None:
    """Refuse a student that cannot be trained, before the baseline that it is to start as is trained.

    Raises:
        StageError: The encoder is missing, or branches or frozen layers do not fit it.
    """
    pretrained = model_folder(encoder, command="student pretrain")
    with loading(f"the encoder in {pretrained} as a student"):
        model = _student(task, params, pretrained, read_note(encoder)["pooling"], None)
    freeze(model, params.freeze)


def _fit(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    taught: Taught,
    params: DistillParams,
    encoder: Path,
    *,
    name: str,
    resume: bool,
    start: _Fitted | None = None,
    title: str = "",
    others: RunningMean | None = None,
) -> _Fitted:
    """Train a student, or go on with an interrupted training, whose checkpoints have this name.

    Args:
        task: As in `distill`.
        teachers: Likewise.
        taught: What the student learns from.
        params: As in `distill`.
        encoder: Likewise.
        name: Of the training.
        resume: As in `distill`.
        start: A student with one branch, whose weights it starts with; None: with the encoder's.
        title: What the bar says beside the variant.
        others: The mean of earlier runs, which the student is to become a part of, and which it then is.
    """
    train = taught.texts
    train.begin(params.seed)
    pretrained = model_folder(encoder, command="student pretrain")
    note = read_note(encoder)
    facts: list[Any] = [departures(task), relevant(params, defaults=False)]
    facts += [taught.digests, model_digests(pretrained)]
    facts += [note["pooling"]] if note["pooling"] else []
    n_texts = n_taught(task, teachers)
    facts += [n_texts] if n_texts != len(train) else []
    if params.keep == "best" or params.patience:  # what is best, validation texts say
        facts += [examples_digest(read_examples(task, name, "validation")) for name in task.supervised]
    checkpoints = checkpoints_of(name, facts, file=__file__, resume=resume)
    set_seed(_init_seed(params))
    what = f"the encoder in {pretrained}"
    with loading(f"{what} as a student"):
        tokenizer = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False)
        tokenizer.padding_side = "right"  # `pooling: first` reads the first position
        model = _student(task, params, pretrained, note["pooling"], start and start.model)
    require_embeddings(tokenizer, model, what=what)
    require_splittable(tokenizer, params.subword_dropout)
    key = "student.distill.max_tokens"
    require_max_tokens(params.max_tokens, tokenizer, model.mblm.encoder.config, key=key)
    if process_index() == 0:
        if note["source"]:
            say_new(model.new_weights, what=what)
        say_cut(tokenizer, train.fields, params.max_tokens, key=key)
        say_if_slower(params.precision, key="student.distill.precision")
    if not params.subword_dropout:
        train.keep_tokens(tokenizer, params.max_tokens, checkpoints.folder)
    began_with = weights_digest(model)
    trainer = _trainer(task, params, model, train, n_texts, checkpoints.folder, tokenizer)
    kept = _train(trainer, task, checkpoints.folder, title=f"student ({params.variant}){title}")
    if others is not None:
        others.add(model)
        others.give_to(model)
        trainer.evaluate()  # in the place of what the last run saw
        kept = None
    history, steps = trainer.state.log_history, [trainer.state.global_step]
    return _Fitted(model, tokenizer, history, steps, began_with, kept, taught.teachers, [checkpoints])


def _trainer(
    task: TaskParams,
    params: DistillParams,
    model: MBLMForSequenceClassification,
    train: Texts,
    n_texts: int,
    folder: Path,
    tokenizer: Any,
) -> DistillTrainer:
    """Make the Trainer of a student.

    Args:
        task: As in `distill`.
        params: Likewise.
        model: The student.
        train: What teaches it.
        n_texts: How many texts teach the variants to which the most do: one pass over these is an epoch.
        folder: For its checkpoints.
        tokenizer: The encoder's.
    """
    if params.variant == "linear":
        params = params.model_copy(update={"freeze": model.config.num_hidden_layers})
    n_steps = -(-n_texts // params.batch_size)
    return DistillTrainer(
        params,
        _class_weights(task, params, train),
        model=model,
        args=training_arguments(
            params,
            folder,
            max_steps=params.epochs * n_steps,
            # After each pass over all that teaches a student, whatever share of it has labels. Not "epoch":
            # the Trainer would then save first, and a run that goes on from there would not validate.
            eval_strategy="steps",
            eval_steps=n_steps,
            save_strategy="steps",
            save_steps=params.save_steps,
        ),
        train_dataset=train,
        eval_dataset={
            language: texts_of(task, {language: read_examples(task, language, "validation")})
            for language in task.supervised
        },
        data_collator=Collator(tokenizer, params.max_tokens),
        compute_metrics=accuracy,
    )


def _class_weights(task: TaskParams, params: DistillParams, train: Texts) -> Tensor | None:
    """Give the weight of each class, ``(C,)``; None where all count alike."""
    if params.class_weights is None:
        return None
    if params.class_weights != "balanced":
        return torch.tensor([params.class_weights[name] for name in task.classes])
    labels = torch.from_numpy(train.numbers["labels"])
    counts = torch.bincount(labels[labels != NO_LABEL], minlength=len(task.classes))
    absent = [name for name, count in zip(task.classes, counts.tolist(), strict=True) if not count]
    if absent:
        raise StageError(
            "student.distill.class_weights is balanced, but no training example has the class "
            f"'{', '.join(absent)}'; take it out of task.classes, or give each class a weight"
        )
    return balanced_class_weights(counts)


def _validation_counts(task: TaskParams) -> dict[str, list[int]]:
    """Count the validation examples of each class, by supervised language."""
    counts = {}
    for language in task.supervised:
        labels = read_examples(task, language, "validation")["label"].to_numpy()
        counts[language] = np.bincount(labels, minlength=len(task.classes)).tolist()
    return counts


def _student(
    task: TaskParams,
    params: DistillParams,
    pretrained: Path,
    pooling: str | None,
    start: MBLMForSequenceClassification | None,
) -> MBLMForSequenceClassification:
    """Make the student to be trained, of an encoder or of a student with one branch."""
    branches = params.variant in ("branches", "mblm")
    require_branches(task.supervised, params)
    config = {
        "languages": task.supervised,
        "n_branches": len(task.supervised) if branches else 1,
        # Without branches these say nothing, and the baseline must not depend on them.
        "branch_layers": params.branch_layers if branches else 1,
        "mixing": params.mixture.of if branches else "representations",
        "pooling": pooling,
        "id2label": dict(enumerate(task.classes)),
        "text_fields": list(task.text_fields),
    }
    if start is not None:
        return MBLMForSequenceClassification.from_one_branch(start, **config)
    return MBLMForSequenceClassification.from_mplm(pretrained, **config)


def _train(trainer: DistillTrainer, task: TaskParams, folder: Path, *, title: str) -> int | None:
    """Train to the end, the last validation included; says after which step the weights were those kept.

    Args:
        trainer: Of the student.
        task: As in `distill`.
        folder: Of its checkpoints.
        title: Of the bar.
    """
    params: DistillParams = trainer.params
    model: Any = trainer.model
    trainer.add_callback(InTime())  # before those that keep something beside a checkpoint
    best = BestInMemory(folder, names=task.supervised, patience=params.patience)
    if params.keep == "best" or params.patience:
        trainer.add_callback(best)
    last = MeanInMemory(folder, n=params.average, n_steps=trainer.args.max_steps)
    if params.average > 1:
        trainer.add_callback(last)
    history = run(trainer, title=title)
    last_step = [log for log in history if log["step"] == trainer.state.global_step]
    if not any(f"eval_{task.supervised[-1]}_accuracy" in log for log in last_step):
        trainer.evaluate()  # the run was killed between its last step and its last validation
    trainer.remove_callback(BestInMemory)  # a mean is not of its steps
    if params.keep == "best":
        best.restore(model)
    if params.average > 1:
        last.mean.give_to(model)
        trainer.evaluate()  # in the place of what the last weights saw
    return best.step if params.keep == "best" else None


def _write_curves(
    history: list[dict[str, Any]], languages: list[str], folder: Path, kept: int | None
) -> dict[str, float]:
    """Write losses and validation accuracies by step; returns those of the step that is kept, or the last."""
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
    last = by_step[max(by_step) if kept is None else kept]
    text = json.dumps(losses, indent=1, sort_keys=True)  # as the Trainer sorts them in a checkpoint
    (folder / "losses.json").write_text(text, encoding="utf-8")
    (folder / "validation.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    return last
