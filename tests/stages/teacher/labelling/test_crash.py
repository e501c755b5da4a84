"""Stage one against crashes: killed at any moment, or on a full disk, it keeps what it has stored."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from processes import Alone, fork, label_here, label_in, let_teacher_speak
from tiny import LABEL, ROOT
from warm import warm_python

from stages.artifacts import SOFT_LABELS

N_KILLS = 30


@pytest.fixture
def alone(finished: Path, tmp_path: Path) -> Alone:
    """What an uninterrupted run gave in the current folder."""
    let_teacher_speak()
    return Alone.run(tmp_path / "alone")


def require_that_it_goes_on(root: Path, alone: Alone) -> int:
    """Check what a killed run left, and that another one adds what is missing; tell how much was kept."""
    alone.require_same_set(Path())  # the old set or the new one
    kept = alone.ids_in(root)
    assert len(set(kept)) == len(kept)
    (SOFT_LABELS / "de/manifest.json").unlink()
    assert label_here(root).labelled == len(alone) - len(kept)
    alone.require_same_set(Path())
    assert sorted(alone.ids_in(root)) == sorted(alone.ids.to_pylist())
    return len(kept)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_is_gone_on_with(
    finished: Path, alone: Alone, tmp_path: Path
) -> None:
    seconds = []
    for i in range(5):
        start = time.monotonic()
        run = fork(label_in, finished, tmp_path / f"uninterrupted {i}")
        run.join()
        seconds.append(time.monotonic() - start)
        assert run.exitcode == 0
    kept = []
    for i, moment in enumerate(np.random.default_rng(0).uniform(0, min(seconds), N_KILLS)):
        run = fork(label_in, finished, tmp_path / f"{i}")
        time.sleep(moment)
        run.kill()
        run.join()
        assert run.exitcode in (-signal.SIGKILL, 0)
        kept.append(require_that_it_goes_on(tmp_path / f"{i}", alone))
    assert any(0 < n < len(alone) for n in kept)


def label_until_flushed(folder: Path, root: Path, n_flushes: int) -> None:
    """Run stage one until it asks the disk to keep something for the n-th time, and die just before."""
    flush = os.fsync
    n_asked = 0

    def flush_or_die(descriptor: int) -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked == n_flushes:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", flush_or_die)
    patch.setattr("secrets.randbelow", lambda _: 0)  # the last shard may be smaller than the others
    label_in(folder, root)


@pytest.mark.parametrize(
    ("n_flushes", "n_temporary", "n_kept"),
    [(1, 1, 0), (2, 0, 0), (3, 1, 0), (9, 1, 0), (10, 0, 2), (13, 1, 2)],
    ids=["producer.json", "its name", "last_use.json", "first shard", "its name", "second shard"],
)
def test_a_file_that_was_being_written_is_left_under_a_name_that_nothing_reads(
    finished: Path, alone: Alone, tmp_path: Path, n_flushes: int, n_temporary: int, n_kept: int
) -> None:
    # A file is flushed, then named, then its folder is flushed: producer.json, last_use.json, producer.json
    # again, to see that the store can be written to, and the shards, with last_use.json before each of them.
    run = fork(label_until_flushed, finished, tmp_path / "store", n_flushes)
    run.join()
    assert run.exitcode == -signal.SIGKILL
    left = list((tmp_path / "store").rglob("*.tmp"))
    assert len(left) == n_temporary
    for path in left:
        path.write_bytes(path.read_bytes()[:-1])  # as if it had not been written to its end
    assert require_that_it_goes_on(tmp_path / "store", alone) == n_kept


MOUNT = 'mount -t tmpfs -o size=32k none "$MBLM_TEACHER_CACHE"'
FILL = f"""
{MOUNT} && "$@" 2> full.txt
echo $?
cp -r "$MBLM_TEACHER_CACHE" kept
mount -o remount,size=1m "$MBLM_TEACHER_CACHE" && "$@" 2> again.txt
echo $?
"""


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what no other process sees."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_keeps_what_is_labelled(
    finished: Path, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "small disk"
    root.mkdir()
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(root))
    if shutil.which("unshare") is None or in_namespace(MOUNT).returncode != 0:
        pytest.skip("a small disk is mounted with Linux's unshare, which is not allowed here")
    done = in_namespace(FILL, warm_python(), "-m", "pipeline", *LABEL)
    assert done.stdout.splitlines()[0] == "1", done.stderr
    full = (finished / "full.txt").read_text()
    kept = alone.ids_in(finished / "kept")
    assert 0 < len(kept) < len(alone)
    assert f"stopped; {len(kept)} of {len(alone)} soft labels are kept" in full
    assert full.splitlines()[-1].startswith(f"error: [Errno 28] No space left on device: '{root}/")
    assert full.count("error:") == 1
    assert "Traceback" not in full
    assert not list((finished / "kept").rglob("*.tmp"))
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    again = (finished / "again.txt").read_text()
    assert f"{len(kept)} cached, {len(alone) - len(kept)} to label" in again
    alone.require_same_set(finished)
