"""Progress: a bar on a terminal; anywhere else, such as in a log, a line every half minute."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 30


class Bar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that writes whole lines, and few of them, where nobody can watch it move."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what tqdm takes."""
        self._moves = sys.stderr.isatty()
        kwargs.setdefault("leave", False)  # what is done is said in a line by the stage
        if not self._moves:
            kwargs |= {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """Draw the bar, or write its state as a line; tell `close` whether a line was begun and not ended."""
        if self._moves:
            return bool(super().display(msg, pos))
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False


def say(line: str) -> None:
    """Write a line on stderr; on a terminal in place of the bar, maybe another process's, at the cursor."""
    Bar.write(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr)
