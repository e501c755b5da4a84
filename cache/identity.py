"""Who is asked (producer id) and what is asked (example id): hashes of content, never positions or paths."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa

from cache.errors import ProducerError

ID_TYPE = pa.binary(16)
"""Arrow type of an example id."""

SCHEMA_VERSION = 1

# Tokenizer files by role. What else lies in a model folder cannot change a token.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Keys of config.json and tokenizer_config.json that cannot change a logit: where the files came from, who
# wrote them, and how they are to be loaded (the compute dtype is a fact of its own).
_VOLATILE_KEYS = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "label2id"}
    | {"_commit_hash", "is_local", "local_files_only", "use_cache"}
)


def example_id(*fields: str) -> bytes:
    """Identify an example by its text.

    Each field is preceded by its length, so that ``("ab", "c")`` and ``("a", "bc")`` differ. The text is
    hashed as it is, without normalisation: the teacher sees the same bytes.

    Args:
        fields: The text fields in the task's order.

    Returns:
        16 bytes, blake2b-128.
    """
    digest = hashlib.blake2b(digest_size=16)
    for field in fields:
        encoded = field.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def example_ids(columns: Sequence[Sequence[str]]) -> pa.FixedSizeBinaryArray:
    """Identify many examples.

    Args:
        columns: One sequence per text field, all of length N.

    Returns:
        An Arrow array of N ids of type ``ID_TYPE``.
    """
    return pa.array([example_id(*fields) for fields in zip(*columns, strict=True)], type=ID_TYPE)


class Column(NamedTuple):
    """A column of soft labels: N values of `dtype`, or N lists of `width` values each.

    A width of None is one that the teacher's facts do not tell.
    """

    dtype: str
    width: int | None


SCALAR = 0
"""Width of a column with one value per example."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is kept of a teacher's answer.

    Attributes:
        dtype: Type of the logits on disk.
        top_k: Keep only this many logits, the largest, and the log-sum-exp of the others; None keeps all.
        hidden: Whether the last layer's state of the first token is kept too, as float16.
    """

    dtype: Literal["float32", "float16"] = "float32"
    top_k: int | None = None
    hidden: bool = False

    def columns(self, n_classes: int) -> dict[str, Column]:
        """List the columns besides ``example_id``.

        Raises:
            ProducerError: `top_k` leaves no class out, or there are more classes than 16 bits count.
        """
        if self.top_k is None:
            columns = {"logits": Column(self.dtype, n_classes)}
        elif 0 < self.top_k < n_classes <= 2**16:
            columns = {
                "top_classes": Column("uint16", self.top_k),
                "top_logits": Column(self.dtype, self.top_k),
                "log_sum_exp_rest": Column("float32", SCALAR),
            }
        else:
            raise ProducerError(f"top_k is {self.top_k}; {n_classes} classes allow 1 to {n_classes - 1}")
        return columns | ({"hidden": Column("float16", None)} if self.hidden else {})


@dataclass(frozen=True)
class Producer:
    """Everything that decides a soft label besides the text.

    Attributes:
        facts: JSON values. What can change a logit is in; batch size, device, paths and names are not.
    """

    facts: dict[str, Any]

    @classmethod
    def of_teacher(
        cls,
        folder: Path,
        *,
        text_fields: Sequence[str],
        max_tokens: int,
        dtype: str,
        outputs: Outputs = Outputs(),
    ) -> Self:
        """Identify a teacher by the content of its files, without loading it.

        Args:
            folder: A Hugging Face sequence classifier with ``config.json`` and safetensors weights.
            text_fields: The task's text fields in the order in which the teacher reads them.
            max_tokens: Longer inputs are truncated to this many tokens.
            dtype: Compute dtype, such as ``float32``.
            outputs: What is kept of the answers.

        Raises:
            ProducerError: The folder has no configuration, no safetensors weights or no tokenizer, or the
                teacher has too few or too many classes for `outputs`.
        """
        config_file = folder / "config.json"
        weights = sorted(folder.glob("*.safetensors"))
        tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
        for found, what in (
            (config_file.is_file(), "config.json"),
            (weights, "weights in *.safetensors"),
            (tokenizer, "tokenizer files"),
        ):
            if not found:
                raise ProducerError(f"{folder} is not a teacher: it has no {what}")
        producer = cls(
            {
                "schema": SCHEMA_VERSION,
                "outputs": ["logits", "hidden"] if outputs.hidden else ["logits"],
                "weights": sorted(file_digest(path) for path in weights),
                "config": _stable_json(config_file),
                "tokenizer": {path.name: _tokenizer_fact(path) for path in tokenizer},
                "text_fields": list(text_fields),
                "max_tokens": max_tokens,
                "truncation": "longest_first",
                "dtype": dtype,
                # These two are facts only where they depart from what was once the only way.
                **({} if outputs.dtype == "float32" else {"logits_dtype": outputs.dtype}),
                **({} if outputs.top_k is None else {"top_k": outputs.top_k}),
            }
        )
        _ = producer.columns
        return producer

    @property
    def id(self) -> str:
        """Sha256 over the canonical JSON of the facts, 64 hexadecimal digits."""
        return hashlib.sha256(canonical_json(self.facts)).hexdigest()

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the teacher's logits.

        Raises:
            ProducerError: The facts hold none.
        """
        try:
            names = self.facts["config"]["id2label"]
            return [str(names[index]) for index in sorted(names, key=int)]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ProducerError("the facts of the producer hold no class names") from None

    @property
    def outputs(self) -> Outputs:
        """What is kept of the teacher's answers."""
        return Outputs(
            dtype=self.facts.get("logits_dtype", "float32"),
            top_k=self.facts.get("top_k"),
            hidden="hidden" in self.facts.get("outputs", ()),
        )

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of the producer's soft labels besides ``example_id``."""
        return self.outputs.columns(len(self.classes))


def canonical_json(value: Any) -> bytes:
    """Encode so that equal values give equal bytes on every machine: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def file_digest(path: Path) -> str:
    """Hash a file's bytes: sha256, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stable_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProducerError(f"{path} is not JSON: {error}") from error
    values = {key: value for key, value in values.items() if key not in _VOLATILE_KEYS}
    if path.name == "config.json":
        # transformers leaves two classes that are called LABEL_0 and LABEL_1 unwritten.
        values.setdefault("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    return values


def _tokenizer_fact(path: Path) -> Any:
    return _stable_json(path) if path.name == "tokenizer_config.json" else file_digest(path)
