"""What each stage depends on among the parameters, in files that DVC compares. Nothing is computed here.

A file lists what departs from the defaults and decides the stage's outputs. So a parameter that is absent,
one with its default value and one that a newer version brings are one to DVC, and a change runs again only
what it concerns.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import file_digest
from stages.artifacts import PLAN, forget_others, replaced_folder
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.dependencies import departures
from stages.student.params import StudentSection
from stages.student.variants import HARD_ONLY, not_inherited, relevant, require_branches
from stages.teacher.params import OneTeacher, TeacherParams, TeacherSection

_LABELLED = ("labels", "soft_labels", "producer", "endpoint", "name", "weight")
"""What decides soft labels of a teacher, or what stage one says of them, besides the teacher itself."""


def plan(
    task: TaskParams,
    teachers: Mapping[str, TeacherParams],
    teacher: TeacherSection,
    student: StudentSection,
) -> str:
    """Write ``artifacts/plan/<stage>.json`` for each stage of ``dvc.yaml``.

    What stage one wrote of languages that are supervised no more is deleted; the store has it.

    Returns:
        The stages whose parameters are others than before, then a line for each teacher that is not used.

    Raises:
        StageError: The student's variant needs another language.
    """
    require_branches(task.supervised, student.distill)
    before = {path.stem: path.read_text(encoding="utf-8") for path in PLAN.glob("*.json")}
    planned = {
        name: json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        for name, facts in _facts(task, teachers, teacher, student).items()
    }
    forget_others(task.supervised)  # also where DVC has a former output of `prepare`, and does not run it
    with replaced_folder(PLAN) as folder:
        for name, text in planned.items():
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    changed = [name for name, text in planned.items() if before.get(name) != text]
    line = f"{len(planned)} stages"
    if before and changed:
        line += f"; with other parameters than before: {', '.join(changed)}"
    elif before:
        line += ", none with other parameters than before"
    used = {*task.supervised, *silver_languages(task, teachers)}
    idle = [
        f"teachers.{language} is not used: '{language}' is not in task.supervised, "
        "nor in task.zero_shot with task.zero_shot_texts: true"
        for language in teachers
        if language not in used
    ]
    return "\n".join([line, *idle])


def _file_of(teacher: OneTeacher) -> dict[str, Any]:
    """Give the file of a teacher without a model, and its digest: DVC watches no single file of data/."""
    for key, named in (
        ("soft_labels", teacher.soft_labels and teacher.soft_labels.file),
        ("template", teacher.endpoint and teacher.endpoint.template),
    ):
        if named:
            file = Path(named)
            return {key: str(file), "sha256": file_digest(file) if file.is_file() else None}
    return {}


def _address_of(teacher: OneTeacher) -> dict[str, Any]:
    """Give the address of a teacher without a revision: what answers there tells which version it is."""
    return {"url": teacher.endpoint.url} if teacher.endpoint and teacher.revision is None else {}


def _facts(
    task: TaskParams,
    teachers: Mapping[str, TeacherParams],
    teacher: TeacherSection,
    student: StudentSection,
) -> dict[str, Any]:
    """Give what each stage depends on, by the stage's name."""
    texts = departures(task, "text_fields", "classes")
    taught = texts | departures(task, "unlabelled")
    learned = taught | departures(task, "supervised", "zero_shot_texts")
    learned |= departures(task, "zero_shot") if task.zero_shot_texts else {}
    facts: dict[str, Any] = {"prepare": departures(task)}
    for language in task.supervised:
        its = teachers[language]
        facts[f"teacher-finetune@{language}"] = {
            "task": taught,
            "teachers": [
                departures(one, "base", "revision", "finetune", "producer", "endpoint", "branch")
                | _file_of(one)
                for one in its.all
            ],
            "folds": its.folds,
            "finetune": departures(teacher.finetune) if any(one.finetune for one in its.all) else {},
        }
        facts[f"teacher-label@{language}"] = {
            "task": taught,
            "teachers": [departures(one, *_LABELLED) | _address_of(one) for one in its.all],
            "folds": its.folds,
            **departures(its, "combine"),
            "label": departures(teacher.label),
        }
    silver = silver_languages(task, teachers)
    of_silver = {language: departures(teachers[language]) for language in silver}
    facts["teacher-silver"] = {
        **({"task": learned, "label": departures(teacher.label)} if silver else {}),
        "teachers": of_silver,
        "files": [_file_of(one) | _address_of(one) for language in silver for one in teachers[language].all],
    }
    facts["student-pretrain"] = {
        "task": departures(task, "text_fields", "supervised", "zero_shot", "unlabelled", "zero_shot_texts"),
        "pretrain": departures(student.pretrain),
    }
    soft_labels = {language: departures(teachers[language]) for language in task.supervised} | of_silver
    facts["student-distill"] = {
        "task": learned,
        "teachers": {} if student.distill.variant in HARD_ONLY else soft_labels,
        "distill": relevant(student.distill, defaults=False),
        **not_inherited(student.distill, silver),
    }
    finetune = student.distill.model_copy(update={"variant": "finetune"})
    facts["student-baseline"] = {
        "task": learned,
        "distill": relevant(finetune, defaults=False),
        **not_inherited(finetune, silver),
    }
    facts["student-evaluate"] = {
        "task": departures(task),
        "distill": departures(student.distill, "max_tokens", "precision"),
        "evaluate": departures(student.evaluate),
    }
    # The report prints them all. Where the store lies changes no result and is not among them.
    facts["report"] = {
        "task": departures(task),
        "teachers": {language: departures(one) for language, one in teachers.items()},
        "teacher": departures(teacher),
        "student": departures(student),
    }
    return facts
