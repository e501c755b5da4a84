"""Teachers without a model have their place among the others: it says which soft labels they are."""

import json
from pathlib import Path

from cache import file_digest, write_atomically
from stages.errors import StageError
from stages.teacher.params import OneTeacher

PIN = "soft_labels.json"
"""In the teacher's folder."""


def pin_soft_labels(teacher: OneTeacher, folder: Path, *, key: str) -> str:
    """Write down which soft labels a teacher is, so that a change of the file is one.

    Args:
        teacher: One without a base; its producer is a whole id.
        folder: Where to.
        key: The teacher's place in params.yaml.

    Returns:
        What they are, in words.

    Raises:
        StageError: The file is not there.
    """
    if teacher.producer is not None:
        pinned = {"producer": teacher.producer}
        said = f"the soft labels of producer {teacher.producer[:12]} in the store"
    elif teacher.endpoint is not None:
        pinned, said = endpoint_pin(teacher, key=key), f"the endpoint of {teacher.title}"
    elif teacher.soft_labels is None or teacher.soft_labels.file is None:
        pinned, said = {"column": "task.source.soft_label_field"}, "the soft labels in its data"
    else:
        file = Path(teacher.soft_labels.file)
        if not file.is_file():
            raise StageError(f"{key}.soft_labels is {file}, which is not there")
        pinned, said = file_pin(file), f"the soft labels in {file}"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / PIN, json.dumps(pinned, indent=2).encode())
    return said


def read_pin(place: Path) -> dict[str, str]:
    """Give what `pin_soft_labels` wrote; nothing where it has not run."""
    try:
        pinned: dict[str, str] = json.loads((place / PIN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return pinned


def file_pin(file: Path) -> dict[str, str]:
    """Give what stands for a file of soft labels: its place and its content."""
    return {"file": str(file), "sha256": file_digest(file)}


def endpoint_pin(teacher: OneTeacher, *, key: str) -> dict[str, str]:
    """Give what stands for an endpoint: the revision and the template; the plan has the rest.

    Args:
        teacher: One with an endpoint.
        key: Its place in params.yaml.

    Raises:
        StageError: The template is not there.
    """
    assert teacher.endpoint is not None
    pinned = {"shape": teacher.endpoint.shape, "revision": teacher.revision or ""}
    if teacher.endpoint.template is None:
        return pinned
    file = Path(teacher.endpoint.template)
    if not file.is_file():
        raise StageError(f"{key}.endpoint.template is {file}, which is not there")
    return pinned | file_pin(file)
