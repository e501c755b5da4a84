"""One queue before the model: a thread takes what waits, and computes it in batches of similar lengths."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.student.serving.model import Example, ServedModel, batches

_AT_ONCE = 64
"""Examples that are taken out of the queue at a time."""


class QueueFullError(Exception):
    """There is no place for a request's examples."""


@dataclass(eq=False)
class _Request:
    """Examples that are answered together.

    Attributes:
        examples: N of them.
        language_ids: Of each; -1: the mixture.
        answer: Their probabilities, ``(N, C)``, once all are there.
        found: Those that are there, by position.
    """

    examples: Sequence[Example]
    language_ids: Sequence[int]
    answer: "asyncio.Future[NDArray[np.float32]]"
    found: dict[int, NDArray[np.float32]] = field(default_factory=dict)


class Batcher:
    """Answers requests of an event loop with a model that runs in a thread of its own."""

    def __init__(self, model: ServedModel, *, most_waiting: int, observe: Callable[[int], None]) -> None:
        """Start the thread; call this in the event loop.

        Args:
            model: Whose answers are wanted.
            most_waiting: Examples that may wait; those that are being computed do not count.
            observe: Is told the size of each batch.
        """
        self._model, self._most_waiting, self._observe = model, most_waiting, observe
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[_Request, int]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        # A second Ctrl-C ends the process without `close`.
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Count the examples that wait."""
        return len(self._queue)

    async def classify(self, examples: Sequence[Example], language_ids: Sequence[int]) -> NDArray[np.float32]:
        """Wait for the probabilities of N examples, ``(N, C)``.

        Raises:
            QueueFullError: There is no place for them; nothing was accepted.
        """
        request = _Request(examples, language_ids, self._loop.create_future())
        with self._changed:
            if len(self._queue) + len(examples) > self._most_waiting:
                raise QueueFullError
            self._queue.extend((request, position) for position in range(len(examples)))
            self._changed.notify()
        return await request.answer

    async def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                is_over = not self._queue
                taken = [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]
            if is_over:
                return
            # Whoever asked may be gone, or was told that the server stops.
            self._compute([one for one in taken if not one[0].answer.done()])

    def _compute(self, taken: list[tuple[_Request, int]]) -> None:
        """Compute examples; what is complete is answered after each batch."""
        try:
            tokens = self._model.tokenize([request.examples[position] for request, position in taken])
            for batch in batches([len(one.ids) for one in tokens]):
                wanted = [taken[index] for index in batch]
                ids = [request.language_ids[position] for request, position in wanted]
                found = self._model.probabilities([tokens[index] for index in batch], ids)
                self._observe(len(batch))
                for (request, position), row in zip(wanted, found, strict=True):
                    request.found[position] = row
                done = {request for request, _ in wanted if len(request.found) == len(request.examples)}
                self._loop.call_soon_threadsafe(_answer, done)
        except Exception as error:  # of a model: its requests end with it, the server goes on
            self._loop.call_soon_threadsafe(_fail, {request for request, _ in taken}, error)


def _answer(requests: set[_Request]) -> None:
    for request in requests:
        if not request.answer.done():  # whoever asked may be gone
            request.answer.set_result(np.stack([request.found[i] for i in range(len(request.examples))]))


def _fail(requests: set[_Request], error: Exception) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
