"""A stop ends an event loop between the steps of its tasks, which then end in order."""

import asyncio
import os
import signal

import pytest

from stages.teacher.endpoint.event_loop import run

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_cancels_what_runs_and_interrupts(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append(number)
            raise

    async def both() -> None:
        await asyncio.gather(work(), asyncio.sleep(60))

    try:
        with pytest.raises(KeyboardInterrupt):
            run(both())
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert ended == [number]


def test_a_stop_in_the_last_step_is_not_forgotten() -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(work())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_runs_gives_its_result_and_its_errors() -> None:
    async def work(result: int) -> int:
        if not result:
            raise ValueError("nothing")
        return result

    assert run(work(3)) == 3
    with pytest.raises(ValueError, match="nothing"):
        run(work(0))


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 1

    try:
        assert run(work()) == 1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
