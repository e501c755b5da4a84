"""Benchmark of the labelling loop: against what people use today, its own limit, memory, bfloat16 and Ray.

Texts of 5 to 120 tokens or so, lengths log-normal, and teachers with random weights. Ratios of one run on one
machine, medians of runs in turn, each part in a process of its own. On a GPU there is `tests/gpu/label.py`.
"""

import os
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa
from measure import apart, heading, progress, row, spent
from numpy.typing import NDArray
from teacher_cache import make_texts, write_work

from cache import Store, example_ids
from stages.artifacts import TEACHERS
from stages.data.examples import SPLITS, columns_of, data_file

TEXTS = 4_000
PAIRS = 300
MANY = 5_000_000
BLOCK = 1 << 18
MAX_TOKENS = 120
GIB = 2**30


def main() -> None:
    """Print one table per question."""
    for part in (throughput, bfloat16, ray_actors, bounded_memory):
        with TemporaryDirectory(prefix="mblm-bench-") as folder:
            progress(part.__name__)
            apart(part, Path(folder))


def settings(**changes: Any) -> Any:
    """Read section `teacher.label` of the current folder's parameters, for texts of this length."""
    from pipeline.params import load_params

    params = load_params(Path("params.yaml")).teacher.label
    return params.model_copy(update={"max_tokens": MAX_TOKENS, "batch_tokens": 8192, **changes})


def label_all(params: Any) -> None:
    """Do what stage one does with an empty store: load the teacher, look up, label and write."""
    from pipeline.params import load_params
    from stages.teacher.labelling.examples import Examples
    from stages.teacher.labelling.identity import producer_of
    from stages.teacher.labelling.loop import fill

    task = load_params(Path("params.yaml")).task
    producer = producer_of(TEACHERS / "de", task, params)
    fill(params, Store(mkdtemp(dir="."), producer), TEACHERS / "de", Examples.read(task, "de"))


def wall(*works: Callable[[], object], repeats: int) -> list[float]:
    """Do several works in turn, in changing order: the median seconds of each."""
    seconds: dict[Callable[[], object], list[float]] = {work: [] for work in works}
    for index in range(repeats):
        for work in works if index % 2 else reversed(works):
            seconds[work].append(spent(work).wall)
    return [median(seconds[work]) for work in works]


def throughput(folder: Path) -> None:
    """Compare with what people use, and with forward passes alone."""
    import torch
    import transformers
    from peers import PEERS

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    write_work(folder, TEXTS, layers=4, hidden=256)
    with chdir(folder):
        texts = read_texts()
        params = settings()
        from stages.teacher.labelling.inference import Teacher

        teacher = Teacher(TEACHERS / "de", params)
        tokens = teacher.tokenize([texts])
        answers = list(teacher.answer(tokens))
        heading(f"Labelling {TEXTS:,} texts with a teacher of 4 layers of 256 on one thread")
        n_tokens, n_cells = (sum(getattr(batch, of) for batch in answers) for of in ("tokens", "cells"))
        row("token cells, padding included, per token", n_cells / n_tokens, "times", at_most=1.03)
        ours = partial(label_all, params)
        limit = forward_passes(texts)
        theirs = [
            lambda load=load: load(TEACHERS / "de", max_tokens=MAX_TOKENS)(texts) for load in PEERS.values()
        ]
        seconds = wall(ours, limit, *theirs, repeats=3)
        row("stage one", TEXTS / seconds[0], "texts/s")
        row(
            "its time over forward passes alone, batched beforehand",
            seconds[0] / seconds[1],
            "times",
            at_most=1.05,
        )
        for name, took, target in zip(PEERS, seconds[2:], (3.0, 2.8, None), strict=True):
            row(f"texts per second over {name}", took / seconds[0], "times", at_least=target)
        compiled = Teacher(TEACHERS / "de", settings(compile=True))
        warm = spent(lambda: list(compiled.answer(tokens))).wall
        plain, fast = wall(
            lambda: list(teacher.answer(tokens)), lambda: list(compiled.answer(tokens)), repeats=3
        )
        row("texts per second of a compiled teacher over a plain one", plain / fast, "times")
        row("its first run, compilation included, over a plain one", warm / plain, "times")


def read_texts() -> list[str]:
    """Read the texts of all splits."""
    from pipeline.params import load_params
    from stages.teacher.labelling.examples import Examples

    examples = Examples.read(load_params(Path("params.yaml")).task, "de")
    return examples.texts(np.arange(len(examples)))[0]


def forward_passes(texts: list[str]) -> Callable[[], None]:
    """Make batches of sorted texts beforehand: the limit of what a loop can reach."""
    import torch
    from peers import load

    tokenizer, model = load(TEACHERS / "de")
    rows = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    rows.sort(key=len, reverse=True)
    batches = []
    while rows:
        size = 8192 // len(rows[0])
        batches.append(tokenizer.pad({"input_ids": rows[:size]}, return_tensors="pt"))
        del rows[:size]

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch).logits.numpy()

    return run


def bfloat16(folder: Path) -> None:
    """Compare the precisions on pairs, with a teacher of BERT's size."""
    import torch

    write_work(folder, PAIRS, layers=12, hidden=768)
    with chdir(folder):
        from stages.teacher.labelling.inference import Answers, Teacher

        texts = read_texts()
        half = [texts[: PAIRS // 2], texts[PAIRS // 2 :]]
        plain, fast = (Teacher(TEACHERS / "de", settings(precision=p)) for p in ("float32", "bfloat16"))
        tokens = plain.tokenize(half)
        seconds = wall(lambda: list(plain.answer(tokens)), lambda: list(fast.answer(tokens)), repeats=3)

        def logits(answers: list[Answers]) -> NDArray[np.float32]:
            return np.concatenate([batch.logits for batch in answers])

        one, other = logits(list(plain.answer(tokens))), logits(list(fast.answer(tokens)))
        heading(
            f"Precision: {PAIRS // 2} pairs, a teacher of 12 layers of 768, {torch.get_num_threads()} threads"
        )
        row("pairs per second of bfloat16 over float32", seconds[0] / seconds[1], "times")
        row("largest difference of a logit", float(np.abs(one - other).max()))
        row("the same over the spread of the logits", float(np.abs(one - other).max() / one.std()), "times")


def ray_actors(folder: Path) -> None:
    """Compare Ray with the loop in one process, the start of either left out."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from pipeline.params import load_params
    from stages.teacher.labelling.examples import Examples
    from stages.teacher.labelling.identity import producer_of
    from stages.teacher.labelling.on_ray import OnRay

    torch.set_num_threads(2)
    seconds: dict[str, list[float]] = {"one process": [], "Ray": []}
    sizes = (TEXTS, 4 * TEXTS)
    for size in sizes:
        work = folder / str(size)
        work.mkdir()
        write_work(work, size, layers=4, hidden=256)
        with chdir(work), OnRay(address=None, n_actors=2) as engine:
            params = settings()
            task = load_params(Path("params.yaml")).task
            producer = producer_of(TEACHERS / "de", task, params)
            examples = Examples.read(task, "de")
            seconds["one process"].append(spent(partial(label_all, params)).wall)
            store = Store(Path(mkdtemp(dir=".")).absolute(), producer)
            seconds["Ray"].append(spent(partial(engine.fill, params, store, TEACHERS / "de", examples)).wall)
    more = sizes[1] - sizes[0]
    speed = {name: more / (long - short) for name, (short, long) in seconds.items()}
    start = seconds["Ray"][0] - sizes[0] / speed["Ray"]
    heading(
        f"Ray with 2 actors of one thread, and one process of 2 threads: {sizes[1]:,} texts over {sizes[0]:,}"
    )
    row("one process", speed["one process"], "texts/s")
    row("Ray over one process", speed["Ray"] / speed["one process"], "times", at_least=0.9)
    row("seconds until the actors have loaded the teacher", start, "s")


def bounded_memory(folder: Path) -> None:
    """Label millions of examples from disk with a teacher that is as small as it goes."""
    write_work(folder, 1000, layers=1, hidden=16)
    with chdir(folder):
        from pipeline.params import load_params

        task = load_params(Path("params.yaml")).task
        for split in SPLITS:
            write_split(
                data_file("de", split), columns_of(task), MANY // len(SPLITS), seed=SPLITS.index(split)
            )
    seconds, peak = apart(label_many, folder)
    heading(f"Memory of a run that labels {MANY:,} texts")
    row("resident memory at its peak", peak / GIB, "GiB", at_most=1.5)
    row("texts per second", MANY / seconds, "texts/s")


def write_split(path: Path, schema: pa.Schema, n: int, *, seed: int) -> None:
    """Write prepared examples, a block at a time."""
    rng = np.random.default_rng(seed)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, n, BLOCK):
            texts = [
                f"{seed} {i}: {text}" for i, text in enumerate(make_texts(min(BLOCK, n - start), rng), start)
            ]
            labels = rng.integers(3, size=len(texts))
            arrays = [
                pa.array(a, f.type)
                for a, f in zip((example_ids([texts]), texts, labels), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def label_many(folder: Path) -> tuple[float, int]:
    """Run stage one, its set included: the seconds that it took, and its memory at the peak, in bytes."""
    from pipeline.params import load_params
    from stages.teacher.label import label

    with chdir(folder):
        params = load_params(Path("params.yaml"))
        some = settings(max_tokens=16, batch_tokens=32768)
        start = time.perf_counter()
        label(params.task, params.teachers["de"], some, "store", "de")
        seconds = time.perf_counter() - start
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return seconds, int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
