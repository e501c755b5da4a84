"""Benchmark of a served student: int8 against float32 and PyTorch, and what HTTP adds to onnxruntime.

Of a small encoder's shape: 6 layers of 384, 40,000 words, 5 branches of 2 layers, random weights.
Ratios of one run on one machine. ``--minutes`` says how long the load lasts after which memory is measured.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch
from measure import apart, heading, memory_of, progress, row, spent_each
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from pipeline.params import load_params
from stages.models.configuration_mblm import MBLMConfig
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.student.export import export
from stages.student.exporting.graph import example_inputs
from stages.student.exporting.measured import session_of
from stages.student.serving.model import FLOAT32, INT8, ServedModel

LANGUAGES = ["ar", "de", "en", "tr", "zh"]
VOCABULARY, TOKENS = 40_000, 32
ROOT = Path(__file__).parents[2]
CLIENTS = 32


def main() -> None:
    """Print one table per question."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=0.2)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        progress("export")
        apart(make, Path(folder))
        progress("graphs")
        apart(graphs, Path(folder))
        for part in (throughput, latency):
            progress(part.__name__)
            apart(part, Path(folder))
        progress("overload")
        apart(overload, Path(folder), minutes)


def make(folder: Path) -> None:
    """Export a student with random weights."""
    encoder = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    names = dict(enumerate("abcdefg"))
    config = MBLMConfig(
        mplm_config=encoder,
        languages=LANGUAGES,
        n_branches=len(LANGUAGES),
        branch_layers=2,
        pooling="mean",
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    torch.manual_seed(0)
    MBLMForSequenceClassification(config).save_pretrained(folder / "student")
    words = {
        word: index
        for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *map(str, range(VOCABULARY - 4))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder / "student")
    params = load_params(ROOT / "params.yaml")
    distill = params.student.distill.model_copy(update={"max_tokens": 128})
    export(
        folder / "exported",
        distill,
        params.student.evaluate,
        params.task,
        model=folder / "student",
        onnx=True,
        int8=True,
    )


def texts(n: int, *, shortest: int = 8, longest: int = 40) -> list[str]:
    """Make up texts of random words."""
    draw = random.Random(0)
    return [
        " ".join(str(draw.randrange(VOCABULARY - 4)) for _ in range(draw.randint(shortest, longest)))
        for _ in range(n)
    ]


def graphs(folder: Path) -> None:
    """Speed and size of int8, float32 and PyTorch, by the mixture and by an own branch."""
    torch.set_num_threads(os.cpu_count() or 1)
    student = MBLMForSequenceClassification.from_pretrained(folder / "student").eval()
    onnx = folder / "exported/onnx"
    sessions = {name: session_of(onnx / name) for name in (FLOAT32, INT8)}
    heading(f"One forward pass of texts of {TOKENS} tokens, {os.cpu_count()} threads")
    row("size in float32", (onnx / FLOAT32).stat().st_size / 1e6, "MB")
    row("size in int8", (onnx / INT8).stat().st_size / 1e6, "MB", at_most=60)
    for batch, repeats in ((1, 60), (32, 9)):
        inputs = example_inputs(student.config, ["input_ids", "attention_mask"], batch=batch, length=TOKENS)
        inputs["attention_mask"][:] = 1
        seconds = {}
        for name, language_id in (("mixture", -1), ("own branch", 1)):
            inputs["language_ids"][:] = language_id
            given = {key: value.numpy() for key, value in inputs.items()}

            @torch.inference_mode()
            def pytorch(inputs: Any = inputs) -> object:
                return student(**inputs).logits

            def float32(given: Any = given) -> object:
                return sessions[FLOAT32].run(None, given)

            def int8(given: Any = given) -> object:
                return sessions[INT8].run(None, given)

            pytorch(), float32(), int8()
            seconds[name] = [one.wall for one in spent_each(pytorch, float32, int8, repeats=repeats)]
        base, in_float32, in_int8 = seconds["mixture"]
        row(f"mixture, batch of {batch}: PyTorch", base * 1e3, "ms")
        row(f"mixture, batch of {batch}: float32, texts a second over PyTorch", base / in_float32, "times")
        row(f"mixture, batch of {batch}: int8, likewise", base / in_int8, "times", at_least=2.5)
        row(f"batch of {batch} in int8: own branch over mixture", seconds["own branch"][2] / in_int8, "times")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Run the server; gives its address and process."""
    command = [sys.executable, "-m", "pipeline", "student", "serve", "--port", "0", "--model"]
    server = subprocess.Popen(
        [*command, str(folder / "exported/onnx")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[-1], server.pid
    finally:
        server.terminate()
        server.wait()


async def ask(url: str, bodies: list[bytes]) -> tuple[Counter[int], list[float]]:
    """Send requests one after the other on one connection; counts by status, and seconds of each."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    counts: Counter[int] = Counter()
    seconds = []
    for body in bodies:
        start = time.perf_counter()
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - start)
        counts[int(head.split()[1])] += 1
    writer.close()
    return counts, seconds


def ask_together(url: str, bodies: list[bytes], clients: int) -> tuple[Counter[int], float]:
    """Let clients share requests: counts by status, and seconds until all are answered."""

    async def together() -> tuple[Counter[int], float]:
        start = time.perf_counter()
        done = await asyncio.gather(*(ask(url, bodies[index::clients]) for index in range(clients)))
        return sum((counts for counts, _ in done), Counter()), time.perf_counter() - start

    return asyncio.run(together())


def body_of(some: list[str], **more: Any) -> bytes:
    """Write a request."""
    return json.dumps({"texts": some, **more}).encode()


def bare(model: ServedModel, some: list[str], *, batch: int, by_length: bool = False) -> float:
    """Tokenize and classify texts by the mixture, in their order or the shortest first; seconds."""
    start = time.perf_counter()
    tokens = model.tokenize(some)
    if by_length:
        tokens.sort(key=lambda one: len(one.ids))
    for index in range(0, len(tokens), batch):
        part = tokens[index : index + batch]
        model.probabilities(part, [-1] * len(part))
    return time.perf_counter() - start


def throughput(folder: Path) -> None:
    """Examples a second of 32 clients, each with one text at a time, over those without a server."""
    model = ServedModel(folder / "exported/onnx")
    some = texts(1024)
    bodies = [body_of([text]) for text in some]
    shares, shares_of_sorted, rates = [], [], []
    with serving(folder) as (url, _):
        ask_together(url, bodies[:64], CLIENTS)
        for _ in range(5):
            alone, in_order = bare(model, some, batch=32), bare(model, some, batch=32, by_length=True)
            counts, seconds = ask_together(url, bodies, CLIENTS)
            assert counts == {200: len(some)}
            shares.append(alone / seconds)
            shares_of_sorted.append(in_order / seconds)
            rates.append(len(some) / seconds)
    heading(f"{CLIENTS} clients, one text each at a time, by the mixture in int8")
    row("examples a second", median(rates))
    row("over onnxruntime alone, batches of 32 as they come", median(shares), "times", at_least=0.85)
    row("the same, all texts known and sorted by length", median(shares_of_sorted), "times")


def latency(folder: Path) -> None:
    """What a single client waits beyond what tokenizer and onnxruntime take."""
    model = ServedModel(folder / "exported/onnx")
    some = texts(300)
    with serving(folder) as (url, _):
        asyncio.run(ask(url, [body_of([text]) for text in some[:20]]))
        alone, served = [], []
        for start in range(0, len(some), 20):
            part = some[start : start + 20]
            alone += [bare(model, [text], batch=1) for text in part]
            served += asyncio.run(ask(url, [body_of([text]) for text in part]))[1]
    heading("One client, one text at a time, by the mixture in int8")
    row("median of tokenizer and onnxruntime alone", median(alone) * 1e3, "ms")
    row("median of the server beyond it", (median(served) - median(alone)) * 1e3, "ms", at_most=3)


def overload(folder: Path, minutes: float) -> None:
    """Far more than is allowed to wait: what is refused, and memory after the load."""
    heading("Overload: 64 clients with 64 texts each at a time, where 2,048 may wait")
    body = body_of(texts(64))
    with serving(folder) as (url, process):
        ask_together(url, [body] * 64, 8)
        before = memory_of(process)
        counts: Counter[int] = Counter()
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            counts += ask_together(url, [body] * 256, 64)[0]
        after = memory_of(process)
        with urlopen(f"{url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    [counted] = [line.split()[1] for line in lines if line.startswith('mblm_requests_total{status="200"}')]
    row("answered with 200", counts[200], "requests")
    row("refused with 503", counts[503], "requests")
    row(
        "answered otherwise, or not as the server counts",
        sum(counts.values()) - counts[200] - counts[503] + abs(int(float(counted)) - counts[200] - 64),
        "requests",
        at_most=0,
    )
    row(f"memory after {minutes:g} minutes of it, over that before", after / before, "times", at_most=1.1)
    row("memory", after / 2**20, "MiB")


if __name__ == "__main__":
    main()
