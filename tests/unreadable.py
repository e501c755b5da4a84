"""Files that cannot be read, whoever runs the tests: root may read files of any mode."""

import os
import subprocess
from pathlib import Path

import pytest
from tiny import ROOT
from warm import warm_python

needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has such a file")

# Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH modes hold for root, too.
_DROP = """
import ctypes, runpy
libc = ctypes.CDLL(None)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
capabilities = (ctypes.c_uint32 * 6)()
assert libc.capget(header, capabilities) == 0
for kind in range(3):
    capabilities[kind] &= ~0b110
assert libc.capset(header, capabilities) == 0
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
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
        [warm_python(), "-c", _DROP, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
