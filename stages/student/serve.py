"""Serve an exported student over HTTP: onnxruntime alone, no torch. The addresses are in `serving/app.py`."""

import errno
import signal
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from stages.errors import StageError

_PACKAGES = ("fastapi", "onnxruntime", "prometheus_client", "tokenizers", "uvicorn")
_BACKLOG = 2048
"""Connections that may wait to be taken."""
_SHUTDOWN_SECONDS = 60
"""Until a request that is still being answered is given up."""


def serve(folder: Path, *, host: str, port: int, threads: int, say: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and for a minute those that have been accepted by then.

    Args:
        folder: ``onnx/`` of an export.
        host: Address to listen at.
        port: 0 takes any that is free.
        threads: Of onnxruntime; 0: one per core.
        say: Prints a line: where the server is, and in the end what it answered.

    Raises:
        StageError: There is no such export, the address cannot be had, or a package is missing.
    """
    if not all(map(find_spec, _PACKAGES)):
        raise StageError(
            "student serve needs more packages; install them with: "
            "pip install --constraint constraints.txt --editable '.[serve]'"
        )
    import uvicorn  # an extra, as what the next two import

    from stages.student.serving.app import Limits, Service
    from stages.student.serving.model import ServedModel

    model = ServedModel(folder, threads=threads)
    service = Service(model, Limits())
    with _listening(host, port) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                service.app(),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )

        def stop(*_: object) -> None:
            server.should_exit = True

        # uvicorn handles both while it runs, and raises them again in the end: with this, the exit code is 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        name, taken_port = listener.getsockname()[:2]
        address = f"[{name}]" if ":" in name else name
        say(f"serving {model.file} at http://{address}:{taken_port}")
        server.run(sockets=[listener])
    metrics = service.metrics
    say(f"stopped; {metrics.answered:,} requests answered, {metrics.examples:,} examples")


def _listening(host: str, port: int) -> socket.socket:
    if not host:
        raise StageError("an empty host would be every address of this machine; name one with --host")
    try:
        host.encode("idna")  # of which socket makes a TypeError
    except UnicodeError:
        raise StageError(f"'{host}' is no name of a host; name another one with --host") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StageError(f"port {port} of {host} is taken; choose another one with --port") from error
        raise StageError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error
