"""Silver labels: what a finished student, or anybody else, says of texts of languages without labels.

A round of learning is a run of the pipeline, whose teachers of zero-shot languages are the student of the
round before (as in Xu et al. 2021, arXiv 2109.00194). No stage reads what it writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.artifacts import SILVER, SILVER_LABELS, of_each_teacher, replaced_folder
from stages.data.examples import taught_splits
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.pins import resolve
from stages.teacher.label import label
from stages.teacher.params import LabelParams, OneTeacher, TeacherParams
from stages.teacher.pin import pin_soft_labels


def silver(
    task: TaskParams,
    teachers: Mapping[str, TeacherParams],
    params: LabelParams,
    root: str,
    *,
    accept_change: bool = False,
) -> list[str]:
    """Write ``artifacts/silver/soft_labels/<language>`` for each zero-shot language with a teacher.

    ``languages.json`` beside them lists the languages, so that the folder is never empty.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers.<language>` of these languages.
        params: Section `teacher.label`.
        root: Folder or URL of the store.
        accept_change: Whether an endpoint may answer otherwise than it did.

    Returns:
        A line for each language.

    Raises:
        StageError: A language has no texts, a teacher is not there or has no such branch, or as
            `stages.teacher.label.label`.
        CacheError: The store cannot be used.
    """
    lines = []
    with replaced_folder(SILVER) as folder, TemporaryDirectory(dir=folder) as work:
        for language, teacher in teachers.items():
            if not taught_splits(task, language):
                raise StageError(
                    f"teachers.{language} has no texts to label: '{language}' has neither the split train "
                    "nor unlabelled; give it one, or take the teacher out"
                )
            places = of_each_teacher(Path(work) / language, len(teacher.all))
            for index, (one, place) in enumerate(zip(teacher.all, places, strict=True)):
                key = f"teachers.{language}" if index == 0 else f"teachers.{language}.more.{index - 1}"
                place.mkdir(parents=True)
                _find(one, place, key=key)
            done = label(
                task,
                teacher,
                params,
                root,
                language,
                teachers=Path(work),
                soft_labels=folder / SILVER_LABELS.name,
                metrics=folder / "metrics",
                accept_change=accept_change,
            )
            lines.append(done.line())
        (folder / "languages.json").write_text(json.dumps(list(teachers)), encoding="utf-8")
    return lines


def _find(teacher: OneTeacher, place: Path, *, key: str) -> None:
    """Let a folder stand for a teacher.

    Raises:
        StageError: It is not there, or has no such branch.
    """
    if teacher.base is None:
        pin_soft_labels(teacher, place, key=key)
        return
    from stages.teacher.branch import pin_branch  # slow import: transformers

    source = resolve(teacher.base, teacher.revision, key=f"{key}.base")
    pin_branch(teacher.branch, source, place, key=key, command="teacher silver")
