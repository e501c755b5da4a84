"""Entry point of ``python -m pipeline``: expected failures end with one line and exit code 1."""

import errno
import os
import signal
import sys

# Before anything of Hugging Face is imported, which read these once.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pipeline.app import app

# A full, broken or protected disk, or a path that is no folder: nothing that a traceback would explain.
_ENVIRONMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 1 after an expected failure. Typer itself exits in all other cases.
    """
    # A scheduler's stop is Ctrl-C: what is computed is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except Exception as error:
        from cache import CacheError
        from pipeline.params import ParamsError
        from stages.base import StageError

        environment = isinstance(error, OSError) and error.errno in _ENVIRONMENT
        if not environment and not isinstance(error, (CacheError, ParamsError, StageError)):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
