"""A German teacher behind HTTP: its parameters, and what it said."""

from pathlib import Path
from typing import Any

import numpy as np
from tiny import SIZES, examples, tiny_params, write_params

from cache import SoftLabelSet, example_ids
from stages.artifacts import SOFT_LABELS

LABEL = ("teacher", "label", "--language", "de")
FINETUNE = ("teacher", "finetune", "--language", "de")
N = sum(SIZES.values())
PROBE, AGAIN = 1, 8
PROMPT = "What is this? {text}\n{classes}\nOne letter."


def set_chat(url: str, *, revision: str | None = "1", prompt: str = PROMPT, **endpoint: Any) -> None:
    values = {"shape": "chat-logprobs", "model": "tiny", "template": "data/prompt.txt", "retries": 2}
    Path("data/prompt.txt").write_text(prompt + "\n")
    set_endpoint(values | {"url": f"{url}/v1"} | endpoint, revision=revision)


def set_endpoint(endpoint: dict[str, Any], *, revision: str | None = "1", **teacher: Any) -> None:
    params = tiny_params()
    params["teachers"]["de"] = {"endpoint": endpoint, **teacher}
    params["teachers"]["de"] |= {} if revision is None else {"revision": revision}
    write_params(params)


def texts() -> list[str]:
    """All German texts."""
    return [row["text"] for split in SIZES for row in examples("de", split)]


def said() -> np.ndarray[Any, Any]:
    """What the set says of all texts, shape ``(N, C)``."""
    label_set = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    logits: np.ndarray[Any, Any] = label_set.join(example_ids([texts()])).logits
    return logits
