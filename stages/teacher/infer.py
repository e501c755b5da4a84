"""Run a teacher over texts, each exactly once, longest first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

from stages.base import StageError
from stages.source import loading, require_max_tokens
from stages.teacher.params import LabelParams

_TOKENIZER_BATCH = 4096


def infer(
    folder: Path, fields: Sequence[Sequence[str]], params: LabelParams, *, title: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Compute a teacher's logits.

    Texts are sorted by length, so that a batch needs little padding and the longest, which need the most
    memory, come first. A batch holds as many texts as fit into `params.batch_tokens`.

    Args:
        folder: A Hugging Face sequence classifier with its tokenizer.
        fields: One or two sequences of N texts.
        params: Section `teacher.label`.
        title: Of the progress bar.

    Yields:
        Positions of a batch's texts, shape ``(B,)``, and their raw logits, shape ``(B, C)``.

    Raises:
        StageError: The model's logits are NaN or infinite, or it takes no inputs of `max_tokens`.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    with loading(f"the teacher in {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    if found["missing_keys"]:
        raise StageError(
            f"the teacher in {folder} has no weights for {', '.join(sorted(found['missing_keys']))}; "
            "fine-tune it first: teachers.<language>.finetune: true"
        )
    require_max_tokens(params.max_tokens, tokenizer, model.config, key="teacher.label.max_tokens")
    model = model.eval().to(device)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=params.precision == "bfloat16")
    rows = [
        row
        for start in range(0, len(fields[0]), _TOKENIZER_BATCH)
        for row in _rows(
            tokenizer(
                *(list(field[start : start + _TOKENIZER_BATCH]) for field in fields),
                truncation=True,
                max_length=params.max_tokens,
            )
        )
    ]
    lengths = np.array([len(row["input_ids"]) for row in rows])
    with tqdm(total=int(lengths.sum()), desc=title, unit="token", unit_scale=True) as bar:
        n_done = 0
        for positions in batches_by_length(lengths, params.batch_tokens):
            batch = tokenizer.pad([rows[i] for i in positions], return_tensors="pt").to(device)
            with torch.inference_mode(), autocast:
                logits = model(**batch).logits.float().cpu().numpy()
            _require_finite(logits, [fields[0][i] for i in positions], folder)
            yield positions, logits
            n_done += len(positions)
            bar.update(int(lengths[positions].sum()))
            rate = n_done / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{n_done:,} of {len(rows):,} examples, {rate:,.0f}/s", refresh=False)


def batches_by_length(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut texts into batches of similar length, longest first.

    Args:
        lengths: Tokens of each text, shape ``(N,)``.
        budget: A batch of B texts whose longest has T tokens has B * T at most this, or is a single text.

    Yields:
        Positions, shape ``(B,)``; each of the N positions occurs once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _rows(encoded: BatchEncoding) -> Iterator[dict[str, list[int]]]:
    names = list(encoded)
    for values in zip(*(encoded[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _require_finite(logits: NDArray[np.float32], texts: Sequence[str], folder: Path) -> None:
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise StageError(
            f"the teacher in {folder} gives NaN or infinite logits, first for {texts[broken[0]]!r}; "
            "try teacher.label.precision: float32, or another teacher"
        )
