"""What each run of the ablation depends on, in files that DVC compares. Nothing is trained here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import SoftLabelSet, file_digest
from stages.ablation.params import AblationParams
from stages.artifacts import ABLATION, SILVER_LABELS, SOFT_LABELS, of_each_teacher, replaced_folder
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.dependencies import departures
from stages.results.teachers import Teachers
from stages.student.params import DistillParams, StudentSection
from stages.student.variants import HARD_ONLY, not_inherited, relevant, require_branches


def plan(
    task: TaskParams, teachers: Mapping[str, Teachers], student: StudentSection, params: AblationParams
) -> str:
    """Write ``plan/runs/<run>.json`` for each variant and run of the sweep; others are of encoders, tables.

    A run's file changes with what can change its student and with nothing else, so that DVC runs those again
    that a change concerns: another temperature is nothing to `finetune`, and a new run of the sweep nothing
    to the others. Like those of `stages.plan`, files list what departs from the defaults.

    Returns:
        One line.

    Raises:
        StageError: A run's variant needs another language.
        CacheError: There are no soft labels.
    """
    soft_labels = soft_labels_of(task, teachers)
    silver = silver_languages(task, teachers)
    runs = params.settings(student.distill)
    languages = ("supervised", "zero_shot")
    files: dict[str, Any] = {
        "pretrain": {
            "task": departures(task, "text_fields", "unlabelled", "zero_shot_texts", *languages),
            "pretrain": _without_seed(departures(student.pretrain)),
        },
        "compare": {"task": departures(task), "ablation": departures(params, "seeds", "variants")},
        "compare-sweep": {"task": departures(task), "ablation": departures(params, "sweep")},
    }
    for name, settings in runs.items():
        require_branches(task.supervised, settings)
        files[f"runs/{name}"] = settings_of(task, settings) | {
            "soft_labels": {} if settings.variant in HARD_ONLY else soft_labels,
            **not_inherited(settings, silver),
        }
    with replaced_folder(ABLATION / "plan") as folder:
        (folder / "runs").mkdir()
        for name, facts in files.items():
            (folder / f"{name}.json").write_text(
                json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8"
            )
    n_students = len(params.variants) * len(params.seeds) + len(params.sweep.runs) * len(params.sweep.seeds)
    idle = [name for name in params.changes if "variant" in params.changes[name] and name not in runs]
    more = f"; not among ablation.variants: {', '.join(idle)}" if idle else ""
    return f"{len(runs)} runs, {n_students} students{more}"


def settings_of(task: TaskParams, settings: DistillParams) -> dict[str, Any]:
    """Give the parameters that decide a run, but for its seed: those that depart from the defaults.

    Args:
        task: Section `task`.
        settings: Section `student.distill` of the run.
    """
    return {
        "task": departures(
            task, "text_fields", "classes", "unlabelled", "supervised", "zero_shot", "zero_shot_texts"
        ),
        "distill": _without_seed(relevant(settings, defaults=False)),
        "evaluate": {},  # where earlier versions noted what changes speed and memory only
    }


def soft_labels_of(task: TaskParams, teachers: Mapping[str, Teachers]) -> dict[str, list[dict[str, Any]]]:
    """Say what the soft labels of each language are.

    Raises:
        CacheError: There are none.
    """
    sets = dict.fromkeys(task.supervised, SOFT_LABELS)
    sets |= dict.fromkeys(silver_languages(task, teachers), SILVER_LABELS)
    return {
        language: _soft_labels(folder / language, language, teachers[language])
        for language, folder in sets.items()
    }


def digest_of(facts: Any) -> str:
    """Hash facts of any kind, such as `soft_labels_of`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _without_seed(values: dict[str, Any]) -> dict[str, Any]:
    """Leave the seed out, which is each run's own."""
    return {key: value for key, value in values.items() if key != "seed"}


def _soft_labels(place: Path, language: str, teachers: Teachers) -> list[dict[str, Any]]:
    """Say what each teacher's soft labels are, and how its classes are called."""
    facts = []
    for folder, teacher in zip(of_each_teacher(place, len(teachers.all)), teachers.all, strict=True):
        SoftLabelSet.read(folder, language=language)  # refuses what is not there
        weight = {} if teacher.weight == 1 else {"weight": teacher.weight}
        facts.append({"set": file_digest(folder / "manifest.json"), "labels": teacher.labels, **weight})
    if teachers.combine != "average":
        facts.append({"combine": teachers.combine})
    return facts
