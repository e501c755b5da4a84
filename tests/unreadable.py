"""Files that cannot be read, whoever runs the tests: root may read files of any mode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has such a file")

# PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: from then on modes hold for root, too.
_DROP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
dropped = [libc.prctl(24, capability, 0, 0, 0) for capability in (1, 2)]
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def fail_to_read(path: Path) -> bytes:
    """Let the disk fail at each read of a file; gives what was in it.

    The first bytes of a process's memory are at no address: the file is there and opens, and a read is EIO.
    """
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")
    return content


def pipeline_where_modes_hold(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the pipeline as somebody who may not read what its owner has closed."""
    return subprocess.run(
        [sys.executable, "-c", _DROP, "-m", "pipeline", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
