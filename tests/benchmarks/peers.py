"""What people use today to label texts with a classifier: each loads it, and gives a function to time.

On the device that torch has, in bfloat16 where that is asked for, batches padded to their longest text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers

from stages.models.batches import current_device

Peer = Callable[[Sequence[str]], object]


def load(folder: Path, *, bfloat16: bool = False) -> tuple[Any, Any]:
    """Load a classifier as anyone would."""
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    return transformers.AutoTokenizer.from_pretrained(folder), model.eval().to(current_device())


def pipeline(folder: Path, *, max_tokens: int, batch_size: int = 32, bfloat16: bool = False) -> Peer:
    """Use the pipeline of transformers."""
    tokenizer, model = load(folder, bfloat16=bfloat16)
    classify = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device=current_device()
    )
    how = {"top_k": None, "function_to_apply": "none", "truncation": True, "max_length": max_tokens}
    return lambda texts: classify(list(texts), batch_size=batch_size, **how)


def trainer_predict(folder: Path, *, max_tokens: int, batch_size: int = 32, bfloat16: bool = False) -> Peer:
    """Use `Trainer.predict` of transformers."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer, model = load(folder, bfloat16=bfloat16)
    arguments = transformers.TrainingArguments(
        mkdtemp(dir="."),
        per_device_eval_batch_size=batch_size,
        report_to="none",
        use_cpu=current_device().type == "cpu",
        disable_tqdm=True,
    )

    def tokens(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"], truncation=True, max_length=max_tokens)

    def predict(texts: Sequence[str]) -> object:
        data = datasets.Dataset.from_dict({"text": list(texts)}).map(
            tokens, batched=True, remove_columns=["text"], load_from_cache_file=False
        )
        collate = transformers.DataCollatorWithPadding(tokenizer)
        return transformers.Trainer(model=model, args=arguments, data_collator=collate).predict(data)

    return predict


def cross_encoder(folder: Path, *, max_tokens: int, batch_size: int = 32, bfloat16: bool = False) -> Peer:
    """Use `CrossEncoder.predict` of sentence-transformers, which takes pairs and sorts them by length."""
    from sentence_transformers import CrossEncoder

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    model = CrossEncoder(
        str(folder), max_length=max_tokens, device=str(current_device()), model_kwargs={"dtype": dtype}
    )
    return lambda texts: model.predict([(text, "") for text in texts], batch_size=batch_size)


PEERS = {
    "transformers.pipeline": pipeline,
    "Trainer.predict": trainer_predict,
    "CrossEncoder.predict": cross_encoder,
}
