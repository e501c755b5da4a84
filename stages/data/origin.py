"""Where the prepared data comes from, as cards and reports say it."""

import json

from stages.artifacts import DATA
from stages.data.examples import MANIFEST
from stages.data.task import NamesSource, TaskParams


def data_source(task: TaskParams) -> str:
    """Say where the data comes from, in which revision if `prepare` noted one; the same for the same data."""
    source = task.source
    name = getattr(source, "dataset", None) or getattr(source, "pattern", source.kind)
    try:
        revision = json.loads((DATA / MANIFEST).read_text(encoding="utf-8"))["revision"]
    except FileNotFoundError:  # prepared by version 0.1
        return str(name)
    if isinstance(source, NamesSource):
        return f"{name} ({revision})"
    if isinstance(revision, dict):  # a data set for each language
        revision = ", ".join(f"{commit} ({language})" for language, commit in revision.items())
    return f"{name} at {revision}" if revision else str(name)
