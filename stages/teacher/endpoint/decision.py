"""The shape ``decision``: a question with options, answered by a probability for each (``/systemone``).

The prompt is the server's own, so its kind and version belong into the teacher's revision.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.teacher.endpoint.wording import (
    Answer,
    AnswerError,
    Wording,
    field,
    number,
    reported,
    tokens,
    with_extra,
)
from stages.teacher.params import EndpointParams

READING = "logarithms of the options' probabilities, 1e-9 at least"
"""How an answer is read: one of the producer's facts, so another way needs other words."""

QUESTION = "Which of these classes does the text belong to?"
"""Where no template asks otherwise."""

_LEAST, _TOLERANCE = 1e-9, 0.01


def path(how: EndpointParams) -> str:
    """See `Shape`."""
    return "/systemone"


def fixed(how: EndpointParams) -> dict[str, Any]:
    """See `Shape`."""
    return with_extra(how, {"model": how.model})


def body(wording: Wording, texts: Sequence[str]) -> dict[str, Any]:
    """See `Shape`."""
    state = texts[0] if len(texts) == 1 else dict(zip(wording.text_fields, texts, strict=True))
    question = {
        "type": "choice",
        "instructions": wording.template or QUESTION,
        "criteria": wording.described(),
    }
    return {**fixed(wording.how), "state": state, "questions": {"class": question}}


def read(wording: Wording, answer: Any) -> Answer:
    """See `Shape`."""
    said = field(field(answer, "answers"), "class", "answer's answers")
    if isinstance(said, Mapping) and (said.get("type") == "refusal" or said.get("refusal")):
        raise AnswerError("the server refused to answer")
    probs = field(said, "probabilities", "server's answer")
    if not isinstance(probs, Mapping) or set(probs) != set(wording.classes):
        raise AnswerError(
            f"the server tells probabilities of other options than {', '.join(wording.classes)}"
        )
    values = [number(probs[name], f"the probability of {name}") for name in wording.classes]
    if min(values) < 0 or abs(sum(values) - 1) > _TOLERANCE:
        raise AnswerError(f"the probabilities of the options add up to {sum(values):.3f}")
    logits = [math.log(max(value, _LEAST)) for value in values]
    return Answer(logits, 0, tokens(answer), reported(answer, "model", "system_fingerprint"))
