"""Stage two on one page, in plain PyTorch: from soft labels on disk to a trained student.

    make demo && .venv/bin/python docs/loop.py

Trains the variant `mblm` with the settings of params.yaml, prints losses and validation accuracies, and
writes nothing. `python -m pipeline student distill` trains the same student with Hugging Face's Trainer;
tests/docs/test_loop.py compares the two step by step. This page leaves out GPUs, checkpoints, most checks,
a language's further teachers (`more`) and all parameters but those in FOLLOWED.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, get_linear_schedule_with_warmup, logging

from cache import SoftLabelSet
from pipeline.params import PipelineParams, load_params
from stages.artifacts import ENCODER, SOFT_LABELS
from stages.data.classes import match_classes
from stages.data.examples import read_examples
from stages.data.task import Split
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.pins import model_folder
from stages.models.texts import Collator, Texts
from stages.models.training import ByLength
from stages.student.objective import mixture_weights

FOLLOWED = {
    *("seed", "epochs", "batch_size", "learning_rate", "warmup_share", "weight_decay", "max_tokens"),
    *("subword_dropout", "branch_layers", "temperature", "hard_label_weight", "mixture", "save_steps"),
}
"""What of `student.distill` this page does as stage two does; all else has to have its default."""


def main() -> None:
    """Train the student that params.yaml describes."""
    params = load_params(Path("params.yaml"))
    changed = params.student.distill.model_dump(exclude_defaults=True).keys() - FOLLOWED
    changed |= {"unlabelled"} if params.task.unlabelled else set()
    changed |= {"more" for language in params.task.supervised if params.teachers[language].more}
    if changed:
        names = ", ".join(sorted(changed))
        raise SystemExit(f"error: docs/loop.py leaves out {names}; use: python -m pipeline student distill")
    logging.set_verbosity_error()  # transformers warns that the classifier is new
    train(params)


def read_texts(params: PipelineParams, languages: list[str], split: Split) -> Texts:
    """Read examples and join each with its soft label by example id, whatever their order in the files."""
    task, distill = params.task, params.student.distill
    tables, language_ids, teacher_logits = [], [], []
    for language in languages:
        table = read_examples(task, language, split)
        label_set = SoftLabelSet.read(SOFT_LABELS / language, language=language)
        names = params.teachers[language].labels
        order = match_classes(label_set.classes, task.classes, names=names, language=language)
        teacher_logits.append(label_set.join(table["example_id"]).logits[:, order])
        language_ids += [task.supervised.index(language)] * len(table)
        tables.append(table)
    together = pa.concat_tables(tables)
    numbers = {
        "language_ids": np.array(language_ids),
        "labels": together["label"].to_numpy().astype("i8"),
        "teacher_logits": np.concatenate(teacher_logits),
    }
    fields = [together[field].to_pylist() for field in task.text_fields]
    subword_dropout = distill.subword_dropout if split == "train" else 0.0
    return Texts(fields, numbers, subword_dropout=subword_dropout, seed=distill.seed)


def train(params: PipelineParams) -> list[dict[str, float]]:
    """Train and print; gives the loss of each step and its parts, in nats."""
    task, distill, mixture = params.task, params.student.distill, params.student.distill.mixture
    encoder = model_folder(ENCODER, command="student pretrain")
    torch.manual_seed(distill.seed)
    # One trunk, one classifier, and a branch per language that starts as a copy of the encoder's top layers.
    student = MBLMForSequenceClassification.from_mplm(
        encoder,
        languages=task.supervised,
        n_branches=len(task.supervised),
        branch_layers=distill.branch_layers,
        mixing=mixture.of,
        id2label=dict(enumerate(task.classes)),
    )
    collator = Collator(AutoTokenizer.from_pretrained(encoder), distill.max_tokens)
    texts = read_texts(params, task.supervised, "train")
    order = ByLength(texts, batch_size=distill.batch_size, seed=distill.seed)
    batches = DataLoader(texts, distill.batch_size, sampler=order, collate_fn=collator)
    validation = {
        name: DataLoader(read_texts(params, [name], "validation"), distill.batch_size, collate_fn=collator)
        for name in task.supervised
    }
    n_steps = distill.epochs * len(batches)
    n_warmup = math.ceil(distill.warmup_share * n_steps)
    n_ramp = mixture.ramp_share * n_steps
    matrices = [weight for weight in student.parameters() if weight.ndim > 1]
    vectors = [weight for weight in student.parameters() if weight.ndim == 1]  # biases and norms
    decay = [(matrices, distill.weight_decay), (vectors, 0.0)]
    groups = [{"params": weights, "weight_decay": value} for weights, value in decay]
    optimizer = torch.optim.AdamW(groups, lr=distill.learning_rate, fused=True)  # rounds like the Trainer's
    schedule = get_linear_schedule_with_warmup(optimizer, n_warmup, n_steps)
    kind = mixture.weights  # uniform, dirichlet, or a number per language
    shares = kind if isinstance(kind, str) else [kind[language] for language in task.supervised]

    history: list[dict[str, float]] = []
    torch.manual_seed(distill.seed)  # the Trainer seeds here, too: dropout and mixtures are the same
    for epoch in range(distill.epochs):
        texts.set_epoch(epoch)  # the seed and the epoch decide the order, and where words are split
        for batch in batches:
            # Texts of all languages: their tokens (B, T), languages, classes and soft labels (B, C).
            own, labels, teacher = (batch.pop(x) for x in ("language_ids", "labels", "teacher_logits"))

            # Each text goes through its own branch and through the others, which are mixed at random.
            weights = mixture_weights(
                own, n_branches=len(task.supervised), weights=shares, own_branch=mixture.own_branch
            )
            states = student.mblm(**batch, language_ids=own, mixture_weights=weights).branch_states
            own_logits = student.classify(states, one_hot(own, len(task.supervised)))  # (B, K, H) to (B, C)
            mixture_logits = student.classify(states, weights)

            # Both answers must come close to the teacher's.
            losses = {
                "own": distillation_loss(own_logits, teacher, temperature=distill.temperature),
                "mixture": distillation_loss(mixture_logits, teacher, temperature=distill.temperature),
                "hard": cross_entropy(own_logits, labels),
            }
            share = mixture.loss_weight * min(1.0, len(history) / n_ramp if n_ramp else 1.0)
            loss = (1 - share) * losses["own"] + share * losses["mixture"]
            loss = loss + distill.hard_label_weight * losses["hard"]

            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            history.append({name: value.item() for name, value in {"loss": loss, **losses}.items()})
            if len(history) % 10 == 0:
                said = ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items())
                typer.echo(f"step {len(history)} of {n_steps}: {said}")

        said = ", ".join(f"{name} {accuracy(student, of):.1%}" for name, of in validation.items())
        typer.echo(f"epoch {epoch + 1} of {distill.epochs}; validation accuracy: {said}")
    return history


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), logits ``(B, C)``: the mean over a batch."""
    student = log_softmax(logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1).mean()


def accuracy(student: nn.Module, batches: DataLoader[Any]) -> float:
    """Share of texts that their own branch classifies correctly."""
    student.eval()
    right = []
    with torch.inference_mode():
        for batch in batches:
            labels, _ = batch.pop("labels"), batch.pop("teacher_logits")
            right.append(student(**batch).logits.argmax(dim=1) == labels)
    student.train()
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    typer.run(main)
