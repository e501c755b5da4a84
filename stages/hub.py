"""What a name on the Hugging Face Hub stands for today."""

import re
from typing import Literal

from stages.errors import StageError


def resolve_commit(name: str, revision: str | None, *, key: str, kind: Literal["dataset", "model"]) -> str:
    """Find out which commit a branch or tag on the Hub stands for today.

    Args:
        name: Id of a model or a data set.
        revision: Branch, tag or commit; a full commit asks no network, and None is the default branch.
        key: The parameter, for messages.
        kind: What the id is of.

    Raises:
        StageError: The Hub knows no such id or revision, or cannot be reached.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if name.startswith(("/", ".", "~")):  # which no id is
        raise StageError(f"{key} is {name}: no folder of that name; name one, from the repository's root")
    from huggingface_hub import HfApi  # slow import

    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind)
    except Exception as error:  # the client's network errors have no stable type
        raise StageError(
            f"{key} is {name}: no folder of that name, and the Hub says: {first_line(error)}"
        ) from error
    assert found.sha is not None
    return found.sha


def first_line(error: Exception) -> str:
    """Give what a library's error says, without the lines behind it."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
