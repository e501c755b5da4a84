"""Who is asked (producer id) and what is asked (example id): hashes of content, never positions or paths."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa

from cache.errors import ProducerError, UnreadableError

ID_TYPE = pa.binary(16)
"""Arrow type of an example id."""

SCHEMA_VERSION = 1
"""The schema that is written, of shards, manifests and facts; all up to it are read.

It is one of the facts: a higher one gives every teacher another id.
"""

# The files that transformers' tokenizers read; those that tokenizer_config.json names come to them.
_TOKENIZER_FILES = (
    *("added_tokens.json", "bpe.codes", "entity_vocab.json", "merges.txt", "prophetnet.tokenizer"),
    *(
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
    ),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("word_pronunciation.json", "word_shape.json"),
)
_WEIGHTS_INDEX = "model.safetensors.index.json"
# Keys of config.json and tokenizer_config.json that cannot change a logit: where the files came from, who
# wrote them, and how they are to be loaded (the compute dtype is a fact of its own).
_VOLATILE_KEYS = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "label2id"}
    | {"_commit_hash", "is_local", "local_files_only", "use_cache"}
)
# Keys of adapter_config.json likewise: the adapter is loaded into the model that it lies beside.
_VOLATILE_ADAPTER_KEYS = frozenset({"base_model_name_or_path", "inference_mode", "peft_version", "revision"})


def require_known_schema(path: str, values: Any) -> None:
    """Refuse what a newer version wrote. What names no schema is left to those who know what it must hold.

    Args:
        path: The file, for the message.
        values: JSON values: metadata of a shard, a manifest, or the facts of a producer.

    Raises:
        UnreadableError: Their ``schema`` is above ``SCHEMA_VERSION``.
    """
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        found = schema if schema < 10**6 else "above a million"  # a number in a file can have any length
        raise UnreadableError(
            path,
            f"written by a newer version (schema {found}; this one reads up to {SCHEMA_VERSION}); upgrade",
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
        hidden: Whether the last layer's state of a token is kept too, as float16: of the first one, unless
            the producer's facts say otherwise.
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

    def __post_init__(self) -> None:
        if not isinstance(self.facts, dict):
            raise ProducerError("the facts of the producer are no mapping")

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
            ProducerError: The folder has no configuration, no safetensors weights or no tokenizer, an adapter
                has no safetensors weights, or the teacher has too few or too many classes for `outputs`.
        """
        for names, what in (
            (["config.json"], "config.json"),
            (["model.safetensors", _WEIGHTS_INDEX], "weights in model.safetensors"),
            (_TOKENIZER_FILES, "tokenizer files"),
        ):
            if not any((folder / name).is_file() for name in names):
                raise ProducerError(f"{folder} is not a teacher: it has no {what}")
        config = _stable_json(folder / "config.json")
        producer = cls(
            {
                "schema": SCHEMA_VERSION,
                "outputs": ["logits", "hidden"] if outputs.hidden else ["logits"],
                **_weights(folder),
                "config": config,
                "tokenizer": _tokenizer(folder),
                **_adapter(folder),
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

    def with_facts(self, facts: Mapping[str, Any]) -> Self:
        """Add what else can change an answer and is not in the files: JSON values that stages find out."""
        return type(self)({**self.facts, **facts})

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
        """What is kept of the teacher's answers.

        Raises:
            ProducerError: The facts do not say it in a way that this version knows.
        """
        kept = self.facts.get("outputs", ["logits"])
        dtype, top_k = self.facts.get("logits_dtype", "float32"), self.facts.get("top_k")
        if (
            kept not in (["logits"], ["logits", "hidden"])
            or dtype not in ("float32", "float16")
            or not (top_k is None or type(top_k) is int)
        ):
            raise ProducerError(
                f"the producer keeps {kept} as {dtype}, top_k {top_k}, which is not known here"
            )
        return Outputs(dtype=dtype, top_k=top_k, hidden="hidden" in kept)

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of the producer's soft labels besides ``example_id``.

        Raises:
            ProducerError: The facts do not tell.
        """
        columns = self.outputs.columns(len(self.classes))
        if "hidden" in columns:
            config = self.facts["config"]
            width = config.get("hidden_size", config.get("dim"))  # DistilBERT's word
            if type(width) is int and 0 < width < 2**16:
                columns["hidden"] = Column("float16", width)
        return columns


def canonical_json(value: Any) -> bytes:
    """Encode so that equal values give equal bytes on every machine: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def file_digest(path: Path) -> str:
    """Hash a file's bytes: sha256, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights(folder: Path) -> dict[str, Any]:
    """Give the facts of the weights that transformers loads: of one file, or of those that an index names."""
    if (folder / "model.safetensors").is_file():
        return {"weights": [file_digest(folder / "model.safetensors")]}
    index = _read_json(folder / _WEIGHTS_INDEX)
    try:
        files = {str(weight): folder / Path(str(name)).name for weight, name in index["weight_map"].items()}
        digests = {path: file_digest(path) for path in sorted(set(files.values()))}
    except (AttributeError, KeyError) as error:
        raise ProducerError(f"{folder / _WEIGHTS_INDEX} names no weights") from error
    except FileNotFoundError as error:
        raise ProducerError(f"{folder} is not a teacher: it has no {error.filename}") from error
    placed = {weight: digests[path] for weight, path in files.items()}
    return {
        "weights": sorted(digests.values()),
        "weight_map": hashlib.sha256(canonical_json(placed)).hexdigest(),
    }


def _tokenizer(folder: Path) -> dict[str, Any]:
    """Give the facts of the tokenizer, by file name."""
    names = set(_TOKENIZER_FILES)
    if (folder / "tokenizer_config.json").is_file():
        names |= set(map(str, _read_json(folder / "tokenizer_config.json").get("fast_tokenizer_files") or ()))
    facts: dict[str, Any] = {}
    for name in sorted(names):
        path = folder / Path(name).name
        if path.is_file():
            facts[name] = _stable_json(path) if name == "tokenizer_config.json" else file_digest(path)
    return facts


def _adapter(folder: Path) -> dict[str, Any]:
    """Give the facts of a PEFT adapter, which transformers loads by itself where its configuration lies."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config.is_file():
        return {}
    if not weights.is_file():
        raise ProducerError(f"{folder} has an adapter, but its weights are not in {weights.name}")
    values = {key: value for key, value in _read_json(config).items() if key not in _VOLATILE_ADAPTER_KEYS}
    return {"adapter": {"config": values, "weights": file_digest(weights)}}


def _stable_json(path: Path) -> dict[str, Any]:
    values = {key: value for key, value in _read_json(path).items() if key not in _VOLATILE_KEYS}
    if path.name == "config.json":
        # transformers leaves two classes that are called LABEL_0 and LABEL_1 unwritten.
        values.setdefault("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ProducerError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ProducerError(f"{path} is no JSON object")
    return values
