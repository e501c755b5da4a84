"""`python` without the seconds that imports take: a process that has done them forks.

Tests start the pipeline, DVC and torchrun in processes of their own some hundred times. Where what a process
imports is not the point, they put `warm_python()` in the place of ``python``. It is a script that asks a
server to run the same module, script or code in the caller's folder, environment and namespaces, with its
files, and that passes signals on, SIGUSR1 as SIGKILL; beside it lies a ``dvc`` that does the same. Nothing of
ours is imported before the fork: the code is that of the folder that the command runs in. Other modules go to
the real Python.
"""

import array
import atexit
import ctypes
import fcntl
import gc
import importlib
import marshal
import os
import runpy
import select
import shutil
import signal
import site
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

MODULES = ("pipeline", "dvc", "torch.distributed.run")
"""What the server runs after ``-m``."""

LIBRARIES = (
    *("babel", "dvc.cli.parser", "dvc.data_cloud", "dvc.lock", "dvc.repo.datasets", "dvc.repo.plots"),
    *("dvc.repo.experiments.queue.celery", "dvc.repo.reproduce", "dvc.rwlock", "dvc.stage.run", "fsspec"),
    *("jinja2", "matplotlib.backends.backend_svg", "matplotlib.figure", "networkx", "numpy", "pandas"),
    *("platformdirs.unix", "pyarrow.compute", "pyarrow.csv", "pyarrow.json", "pyarrow.parquet"),
    *("pydantic.functional_validators", "pydantic.main", "pydantic.types", "rich.table", "ruamel.yaml"),
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
import array, marshal, os, _signal, _socket, sys  # each start counts: nothing is imported that is not in C
arguments = [*{before!r}, *sys.argv[1:]]
while arguments[:1] in (["-u"], ["-B"]):  # as torchrun and multiprocessing start Python
    del arguments[0]
kind, what = [*arguments, "", ""][:2]
if kind != "-c" and not kind.endswith(".py") and (kind != "-m" or what not in {modules!r}):
    os.execv({python!r}, [{python!r}, *arguments])
server = _socket.socket(_socket.AF_UNIX)
server.connect({socket!r})
files = []
for file in map(int, os.listdir("/proc/self/fd")):
    try:
        files += [file] * os.get_inheritable(file)
    except OSError:  # that of the list itself
        pass
request = marshal.dumps([arguments, os.getcwd(), dict(os.environ), files])
sent = array.array("i", files).tobytes()
server.sendmsg([len(request).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, sent)])
server.sendall(request)
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGUSR1):
    _signal.signal(number, lambda number, _: server.send(bytes([number])))
code = int.from_bytes(server.recv(4), "big", signed=True)
if code < 0:  # as a process that a signal ended
    if code != -_signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
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
    settings["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # fewer pages: a fork takes half the time
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


class Request(NamedTuple):
    """A process that is asked for.

    Attributes:
        caller: The id of the process that asks.
        arguments: Those of Python.
        folder: Where it runs.
        environment: Its variables.
        files: The caller's open files; for each of its numbers the number here.
    """

    caller: int
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    files: dict[int, int]


def serve(address: str, client: str, *more: str) -> Request:
    """Import the libraries and fork for each request; returns in the process that is to run one.

    Signals are passed on, and a process does not outlive its caller. The server ends with the process whose
    tests it serves.
    """
    for library in (*LIBRARIES, *more):
        importlib.import_module(library)
    quicken_locks()
    gc.freeze()
    gc.unfreeze = lambda: None  # which a training ends with: to look through it all takes half a second
    gc.set_threshold(100_000)  # a process lives for seconds, and would look for garbage a fifteenth of them
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False  # nobody takes the libraries apart
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # noqa: PTH104 - a socket is no file to pathlib
    ended, told_of_end = socket.socketpair()
    told_of_end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told_of_end.fileno(), warn_on_full_buffer=False)
    running: dict[socket.socket, int] = {}
    while True:
        ready = select.select([listener, ended, *running], [], [], 1)[0]
        if not ready:
            end_with_client(int(client), Path(address).parent)
        if ended in ready:
            ended.recv(4096)
            tell_of_ends(running)
        for connection in running.keys() & set(ready):
            told = connection.recv(1) or [signal.SIGKILL]
            os.kill(running[connection], signal.SIGKILL if told[0] == signal.SIGUSR1 else told[0])
        if listener in ready:
            connection, _ = listener.accept()
            request = receive(connection)
            process = os.fork()
            if not process:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                close(listener, ended, told_of_end, connection, *running)
                return request
            running[connection] = process
            close(*request.files.values())


def quicken_locks() -> None:
    """Let DVC write dvc.lock with libyaml: its own way keeps comments, and takes a second per stage."""
    import yaml  # type: ignore[import-untyped]
    from dvc.utils.serialize import _yaml
    from ruamel.yaml.comments import CommentedMap

    def parse(text: str, path: str) -> Any:
        is_lock = Path(path).name == "dvc.lock"
        return yaml.load(text, yaml.CSafeLoader) or {} if is_lock else keep_comments(text, path)

    def dump(data: Any, stream: Any) -> None:
        if isinstance(data, CommentedMap):
            dump_comments(data, stream)
        else:
            yaml.dump(data, stream, yaml.CSafeDumper, sort_keys=False)

    yaml.CSafeDumper.add_representer(OrderedDict, yaml.CSafeDumper.represent_dict)
    keep_comments, dump_comments = _yaml.parse_yaml_for_update, _yaml._dump
    _yaml.parse_yaml_for_update, _yaml._dump = parse, dump


def close(*files: socket.socket | int) -> None:
    """Close files, which are sockets or numbers."""
    for file in files:
        if isinstance(file, int):
            os.close(file)
        else:
            file.close()


def end_with_client(client: int, folder: Path) -> None:
    """End, and leave nothing behind, if a process is no longer there."""
    try:
        os.kill(client, 0)
    except ProcessLookupError:
        shutil.rmtree(folder)
        Path(f"{folder}.lock").unlink()
        os._exit(0)


def tell_of_ends(running: dict[socket.socket, int]) -> None:
    """Tell the callers of processes that have ended how they did."""
    for connection, process in list(running.items()):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            with suppress(OSError):  # the caller may be gone
                connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
            connection.close()
            del running[connection]


def receive(connection: socket.socket) -> Request:
    """Take a request, and the caller's files."""
    size, told, _, _ = connection.recvmsg(4, socket.CMSG_LEN(4 * 253))
    files = array.array("i")
    for _, _, values in told:
        files.frombytes(values)
    data = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    arguments, folder, environment, numbers = marshal.loads(data)
    caller = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return Request(caller, arguments, folder, environment, dict(zip(numbers, files, strict=True)))


def run(request: Request) -> None:
    """Be the process that was asked for; those that it starts in its turn are forked, too."""
    os.setpgrp()  # Ray kills the groups of its workers
    take(request.files)
    enter_namespaces(request.caller)
    sys.executable = str(Path(sys.argv[1]).with_name("python"))
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    environment, arguments = request.environment, request.arguments
    ours = str(Path(__file__).parent)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request.folder, *paths, *(path for path in sys.path if path != ours)]
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv = [sys.executable, *arguments]
    sys.modules.pop("sitecustomize", None)  # Debian's Python brings one, which the server has run
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


def take(files: dict[int, int]) -> None:
    """Have files under the numbers that they have in the caller."""
    above = max([*files, *files.values()]) + 1
    apart = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for number, file in files.items()}
    close(*files.values())
    for number, file in apart.items():
        os.dup2(file, number)
        os.close(file)


def enter_namespaces(caller: int) -> None:
    """Enter those of Linux's namespaces of a process that are not ours: its mounts, its network."""
    flags = {"user": 0x10000000, "mnt": 0x20000, "net": 0x40000000}
    theirs, ours = Path(f"/proc/{caller}/ns"), Path("/proc/self/ns")
    kinds = [kind for kind in flags if not (theirs / kind).samefile(ours / kind)]
    flag = sum(flags[kind] for kind in kinds)
    if kinds and ctypes.CDLL(None, use_errno=True).setns(os.pidfd_open(caller), flag):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespaces {kinds} of process {caller}")


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
        run(request)
    except BaseException as error:
        end_with(error)
    end_with(None)
