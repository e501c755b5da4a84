"""Locks of open files, which end with the process that has them."""

import errno
import fcntl
from typing import IO, Any

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def lock(file: IO[Any]) -> bool | None:
    """Lock a file that is open for writing, without waiting.

    Returns:
        Whether nobody else had it; None where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True
