"""Benchmark of trainings: what each option costs and saves with XLM-R's shape; a start with 5 million texts.

XLM-R base as it is, 12 layers of 768 and 250,002 tokens, with random weights; five branches of two layers.
Seconds per step and memory at the peak, each in a process of its own; then the start of stage two, up to its
first batch.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from measure import apart, heading, peak_memory, progress, row
from transformers import TrainerCallback, XLMRobertaConfig

from cache import Producer, SoftLabels, SoftLabelSet, example_ids
from stages.artifacts import SOFT_LABELS
from stages.data.examples import columns_of, data_file
from stages.data.sources import WINDOW
from stages.data.tables import mapped, write_batches
from stages.data.task import FilesSource, TaskParams
from stages.models.configuration_mblm import MBLMConfig
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.scratch import build_tokenizer
from stages.models.texts import Collator, Texts
from stages.models.training import ByLength, TextTrainer, run, training_arguments
from stages.params import TrainingParams
from stages.student.params import DistillParams
from stages.student.taught import taught_texts

LANGUAGES = ["ar", "de", "en", "ru", "zh"]
STEPS, BATCH, TOKENS = 3, 32, 32
MILLIONS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "freeze: embeddings": {"freeze": "embeddings"},
    "freeze: 6": {"freeze": 6},
    "gradient_accumulation: 4": {"gradient_accumulation": 4},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "freeze: embeddings, both": {
        "freeze": "embeddings",
        "gradient_accumulation": 4,
        "gradient_checkpointing": True,
    },
}
SIZES: dict[str, dict[str, Any]] = {
    "layers: 3": {"num_hidden_layers": 3},
    "layers: 3, vocabulary of 40,000": {"num_hidden_layers": 3, "vocab_size": 40_000},
}
MEGABYTE, GIBIBYTE = 1e6, 2**30


def main() -> None:
    """Measure and print."""
    heading(f"A training step of {BATCH} texts of {TOKENS} tokens, one thread, XLM-R base, five branches")
    for name, options in OPTIONS.items():
        progress(name)
        _print(name, *apart(step, options, {}))
    heading("The same with a smaller student, freeze: embeddings")
    for name, size in SIZES.items():
        progress(name)
        _print(name, *apart(step, {"freeze": "embeddings"}, size))
    heading(f"Stage two with {MILLIONS} million texts, from its start to its first batch")
    with tempfile.TemporaryDirectory() as folder:
        progress("writing texts and soft labels")
        apart(write_texts, folder)
        progress("starting")
        seconds, memory = apart(start, folder)
    row("seconds", seconds, "s", at_most=120)
    row("memory at the peak", memory / GIBIBYTE, "GiB", at_most=4)


def _print(name: str, seconds: float, memory: int, size: int) -> None:
    row(f"{name}: seconds per step", seconds, "s")
    row(f"{name}: memory at the peak", memory / MEGABYTE, "MB")
    row(f"{name}: weights", size / MEGABYTE, "MB")


class _Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def step(options: dict[str, Any], size: dict[str, Any]) -> tuple[float, int, int]:
    """Train for some steps; gives seconds per step, bytes at the peak, and bytes of the weights."""
    torch.set_num_threads(1)
    shape = {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    encoder = XLMRobertaConfig(**shape | size)
    model = MBLMForSequenceClassification(
        MBLMConfig(mplm_config=encoder, languages=LANGUAGES, n_branches=5, branch_layers=2, num_labels=3)
    )
    words = [f"w{index}" for index in range(200)]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, TOKENS)) for _ in range(BATCH * STEPS)]
    numbers = {"labels": np.zeros(len(texts), np.int64), "language_ids": np.arange(len(texts)) % 5}
    params = TrainingParams(batch_size=BATCH, max_tokens=TOKENS, **options)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = TextTrainer(
            params,
            model=model,
            args=training_arguments(params, Path(folder), max_steps=STEPS, save_strategy="no"),
            train_dataset=Texts([texts], numbers),
            data_collator=Collator(build_tokenizer(texts, merges=400), TOKENS),
            callbacks=[clock],
        )
        run(trainer, title="steps")
    seconds = median(after - before for before, after in zip(clock.times[1:], clock.times[2:], strict=False))
    return seconds, peak_memory(), sum(weight.nbytes for weight in model.parameters())


def _task() -> TaskParams:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl")
    return TaskParams(source=source, classes=["a", "b", "c"], supervised=LANGUAGES)


def write_texts(folder: str) -> None:
    """Write examples of five languages and their soft labels, as `prepare` and `teacher label` do."""
    os.chdir(folder)
    task, generator = _task(), np.random.default_rng(0)
    letters = [chr(97 + number) for number in range(26)]
    words = np.array(["".join(generator.choice(letters, 5)) for _ in range(20_000)])

    def window(language: str, start: int, n: int) -> pa.Table:
        picks = generator.integers(0, len(words), (n, 12))
        texts = [f"{' '.join(words[row])} {language}{start + i}" for i, row in enumerate(picks)]
        labels = pa.array(generator.integers(0, 3, n), pa.int32())
        return pa.Table.from_arrays([example_ids([texts]), pa.array(texts), labels], schema=columns_of(task))

    n = MILLIONS * 1_000_000 // len(LANGUAGES)
    facts = {"schema": 1, "outputs": ["logits"], "config": {"id2label": dict(enumerate(task.classes))}}
    for language in LANGUAGES:
        starts = range(0, n, WINDOW)
        path = data_file(language, "train")
        write_batches((window(language, start, min(WINDOW, n - start)) for start in starts), path)
        ids = mapped(path)["example_id"].combine_chunks()
        logits = generator.standard_normal((n, 3)).astype(np.float32)
        parts = [(Producer(facts), SoftLabels.pack(ids, logits))]
        SoftLabelSet.write(SOFT_LABELS / language, language=language, parts=parts)


def start(folder: str) -> tuple[float, int]:
    """Read examples and soft labels, order them and make a batch; gives seconds and bytes at the peak."""
    os.chdir(folder)
    before = time.perf_counter()
    teacher: Any = SimpleNamespace(base="", revision=None, labels=None)
    teachers: Any = {language: SimpleNamespace(all=[teacher]) for language in LANGUAGES}
    texts = taught_texts(_task(), teachers, DistillParams()).texts
    tokenizer = build_tokenizer(list(texts.fields[0][:1000]), merges=400)
    texts.keep_tokens(tokenizer, 128, Path(folder))
    order = iter(ByLength(texts, batch_size=32, seed=0))
    batch = Collator(tokenizer, 128)(texts.__getitems__([next(order) for _ in range(32)]))
    assert batch["teacher_logits"].shape == (32, 3)
    return time.perf_counter() - before, peak_memory()


if __name__ == "__main__":
    main()
