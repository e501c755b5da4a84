"""How stage one runs: one language here or on a Ray cluster, a part of it, or several languages at once."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Self

import typer

from cache import store_root
from pipeline.options import Engine
from pipeline.params import PipelineParams
from stages.errors import StageError
from stages.teacher.endpoint.label import try_out
from stages.teacher.label import label, label_part
from stages.teacher.labelling.examples import Part


@dataclass(frozen=True)
class Options:
    """Options of `teacher label`, as they were given.

    Raises:
        StageError: Two of them do not go together.
    """

    language: str
    jobs: int
    part: str | None
    engine: Engine
    address: str | None
    actors: int | None
    limit: int | None = None
    accept_change: bool = False

    def __post_init__(self) -> None:
        if self.part is not None:
            Part.parse(self.part)
        if self.jobs > 1 and self.language != "all":
            raise StageError("--jobs is for several languages at once: give --language all with it")
        if self.engine is Engine.RAY and self.part:
            raise StageError(
                "--part is for machines that know nothing of each other; --engine ray shares the work itself"
            )
        if self.limit is not None and (self.language == "all" or self.part or self.engine is Engine.RAY):
            raise StageError("--limit is a first try with one language; give it without all, --part and Ray")
        if self.engine is not Engine.RAY and (self.address or self.actors):
            raise StageError("--address and --actors are for Ray: give --engine ray with them")

    def arguments(self) -> Iterator[str]:
        """Give those that decide how one language is labelled, for another process."""
        for name, value in (("part", self.part), ("address", self.address), ("actors", self.actors)):
            if value is not None:
                yield f"--{name}={value}"
        yield f"--engine={self.engine}"
        if self.accept_change:
            yield "--accept-change"


def label_one(params: PipelineParams, options: Options) -> str:
    """Label one language in this process.

    Returns:
        One line that says what was done.

    Raises:
        StageError: See `stages.teacher.label.label`.
        CacheError: See `stages.teacher.label.label`.
    """
    language = options.language
    sections = params.task, params.teacher_of(language), params.teacher.label
    root = store_root(params.cache.root)
    accept = options.accept_change
    if options.limit is not None:
        return try_out(*sections, root, language, limit=options.limit, accept_change=accept)
    if options.part is not None:
        return label_part(*sections, root, language, Part.parse(options.part), accept_change=accept).line()
    if options.engine is Engine.RAY:
        from stages.teacher.labelling.on_ray import OnRay  # an optional dependency

        with OnRay(address=options.address, n_actors=options.actors) as engine:
            return label(*sections, root, language, engine=engine.fill, accept_change=accept).line()
    return label(*sections, root, language, accept_change=accept).line()


def label_all(params: PipelineParams, options: Options, more: Sequence[str]) -> None:
    """Label all supervised languages, each in a process of its own, and print a line for each.

    Cores are shared out among the processes that run at once; each has a GPU of its own if there are enough.

    Args:
        params: The parameters.
        options: How.
        more: Further arguments of each process: those that made `params`.

    Raises:
        StageError: Some languages could not be labelled; the others were.
    """
    languages = params.task.supervised
    n_jobs = min(options.jobs, len(languages))
    shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in range(n_jobs):
        shares.put(_share_of_machine(place, n_jobs))
    together = _Together()

    def run(language: str) -> tuple[int, str]:
        share = shares.get()
        command = [sys.executable, "-m", "pipeline", "teacher", "label", f"--language={language}"]
        try:
            return together.run([*command, *options.arguments(), *more], os.environ | share)
        finally:
            shares.put(share)

    failed = []
    with ThreadPoolExecutor(n_jobs) as pool, together:
        work = {pool.submit(run, language): language for language in languages}
        for done in as_completed(work):
            code, out = done.result()
            if code:
                failed.append(work[done])
            else:
                typer.echo(out.strip())
    if failed:
        raise StageError(f"not labelled: {', '.join(sorted(failed))}; the reason stands above")


class _Together:
    """Processes that stop when this one is stopped: each once, so that it keeps what it has computed."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run a command to its end, unless all have been stopped; gives its exit code and its output."""
        with self._lock:
            if self._stopped:
                return 1, ""
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )
            self._running.add(process)
        out, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        return process.returncode, out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, reason: type[BaseException] | None, *_: object) -> None:
        if reason is not None:
            with self._lock:
                self._stopped = True
                for process in self._running:
                    process.terminate()  # not SIGINT, which what a shell starts in the background ignores


def _share_of_machine(place: int, n_jobs: int) -> dict[str, str]:
    """Give the environment of one of several processes: its threads, its GPU, its line for a bar."""
    import torch  # slow import

    threads = str(max(1, torch.get_num_threads() // n_jobs))
    share = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "TQDM_POSITION": str(place)}
    n_gpus = torch.cuda.device_count()
    if n_gpus:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(index) for index in range(n_gpus)]
        share["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return share
