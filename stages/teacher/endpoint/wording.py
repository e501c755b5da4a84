"""What every shape of an endpoint shares: how the teacher is asked, and what an answer says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from stages.teacher.params import EndpointParams

FLOOR = -100.0
"""The least log-probability, in nats: servers write 0 as -9999 or as the least float."""
LARGEST = 3.4028235e38
"""In float32, which stores have, as it is written in short."""


class AnswerError(Exception):
    """An answer that says nothing of its text, and why."""


class Answer(NamedTuple):
    """What a teacher says of one text.

    Attributes:
        logits: Of the C classes, in the wording's order.
        missing: How many of these are bounds, because the server did not tell them.
        tokens: That the server counted, of prompt and answer.
        reported: What the server says of itself, such as ``model`` and ``system_fingerprint``.
    """

    logits: list[float]
    missing: int
    tokens: int
    reported: dict[str, str]


@dataclass(frozen=True)
class Wording:
    """How a teacher is asked.

    Attributes:
        how: Section `teachers.<language>.endpoint`.
        classes: C names, as the teacher is told them or calls them.
        template: The prompt or the question; None: there is none.
        text_fields: The task's.
    """

    how: EndpointParams
    classes: Sequence[str]
    template: str | None
    text_fields: Sequence[str]

    def described(self) -> dict[str, str | None]:
        """Give the classes with their descriptions, as far as they have any."""
        return {name: self.how.descriptions.get(name) for name in self.classes}


class Shape(Protocol):
    """What a module for one shape has."""

    def path(self, how: EndpointParams) -> str:
        """Give what stands behind the URL."""

    def fixed(self, how: EndpointParams) -> dict[str, Any]:
        """Give the fields of each request that do not depend on the text."""

    def body(self, wording: Wording, texts: Sequence[str]) -> dict[str, Any]:
        """Give a request about a text, or about a pair."""

    def read(self, wording: Wording, answer: Any) -> Answer:
        """Read an answer; raises `AnswerError`."""


def with_extra(how: EndpointParams, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Put a request's further fields over those that are always sent; null leaves one out."""
    together = {**fields, **how.extra}
    return {key: value for key, value in together.items() if value is not None}


def filled(template: str, values: Mapping[str, str]) -> str:
    """Put values into a template's placeholders, once: a text that holds a placeholder stays as it is."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def number(value: Any, what: str) -> float:
    """Give a number of an answer.

    Raises:
        AnswerError: It is none, or NaN or infinite, or larger than a store can hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise AnswerError(f"{what} is {value!r}, which is no number")
    return float(value)


def field(answer: Any, key: str, what: str = "answer") -> Any:
    """Give a field of a JSON object.

    Raises:
        AnswerError: It is no object, or has no such field.
    """
    if isinstance(answer, str):
        raise AnswerError(f"the server answered with text, not JSON: {' '.join(answer.split())[:80]!r}")
    if not isinstance(answer, Mapping) or key not in answer:
        raise AnswerError(f"the {what} has no {key}")
    return answer[key]


def reported(answer: Any, *keys: str) -> dict[str, str]:
    """Give what a server says of itself, as far as it does."""
    told = answer if isinstance(answer, Mapping) else {}
    return {key: str(told[key]) for key in keys if told.get(key) is not None}


def tokens(answer: Any) -> int:
    """Give the tokens that a server counted; 0 where it does not tell."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return 0
    keys = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    return sum(usage[key] for key in keys if type(usage.get(key)) is int)
