"""A labelled million on a GPU, killed on the way and gone on with."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from labelling import write_split
from measure import heading, progress, row
from teacher_cache import write_work
from tiny import LABEL, tiny_params, write_params

from cache import Store
from pipeline.params import load_params
from stages.artifacts import TEACHERS
from stages.data.examples import SPLITS, columns_of, data_file
from stages.teacher.labelling.identity import producer_of

COMMAND = [sys.executable, "-m", "pipeline", *LABEL]


def main(pack: Path, *, tiny: bool) -> None:
    """Label, kill after a quarter of the shards, label the rest, and look at every soft label."""
    n, layers, hidden = (300, 1, 32) if tiny else (1_000_000, 6, 384)
    with TemporaryDirectory() as folder, chdir(folder):
        progress(f"preparing {n:,} texts")
        write_work(Path(), 1000, layers=layers, hidden=hidden)
        params = tiny_params()
        source = {"kind": "files", "pattern": "data/{language}/{split}.parquet", "label_field": "label"}
        params["task"] |= {"source": source, "supervised": ["de"], "zero_shot": []}
        params["teacher"]["label"] |= {
            "precision": "bfloat16",
            "max_tokens": 32,
            "batch_tokens": 512 if tiny else 65536,
            "shard_examples": n // 50,
        }
        write_params(params)
        loaded = load_params(Path("params.yaml"))
        for index, split in enumerate(SPLITS):
            size = n // 3 + (n % 3 if index == 0 else 0)
            write_split(data_file("de", split), columns_of(loaded.task), size, seed=index)
        store = Store(Path("store"), producer_of(TEACHERS / "de", loaded.task, loaded.teacher.label))
        os.environ["MBLM_TEACHER_CACHE"] = "store"
        heading(f"{n:,} texts, a teacher of {layers} layers of {hidden} in bfloat16, shards of {n // 50:,}")
        kill_at(store, n_shards=12)
        start = time.monotonic()
        done = subprocess.run(COMMAND, stderr=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - start
        kept, left = (
            int(number.replace(",", ""))
            for number in re.findall(r"([\d,]+) cached, ([\d,]+) to label", done.stderr)[0]
        )
        row("kept after kill -9", kept, "texts")
        row("labelled by the second run", left, "texts")
        row("its texts per second, from the start of Python to the soft-label set", left / seconds, "texts/s")
        ids = [id_ for _, found in store.read(store.shards()) for id_ in found.ids.to_pylist()]
        row("soft labels in the store", len(ids), at_least=n)
        row("examples with more than one", len(ids) - len(set(ids)), at_most=0)
        logits = np.concatenate([found.logits for _, found in store.read(store.shards())])
        row("soft labels that are no numbers", int((~np.isfinite(logits)).any(axis=1).sum()), at_most=0)


def kill_at(store: Store, *, n_shards: int) -> None:
    """Run stage one, and kill it once it has written so many shards."""
    process = subprocess.Popen(COMMAND)
    while process.poll() is None and len(store.shards()) < n_shards:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
