"""A student as a teacher: asked through one of its branches, or through their mixture."""

import json
from pathlib import Path
from typing import Any

from stages.data.branches import MIXTURE
from stages.errors import StageError
from stages.models.configuration_mblm import MBLMConfig
from stages.models.loading import loading
from stages.models.pins import fetch, link, model_files, pin
from stages.teacher.labelling.decoders import classifier_of


def pin_branch(branch: str | None, source: dict[str, Any], folder: Path, *, key: str, command: str) -> None:
    """Let a folder stand for a model that is ready; which branch answers is a part of who it is.

    Args:
        branch: A language of the student's, or its mixture; None: as its configuration says.
        source: Where the model is, as `stages.models.pins.resolve` gives it.
        folder: An empty one.
        key: The teacher's place in params.yaml.
        command: What pins it, for messages.

    Raises:
        StageError: The model is no student, or has no such branch.
    """
    if branch is None:
        pin(folder, source)
        return
    base = fetch(source, command=command)
    with loading(f"the student in {base}"):
        config = classifier_of(base)[0]
    if not isinstance(config, MBLMConfig):
        raise StageError(
            f"{key}.branch is {branch}, but {base} holds a {config.model_type} model, no student"
        )
    names = [*(config.languages if config.n_branches > 1 else []), MIXTURE]
    if branch not in names:
        raise StageError(f"{key}.branch is {branch}, but the student in {base} has: {', '.join(names)}")
    # Not as transformers writes it: that is another file with each version, and so would be the teacher's id.
    settings = json.loads((base / "config.json").read_bytes())
    settings["default_language"] = None if branch == MIXTURE else branch
    (folder / "config.json").write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    for path in model_files(base):
        if path.name != "config.json":
            link(path, folder / path.name)
