"""Benchmark of teachers behind HTTP: answers a second, memory, and what kills cost.

The server is a process of its own on loopback: it takes 50 ms for an answer, has 32 slots, computes nothing.
"""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import apart, heading, peak_memory, progress, row
from teacher_cache import ROOT, write_work

TEXTS, MANY, FEW = 8_000, 100_000, 2_000
SLOTS, SECONDS = 32, 0.05
ENOUGH = 64
"""Requests at once that leave no slot without the next one."""
KILLS = 20


def main() -> None:
    """Print one table per question."""
    for part in (throughput, memory, kills):
        progress(part.__name__)
        with TemporaryDirectory(prefix="mblm-bench-") as folder:
            apart(part, Path(folder))


def throughput(folder: Path) -> None:
    """Ask about the same texts with several numbers of requests at once."""
    write_work(folder, TEXTS)
    heading(f"A server that takes {SECONDS * 1000:.0f} ms for an answer and has {SLOTS} slots")
    for at_once in (1, SLOTS, ENOUGH):
        n = min(TEXTS, 400 * at_once)
        with serving(SECONDS) as (url, _):
            before = time.process_time()
            tally = ask(folder, url, revision=f"{at_once}", concurrency=at_once, limit=n)
            cpu = time.process_time() - before
        possible = min(at_once, SLOTS) / SECONDS
        row(f"{at_once} at once: answers", tally.answered / tally.seconds, "/s")
        row(
            f"{at_once} at once: of what the server can do",
            100 * tally.answered / tally.seconds / possible,
            "%",
            at_least=95 if at_once == ENOUGH else None,
        )
        row(f"{at_once} at once: CPU time for an answer", 1000 * cpu / tally.answered, "ms")


def memory(folder: Path) -> None:
    """Ask about few texts and about many: a server that answers at once."""
    heading(f"Peak memory with {SLOTS} requests at once")
    sizes = {}
    for n in (FEW, MANY):
        place = folder / f"{n}"
        place.mkdir()
        apart(write_work, place, n)
        sizes[n] = apart(_asked_peak, place)
        row(f"{n:,} texts", sizes[n] / 2**20, "MiB")
    row("more for a text", (sizes[MANY] - sizes[FEW]) / (MANY - FEW), "bytes", at_most=1024)


def _asked_peak(folder: Path) -> int:
    with serving(0.0) as (url, _):
        ask(folder, url, revision="1", concurrency=SLOTS, limit=None)
    return peak_memory()


def kills(folder: Path) -> None:
    """Kill runs at random moments, until they have asked about everything."""
    write_work(folder, TEXTS)
    rng = random.Random(0)
    environment = os.environ | {"MBLM_TEACHER_CACHE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "teacher", "label", "--language", "de"]
    with serving(SECONDS) as (url, counted):
        configure(folder, url, revision="1", concurrency=SLOTS)
        n_kills = n_starts = 0
        while True:
            before = counted.value
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            stop = before + 9 + rng.randrange(SLOTS, TEXTS // KILLS) if n_kills < KILLS else sys.maxsize
            while process.poll() is None and counted.value < stop:
                time.sleep(0.001)
            n_starts += 1
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                n_kills += 1
            process.communicate()
            if process.returncode == 0:
                break
        again = counted.value - TEXTS - 1 - 8 * (n_starts - 1)
    heading(f"{n_kills} times SIGKILL, {SLOTS} requests at once, {TEXTS:,} texts")
    row("texts that were asked about again, for a kill", again / n_kills, at_most=SLOTS)


def configure(folder: Path, url: str, *, revision: str, concurrency: int) -> None:
    """Let params.yaml name the server, and pin it."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    params: dict[str, Any] = yaml.load(folder / "params.yaml")
    endpoint = {"url": url, "shape": "chat-logprobs", "model": "none", "template": "data/prompt.txt"}
    params["teachers"] = {"de": {"endpoint": endpoint | {"concurrency": concurrency}, "revision": revision}}
    (folder / "data/prompt.txt").write_text("{text}\n{classes}\n")
    yaml.dump(params, folder / "params.yaml")
    with chdir(folder):
        from pipeline.params import load_params
        from stages.artifacts import TEACHERS
        from stages.teacher.pin import pin_soft_labels

        pin_soft_labels(load_params(Path("params.yaml")).teachers["de"], TEACHERS / "de", key="teachers.de")


def ask(folder: Path, url: str, *, revision: str, concurrency: int, limit: int | None) -> Any:
    """Ask about texts of a folder; gives the tally."""
    configure(folder, url, revision=revision, concurrency=concurrency)
    with chdir(folder):
        import numpy as np

        from pipeline.params import load_params
        from stages.artifacts import TEACHERS
        from stages.teacher.endpoint.asking import fill_by_asking
        from stages.teacher.endpoint.label import known
        from stages.teacher.labelling.examples import Examples

        params = load_params(Path("params.yaml"))
        examples = Examples.read(params.task, "de")
        endpoint, store, _ = known(params.task, params.teachers["de"], "store", "de", TEACHERS / "de")
        some = examples if limit is None else examples.at(np.arange(limit))
        return fill_by_asking(endpoint, store, some, examples, format_="arrow", accept_change=False)[1]


ANSWER = json.dumps(
    {
        "model": "none",
        "choices": [
            {
                "message": {"content": "A"},
                "logprobs": {
                    "content": [
                        {
                            "token": "A",
                            "top_logprobs": [
                                {"token": chr(65 + index), "logprob": -0.7 * (index + 1)}
                                for index in range(20)
                            ],
                        }
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 1},
    }
).encode()


@contextmanager
def serving(seconds: float) -> Iterator[tuple[str, Any]]:
    """Run a server in a process of its own; gives its address, and the number of requests so far."""
    context = multiprocessing.get_context("spawn")
    port, counted = context.Value("i", 0), context.Value("i", 0)
    process = context.Process(target=serve, args=(seconds, port, counted), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port.value}/v1", counted
    process.kill()
    process.join()


def serve(seconds: float, port: Any, counted: Any) -> None:
    """Answer on loopback until the process ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                counted.value += 1
                async with slots:
                    await asyncio.sleep(seconds)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                    % (len(ANSWER), ANSWER)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    slots = asyncio.Semaphore(SLOTS)
    asyncio.run(run())


if __name__ == "__main__":
    main()
