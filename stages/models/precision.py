"""What bfloat16 costs here: on a CPU without instructions for it, several times what float32 costs."""

import time
from functools import cache

import torch
from torch.nn.functional import linear

from stages.params import Precision
from stages.progress import say

_SLOWER = 1.5
"""Times as long that are worth a word."""


@cache
def say_if_slower(precision: Precision, *, key: str) -> None:
    """Say, once in a process, that float32 is quicker here, where it is.

    Args:
        precision: Of matrix products.
        key: The parameter that says so.
    """
    if precision == "bfloat16" and not torch.accelerator.is_available():
        ratio = _seconds(torch.bfloat16) / _seconds(torch.float32)
        if ratio > _SLOWER:
            say(
                f"{key} is bfloat16, for which this CPU takes {ratio:.0f} times as long as for float32; "
                "set it to float32"
            )


def _seconds(dtype: torch.dtype) -> float:
    """Measure a matrix product of a layer's size: the best of five, as other processes may interrupt one."""
    texts, weights = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        linear(texts, weights)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
