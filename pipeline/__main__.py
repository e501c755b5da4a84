"""Entry point of ``python -m pipeline``: expected failures end with one line and exit code 1."""

import atexit
import errno
import gc
import os
import re
import signal
import sys
import time
from io import StringIO

from stages.models.processes import n_processes, process_index

# Before anything of Hugging Face or torch is imported, which read these once.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if n_processes() > 1:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns if the first batch needs all weights
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # `prepare` has a bar of its own
if process_index() or not sys.stderr.isatty():
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of downloads

# A full, broken or protected disk, or a path that is no folder: nothing that a traceback would explain.
_ENVIRONMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.EFBIG),
)
# As safetensors, which is Rust, says what the system told it.
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
# How torch's back ends say that the other end of a connection is gone.
_PEER_IS_GONE = re.compile("by peer|Broken pipe", re.IGNORECASE)
# What several processes of torchrun can share; all else is done by one.
_TRAININGS = (["teacher", "finetune"], ["student", "distill"], ["student", "baseline"])


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 1 after an expected failure. Typer itself exits in all other cases.
    """
    if process_index() == 0:
        # A scheduler's stop is Ctrl-C, and so is a terminal that is closed: what is computed is kept.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, signal.default_int_handler)
    else:
        # The first process prints and has what is to be kept; this one ends without a word.
        sys.stdout = StringIO()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _require_standard_output()
        _require_what_processes_share()
        try:
            from pipeline.commands.app import app  # slow import
        except KeyboardInterrupt:  # which it answers itself from here on
            return 130
        app()
    except Exception as error:
        from cache import CacheError
        from pipeline.params import ParamsError
        from pipeline.terminal import visible
        from stages.errors import StageError

        if n_processes() > 1 and isinstance(error, RuntimeError) and _PEER_IS_GONE.search(str(error)):
            error = StageError("another process of this training has ended; run the same command to go on")
        said = _SYSTEM_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        code = int(said[1]) if said else error.errno if isinstance(error, OSError) else None
        environment = code in _ENVIRONMENT
        if not environment and not isinstance(error, (CacheError, ParamsError, StageError)):
            raise
        if process_index():
            time.sleep(10)  # where the first process meets the same error, torchrun ends this one meanwhile
        sys.stderr.write(f"error: {visible(str(error))}\n")
        return 1
    return 0


def _require_standard_output() -> None:
    """Refuse to begin where no result could be written."""
    if sys.stdout is None:  # as by >&-
        from stages.errors import StageError

        raise StageError("standard output is closed; send it to a file, or to /dev/null")


def _require_what_processes_share() -> None:
    """Refuse other commands than trainings where torchrun starts several processes."""
    if n_processes() > 1 and sys.argv[1:3] not in _TRAININGS:
        from stages.errors import StageError

        trainings = ", ".join(" ".join(words) for words in _TRAININGS)
        raise StageError(
            f"torchrun started {n_processes()} processes, which can share only trainings ({trainings}); "
            f"run this with: python -m pipeline {' '.join(sys.argv[1:])}"
        )


if __name__ == "__main__":
    atexit.register(gc.freeze)  # or Python takes a second at its end to look through torch and transformers
    sys.exit(main())
