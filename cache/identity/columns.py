"""What is kept of a teacher's answer, and in which columns."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from cache.errors import ProducerError


class Column(NamedTuple):
    """A column of soft labels: N values of `dtype`, or N lists of `width` values each.

    A width of None is one that the teacher's facts do not tell.
    """

    dtype: str
    width: int | None


SCALAR = 0
"""Width of a column with one value per example."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is kept of a teacher's answer.

    Attributes:
        dtype: Type of the logits on disk.
        top_k: Keep only this many logits, the largest, and the log-sum-exp of the others; None keeps all.
        hidden: Whether the last layer's state of a token is kept too, as float16: of the first one, unless
            the producer's facts say otherwise.
    """

    dtype: Literal["float32", "float16"] = "float32"
    top_k: int | None = None
    hidden: bool = False

    def columns(self, n_classes: int) -> dict[str, Column]:
        """List the columns besides ``example_id``.

        Raises:
            ProducerError: `top_k` leaves no class out, or there are more classes than 16 bits count.
        """
        if self.top_k is None:
            columns = {"logits": Column(self.dtype, n_classes)}
        elif 0 < self.top_k < n_classes <= 2**16:
            columns = {
                "top_classes": Column("uint16", self.top_k),
                "top_logits": Column(self.dtype, self.top_k),
                "log_sum_exp_rest": Column("float32", SCALAR),
            }
        else:
            raise ProducerError(f"top_k is {self.top_k}; {n_classes} classes allow 1 to {n_classes - 1}")
        return columns | ({"hidden": Column("float16", None)} if self.hidden else {})
