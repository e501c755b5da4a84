"""What a store keeps of a teacher behind HTTP beside its soft labels: who answered, and how well."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Self

from cache.folder import Folder
from cache.identity.digests import canonical_json

ENDPOINT = "endpoint.json"
"""Where a store keeps it, beside ``producer.json``."""

_MAX_JSON = 1 << 20  # bytes


@dataclass(frozen=True)
class EndpointNotes:
    """What is known of an endpoint's answers besides the answers.

    Writers at once may lose each other's counts, never an answer.

    Attributes:
        answered_as: What the server said of itself, each once; all of these were agreed to.
        answers: How many there are.
        letters: How many letters they should have told.
        missing: How many of these they did not tell.
        outside: The probability that they gave to no letter, summed over the answers.
        accepted: What the teacher says by now of texts of which it said something else before, by the
            example's id in hexadecimal: C probabilities each. Somebody agreed to that.
        letter_bias: Added to the C logits where they are read; None: it was not estimated.
    """

    answered_as: tuple[Mapping[str, str], ...] = ()
    answers: int = 0
    letters: int = 0
    missing: int = 0
    outside: float = 0.0
    letter_bias: tuple[float, ...] | None = None
    accepted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def decode(cls, values: Any) -> Self:
        """Read what `write` wrote.

        Raises:
            ValueError: It makes no sense.
        """
        try:
            bias = values["letter_bias"]
            accepted = {str(key): tuple(map(float, one)) for key, one in values.get("accepted", {}).items()}
            if not all(map(math.isfinite, (values["outside"], *(bias or ()), *chain(*accepted.values())))):
                raise ValueError("it holds numbers that are not finite")
            return cls(
                tuple({str(key): str(one[key]) for key in one} for one in values["answered_as"]),
                int(values["answers"]),
                int(values["letters"]),
                int(values["missing"]),
                float(values["outside"]),
                None if bias is None else tuple(map(float, bias)),
                accepted,
            )
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"it makes no sense ({error!r})") from error

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """Read what a store has of a producer: nothing, where that is nothing or makes no sense.

        Raises:
            CacheError: It cannot be read now.
        """
        try:
            return cls.decode(json.loads(folder.read(ENDPOINT, limit=_MAX_JSON)))
        except (FileNotFoundError, RecursionError, ValueError):
            return cls()

    def write(self, folder: Folder) -> None:
        """Keep it in a store."""
        folder.write(ENDPOINT, canonical_json(asdict(self)))
