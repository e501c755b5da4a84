"""The shape ``chat-logprobs``: classes are letters in a prompt, and the first token is read.

Kept are the letters' log-probabilities over the whole vocabulary, as they came: what is left to 1 is the
probability outside the classes.
"""

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from stages.teacher.endpoint.wording import (
    FLOOR,
    Answer,
    AnswerError,
    Wording,
    field,
    filled,
    number,
    reported,
    tokens,
    with_extra,
)
from stages.teacher.params import EndpointParams

LETTERS = string.ascii_uppercase
READING = "first token, letters without spaces around them, the least that came for what is missing"
"""How an answer is read: one of the producer's facts, so another way needs other words."""

_ROUNDING = 1e-3
"""By so much the probabilities of an answer may add up to more than 1."""


def path(how: EndpointParams) -> str:
    """See `Shape`."""
    return "/chat/completions"


def fixed(how: EndpointParams) -> dict[str, Any]:
    """See `Shape`."""
    greedy = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": how.top_logprobs}
    return with_extra(how, {"model": how.model, **greedy})


def body(wording: Wording, texts: Sequence[str]) -> dict[str, Any]:
    """See `Shape`."""
    lines = [
        f"{letter}. {name}" + (f": {description}" if description else "")
        for letter, (name, description) in zip(LETTERS, wording.described().items(), strict=False)
    ]
    values = {**dict(zip(wording.text_fields, texts, strict=True)), "classes": "\n".join(lines)}
    assert wording.template is not None  # held by the validation of params.yaml
    prompt = filled(wording.template, values)
    return {**fixed(wording.how), "messages": [{"role": "user", "content": prompt}]}


def read(wording: Wording, answer: Any) -> Answer:
    """See `Shape`."""
    choices = field(answer, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise AnswerError("the answer has no choices")
    choice = choices[0]
    message = choice.get("message") or {}
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise AnswerError(f"the server refused: {str(message.get('refusal') or 'content filter')[:80]!r}")
    content = (choice.get("logprobs") or {}).get("content")
    if not content or not content[0].get("top_logprobs"):
        raise AnswerError(
            "the server answered without log-probabilities; it, or this model, gives none: "
            "use another server, or the shape decision"
        )
    logprobs = _logprobs(content[0]["top_logprobs"])
    letters = LETTERS[: len(wording.classes)]
    found = {letter: _sum(values) for letter in letters if (values := logprobs.get(letter))}
    if not found:
        first = str(content[0].get("token"))[:20]
        raise AnswerError(f"none of the letters {letters[0]} to {letters[-1]} came back, but {first!r} first")
    least = min(min(values) for values in logprobs.values())
    logits = [found.get(letter, least) for letter in letters]
    return Answer(
        logits, len(letters) - len(found), tokens(answer), reported(answer, "model", "system_fingerprint")
    )


def _logprobs(entries: Any) -> dict[str, list[float]]:
    """Give the log-probabilities that came, by token without spaces around it.

    Raises:
        AnswerError: They are none.
    """
    found: dict[str, list[float]] = {}
    for entry in entries:
        value = number(field(entry, "logprob", "log-probability"), "a log-probability")
        if value > 1e-6:
            raise AnswerError(
                f"a log-probability is {value:g}, above 0; does the server send logits instead?"
            )
        found.setdefault(str(entry.get("token")).strip(), []).append(min(max(value, FLOOR), 0.0))
    total = sum(math.exp(value) for values in found.values() for value in values)
    if total > 1 + _ROUNDING:
        raise AnswerError(f"probabilities of one token add up to {total:.3f}; are they no log-probabilities?")
    return found


def _sum(values: Sequence[float]) -> float:
    """Give the log-probability of one of several tokens, such as ``A`` and `` A``."""
    most = max(values)
    return min(most + math.log(sum(math.exp(value - most) for value in values)), 0.0)
