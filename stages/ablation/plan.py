"""What each run of the ablation depends on, in a file that DVC compares. Nothing is trained here."""

import json
from collections.abc import Mapping
from typing import Any

from cache import SoftLabelSet, file_digest
from stages.ablation.params import AblationParams
from stages.artifacts import ABLATION, SOFT_LABELS, of_each_teacher, replaced_folder
from stages.student.params import NOT_FOR_FINETUNE, DistillParams, Teachers
from stages.task import TaskParams


def plan(
    task: TaskParams, teachers: Mapping[str, Teachers], distill: DistillParams, params: AblationParams
) -> str:
    """Write ``plan/<run>.json`` for each variant and each run of the sweep.

    A run's file changes with what can change its student and with nothing else, so that DVC runs those again
    that a change concerns: another temperature is nothing to `finetune`, and a new run of the sweep nothing
    to the others.

    Returns:
        One line.

    Raises:
        CacheError: There are no soft labels.
    """
    soft_labels = {language: _soft_labels(language, teachers[language]) for language in task.supervised}
    runs = params.settings(distill)
    with replaced_folder(ABLATION / "plan") as folder:
        for name, settings in runs.items():
            facts: dict[str, Any] = {"distill": relevant(settings)}
            if settings.variant != "finetune":
                facts["soft_labels"] = soft_labels
            (folder / f"{name}.json").write_text(
                json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8"
            )
    n_students = len(params.variants) * len(params.seeds) + len(params.sweep.runs) * len(params.sweep.seeds)
    return f"{len(runs)} runs, {n_students} students"


def relevant(params: DistillParams) -> dict[str, Any]:
    """Give those parameters of `student.distill` that decide a student of this variant, but for its seed."""
    # A killed run goes on from what save_steps leaves; the student is the same.
    values = params.model_dump(exclude={"seed", "save_steps"})
    unused = {
        "finetune": NOT_FOR_FINETUNE,
        "distill": ("branch_layers", "mixture"),
        "branches": (),
        "mblm": (),
    }
    for name in unused[params.variant]:
        del values[name]
    if params.variant == "branches":
        values["mixture"] = {"of": params.mixture.of}  # what a zero-shot language goes through
    return values


def _soft_labels(language: str, teachers: Teachers) -> list[dict[str, Any]]:
    """Say what each teacher's soft labels are, and how its classes are called."""
    facts = []
    for folder, teacher in zip(
        of_each_teacher(SOFT_LABELS / language, len(teachers.all)), teachers.all, strict=True
    ):
        SoftLabelSet.read(folder, language=language)  # refuses what is not there
        facts.append({"set": file_digest(folder / "manifest.json"), "labels": teacher.labels})
    return facts
