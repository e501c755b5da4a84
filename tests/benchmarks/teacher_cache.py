"""Benchmark of the teacher cache: disk, joins, overhead, re-runs, growth. It writes to a temporary folder.

All figures are of one run on one machine. Memory and everything that needs torch is measured in processes of
their own.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer
from labels import CLASS_NAMES, FORMATS, producer
from measure import Spent, apart, extra_memory, heading, number, progress, row, spent, spent_each
from numpy.typing import NDArray
from tiny import CLASSES

from cache import ID_TYPE, Lookup, SoftLabels, SoftLabelSet, Store, example_ids
from cache.soft_labels import id_bytes

ROOT = Path(__file__).parents[2]
SHARD = 65_536  # examples
MIB = 2**20
GIB = 2**30

JOINED = 2_000_000
PER_EXAMPLE = 2_000
BATCH = 64
LABELLED = 20_000
CACHED = 400_000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
SHARDS, SMALL_SHARD = 1_000, 1_000
IMPORTED = 1_000_000


def main() -> None:
    """Print one table per question."""
    for part in (disk_and_batches, join, overhead, rerun, growth, many_shards, importing):
        with TemporaryDirectory(prefix="mblm-bench-") as folder:
            part(Path(folder))


def soft_labels(n: int, *, seed: int) -> SoftLabels:
    """Make up soft labels of 3 classes."""
    rng = np.random.default_rng(seed)
    ids = pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, n, [None, pa.py_buffer(rng.bytes(16 * n))])
    return SoftLabels.pack(ids, rng.standard_normal((n, len(CLASS_NAMES)), np.float32))


def shuffled(ids: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
    """Put ids in random order."""
    return ids.take(pa.array(np.random.default_rng(0).permutation(len(ids))))


def disk_and_batches(folder: Path) -> None:
    """Bytes per example and time per batch, next to one file per example."""
    heading("Bytes per example on disk, 3 classes")
    for format_ in FORMATS:
        store = Store(folder / format_, producer())
        name = store.append(soft_labels(SHARD, seed=0), format_=format_)
        row(f"{format_}, {SHARD:,} examples per shard", store.shards()[name] / SHARD, "bytes", at_most=30)
    progress("writing and reading one file per example")
    n_bytes, from_files, from_memory = apart(one_file_per_example, folder / "files")
    row("one torch.save per example, as torchdistill does", n_bytes, "bytes")
    heading(f"Soft labels of a random batch of {BATCH}")
    row(f"logits[batch] of {JOINED:,} joined examples", from_memory * 1e6, "µs")
    row("one torch.load per example, as torchdistill does", from_files * 1e6, "µs")
    row("ratio", from_files / from_memory, "times")


def one_file_per_example(folder: Path) -> tuple[float, float, float]:
    """Keep soft labels as torchdistill 1.1.4 does: the same dictionary, pickled, in a folder of its own.

    Returns:
        Bytes per example, and the seconds per batch from these files and from joined soft labels.
    """
    import torch

    torch.set_num_threads(1)
    made_up = soft_labels(JOINED, seed=0)
    SoftLabelSet.write(folder / "set", language="de", parts=[(producer(), made_up)])
    logits = SoftLabelSet.read(folder / "set", language="de").join(made_up.ids).logits
    rng = np.random.default_rng(0)
    examples = rng.choice(JOINED, PER_EXAMPLE, replace=False)
    paths = [folder / f"{i:04d}" / f"{i:04d}.pt" for i in range(PER_EXAMPLE)]
    for path, values in zip(paths, logits[examples], strict=True):
        path.parent.mkdir(parents=True)
        output = {"output": torch.tensor(values)}
        torch.save({"teacher_outputs": torch.tensor(values), "extracted_outputs": {".": output}}, path)
    batches = list(rng.integers(PER_EXAMPLE, size=(100, BATCH)))
    positions = [examples[batch] for batch in batches]

    def from_files(batch: NDArray[np.int64]) -> torch.Tensor:
        loaded = (torch.load(paths[i], weights_only=False) for i in batch)
        return torch.stack([cached["teacher_outputs"] for cached in loaded])

    if not np.array_equal(from_files(batches[0]).numpy(), logits[positions[0]]):
        raise ValueError("the files hold other logits")
    n_bytes = sum(path.stat().st_size for path in paths) / len(paths)
    files, memory = spent_each(
        lambda: [from_files(batch) for batch in batches],
        lambda: [logits[batch] for batch in positions],
        repeats=3,
    )
    return n_bytes, files.wall / len(batches), memory.wall / len(batches)


def join(folder: Path) -> None:
    """Speed and memory of joining a soft-label set to a data set in another order."""
    progress(f"joining {JOINED:,} examples")
    made_up = soft_labels(JOINED, seed=0)
    SoftLabelSet.write(folder, language="de", parts=[(producer(), made_up)])
    ids = shuffled(made_up.ids)

    def join_alone() -> SoftLabels:
        lookup = Lookup(ids)
        lookup.fill(made_up)
        return lookup.soft_labels()

    alone, whole = spent_each(join_alone, partial(join_from_disk, folder, ids), repeats=5)
    ids_file = folder / "ids"
    ids_file.write_bytes(id_bytes(ids).tobytes())
    extra = apart(memory_of_join, folder, ids_file)
    heading(f"Joining {JOINED:,} examples in random order")
    row("the join alone", JOINED / alone.cpu / 1e6, "M/CPU-s", at_least=3)
    row("with reading and checking digests", JOINED / whole.cpu / 1e6, "M/CPU-s", at_least=3)
    result = (ID_TYPE.byte_width + 4 * len(CLASS_NAMES)) * JOINED
    row("peak extra memory over the size of the result", extra / result, "times", at_most=2)


def join_from_disk(folder: Path, ids: pa.FixedSizeBinaryArray) -> SoftLabels:
    """Do what stage two does."""
    return SoftLabelSet.read(folder, language="de").join(ids)


def memory_of_join(folder: Path, ids_file: Path) -> int:
    """Measure the memory that a join takes besides the ids."""
    few = soft_labels(1, seed=0)
    SoftLabelSet.write(folder / "few", language="de", parts=[(producer(), few)])
    join_from_disk(folder / "few", few.ids)  # imports what the join imports
    data = pa.py_buffer(ids_file.read_bytes())
    ids = pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, JOINED, [None, data])
    return extra_memory(partial(join_from_disk, folder, ids))


def overhead(folder: Path) -> None:
    """What stage one costs on top of the teacher's own work."""
    progress(f"labelling {LABELLED:,} texts with a tiny teacher, five times with and without the cache")
    rounds = apart(label_with_and_without, folder)
    ratios = [Spent(stage.wall / alone.wall, stage.cpu / alone.cpu) for alone, stage in rounds]
    heading(f"Labelling {LABELLED:,} new texts: ids, look-up and writing on top of a tiny teacher")
    row("the teacher alone", median(alone.wall for alone, _ in rounds), "s")
    row("the stage over the teacher alone", median(ratio.wall for ratio in ratios), "times", at_most=1.03)
    row("the same in CPU time", median(ratio.cpu for ratio in ratios), "times")


def label_with_and_without(folder: Path) -> list[tuple[Spent, Spent]]:
    """Time the teacher alone and the whole stage, each with an empty store, in turn."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    from pipeline.params import load_params
    from stages.artifacts import TEACHERS
    from stages.data.examples import SPLITS, read_examples
    from stages.teacher.label import label
    from stages.teacher.labelling.inference import Teacher

    torch.set_num_threads(1)
    write_work(folder, LABELLED)
    with chdir(folder):
        params = load_params(Path("params.yaml"))
        splits = [read_examples(params.task, "de", split) for split in SPLITS]
        texts = pa.concat_tables(splits)["text"].to_pylist()
        texts.sort(key=len, reverse=True)  # as the stage does: only the cache makes a difference

        def alone() -> None:
            teacher = Teacher(TEACHERS / "de", params.teacher.label)
            for _ in teacher.answer(teacher.tokenize([texts])):
                pass

        def stage() -> None:
            example_ids([texts])
            empty = mkdtemp(dir=folder)
            label(params.task, params.teachers["de"], params.teacher.label, empty, "de")

        return [(spent(alone), spent(stage)) for _ in range(5)]


def write_work(folder: Path, n: int, *, layers: int = 2, hidden: int = 128) -> None:
    """Write what stage one finds: params.yaml, prepared data and a small teacher with random weights."""
    from tiny import CLASSES, tiny_params, write_params
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from pipeline.params import load_params
    from stages.artifacts import TEACHERS
    from stages.models.scratch import build_tokenizer
    from stages.prepare import prepare

    rng = np.random.default_rng(0)
    texts = list(make_texts(n, rng))
    labels = rng.integers(len(CLASSES), size=n)
    params = tiny_params()
    source = {"kind": "files", "pattern": "data/{language}/{split}.parquet", "label_field": "label"}
    params["task"] |= {"source": source, "supervised": ["de"], "zero_shot": []}
    params["teacher"]["label"]["max_tokens"] = 128
    table = pa.table({"text": texts, "label": pa.array(np.array(CLASSES)[labels])})
    with chdir(folder):
        write_params(params)
        data = Path("data/de")
        data.mkdir(parents=True)
        eighth = n // 8
        pa.parquet.write_table(table.slice(0, eighth), data / "validation.parquet")
        pa.parquet.write_table(table.slice(eighth, eighth), data / "test.parquet")
        pa.parquet.write_table(table.slice(2 * eighth), data / "train.parquet")
        prepare(load_params(Path("params.yaml")).task)
        tokenizer = build_tokenizer(texts[:2000], merges=1000)
        config = RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(4, hidden // 64),
            intermediate_size=4 * hidden,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
        )
        RobertaForSequenceClassification(config).save_pretrained(TEACHERS / "de")
        tokenizer.save_pretrained(TEACHERS / "de")


def make_texts(n: int, rng: np.random.Generator) -> Iterator[str]:
    """Make up texts of 5 to 120 words, most of them short; the last word is the text's number."""
    words = np.array([a + b + c + d for a in "bdgkl" for b in "aeiou" for c in "mnprt" for d in "aou"])
    lengths = rng.lognormal(np.log(20), 0.7, n).astype(int).clip(5, 120)
    for index, length in enumerate(lengths):
        yield " ".join([*words[rng.integers(len(words), size=length - 1)], str(index)])


def rerun(folder: Path) -> None:
    """Time stage one where the store has everything, as a person meets it: from the start of Python."""
    progress(f"preparing {CACHED:,} texts")
    apart(write_cached_work, folder, CACHED)
    progress("running stage one again")
    environment = os.environ | {"MBLM_TEACHER_CACHE": str(folder / "store"), "PYTHONPATH": str(ROOT)}

    def run(*options: str) -> str:
        command = [sys.executable, *options, "-m", "pipeline", "teacher", "label", "--language", "de"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        if f"{CACHED:,} soft labels, 0 of them new" not in done.stdout:
            raise ValueError(f"not everything was cached: {done.stdout}")
        return done.stderr

    (took,) = spent_each(run, repeats=3)
    imported = [line.rpartition("|")[2].strip() for line in run("-X", "importtime").splitlines()]
    heading(f"python -m pipeline teacher label, all {CACHED:,} examples cached")
    row("from start to end", took.wall, "s", at_most=5)
    row("imports of torch", imported.count("torch"), at_most=0)


def write_cached_work(folder: Path, n: int) -> None:
    """Write what stage one finds, and made-up soft labels of all examples."""
    from pipeline.params import load_params
    from stages.artifacts import TEACHERS
    from stages.data.examples import SPLITS, read_examples
    from stages.teacher.labelling.identity import producer_of

    write_work(folder, n)
    with chdir(folder):
        params = load_params(Path("params.yaml"))
        store = Store(folder / "store", producer_of(TEACHERS / "de", params.task, params.teacher.label))
        for split in SPLITS:
            table = read_examples(params.task, "de", split)
            ids = table["example_id"].combine_chunks()
            # The gate of the class order passes: the teacher is right, but for the noise.
            logits = np.random.default_rng(0).standard_normal((len(ids), len(CLASS_NAMES)), np.float32)
            logits[np.arange(len(ids)), table["label"].to_numpy()] += 2
            for start in range(0, len(ids), SHARD):
                some = slice(start, start + SHARD)
                store.append(SoftLabels.pack(ids[some], logits[some]))


def growth(folder: Path) -> None:
    """What a million examples cost in stores of growing size."""
    heading(f"Growth, 3 classes, {SHARD:,} examples per shard")
    names = ("append", "look-up", "disk", "peak memory of the writer")
    units = ("s per M", "CPU-s per M", "bytes each", "MiB beyond its start")
    typer.echo(f"  {'examples':>12}" + "".join(f"{name:>26}" for name in names))
    typer.echo(f"  {'':>12}" + "".join(f"{unit:>26}" for unit in units))
    for n in SIZES:
        progress(f"writing and looking up {n:,} examples")
        root = folder / str(n)
        seconds, extra = apart(write_store, root, n)
        look_up = apart(look_up_store, root, n)
        n_bytes = sum(Store(root, producer()).shards().values())
        values = (seconds / n * 1e6, look_up.cpu / n * 1e6, n_bytes / n, extra / MIB)
        typer.echo(f"  {n:>12,}" + "".join(f"{number(value):>26}" for value in values))


def parts(n: int) -> Iterator[SoftLabels]:
    """Make up n soft labels, a shard at a time."""
    for start in range(0, n, SHARD):
        yield soft_labels(min(SHARD, n - start), seed=start)


def write_store(root: Path, n: int) -> tuple[float, int]:
    """Fill a store: the seconds that it took to append, and the peak of extra memory in bytes."""
    Store(root / "warm", producer()).append(soft_labels(1, seed=0))  # imports what appending imports
    store = Store(root, producer())
    seconds: list[float] = []

    def write() -> None:
        seconds.extend(spent(partial(store.append, part)).wall for part in parts(n))

    extra = extra_memory(write)
    return sum(seconds), extra


def look_up_store(root: Path, n: int) -> Spent:
    """Look up all examples of a store in random order."""
    ids = shuffled(pa.concat_arrays([part.ids for part in parts(n)]))
    (took,) = spent_each(partial(look_up_all, root, ids), repeats=3)
    return took


def look_up_all(root: Path, ids: pa.FixedSizeBinaryArray) -> None:
    """Open a store and look up examples that it has."""
    if not Store(root, producer()).look_up(ids).found.all():
        raise ValueError("the store has not all examples")


def many_shards(folder: Path) -> None:
    """Time to open a store that many short runs have written."""
    progress(f"writing {SHARDS:,} shards")
    store = Store(folder, producer())
    written = [soft_labels(SMALL_SHARD, seed=seed) for seed in range(SHARDS)]
    for some in written:
        store.append(some)
    ids = shuffled(pa.concat_arrays([some.ids for some in written]))
    few = ids[:SMALL_SHARD]
    listed, found, found_few = spent_each(
        lambda: Store(folder, producer()).shards(),
        partial(look_up_all, folder, ids),
        partial(look_up_all, folder, few),
        repeats=5,
    )
    heading(f"Opening a store of {SHARDS:,} shards of {SMALL_SHARD:,} examples")
    row("listing its shards", listed.wall, "s")
    row(f"looking up {len(ids):,} examples", found.wall, "s", at_most=1)
    row(f"looking up {len(few):,} examples", found_few.wall, "s", at_most=1)


def importing(folder: Path) -> None:
    """Time `cache import`, as a person meets it: from the start of Python."""
    progress(f"writing {IMPORTED:,} soft labels in three formats")
    apart(write_cached_work, folder, 1_000)
    apart(write_soft_labels, folder, IMPORTED)
    heading(f"python -m pipeline cache import, {IMPORTED:,} texts with probabilities of 3 classes")
    for file in ("soft.parquet", "soft.csv", "soft.jsonl"):
        progress(f"importing {file}")
        took, memory = apart(import_file, folder, file)
        row(f"{file}, from start to end", took, "s", at_most=10)
        row(f"{file}, peak memory", memory / GIB, "GiB", at_most=1)


def write_soft_labels(folder: Path, n: int) -> None:
    """Write made-up probabilities, a column per class or, in JSONL, a mapping."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5] * len(CLASSES), size=n).round(5)
    texts = [f"{number} {text}" for number, text in enumerate(make_texts(n, rng))]
    columns = {f"p_{name}": probs[:, place] for place, name in enumerate(CLASSES)}
    table = pa.table({"text": texts, **columns})
    pa.parquet.write_table(table, folder / "soft.parquet")
    pa.csv.write_csv(table, folder / "soft.csv")
    with (folder / "soft.jsonl").open("w", encoding="utf-8") as file:
        for text, values in zip(texts, probs.tolist(), strict=True):
            by_class = dict(zip(CLASSES, values, strict=True))
            file.write(json.dumps({"text": text, "probabilities": by_class}) + "\n")


def import_file(folder: Path, file: str) -> tuple[float, int]:
    """Import a file into a new store; gives the seconds and the bytes of memory that it takes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "cache", "import", file]
    command += ["--language", "de", "--keep-unknown", "--store", f"store-{file}", "--fact", "name=made-up"]
    command += ["--field", "p_{class}", "--values", "probabilities"] * (file != "soft.jsonl")
    took = spent(
        lambda: subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    )
    return took.wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


if __name__ == "__main__":
    main()
