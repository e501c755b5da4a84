"""Who is asked: all that decides a soft label besides the text; contents of files, never their paths."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cache.errors import ProducerError
from cache.identity.columns import Column, Outputs
from cache.identity.digests import canonical_json, file_digest
from cache.identity.model_files import TOKENIZER_FILES

_FACTS_SCHEMA = 1
"""One of the facts: another one would give every teacher another id, so it does not rise with the shards'."""

_WEIGHTS_INDEX = "model.safetensors.index.json"
# Keys of config.json and tokenizer_config.json that cannot change a logit: where the files came from, who
# wrote them, and how they are to be loaded (the compute dtype is a fact of its own).
_VOLATILE_KEYS = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "label2id"}
    | {"_commit_hash", "is_local", "local_files_only", "use_cache"}
    | {"own_temperature", "mixture_temperature"}  # of a student, whose logits are raw
)
# Keys of adapter_config.json likewise: the adapter is loaded into the model that it lies beside.
_VOLATILE_ADAPTER_KEYS = frozenset({"base_model_name_or_path", "inference_mode", "peft_version", "revision"})


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
            (TOKENIZER_FILES, "tokenizer files"),
        ):
            if not any((folder / name).is_file() for name in names):
                raise ProducerError(f"{folder} is not a teacher: it has no {what}")
        config = _stable_json(folder / "config.json")
        producer = cls(
            {
                "schema": _FACTS_SCHEMA,
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

    @classmethod
    def of_imported(
        cls,
        facts: Mapping[str, str],
        *,
        classes: Sequence[str],
        text_fields: Sequence[str],
        made: Mapping[str, Any],
        outputs: Outputs = Outputs(),
    ) -> Self:
        """Identify whoever made soft labels elsewhere, by what is said of them.

        No teacher that was run here has such an id: its facts have no ``imported``.

        Args:
            facts: Who made them, in the words of whoever imports them, such as ``name`` and ``version``.
            classes: Class names in the order of the logits.
            text_fields: The task's text fields in the order in which they make an example id.
            made: How the values became logits, or which producer they were exported from.
            outputs: What there is of the answers.

        Raises:
            ProducerError: There are too few or too many classes for `outputs`.
        """
        producer = cls(
            {
                "schema": _FACTS_SCHEMA,
                "outputs": ["logits", "hidden"] if outputs.hidden else ["logits"],
                "imported": {**made, "facts": dict(facts)},
                "config": {"id2label": {str(index): name for index, name in enumerate(classes)}},
                "text_fields": list(text_fields),
                **({} if outputs.dtype == "float32" else {"logits_dtype": outputs.dtype}),
                **({} if outputs.top_k is None else {"top_k": outputs.top_k}),
            }
        )
        _ = producer.columns
        return producer

    @classmethod
    def of_endpoint(
        cls, asked: Mapping[str, Any], *, classes: Sequence[str], text_fields: Sequence[str]
    ) -> Self:
        """Identify a teacher behind HTTP by how it is asked and what it says that it is.

        Args:
            asked: Shape, model, revision, prompt and whatever else decides an answer; no address, no key.
            classes: Class names in the order of the logits.
            text_fields: The task's text fields in the order in which they make an example id.
        """
        return cls(
            {
                "schema": _FACTS_SCHEMA,
                "outputs": ["logits"],
                "endpoint": dict(asked),
                "config": {"id2label": {str(index): name for index, name in enumerate(classes)}},
                "text_fields": list(text_fields),
            }
        )

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
    def imported(self) -> dict[str, str] | None:
        """What whoever imported the soft labels said of their maker; None: a teacher was run for them."""
        imported = self.facts.get("imported")
        if not isinstance(imported, dict) or not isinstance(imported.get("facts"), dict):
            return None
        return {str(key): str(value) for key, value in imported["facts"].items()}

    @property
    def endpoint(self) -> dict[str, Any] | None:
        """How a teacher behind HTTP is asked; None: the teacher is no such one."""
        endpoint = self.facts.get("endpoint")
        return endpoint if isinstance(endpoint, dict) else None

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
            config = config.get("mplm_config", config)  # of a teacher that is a student
            if not isinstance(config, dict):
                raise ProducerError("the configuration of the producer's encoder is no mapping")
            width = config.get("hidden_size", config.get("dim"))  # DistilBERT's word
            width = config.get("word_embed_proj_dim", width)  # to which OPT projects its last states
            if type(width) is int and 0 < width < 2**16:
                columns["hidden"] = Column("float16", width)
        return columns


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
    names = set(TOKENIZER_FILES)
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
