"""An exported student as a server runs it: onnxruntime and tokenizers, without torch and transformers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.data.branches import branch_of
from stages.errors import StageError

FLOAT32, INT8 = "student.onnx", "student.int8.onnx"
FACTS = "model.json"

Example = str | tuple[str, str]
"""A text, or two where the task is about pairs."""

_EXPORT = (
    "make an export with: python -m pipeline student export artifacts/export --onnx, and serve "
    "artifacts/export/onnx"
)
_MOST_IN_BATCH, _BATCH_TOKENS = 16, 2048
"""Of a batch: texts, and tokens with padding. It is small: the next requests arrive while it is computed."""
_ENOUGH_IN_BATCH, _SIMILAR = 4, 1.2
"""A batch of so many texts takes none that is this many times as long as its shortest."""


class Facts(BaseModel):
    """What an export says of itself in ``model.json``.

    Attributes:
        classes: Their names, in the order of the logits.
        text_fields: One, or two where an example is a pair.
        inputs: Of the graph: what the tokenizer gives, and language ids.
        outputs: Of the graph.
        max_tokens: Longer inputs are cut.
        languages: Ids of those with a branch.
        n_branches: One per language, or 1, which all share.
        pad_token_id: Fills shorter texts up.
        truncation_side: Where longer inputs are cut.
    """

    model_config = ConfigDict(frozen=True)

    classes: list[str]
    text_fields: list[str]
    inputs: list[str]
    outputs: list[str]
    max_tokens: int
    languages: dict[str, int]
    n_branches: int
    pad_token_id: int
    truncation_side: Annotated[str, Field(pattern="^(left|right)$")]

    def branch(self, language_id: int) -> str:
        """Name the branch of a language; where all languages share one, it is the mixture."""
        return branch_of(language_id, list(self.languages), self.n_branches)


class ServedModel:
    """A graph and its tokenizer.

    Attributes:
        facts: What it says of itself.
        file: The graph's: in int8 where the export has that.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """Load it.

        Args:
            folder: ``onnx/`` of an export.
            threads: Of onnxruntime; 0: one per core.

        Raises:
            StageError: The folder holds no export, or one that is broken or of an older version.
        """
        self.facts = _facts_of(folder)
        self.file = folder / (INT8 if (folder / INT8).is_file() else FLOAT32)
        self._tokenizer = _tokenizer_of(folder, self.facts)
        self._session = _session_of(self.file, threads)

    def tokenize(self, examples: Sequence[Example]) -> list[Any]:
        """Turn examples into tokens: objects with ``ids`` and ``type_ids``, special tokens included."""
        encoded: list[Any] = self._tokenizer.encode_batch_fast(list(examples))
        return encoded

    def probabilities(self, tokens: Sequence[Any], language_ids: Sequence[int]) -> NDArray[np.float32]:
        """Classify B examples in one pass.

        Args:
            tokens: Of each, as `tokenize` gives them.
            language_ids: Of each; -1: the mixture.

        Returns:
            By class, ``(B, C)``.
        """
        lengths = np.array([len(one.ids) for one in tokens])
        is_token = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(is_token.shape, self.facts.pad_token_id)
        input_ids[is_token] = np.concatenate([one.ids for one in tokens])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": is_token.astype(np.int64),
            "language_ids": np.array(language_ids, np.int64),
        }
        if "token_type_ids" in self.facts.inputs:
            inputs["token_type_ids"] = np.zeros(is_token.shape, np.int64)
            inputs["token_type_ids"][is_token] = np.concatenate([one.type_ids for one in tokens])
        [logits] = self._session.run(self.facts.outputs, inputs)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return found


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut examples into batches of similar lengths.

    Whose branch they go through does not matter: the graph runs each branch for its own texts alone.

    Args:
        lengths: Tokens of each.

    Yields:
        Positions, the shortest examples first.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = lengths[position]
        if batch and (
            len(batch) == _MOST_IN_BATCH
            or (len(batch) + 1) * longest > _BATCH_TOKENS
            or (len(batch) >= _ENOUGH_IN_BATCH and longest > _SIMILAR * lengths[batch[0]])
        ):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _facts_of(folder: Path) -> Facts:
    if not folder.is_dir():
        raise StageError(f"there is no folder {folder}; {_EXPORT}")
    if not (folder / FACTS).is_file() or not (folder / FLOAT32).is_file() | (folder / INT8).is_file():
        raise StageError(f"{folder} holds no ONNX export; {_EXPORT}")
    try:
        return Facts.model_validate_json((folder / FACTS).read_bytes())
    except ValidationError as error:
        what = ".".join(map(str, error.errors()[0]["loc"])) or "it is no JSON"
        raise StageError(f"{folder / FACTS} makes no sense ({what}); export the student again") from error


def _tokenizer_of(folder: Path, facts: Facts) -> Any:
    from tokenizers import Tokenizer  # an extra

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers' have no other type
        raise StageError(f"cannot read {folder / 'tokenizer.json'}: {_first_line(error)}") from error
    tokenizer.enable_truncation(facts.max_tokens, direction=facts.truncation_side)
    tokenizer.no_padding()
    return tokenizer


def _session_of(file: Path, threads: int) -> Any:
    import onnxruntime  # an extra, and slow

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # requests want the cores, too
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no common type
        raise StageError(f"onnxruntime cannot load {file}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
