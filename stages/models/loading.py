"""Models out of their folders: what is wrong with a folder ends in one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from safetensors import SafetensorError

from stages.errors import StageError
from stages.hub import first_line
from stages.progress import say


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn what transformers raises for files that make no model into one line, and keep its reports back.

    Raises:
        StageError: A library could not make a model of the files.
    """
    from transformers.utils import logging  # slow import

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise StageError(f"cannot load {what}: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def require_max_tokens(max_tokens: int, tokenizer: Any, config: Any, *, key: str) -> None:
    """Refuse inputs that are longer than a model's table of positions, or a student's training had them.

    Raises:
        StageError: `max_tokens` is above what tokenizer and model take.
    """
    is_student, config = hasattr(config, "mplm_config"), getattr(config, "mplm_config", config)
    positions = getattr(config, "max_position_embeddings", None) or max_tokens
    if config.model_type in ("camembert", "roberta", "xlm-roberta"):
        positions -= config.pad_token_id + 1  # positions are counted from behind the padding's
    limit = min(tokenizer.model_max_length, positions)
    if max_tokens > limit and is_student and limit < positions:
        raise StageError(
            f"{key} is {max_tokens}, but the student was trained with at most {limit} tokens; train it "
            "again, or lower this"
        )
    if max_tokens > limit:
        raise StageError(f"{key} is {max_tokens}, but the model takes at most {limit} tokens")


def require_embeddings(tokenizer: Any, model: Any, *, what: str) -> None:
    """Refuse a tokenizer that makes tokens which a model has no embedding for.

    Args:
        tokenizer: Of a folder.
        model: Of the same folder.
        what: It is, for messages.

    Raises:
        StageError: They are not of one model.
    """
    n_tokens, n_embeddings = len(tokenizer), model.get_input_embeddings().num_embeddings
    if n_tokens > n_embeddings:
        raise StageError(
            f"{what} has a tokenizer of {n_tokens:,} tokens, but embeddings of {n_embeddings:,}; take "
            "weights and tokenizer from one model"
        )


def say_new(weights: Sequence[str], *, what: str) -> None:
    """Say which parts of a classifier a folder does not hold, so that they are new.

    Args:
        weights: Those that are missing, by their names in a plain model.
        what: The folder is.
    """
    parts = dict.fromkeys("pooler" if ".pooler." in name else "classifier" for name in weights)
    if parts:
        _say_once(
            f"{what} has no {' and no '.join(sorted(parts, reverse=True))}: training starts with new ones"
        )


@cache
def _say_once(line: str) -> None:
    say(line)
