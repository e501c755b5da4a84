"""What the benchmarks share: what work costs in time and memory, and a printed row with a target.

A row is also written, as a line of JSON, to the file that the environment calls MEASURED.
"""

import atexit
import gc
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple, ParamSpec, TypeVar

import typer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Spent(NamedTuple):
    """Seconds that work took: on the clock, and of all cores together."""

    wall: float
    cpu: float


def spent(work: Callable[[], object]) -> Spent:
    """Do the work once."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def spent_each(*works: Callable[[], object], repeats: int) -> list[Spent]:
    """Do several works in turn, so that a busy machine slows them alike: the medians of each."""
    rounds = [[spent(work) for work in works] for _ in range(repeats)]
    return [Spent(median(s.wall for s in of), median(s.cpu for s in of)) for of in zip(*rounds, strict=True)]


def ratio(work: Callable[[], object], base: Callable[[], object], *, repeats: int) -> float:
    """Do two works in turn, each first as often as second: the median of the ratios of their CPU time."""
    ratios = []
    for index in range(repeats):
        first, second = (work, base) if index % 2 else (base, work)
        seconds = {one: spent(one).cpu for one in (first, second)}
        ratios.append(seconds[work] / seconds[base])
    return median(ratios)


def extra_memory(work: Callable[[], object]) -> int:
    """Do the work once: the bytes in memory at its peak beyond those before it. Linux only.

    It is too much where this process was larger before: call it early, in a process of its own.
    """
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def peak_memory() -> int:
    """Give the bytes in memory at this process's peak. Linux only."""
    return _memory("VmHWM")


def apart(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function in a new process: with memory and imports of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def progress(text: str) -> None:
    """Say on stderr what takes a while."""
    typer.echo(f"… {text}", err=True)


atexit.register(gc.freeze)  # as python -m pipeline ends
_heading = ""


def heading(text: str) -> None:
    """Print what the rows below are about."""
    global _heading
    _heading = text
    typer.echo(f"\n{text}")


def note(text: str) -> None:
    """Print that something was not measured, and why."""
    typer.echo(f"  {text}")
    _write(what=text)


def row(
    what: str,
    measured: float,
    unit: str = "",
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> None:
    """Print a measured figure with its target, if it has one, and whether that is met."""
    target = verdict = ""
    if at_most is not None:
        target, verdict = f"≤ {number(at_most)}", "met" if measured <= at_most else "missed"
    elif at_least is not None:
        target, verdict = f"≥ {number(at_least)}", "met" if measured >= at_least else "missed"
    typer.echo(f"  {what:<64}{number(measured):>10} {unit:<10}{target:<10}{verdict}".rstrip())
    _write(what=what, measured=measured, shown=number(measured), unit=unit, target=target, verdict=verdict)


def _write(**values: str | float) -> None:
    """Add a row to the file of rows, if there is one."""
    if path := os.environ.get("MEASURED"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"heading": _heading, **values}, ensure_ascii=False) + "\n")


def number(value: float) -> str:
    """Write a number with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory_of(process: int) -> int:
    """Give the bytes in memory of a process. Linux only."""
    return _memory("VmRSS", process)


def _memory(key: str, process: int | str = "self") -> int:
    """Read a size of a process, which Linux gives in KiB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
