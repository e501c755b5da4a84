"""What int8 changes: accuracy of the graphs in float32 and int8 on the task's own examples, by language."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.data.examples import SPLITS, has_split, read_examples
from stages.data.task import TaskParams
from stages.models.batches import tokenize
from stages.progress import Bar
from stages.student.exporting.routing import LANGUAGE_IDS


@dataclass(frozen=True)
class Change:
    """What int8 changes in one language and split.

    Attributes:
        language: Which.
        split: ``validation`` or ``test``.
        examples: Their count.
        float32: Accuracy, from 0 to 1.
        int8: Likewise.
        other_labels: Share of the examples that get another label, from 0 to 1.
    """

    language: str
    split: str
    examples: int
    float32: float
    int8: float
    other_labels: float

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"{self.language}, {self.split}: {self.float32:.1%} in float32, {self.int8:.1%} in int8; "
            f"another label for {self.other_labels:.1%} of {self.examples:,}"
        )


def changes_by_int8(
    task: TaskParams,
    tokenizer: PreTrainedTokenizerBase,
    language_id: Callable[[str], int],
    files: tuple[Path, Path],
    *,
    max_tokens: int,
    batch_size: int,
) -> list[Change]:
    """Classify the validation and test examples with both graphs; nothing where `prepare` wrote none.

    Args:
        task: Section `task` of params.yaml.
        tokenizer: The student's.
        language_id: The branch of a language; -1 is the mixture.
        files: The graph in float32, and in int8.
        max_tokens: Longer examples are cut.
        batch_size: A forward pass has at most the tokens of so many examples of full length.

    Raises:
        StageError: The examples are of other classes or text fields, or a file of them is broken.
    """
    wanted = [(lang, split) for lang in task.languages for split in SPLITS[1:] if has_split(lang, split)]
    if not wanted:
        return []
    sessions = [session_of(file) for file in files]
    found = []
    for language, split in Bar(wanted, desc="measure int8", unit="split", delay=2):
        examples = read_examples(task, language, split)
        if not len(examples):
            continue
        labels = examples["label"].to_numpy()
        fields = [examples[field].to_pylist() for field in task.text_fields]
        tokens = tokenize(tokenizer, fields, max_tokens=max_tokens)
        said: NDArray[np.int64] = np.empty((2, len(labels)), np.int64)
        for texts in tokens.batches(batch_size * max_tokens):
            batch = {name: value.numpy() for name, value in tokens.batch(texts, tokenizer).items()}
            batch[LANGUAGE_IDS] = np.full(len(batch["attention_mask"]), language_id(language))
            for row, session in zip(said, sessions, strict=True):
                given = {one.name: batch[one.name] for one in session.get_inputs()}
                [logits] = session.run(["logits"], given)
                row[tokens.positions[texts]] = logits.argmax(axis=1)
        right = (said == labels).mean(axis=1)
        others = float((said[0] != said[1]).mean())
        found.append(Change(language, split, len(labels), float(right[0]), float(right[1]), others))
    return found


def session_of(path: Path) -> Any:
    """Open a graph with onnxruntime, on the CPU."""
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
