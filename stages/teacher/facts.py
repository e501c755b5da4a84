"""What decides a teacher's answers besides the content of its files. Its weights are not loaded."""

from pathlib import Path
from typing import Any

from stages.source import loading
from stages.teacher.params import LabelParams


def facts_of(folder: Path, params: LabelParams) -> dict[str, Any]:
    """Give the facts of a teacher that a look at its files does not give; most teachers have none.

    Args:
        folder: Where its files are.
        params: Section `teacher.label`.

    Raises:
        StageError: transformers can make no classifier of the files.
    """
    return _hidden(folder) if params.hidden else {}


def _hidden(folder: Path) -> dict[str, Any]:
    """Say whose state is kept, where it is not the first token's."""
    from stages.teacher.decoders import classifier_of, is_decoder  # slow import: torch

    with loading(f"the teacher in {folder}"):
        return {"hidden_token": "last"} if is_decoder(*classifier_of(folder)) else {}
