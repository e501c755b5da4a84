"""Keep finished runs in a folder that can be committed, so that nobody trains them again without need."""

from collections.abc import Mapping
from pathlib import Path

from stages.ablation.finished import (
    ENTITIES,
    Comparable,
    digests_of,
    entities_of,
    kind_of,
    read_run,
    teachers_of,
    write_column,
)
from stages.ablation.params import AblationParams
from stages.ablation.plan import digest_of, settings_of, soft_labels_of
from stages.artifacts import ABLATION
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.results.teachers import Teachers
from stages.student.params import StudentSection


def keep(
    task: TaskParams, teachers: Mapping[str, Teachers], student: StudentSection, params: AblationParams
) -> str:
    """Write runs that are finished to the folder that `ablation.kept` names, beside those that are there.

    Returns:
        One line.

    Raises:
        StageError: No folder is named, no run is finished, or one does not say what it was made of, or is of
            other parameters, soft labels, encoders or texts than the others.
        CacheError: There are no soft labels.
    """
    if params.kept is None:
        raise StageError("ablation.kept is null; name a folder, such as recipes/mine")
    folder = Path(params.kept)
    runs = [(run, seed, False) for run in params.variants for seed in params.seeds]
    runs += [(run.name, seed, True) for run in params.sweep.runs for seed in params.sweep.seeds]
    settings = params.settings(student.distill)
    of_today = digest_of(soft_labels_of(task, teachers))  # whose teachers' accuracies stand beside the runs
    same = Comparable({run: settings_of(task, of_run) for run, of_run in settings.items()}, of_today)
    found = {}
    for run, seed, sweep in runs:
        path = Path(kind_of(sweep)) / f"{run}-{seed}.arrow"
        if (ABLATION / path).is_file():
            right, made_of = read_run(task, run, seed, sweep=sweep)
            if made_of is None:
                raise StageError(
                    f"{ABLATION / path} does not say what it was made of: an earlier version wrote it; "
                    f"write it again with: python -m pipeline ablation train --run {run} --seed {seed}"
                )
            same.require(ABLATION / path, made_of, run, seed)
            found[path] = right, {"made_of": made_of, "examples": digests_of(task, right)}
    if not found:
        raise StageError(f"no run in {ABLATION} is finished; run them with: make ablation")
    entities = entities_of(task)
    for path, (right, facts_of_run) in found.items():
        write_column(folder / path, "right", right, facts_of_run)
    facts = {
        "examples": digests_of(task, entities),
        "teachers": teachers_of(task),
        "soft_labels": of_today,
    }
    write_column(folder / ENTITIES, "entity", entities, facts)
    return f"{folder}: {len(found)} runs"
