"""Make a language's teacher: fine-tune an encoder on the language's own data, or pin one that is ready."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from cache import canonical_json, write_atomically
from stages.artifacts import TEACHERS, of_each_fold, of_each_teacher, replaced_folder
from stages.data.examples import examples_digest, pretraining_texts, read_examples
from stages.data.task import TaskParams
from stages.dependencies import departures
from stages.errors import StageError
from stages.models.checkpoints import BestInMemory, InTime, checkpoints_of, delete_finished
from stages.models.cut import say_cut
from stages.models.loading import loading, require_embeddings, require_max_tokens, say_new
from stages.models.modeling_mblm import FAMILIES, MBLMForSequenceClassification
from stages.models.pins import fetch, link_all, resolve
from stages.models.precision import say_if_slower
from stages.models.processes import alone, process_index, wait_for
from stages.models.scratch import build_encoder
from stages.models.texts import Collator, Texts, require_splittable
from stages.models.training import (
    TextTrainer,
    accuracy,
    end_all_but_the_first,
    require_equal_shares,
    run,
    training_arguments,
)
from stages.progress import say
from stages.teacher.adapters import save_adapter, with_lora
from stages.teacher.branch import pin_branch
from stages.teacher.folds import Fold
from stages.teacher.labelling.decoders import classifier_of, is_decoder
from stages.teacher.params import FinetuneParams, OneTeacher, TeacherParams
from stages.teacher.pin import pin_soft_labels


def finetune(
    task: TaskParams,
    teacher: TeacherParams,
    params: FinetuneParams,
    language: str,
    *,
    resume: bool = False,
) -> str:
    """Write ``artifacts/teachers/<language>``: a Hugging Face classifier, or a pin of one.

    Further teachers of the language lie in folders of their own in it, each with the next seed. With folds, a
    teacher is several models, in folders of their own, too.

    Args:
        task: Section `task` of params.yaml.
        teacher: Section `teachers.<language>`.
        params: Section `teacher.finetune`.
        language: A supervised language.
        resume: Go on from the checkpoint of an interrupted run though code or libraries are others by now.

    Returns:
        One line about each teacher, or each of its models.

    Raises:
        StageError: The language's data or a base is missing, processes cannot share the batches, or the loss
            is NaN.
    """
    require_equal_shares(params.batch_size, key="teacher.finetune.batch_size")
    lines, checkpoints = [], []
    place = TEACHERS / language
    with replaced_folder(place) if process_index() == 0 else nullcontext(place) as output:
        for index, its in enumerate(of_each_teacher(output, len(teacher.all))):
            key = f"teachers.{language}" if index == 0 else f"teachers.{language}.more.{index - 1}"
            seeded = params.model_copy(update={"seed": (params.seed + index) % 2**32})
            for fold, folder in enumerate(of_each_fold(its, teacher.folds)):
                part = Fold(fold, teacher.folds)
                line, used = _make(
                    task, teacher.all[index], seeded, language, folder, part, key=key, resume=resume
                )
                lines.append(line)
                checkpoints += used
    end_all_but_the_first()
    delete_finished(checkpoints)  # not before all are made, so that no finished model is trained again
    return "\n".join(lines)


def _make(
    task: TaskParams,
    teacher: OneTeacher,
    params: FinetuneParams,
    language: str,
    folder: Path,
    fold: Fold,
    *,
    key: str,
    resume: bool,
) -> tuple[str, list[Path]]:
    """Write one model to its folder; returns one line about it, and its checkpoints."""
    its_key = key.removeprefix("teachers.")  # de, de.more.0
    name = f"teacher '{its_key}'"
    if teacher.base is None or not teacher.is_trained:
        return f"{name}: {_pin(teacher, language, folder, key)}, pinned", []
    source = {}
    if teacher.base != "scratch":
        source = resolve(teacher.base, teacher.revision, key=f"{key}.base")
    splits = {split: read_examples(task, language, split) for split in ("train", "validation")}
    facts = [
        departures(task),
        departures(params),
        source,
        {split: examples_digest(table) for split, table in splits.items()},
        fold.of,
    ]
    if teacher.base == "scratch":
        facts.append(pretraining_texts(task, language))
    checkpoints = checkpoints_of(f"teacher-finetune-{language}", facts, file=__file__, resume=resume)
    command = f"teacher finetune --language {language}"
    base = (
        _without_adapter(fetch(source, command=command), key)
        if source
        else _scratch_base(task, params, language, checkpoints.folder / "base")
    )
    if fold.of > 1:
        name += f", fold {fold.index + 1} of {fold.of}"
        splits["train"] = _without_fold(splits["train"], fold, language)
    its_steps = its_key.removeprefix(language).replace(".", "-")
    steps, made = (checkpoints.folder / f"{part}{its_steps}-{fold.index}" for part in ("steps", "made"))
    noted = made.with_suffix(".json")
    if noted.is_file():  # an interrupted run has made it
        result = json.loads(noted.read_bytes())
    else:
        result = _train(task, params, language, splits, base, steps, made, name)
        if process_index() == 0:
            write_atomically(noted, canonical_json(result))
    if process_index() == 0:
        link_all(made, folder)
    labels = splits["validation"]["label"].to_numpy()
    if process_index() == 0 and result <= np.bincount(labels).max() / len(labels):
        say(
            f"{name} is no better on validation examples than one class for every text; lower "
            "teacher.finetune.learning_rate, or train for more epochs"
        )
    line = f"{name}: {result:.1%} of {len(labels)} validation examples"
    if checkpoints.went_on_over:
        line += f"; went on from a checkpoint over other {', '.join(checkpoints.went_on_over)}"
    return line, [checkpoints.folder]


def _pin(teacher: OneTeacher, language: str, folder: Path, key: str) -> str:
    """Let a teacher's folder stand for a model that is ready, or for soft labels; says which.

    Raises:
        StageError: The model would have to be made.
    """
    if teacher.base is None:
        return pin_soft_labels(teacher, folder, key=key) if process_index() == 0 else ""
    if teacher.base == "scratch":
        raise StageError(f"{key}.base is scratch, so {key}.finetune must be true")
    pinned = resolve(teacher.base, teacher.revision, key=f"{key}.base")
    if process_index() == 0:
        folder.mkdir(exist_ok=True)
        command = f"teacher finetune --language {language}"
        pin_branch(teacher.branch, pinned, folder, key=key, command=command)
    return teacher.base


def _without_fold(train: pa.Table, fold: Fold, language: str) -> pa.Table:
    """Leave out the training examples that a model is to label.

    Raises:
        StageError: A fold has no example.
    """
    ids = train["example_id"].combine_chunks()
    sizes = [int(Fold(index, fold.of).holds(ids).sum()) for index in range(fold.of)]
    if not min(sizes):
        raise StageError(
            f"teachers.{language}.folds is {fold.of}, but fold {sizes.index(0) + 1} has none of the "
            f"{len(ids)} training examples; lower it"
        )
    return train.filter(pa.array(~fold.holds(ids)))


def _without_adapter(base: Path, key: str) -> Path:
    """Give a base back.

    Raises:
        StageError: It is an adapter beside a base of its own, which a training would lose.
    """
    if (base / "adapter_config.json").is_file():
        raise StageError(
            f"{key}.base, {base}, is an adapter beside its base; merge the two into one model, or set "
            f"{key}.finetune: false"
        )
    return base


def texts_of(task: TaskParams, table: pa.Table, **options: Any) -> Texts:
    """Wrap a table of examples for the Trainer, labels included."""
    return Texts(
        [table[field].to_pylist() for field in task.text_fields],
        {"labels": table["label"].to_numpy().astype(np.int64)},
        **options,
    )


def _scratch_base(task: TaskParams, params: FinetuneParams, language: str, folder: Path) -> Path:
    """Pre-train a small encoder on the language's texts, unless an interrupted run has done so."""
    assert params.scratch is not None  # held by the validation of params.yaml
    done = folder / "config.json"
    if process_index() == 0 and not done.is_file():
        with replaced_folder(folder) as new, alone():
            build_encoder(
                params.scratch,
                {language: pretraining_texts(task, language)},
                new,
                seed=params.seed,
                max_tokens=params.max_tokens,
                subword_dropout=params.subword_dropout,
                pair_share=0.0,
                title=f"pre-training for teacher '{language}'",
            )
    wait_for(done)
    return folder


def _classifier(
    task: TaskParams, params: FinetuneParams, language: str, base: Path
) -> tuple[Any, Sequence[str], bool]:
    """Load a base as a classifier of the task's classes.

    Returns:
        The classifier, the names of the weights that the base lacks, and whether it is what transformers
        makes of the base.

    Raises:
        StageError: Weights of the encoder are missing, or `pooling` is not possible.
    """
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    id2label = dict(enumerate(task.classes))
    by_itself = params.pooling == "last" and is_decoder(*classifier_of(base))
    if params.pooling is not None and not by_itself:
        if config.model_type not in FAMILIES:
            raise StageError(
                f"teacher.finetune.pooling is {params.pooling}, but a {config.model_type} model, the base of "
                f"teachers.{language}, pools in its own way; set it to null"
            )
        one_branch = MBLMForSequenceClassification.from_mplm(
            base, languages=[language], pooling=params.pooling, id2label=id2label
        )
        return one_branch.to_plain(language).train(), one_branch.new_weights, False
    model, found = AutoModelForSequenceClassification.from_pretrained(
        base,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        id2label=id2label,
        label2id={name: index for index, name in id2label.items()},
        ignore_mismatched_sizes=True,  # a classifier for another task is replaced
        output_loading_info=True,
        **({"problem_type": "single_label_classification"} if config.problem_type else {}),
    )
    unfit = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    unfit = {key for key in unfit if key.startswith(f"{model.base_model_prefix}.")}
    if any(".pooler." not in key for key in unfit):
        raise StageError(
            f"the base of teachers.{language} has no fitting weights for {', '.join(sorted(unfit))}"
        )
    return model, sorted(found["missing_keys"]), not found["mismatched_keys"]


class _FinetuneTrainer(TextTrainer):
    """The Trainer with its own loss, where processes share a batch: that of the whole batch."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Mean cross-entropy with the smoothed labels, in nats."""
        if self.args.world_size == 1 or not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels = self.whole_batch(inputs.pop("labels"))
        logits = self.whole_batch(model(**inputs).logits)
        return functional.cross_entropy(logits, labels, label_smoothing=self.args.label_smoothing_factor)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Any, Tensor | None]:
        """Give loss, logits and labels of a batch; of what else a model says, nothing is gathered."""
        loss, said, labels = super().prediction_step(*args, **kwargs)
        return loss, said[0] if isinstance(said, tuple) else said, labels


def _train(
    task: TaskParams,
    params: FinetuneParams,
    language: str,
    splits: dict[str, pa.Table],
    base: Path,
    checkpoints: Path,
    folder: Path,
    name: str,
) -> float:
    """Fine-tune and save; returns the validation accuracy of the weights that are kept."""
    set_seed(params.seed)
    what = f"the base of teachers.{language}"
    with loading(what):
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        model, new, fits = _classifier(task, params, language, base)
    require_embeddings(tokenizer, model, what=what)
    if tokenizer.pad_token is None:
        raise StageError(f"{what} has a tokenizer without a padding token; name one in tokenizer_config.json")
    if is_decoder(model.config, type(model)):
        # It reads the class off the last token that is no padding, and looks for that by the id.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"
    if params.lora is not None:
        model = with_lora(model, params.lora, new=new)
    require_splittable(tokenizer, params.subword_dropout)
    require_max_tokens(params.max_tokens, tokenizer, model.config, key="teacher.finetune.max_tokens")
    train = texts_of(task, splits["train"], subword_dropout=params.subword_dropout, seed=params.seed)
    if process_index() == 0:
        if base.parent != checkpoints.parent:  # where one that was made here is
            say_new(new, what=what)
        say_cut(tokenizer, train.fields, params.max_tokens, key="teacher.finetune.max_tokens")
        say_if_slower(params.precision, key="teacher.finetune.precision")
    if not params.subword_dropout:
        train.keep_tokens(tokenizer, params.max_tokens, checkpoints)
    steps_per_epoch = -(-splits["train"].num_rows // params.batch_size)
    trainer = _FinetuneTrainer(
        params,
        model=model,
        args=training_arguments(
            params,
            checkpoints,
            max_steps=params.epochs * steps_per_epoch,
            label_smoothing_factor=params.label_smoothing,
            # Not "epoch": the Trainer would save first, and a run that goes on from there would not validate.
            eval_strategy="steps",
            eval_steps=steps_per_epoch,
            save_strategy="no",
        ),
        train_dataset=train,
        eval_dataset=texts_of(task, splits["validation"]),
        data_collator=Collator(tokenizer, params.max_tokens),
        compute_metrics=accuracy,
    )
    trainer.add_callback(InTime())  # before what keeps something beside a checkpoint
    best = BestInMemory(checkpoints, patience=params.patience)
    trainer.add_callback(best)
    history = run(trainer, title=name)
    result = best.accuracy
    if params.keep == "best":
        best.restore(model)
    else:
        result = [log["eval_accuracy"] for log in history if "eval_accuracy" in log][-1]
    if process_index() == 0:
        with replaced_folder(folder) as new_folder:
            if params.lora is None:
                model.save_pretrained(new_folder)
            else:
                save_adapter(model, base, new_folder, fits=fits)
            tokenizer.save_pretrained(new_folder)
    return float(result)
