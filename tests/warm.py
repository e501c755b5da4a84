"""`python` without the seconds that imports take: a process that has done them forks.

Tests start the pipeline, DVC and torchrun in processes of their own some hundred times. Where what a process
imports is not the point, they put `warm_python()` in the place of ``python``. It is a script that asks a
server to run the same module, script or code in the caller's folder and environment and with its files, and
that passes signals on, SIGUSR1 as SIGKILL; beside it lies a ``dvc`` that does the same. Nothing of ours is
imported before the fork: the code is that of the folder that the command runs in. Other modules go to the
real Python.
"""

import array
import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import site
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

MODULES = ("pipeline", "dvc", "torch.distributed.run")
"""What the server runs after ``-m``."""

LIBRARIES = (
    *("babel", "dvc.cli.parser", "dvc.data_cloud", "dvc.repo.reproduce", "dvc.stage.run", "fsspec", "jinja2"),
    *("matplotlib.figure", "numpy", "pandas", "pyarrow.compute", "pyarrow.csv", "pyarrow.json"),
    *("pyarrow.parquet", "pydantic.functional_validators", "pydantic.main", "rich.table", "ruamel.yaml"),
    *("safetensors.torch", "scipy.optimize", "scipy.stats", "scmrepo.git", "sklearn.metrics", "tabulate"),
    *("torch", "torch._dynamo", "torch.distributed.tensor", "tqdm", "typer", "zarr"),
)
KNOW_THE_HUB = (
    *("accelerate", "datasets", "peft", "tokenizers", "transformers", "transformers.trainer"),
    "transformers.models.modernbert.modeling_modernbert",
    "transformers.models.roberta.modeling_roberta",
)
"""Those that read at import where the Hub is and what is kept of it."""

CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys
arguments = [*{before!r}, *sys.argv[1:]]
if arguments[:1] == ["-u"]:  # as torchrun starts Python: nothing is buffered for long here
    del arguments[0]
kind, what = [*arguments, "", ""][:2]
if kind != "-c" and not kind.endswith(".py") and (kind != "-m" or what not in {modules!r}):
    os.execv({python!r}, [{python!r}, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
files = array.array("i", [0, 1, 2]).tobytes()
server.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
server.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
code = int.from_bytes(server.recv(4), "big", signed=True)
if code < 0:  # as a process that a signal ended
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@cache
def warm_python(*, with_hub: bool = False) -> str:
    """Start a server, once for all processes that run tests, and give the script to start in place of Python.

    Args:
        with_hub: Whether each process is to read its environment for what concerns the Hub; it is offline
            otherwise.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    folder = Path(tempfile.gettempdir()) / f"warm-{run}{'-hub' * with_hub}"
    make_once(folder, partial(start, with_hub=with_hub))
    return str(folder / "python")


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Let the first of several processes make a folder and what is in it, while the others wait."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir(mode=0o700)
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise


def start(folder: Path, *, with_hub: bool) -> None:
    """Start a server in a folder, and write there the scripts that ask it."""
    address = folder / "socket"
    client = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    settings = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    settings |= {} if with_hub else {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface")}
    command = [sys.executable, __file__, str(address), str(client), *(() if with_hub else KNOW_THE_HUB)]
    server = os.posix_spawn(sys.executable, command, os.environ | settings, setsid=True)
    while not address.exists():
        assert os.waitpid(server, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    for name, before in (("dvc", ["-m", "dvc"]), ("python", [])):
        script = folder / name
        values = {"python": sys.executable, "socket": str(address), "before": before, "modules": MODULES}
        script.write_text(CLIENT.format(**values))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)


def serve(address: str, client: str, *more: str) -> tuple[list[str], str, dict[str, str]]:
    """Import the libraries and fork for each request; returns in the process that is to run one.

    The server ends with the process whose tests it serves.
    """
    for library in (*LIBRARIES, *more):
        importlib.import_module(library)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # noqa: PTH104 - a socket is no file to pathlib
    while True:
        if not select.select([listener], [], [], 1)[0]:
            try:
                os.kill(int(client), 0)
            except ProcessLookupError:
                shutil.rmtree(Path(address).parent)
                Path(f"{Path(address).parent}.lock").unlink()
                os._exit(0)
            continue
        connection, _ = listener.accept()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose processes are nobody's to wait for
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        size, files = receive(connection)
        request: tuple[list[str], str, dict[str, str]] = json.loads(connection.recv(size, socket.MSG_WAITALL))
        process = os.fork()
        if process:
            watch(process, connection)
        connection.close()
        os.setpgrp()  # Ray kills the groups of its workers
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return request


def receive(connection: socket.socket) -> tuple[int, list[int]]:
    """Take the size of a request, and the caller's files."""
    data, told, _, _ = connection.recvmsg(4, socket.CMSG_LEN(3 * 4))
    files = array.array("i")
    for _, _, values in told:
        files.frombytes(values)
    return int.from_bytes(data, "big"), list(files)


def watch(process: int, connection: socket.socket) -> None:
    """Pass signals on to a process, tell how it ended, and end with it; it does not outlive the caller."""
    while True:
        if select.select([connection], [], [], 0.01)[0]:
            told = connection.recv(1) or [signal.SIGKILL]
            os.kill(process, signal.SIGKILL if told[0] == signal.SIGUSR1 else told[0])
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            try:
                connection.send(code.to_bytes(4, "big", signed=True))
            finally:
                os._exit(0)


def run(arguments: list[str], folder: str, environment: dict[str, Any]) -> None:
    """Be the process that was asked for; those that it starts in its turn are forked, too."""
    sys.executable = str(Path(sys.argv[1]).with_name("python"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("WITHOUT_NETWORK"):
        leave_the_network()
    ours = str(Path(__file__).parent)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [folder, *paths, *(path for path in sys.path if path != ours)]
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv = [sys.executable, *arguments]
    site.execsitecustomize()
    kind, *rest = arguments
    what = rest.pop(0) if kind in ("-c", "-m") else kind
    sys.argv = [kind, *rest]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(what).parent)
        runpy.run_path(what, run_name="__main__")


def leave_the_network() -> None:
    """Move to a new network namespace, which has no interface but a loopback that is down."""
    user, group = os.getuid(), os.getgid()
    new_user, new_network = 0x10000000, 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_user | new_network):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def end_with(ending: BaseException | None) -> None:
    """End as Python does, but for taking the libraries apart, which takes a second."""
    code = 0
    if isinstance(ending, SystemExit):
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    elif ending is not None:
        traceback.print_exception(ending)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    request = serve(*sys.argv[1:])
    try:
        run(*request)
    except BaseException as error:
        end_with(error)
    end_with(None)
