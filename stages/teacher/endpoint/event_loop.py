"""An event loop that every stop ends, not Ctrl-C alone."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; SIGTERM and SIGHUP cancel it, as Ctrl-C does there.

    The handlers that they have in a command raise KeyboardInterrupt at any instruction. Between two steps of
    a task, that loses its next step, and the end of the loop waits for the task forever.

    Raises:
        KeyboardInterrupt: It was stopped.
    """
    if threading.current_thread() is not threading.main_thread():  # which gets the signals
        return asyncio.run(coroutine)
    stops: list[int] = []

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int, _frame: FrameType | None) -> None:
            stops.append(number)
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        for number in interrupting:
            signal.signal(number, stop)
        return await coroutine

    interrupting = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.default_int_handler
    ]
    try:
        result = asyncio.run(cancellable())
    except asyncio.CancelledError:
        if stops:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in interrupting:
            signal.signal(number, signal.default_int_handler)
    if stops:  # when all was done
        raise KeyboardInterrupt
    return result
