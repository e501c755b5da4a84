"""Asking a small teacher: its parameters, some texts, and what transformers alone makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import tiny_params, write_params
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.params import load_params
from stages.artifacts import TEACHERS
from stages.teacher.labelling.inference import Answers
from stages.teacher.params import LabelParams

FOLDER = TEACHERS / "de"


def texts(n: int, *, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(["Hund", "rot", "eins"][i % 3] for i in range(k)) for k in rng.integers(1, longest, n)]


def params(**changes: Any) -> LabelParams:
    values = tiny_params()
    values["teacher"]["label"] |= changes
    write_params(values)
    return load_params(Path("params.yaml")).teacher.label


def logits_of(answers: list[Answers]) -> NDArray[np.float32]:
    order = np.argsort(np.concatenate([batch.positions for batch in answers]))
    return np.concatenate([batch.logits for batch in answers])[order]


def one_by_one(some: list[str], pairs: list[str] | None = None) -> NDArray[np.float32]:
    """What transformers alone makes of each text by itself."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
    with torch.inference_mode():
        inputs = zip(some, pairs, strict=True) if pairs else zip(some)
        found = [
            model(**tokenizer(*one, truncation=True, max_length=48, return_tensors="pt")).logits
            for one in inputs
        ]
    return torch.cat(found).numpy()
