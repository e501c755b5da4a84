"""Stage two on a GPU: what `mblm` costs over `finetune`, and what share of the time the card computes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import labels
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from measure import heading, note, progress, row, spent_each
from student import LANGUAGES, K, Shape, config, models, step_of, steps_by_source
from teacher_cache import make_texts
from tiny import CLASSES, tiny_params, write_params
from torch.profiler import ProfilerActivity, profile

from cache import SoftLabels, SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.data.examples import SPLITS, read_examples
from stages.models.batches import current_device
from stages.models.scratch import build_tokenizer
from stages.prepare import prepare
from stages.student.distill import distill
from stages.student.pretrain import pretrain

BASE = Shape(layers=12, hidden=768, heads=12, vocabulary=250_002, texts=128, tokens=64)
TINY = Shape(layers=3, hidden=32, heads=2, vocabulary=2_000, texts=10, tokens=8)


def main(pack: Path, *, tiny: bool) -> None:
    """Print one table per question."""
    transformers.logging.set_verbosity_error()
    shape = TINY if tiny else BASE
    steps(shape)
    sources(shape)
    first, last = (2, 3) if tiny else (20, 60)
    with TemporaryDirectory() as folder, chdir(folder):
        progress("preparing a training")
        write_training(shape, n_texts=shape.texts * (last + 5))
        for variant in ("finetune", "mblm"):
            progress(f"training {variant}")
            share_of_time(variant, first, last)


def steps(shape: Shape) -> None:
    """Compare training steps and their memory."""
    plain, student = models(shape)
    heading(
        f"Training step in bfloat16: {shape.texts} texts of {shape.tokens} tokens, {shape.layers} layers of "
        f"{shape.hidden}, {K} branches of {shape.branch_layers}"
    )
    peaks, works = [], []
    for model, mblm in ((plain.to(current_device()), False), (student.to(current_device()), True)):  # type: ignore[arg-type]
        works.append(synchronous(step_of(model, mblm=mblm, shape=shape, bfloat16=True)))
        works[-1]()
        model.zero_grad(set_to_none=True)
        peaks.append(peak_of(works[-1]))
    finetune, mblm_ = (one.wall for one in spent_each(*works, repeats=repeats_of(shape)))
    row("finetune", finetune * 1e3, "ms")
    row("mblm over finetune", mblm_ / finetune, "times", at_most=1.10 * shape.pairs_of_mixture)
    if torch.cuda.is_available():
        row("memory of finetune's pass, beyond weights and optimizer", peaks[0] / 2**20, "MiB")
        row("mblm's over it", peaks[1] / peaks[0], "times", at_most=1.15 * shape.pairs_of_mixture)
    else:
        note("memory is measured on a GPU only")


def repeats_of(shape: Shape) -> int:
    """Tell how often steps are done to be compared."""
    return 3 if shape is TINY else 9


def synchronous(work: Callable[[], None]) -> Callable[[], None]:
    """Let work end when the device has done it."""

    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def peak_of(work: Callable[[], None]) -> int:
    """Do the work once: the bytes on the card at its peak beyond those before it; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def sources(shape: Shape) -> None:
    """Compare soft labels from disk with K teachers on the card."""
    works, weights = steps_by_source(shape, bfloat16=True)
    works = [synchronous(work) for work in works]
    for work in works:
        work()
    hard, disk, asked = (one.wall for one in spent_each(*works, repeats=repeats_of(shape)))
    heading(f"Training step by where the soft labels come from; {K} teachers of the encoder's size")
    row("soft labels from disk over hard labels", disk / hard, "times", at_most=1.02)
    row("teachers on the card over soft labels from disk", asked / disk, "times")
    row("memory that the teachers' weights take", weights / 2**20, "MiB")


def write_training(shape: Shape, *, n_texts: int) -> None:
    """Write what stage two finds: parameters, prepared data, an encoder with random weights, soft labels."""
    rng = np.random.default_rng(0)
    params = tiny_params()
    params["task"] |= {
        "source": {"kind": "files", "pattern": "data/{language}/{split}.parquet", "label_field": "label"},
        "supervised": LANGUAGES,
        "zero_shot": [],
    }
    params["teachers"] = dict.fromkeys(LANGUAGES, params["teachers"]["de"])
    params["student"]["pretrain"] |= {"base": str(Path("base").absolute()), "revision": None}
    params["student"]["distill"] |= {
        "epochs": 1,
        "batch_size": shape.texts,
        "branch_layers": shape.branch_layers,
        "precision": "bfloat16",
        "max_tokens": 120,
        "save_steps": 10_000,
    }
    write_params(params)
    texts = list(make_texts(n_texts, rng))
    for index, language in enumerate(LANGUAGES):
        own = texts[index::K]
        table = pa.table({"text": own, "label": np.array(CLASSES)[rng.integers(len(CLASSES), size=len(own))]})
        Path("data", language).mkdir(parents=True)
        pq.write_table(table, f"data/{language}/train.parquet")
        for split in SPLITS[1:]:
            pq.write_table(table.slice(0, 8), f"data/{language}/{split}.parquet")
    tokenizer = build_tokenizer(texts[:2000], merges=1000)
    tokenizer.save_pretrained("base")
    encoder = config(shape)
    encoder.update({"pad_token_id": tokenizer.pad_token_id})
    transformers.XLMRobertaForMaskedLM(encoder).save_pretrained("base")
    loaded = load_params(Path("params.yaml"))
    prepare(loaded.task)
    pretrain(loaded.task, loaded.student.pretrain)
    id2label = {str(index): name for index, name in enumerate(CLASSES)}
    for language in LANGUAGES:
        tables = [read_examples(loaded.task, language, split) for split in SPLITS]
        ids = pa.concat_tables(tables)["example_id"].combine_chunks()
        logits = rng.normal(size=(len(ids), len(CLASSES))).astype(np.float32)
        part = (labels.producer(config={"id2label": id2label}), SoftLabels.pack(ids, logits))
        SoftLabelSet.write(SOFT_LABELS / language, language=language, parts=[part])


def share_of_time(variant: str, first: int, last: int) -> None:
    """Run a training, as the command does, and see what the card does in some of its steps."""
    loaded = load_params(Path("params.yaml"))
    params = loaded.student.distill.model_copy(update={"variant": variant})
    with watched_steps(first, last) as told:
        distill(loaded.task, loaded.teachers, params, output=Path(variant))
    heading(f"A training of {variant}, steps {first} to {last}: tokenising, batches, steps")
    where = "card" if torch.cuda.is_available() else "CPU"
    at_least = 85 if variant == "finetune" else None
    row(f"share of the time in which the {where} computes", 100 * told["share"], "%", at_least=at_least)
    row("a step", 1e3 * told["seconds"] / (last - first), "ms")


@contextmanager
def watched_steps(first: int, last: int) -> Iterator[dict[str, float]]:
    """Give the seconds of some steps of a training within, and the share in which the device computes."""
    on_card = torch.cuda.is_available()
    watch = profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU])
    real, n_steps, began, told = transformers.Trainer.training_step, 0, 0.0, dict[str, float]()

    def training_step(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal n_steps, began
        if n_steps == first:
            synchronous(watch.start)()
            began = perf_counter()
        elif n_steps == last:
            synchronous(lambda: None)()
            told["seconds"] = perf_counter() - began
            watch.stop()
        n_steps += 1
        return real(self, *arguments, **more)

    with patch.object(transformers.Trainer, "training_step", training_step):
        yield told
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in watch.events() or []
        if event.device_type.name == ("CUDA" if on_card else "CPU")
    )
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    told["share"] = busy / 1e6 / told["seconds"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
