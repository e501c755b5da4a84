"""Models out of their folders: what is wrong with a folder ends in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError

from stages.errors import StageError
from stages.hub import first_line


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn what transformers raises for files that make no model into one line.

    Raises:
        StageError: A library could not make a model of the files.
    """
    try:
        yield
    except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise StageError(f"cannot load {what}: {first_line(error)}") from error


def require_max_tokens(max_tokens: int, tokenizer: Any, config: Any, *, key: str) -> None:
    """Refuse inputs that are longer than a model's table of positions.

    Raises:
        StageError: `max_tokens` is above what tokenizer and model take.
    """
    positions = getattr(config, "max_position_embeddings", None) or max_tokens
    if config.model_type in ("camembert", "roberta", "xlm-roberta"):
        positions -= config.pad_token_id + 1  # positions are counted from behind the padding's
    limit = min(tokenizer.model_max_length, positions)
    if max_tokens > limit:
        raise StageError(f"{key} is {max_tokens}, but the model takes at most {limit} tokens")
