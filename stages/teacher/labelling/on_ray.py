"""The labelling loop on Ray Data: actors hold the teacher, and each writes its own shards to the store."""

import json
import logging
import os
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache import CacheError, Lookup, Producer, Store, TopKChange
from stages.artifacts import ARTIFACTS
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.pins import model_files
from stages.progress import say
from stages.teacher.labelling.examples import Examples
from stages.teacher.labelling.inference import Answers, Teacher
from stages.teacher.labelling.loop import (
    Progress,
    append,
    load_teacher,
    measuring,
    sample_top_k,
    shards_to_label,
    share_to_measure,
    told,
)
from stages.teacher.params import LabelParams

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

try:
    import ray
    import ray.data
except ImportError:
    raise StageError(
        "--engine ray needs Ray; install it with: pip install -c constraints.txt -e '.[ray]'"
    ) from None

_BLOCKS_PER_ACTOR = 4
"""At least, so that actors finish at about the same time and a lost one had little in its hands."""

_CODE = [Path(__file__).parents[2], Path(__file__).parents[3] / "cache"]
"""The packages that an actor on another machine needs."""

_THREADS = ("iter_threaded", "StreamingExecutor-", "ray-data-metadata-prefetch")
"""How names of Ray Data's threads begin that ask Ray on for a while after an iteration is closed."""


class OnRay:
    """A connection to a Ray cluster, or a Ray of its own on this machine.

    Nodes need this project's dependencies and must reach the store. Code, teacher and texts are sent to them:
    all texts that are to be labelled go into Ray's object store, which moves to disk what does not fit into
    memory.
    """

    def __init__(self, *, address: str | None, n_actors: int | None) -> None:
        """Connect.

        Args:
            address: Of the cluster's head, or None for RAY_ADDRESS, or else a Ray that ends with this.
            n_actors: Teachers at once; None for one per GPU of the cluster, or per CPU where it has none.

        Raises:
            StageError: There is no such cluster, or it is too small.
        """
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            if ":" in address:  # Ray itself would wait for minutes
                host, _, port = address.rpartition("/")[2].rpartition(":")
                if not port.isdigit():
                    raise ValueError("write it as host:port")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"py_modules": [str(package) for package in _CODE]},
                include_dashboard=False if address == "local" else None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise StageError(f"no Ray cluster at {address}: {error}") from error
        self._n_gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        self._n_actors = n_actors or self._n_gpus or sum(cpus)
        self._n_cpus = cpus_of_actor(
            cpus, [int(node.get("GPU", 0)) for node in nodes], n_actors=self._n_actors
        )
        if not self._n_cpus:
            ray.shutdown()
            raise StageError(f"--actors {self._n_actors}: the cluster at {address} has {sum(cpus)} CPUs")

    def fill(self, params: LabelParams, store: Store, folder: Path, examples: Examples) -> tuple[Lookup, int]:
        """Let a store have the soft labels of all examples, as `stages.teacher.labelling.loop.fill` does.

        Raises:
            StageError: See there; or an actor failed, or wrote to another place than this machine reads.
        """
        lookup = store.look_up(examples.ids, overflow=ARTIFACTS)
        with told(store, lookup, examples):
            n_labelled = (
                0 if lookup.found.all() else self._label_misses(params, store, lookup, folder, examples)
            )
            n_missing = int(np.count_nonzero(~lookup.found))
            if n_missing:
                raise StageError(
                    f"the actors have written {n_labelled:,} soft labels, but not all of them are in "
                    f"{store.folder} on this machine: {n_missing:,} of {len(examples):,} are missing; "
                    "cache.root must be one place for all nodes: a shared folder or a URL"
                )
        return lookup, n_labelled

    def _label_misses(
        self, params: LabelParams, store: Store, lookup: Lookup, folder: Path, examples: Examples
    ) -> int:
        store.create()
        misses = np.flatnonzero(~lookup.found)
        at_most = min(params.shard_examples, -(-len(misses) // (_BLOCKS_PER_ACTOR * self._n_actors)))
        shards = shards_to_label(examples, misses, at_most=at_most)
        say(f"{examples.language}: {self._n_actors} actors share the work")
        n_bytes = sum(one.n_bytes for one in shards)
        with (
            measuring(store) as changes,
            Progress(examples.language, n_bytes, max_tokens=params.max_tokens) as progress,
        ):
            blocks = [ray.put(_block(examples, shard.positions)) for shard in shards]
            files = {path.name: ray.put(path.read_bytes()) for path in model_files(folder)}
            try:
                place = _place(store.root)
                share = share_to_measure(len(misses))
                teacher = (str(folder), files, params, examples.task, store.producer.facts, place, share)
                with closing(self._labelled(blocks, teacher, batch_size=at_most)) as rows:
                    for done in rows:
                        if done["error"]:
                            raise StageError(done["error"])
                        progress.begin(done["bytes"], done["tokens"], n_cut=done["cut"])
                        progress.add(done["examples"], done["tokens"], done["cells"])
                        change = TopKChange.decode(json.loads(done["top_k_change"]))
                        changes += [change] if change else []
            finally:  # whatever ended it, the actors' shards are there
                store.update(lookup)
        return progress.n_examples

    def _labelled(
        self, blocks: list[Any], teacher: tuple[Any, ...], *, batch_size: int
    ) -> Generator[dict[str, Any]]:
        """Send blocks of examples through actors; gives what `_Labeller` says of each when it is done."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        labelled = ray.data.from_arrow_refs(blocks).map_batches(
            _Labeller,
            fn_constructor_args=teacher,
            batch_size=batch_size,  # a block as it is; with GPUs Ray wants a number
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._n_actors),
            num_cpus=self._n_cpus,
            num_gpus=1 / -(-self._n_actors // self._n_gpus) if self._n_gpus else 0,
        )
        yield from labelled.iter_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that asks a Ray that is gone ends the process, before it has said what went wrong.
        for thread in threading.enumerate():
            if thread.name.startswith(_THREADS):
                thread.join(timeout=10)
        ray.shutdown()


def cpus_of_actor(cpus: Sequence[int], gpus: Sequence[int], *, n_actors: int) -> int:
    """Give as many CPUs to each actor as leave room for all, none of which can be on two nodes; 0: too few.

    Args:
        cpus: Of each node.
        gpus: Likewise. Where there are any, actors are on the nodes that have one, equally many on each GPU.
        n_actors: How many there are to be.
    """
    on_each = -(-n_actors // sum(gpus)) if sum(gpus) else n_actors
    most = [gpu * on_each for gpu in gpus] if sum(gpus) else [n_actors] * len(cpus)
    for n in range(max(cpus), 0, -1):
        if sum(min(cpu // n, limit) for cpu, limit in zip(cpus, most, strict=True)) >= n_actors:
            return n
    return 0


class _Labeller:
    """An actor: a teacher that labels one block of examples after the other.

    What goes wrong is no exception, which would reach the user in several wrappings, but part of the result.
    """

    def __init__(
        self,
        folder: str,
        files: dict[str, Any],
        params: LabelParams,
        task: TaskParams,
        facts: dict[str, Any],
        root: str,
        share: float,
    ) -> None:
        self._folder, self._files = folder, files
        self._params, self._task = params, task
        self._store = Store(root, Producer(facts))
        self._share = share
        self._copy = TemporaryDirectory()
        self._teacher: Teacher | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Label a block and write it to the store; gives one row that says what was done."""
        done: dict[str, Any] = dict.fromkeys(("examples", "bytes", "tokens", "cells", "cut"), 0)
        done["top_k_change"] = "null"
        error = ""
        try:
            if self._teacher is None:
                self._teacher = self._load()
            self._label(self._teacher, block, done)
        except (CacheError, OSError, StageError) as reason:
            here = ray.util.get_node_ip_address()
            error = f"{str(reason).replace(self._copy.name, self._folder)} (on {here})"
        return pa.table({name: [value] for name, value in {**done, "error": error}.items()})

    def _load(self) -> Teacher:
        for name, content in self._files.items():
            Path(self._copy.name, name).write_bytes(ray.get(content))
        return load_teacher(Path(self._copy.name), self._params, self._task, self._store.producer)

    def _label(self, teacher: Teacher, block: pa.Table, done: dict[str, Any]) -> None:
        fields = [block[field].to_pylist() for field in self._task.text_fields]
        done["bytes"] = sum(len(text.encode()) for texts in fields for text in texts)
        answers: list[Answers] = []
        try:
            tokens = teacher.tokenize(fields)
            done["cut"] = tokens.n_cut
            for batch in teacher.answer(tokens):
                answers.append(batch)
                done["tokens"] += batch.tokens
                done["cells"] += batch.cells
        finally:  # an error loses nothing that is computed
            if answers:
                ids = block["example_id"].combine_chunks()
                written = append(ids, answers, self._store, self._params)
                done["examples"] = sum(map(len, written.values()))
                change = sample_top_k(ids, answers, self._store.producer.outputs, share=self._share)
                done["top_k_change"] = json.dumps(change and change.encode())


def _block(examples: Examples, positions: NDArray[np.int64]) -> pa.Table:
    """Read the ids and texts of some examples."""
    columns = dict(zip(examples.task.text_fields, examples.texts(positions), strict=True))
    return pa.table({"example_id": examples.ids.take(pa.array(positions)), **columns})


def _place(root: str) -> str:
    """Give a store's name for processes that run in other folders."""
    return root if "://" in root else str(Path(root).absolute())
