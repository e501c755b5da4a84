"""Stage one on a Ray cluster of two nodes on this machine, of which actors and a node are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import Alone, let_teacher_speak
from tiny import CLASSES, LABEL, ROOT, Run, set_bias, tiny_params, write_jsonl, write_params
from warm import warm_python

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and processes of Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
from stages.teacher.labelling.on_ray import cpus_of_actor  # noqa: E402

cluster_utils = pytest.importorskip("ray.cluster_utils")


class TwoNodes:
    """A cluster: the node that the driver is on, which has no room for an actor, and two others."""

    def __init__(self) -> None:
        quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}  # to miss a node
        head = {"num_cpus": 0, "_system_config": quick}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(2)]
        self.address: str = self._cluster.address

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, num_gpus=1)  # Ray believes what it is told

    def restore(self) -> None:
        """Replace nodes that were killed."""
        for index, node in enumerate(self.nodes):
            if not node.any_processes_alive():
                self.nodes[index] = self._add()
        self._cluster.wait_for_nodes()

    def kill_node(self) -> None:
        self._cluster.remove_node(self.nodes[1], allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python())  # which Ray starts its workers with
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # of which Ray believes only what is there
        two = TwoNodes()
        yield two
        two.stop()


@pytest.fixture(autouse=True)
def _whole(cluster: TwoNodes) -> None:
    cluster.restore()


@pytest.mark.parametrize(
    ("cpus", "gpus", "n_actors", "each"),
    [
        ([8], [0], 8, 1),
        ([8, 4], [0, 0], 3, 4),
        ([64, 8], [0, 1], 1, 8),  # the actor is where the GPU is
        ([64, 8], [0, 2], 2, 4),
        ([8, 8], [1, 1], 4, 4),  # two on each GPU
        ([2], [0], 3, 0),
    ],
)
def test_actors_have_as_many_cpus_as_leave_room_for_all(
    cpus: list[int], gpus: list[int], n_actors: int, each: int
) -> None:
    assert cpus_of_actor(cpus, gpus, n_actors=n_actors) == each


N_TEXTS = 800


@pytest.fixture
def many(finished: Path, run: Run) -> Alone:
    """A folder with examples enough to kill something meanwhile, and what one process makes of them."""
    let_teacher_speak()
    rows = [{"text": f"Hund {i} rot {i % 7} eins", "label": CLASSES[i % 3]} for i in range(N_TEXTS)]
    write_jsonl(finished / "data/de/train.jsonl", rows)
    assert run("prepare").code == 0
    params = tiny_params()
    params["teacher"]["label"] |= {"batch_tokens": 8}  # one by one
    write_params(params)
    alone = Alone.run(finished / "alone")
    (SOFT_LABELS / "de/manifest.json").unlink()
    return alone


def start(
    address: str, root: Path | str, *options: str, program: Sequence[str] = ("-m", "pipeline")
) -> subprocess.Popen[str]:
    command = [warm_python(), *program, *LABEL, "--engine", "ray", "--address", address, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MBLM_TEACHER_CACHE": str(root)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_a_shard(root: Path, process: subprocess.Popen[str]) -> None:
    while not list(root.glob("*/*.arrow")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)


def kill_an_actor() -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::MapWorker"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                return
    raise AssertionError("there is no actor")


@pytest.mark.parametrize("lost", ["an actor", "a node"])
def test_what_is_killed_costs_only_what_it_had_in_its_hands(
    cluster: TwoNodes, many: Alone, tmp_path: Path, lost: str
) -> None:
    root = tmp_path / "store"
    process = start(cluster.address, root)
    wait_for_a_shard(root, process)
    if lost == "an actor":
        kill_an_actor()
    else:
        cluster.kill_node()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    total = len(many)
    assert f"{total:,} soft labels" in out
    assert "de: 2 actors share the work" in err
    in_store = many.ids_in(root)
    assert set(in_store) == set(many.ids.to_pylist())
    assert len(in_store) - total <= total // 8 + 1  # at most the block that was in its hands
    many.require_same_set(Path())


def test_actors_that_write_to_stores_of_their_own_are_an_error_in_one_line(
    cluster: TwoNodes, finished: Path
) -> None:
    process = start(cluster.address, "memory://of-each-process", "--actors", "1")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "but not all of them are in memory://of-each-process" in err.splitlines()[-1]
    assert "one place for all nodes" in err.splitlines()[-1]


WITH_THREADS = """
import runpy, threading, ray

def shutdown(end=ray.shutdown):
    print("threads:", *(thread.name for thread in threading.enumerate()))
    end()

ray.shutdown = shutdown
runpy.run_module("pipeline", run_name="__main__")
"""


def test_nan_is_said_in_one_line_and_no_thread_asks_a_ray_that_is_gone(
    cluster: TwoNodes, finished: Path
) -> None:
    set_bias(Path("artifacts/teachers/de"), [float("nan"), 0.0, 0.0])
    process = start(cluster.address, finished / "new", "--actors", "1", program=("-c", WITH_THREADS))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "error: the teacher in artifacts/teachers/de gives NaN or infinite logits" in err, err
    assert "Traceback" not in err
    assert "threads: MainThread" in out
    assert "iter_threaded" not in out
    assert "StreamingExecutor" not in out


def test_actors_measure_what_top_k_changes(cluster: TwoNodes, finished: Path) -> None:
    process = start(cluster.address, finished / "new", "--actors", "1", "--set", "teacher.label.top_k=1")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    assert "asking the teacher" not in err
    change = SoftLabelSet.read(SOFT_LABELS / "de", language="de").top_k_change
    assert change is not None
    assert change.examples == 57


def test_a_cluster_that_is_not_there_or_too_small(cluster: TwoNodes, finished: Path) -> None:
    for address, options, message in (
        ("127.0.0.1:1", (), "error: no Ray cluster at 127.0.0.1:1: "),
        (cluster.address, ("--actors", "50"), "error: --actors 50: the cluster at "),
    ):
        process = start(address, finished / "store", *options)
        _, err = process.communicate(timeout=180)
        assert process.returncode == 1
        assert message in err
