"""The processes among which a training is shared out: torchrun starts them and tells each which one it is.

Light to import: no torch. Without torchrun there is one process, the first.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def n_processes() -> int:
    """Count the processes that share the training, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Tell which of them this one is, from 0. The first alone writes files, shows progress and prints."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def alone() -> Iterator[None]:
    """Let a training in this process know of no other one."""
    hidden = {name: os.environ.pop(name) for name in _NAMES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def wait_for(path: Path) -> None:
    """Wait for what the first process writes; where it fails, torchrun ends this one."""
    while not path.exists():
        time.sleep(0.2)
