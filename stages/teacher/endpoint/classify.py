"""The shape ``classify``: raw logits of a classifier behind Text Embeddings Inference or vLLM.

Always raw ones: which activation a server applies depends on the model, and on the server's version.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.teacher.endpoint.transport import Transport
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

READING = "raw logits by class name"
"""How an answer is read: one of the producer's facts, so another way needs other words."""

_ENOUGH = 8
"""Answers in which raw logits have a number below 0 or above 1."""


def path(how: EndpointParams) -> str:
    """See `Shape`."""
    return "/predict" if how.dialect == "tei" else "/classify"


def fixed(how: EndpointParams) -> dict[str, Any]:
    """See `Shape`."""
    if how.dialect == "tei":
        return with_extra(how, {"raw_scores": True, "truncate": True, "truncation_direction": "right"})
    return with_extra(how, {"model": how.model, "use_activation": False})


def body(wording: Wording, texts: Sequence[str]) -> dict[str, Any]:
    """See `Shape`. A list of two texts is one pair to TEI, never two texts."""
    if wording.how.dialect == "tei":
        return {**fixed(wording.how), "inputs": texts[0] if len(texts) == 1 else list(texts)}
    return {**fixed(wording.how), "input": texts[0]}


async def info(transport: Transport) -> dict[str, str]:
    """Ask TEI who it is.

    Raises:
        AnswerError: It does not say.
    """
    return reported(await transport.get("/info"), "model_id", "model_sha", "model_dtype", "version")


def classes(answer: Any) -> list[str]:
    """Give the class names in an answer of TEI, sorted: its order is that of the scores.

    Raises:
        AnswerError: There are none.
    """
    return sorted(_scores(answer))


def read(wording: Wording, answer: Any) -> Answer:
    """See `Shape`."""
    if wording.how.dialect == "tei":
        scores = _scores(answer)
        if set(scores) != set(wording.classes):
            raise AnswerError(f"the server's classes are {', '.join(sorted(scores))}")
        return Answer([scores[name] for name in wording.classes], 0, 0, {})
    data = field(answer, "data")
    if not isinstance(data, list) or len(data) != 1:
        raise AnswerError("the answer is not about one text")
    logits = [number(value, "a logit") for value in field(data[0], "probs", "answer's data")]
    if len(logits) != len(wording.classes):
        raise AnswerError(
            f"the server has {len(logits)} classes, endpoint.classes has {len(wording.classes)}"
        )
    best, label = wording.classes[logits.index(max(logits))], field(data[0], "label", "answer's data")
    if label not in (best, None):
        raise AnswerError(f"the server says '{label}' where endpoint.classes has '{best}'; mind their order")
    return Answer(logits, 0, tokens(answer), reported(answer, "model"))


def are_probabilities(logits: NDArray[np.float32]) -> bool:
    """Tell whether answers, shape ``(N, C)``, are no raw logits: an older vLLM ignores that we want these.

    Of a few answers the sums tell. Of more, it is enough that none of the numbers is below 0 or above 1: what
    sigmoids give adds up to anything.
    """
    add_up = np.allclose(logits.sum(axis=1), 1, atol=1e-3)
    return bool((logits >= 0).all() and (logits <= 1).all() and (add_up or len(logits) >= _ENOUGH))


def _scores(answer: Any) -> dict[str, float]:
    """Give the scores of an answer of TEI by class name."""
    if isinstance(answer, str):
        field(answer, "label")  # which says that this is no JSON
    if not isinstance(answer, list) or not all(isinstance(one, Mapping) for one in answer):
        raise AnswerError("the answer is no list of labels with scores")
    return {str(field(one, "label")): number(field(one, "score"), "a score") for one in answer}
