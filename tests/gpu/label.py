"""Labelling on a GPU: how much of its matrix rate goes into real tokens, and what others reach on it."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from encoder import unpack
from labelling import MAX_TOKENS, label_all, read_texts, settings
from measure import heading, note, progress, row, spent
from peers import PEERS
from teacher_cache import write_work
from tiny import CLASSES
from transformers.utils.import_utils import is_flash_attn_2_available

from stages.artifacts import TEACHERS
from stages.models.batches import current_device
from stages.teacher.labelling.inference import Teacher


class Size(NamedTuple):
    """A teacher with random weights, and how many texts it is asked about."""

    layers: int
    hidden: int
    texts: int


LARGE, BASE = Size(24, 1024, 20_000), Size(12, 768, 40_000)
TINY = Size(2, 64, 80)
AT_LEAST = dict(zip(PEERS, (3.0, 1.5, 1.2), strict=True))
BATCH = 128


def main(pack: Path, *, tiny: bool) -> None:
    """Print one table per question, the surest first; a question that fails ends no other."""
    transformers.logging.set_verbosity_error()
    sizes = [TINY] if tiny else [LARGE, BASE]
    some = partial(settings, precision="bfloat16", batch_tokens=1024 if tiny else 65536)
    with TemporaryDirectory() as folder:
        for size in sizes:
            work = Path(folder) / f"{size.layers}"
            work.mkdir()
            progress(f"a teacher of {size.layers} layers of {size.hidden}")
            write_work(work, size.texts, layers=size.layers, hidden=size.hidden)
        questions: list[tuple[Size, Callable[[], None]]] = [
            (sizes[-1], partial(real_encoder, pack, some, n_texts=80 if tiny else 50_000)),
            *((size, partial(share_of_rate, size, some, compiled=False)) for size in sizes),
            *((size, partial(beside_others, size, some)) for size in reversed(sizes)),
            *((size, partial(share_of_rate, size, some, compiled=True)) for size in sizes if not tiny),
            (sizes[-1], partial(unpadded, some)),
        ]
        failed = False
        for size, question in questions:
            with chdir(Path(folder) / f"{size.layers}"):
                try:
                    question()
                except Exception as error:
                    failed = True
                    traceback.print_exc()
                    note(f"failed: {error}")
        sys.exit(failed)


def share_of_rate(size: Size, some: Callable[..., Any], *, compiled: bool) -> None:
    """Compare floating-point operations of real tokens with those of matrix products in the same time.

    Args:
        size: Of the teacher in the current folder.
        some: Gives section `teacher.label`.
        compiled: Whether the teacher is.
    """
    heading(f"A teacher of {size.layers} layers of {size.hidden} in bfloat16, {size.texts:,} texts")
    peak = matrix_rate(4 * size.hidden)
    row("matrix products of its size", peak / 1e12, "TFLOP/s")
    texts = read_texts()
    teacher = Teacher(TEACHERS / "de", some(compile=compiled))
    tokens = teacher.tokenize([texts])
    warm = spent(lambda: list(teacher.answer(tokens))).wall
    took = spent(lambda: list(teacher.answer(tokens))).wall
    lengths = tokens.lengths.astype(float)
    products = 12 * size.hidden**2 * lengths.sum() + 2 * size.hidden * (lengths**2).sum()
    share = 100 * 2 * size.layers * products / took / peak
    how = "compiled" if compiled else "as it is"
    row(f"real tokens over that rate, {how}", share, "%", at_least=55)
    row(f"texts per second, {how}", size.texts / took, "texts/s")
    row(f"seconds of the first run, {how}", warm, "s")


def beside_others(size: Size, some: Callable[..., Any]) -> None:
    """Time stage one and what others do instead, from loading the teacher to the last logit."""
    heading(
        f"{size.texts:,} texts, {size.layers} layers of {size.hidden} in bfloat16; others {BATCH} at once"
    )
    texts = read_texts()
    params = some()
    ours = spent(lambda: label_all(params)).wall
    row("stage one, with its store", size.texts / ours, "texts/s")
    for name, load in PEERS.items():
        progress(name)
        label = partial(load, TEACHERS / "de", max_tokens=MAX_TOKENS, batch_size=BATCH, bfloat16=True)
        label()(texts[:1])  # its imports
        took = spent(lambda: label()(texts)).wall  # noqa: B023
        row(f"texts per second over {name}", took / ours, "times", at_least=AT_LEAST[name])


def matrix_rate(width: int) -> float:
    """Measure the rate in bfloat16 products of two matrices, in operations per second."""
    a = torch.randn(4 * width, width, device=current_device(), dtype=torch.bfloat16)
    b = torch.randn(width, width, device=current_device(), dtype=torch.bfloat16)
    repeats = 100 if torch.cuda.is_available() else 3

    def multiply() -> None:
        for _ in range(repeats):
            a @ b
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    multiply()
    start = time.perf_counter()
    multiply()
    return repeats * 2 * 4 * width**3 / (time.perf_counter() - start)


def real_encoder(pack: Path, some: Callable[..., Any], *, n_texts: int) -> None:
    """Label the texts of the packed data with the packed encoder, whose head is random."""
    heading("The packed encoder in bfloat16, on texts of the packed data")
    texts = packed_texts(pack / "data")[:n_texts]
    if not (pack / "encoder.zip").is_file() or not texts:
        note("the pack has no encoder, or no texts")
        return
    unpack(pack / "encoder.zip", Path("encoder"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        "encoder", id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)}
    )
    model.save_pretrained("real")
    transformers.AutoTokenizer.from_pretrained("encoder").save_pretrained("real")
    teacher = Teacher(Path("real"), some())
    row("texts", len(texts))
    tokenized = spent(lambda: teacher.tokenize([texts])).wall
    tokens = teacher.tokenize([texts])
    list(teacher.answer(tokens))
    took = spent(lambda: list(teacher.answer(tokens))).wall
    row("texts per second", len(texts) / took, "texts/s")
    row("tokens per second", float(tokens.lengths.sum()) / took, "tokens/s")
    row("seconds of tokenising over those of the forward passes", tokenized / took, "times")


def packed_texts(folder: Path) -> list[str]:
    """Read the texts of all data sets that have a column of that name, each once, in random order."""
    found = {
        text
        for path in sorted(folder.rglob("*.parquet"))
        if "text" in pq.read_schema(path).names
        for text in pq.read_table(path, columns=["text"])["text"].cast(pa.string()).to_pylist()
        if text
    }
    return [str(text) for text in np.random.default_rng(0).permutation(sorted(found))]


def unpadded(some: Callable[..., Any]) -> None:
    """Compare ModernBERT without padding (flash attention) with padded batches."""
    heading("ModernBERT of 22 layers of 768 in bfloat16")
    if not (torch.cuda.is_available() and is_flash_attn_2_available()):
        note("attention without padding needs a GPU and the package flash-attn: not measured")
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(TEACHERS / "de")
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer), id2label=dict(enumerate(CLASSES)), pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.save_pretrained("modernbert")
    transformers.ModernBertForSequenceClassification(config).save_pretrained("modernbert")
    texts = read_texts()
    seconds = []
    for attention in ("sdpa", "flash_attention_2"):
        config.save_pretrained("modernbert")
        path = Path("modernbert/config.json")  # save_pretrained leaves out which attention it is
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": attention}))
        teacher = Teacher(Path("modernbert"), some())
        tokens = teacher.tokenize([texts])
        list(teacher.answer(tokens))
        seconds.append(spent(lambda: list(teacher.answer(tokens))).wall)  # noqa: B023
    row("texts per second without padding over with it", seconds[0] / seconds[1], "times")


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
