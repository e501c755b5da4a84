"""One run of the ablation: train a student, keep what it says of labelled examples, and delete it."""

import shutil
from collections.abc import Mapping

from stages.ablation.keep import taken
from stages.ablation.params import AblationParams
from stages.artifacts import ABLATION
from stages.data.examples import SPLITS
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.pins import model_folder
from stages.results.predictions import predictions_file, validation_accuracy, write_predictions
from stages.student.distill import distill
from stages.student.evaluate import answers
from stages.student.params import StudentSection, Teachers


def train(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    student: StudentSection,
    params: AblationParams,
    *,
    run: str,
    seed: int,
) -> str:
    """Write the predictions of a variant on validation and test data, or of a sweep's run on validation data.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`.
        student: Section `student`.
        params: Section `ablation`.
        run: A variant, or the name of a run of the sweep.
        seed: Of the training; the encoder is the one that was made with it.

    Returns:
        One line: validation accuracy, or where the run was taken from.

    Raises:
        StageError: There is no such run or no encoder for the seed, or the training failed.
        CacheError: Soft labels are missing or damaged.
    """
    settings = params.settings(student.distill)
    if run not in settings:
        raise StageError(f"'{run}' is no run of the ablation; these are: {', '.join(settings)}")
    name = f"{run}-{seed}"
    command = f"ablation train --run {run} --seed {seed}"
    encoder = ABLATION / "encoders" / str(seed)
    model_folder(encoder, command=f"ablation pretrain --seed {seed}")  # refuses what is not there
    model = ABLATION / "students" / name
    with_seed = settings[run].model_copy(update={"seed": seed})
    is_variant = run in params.variants
    folder = ABLATION / ("predictions" if is_variant else "sweep")
    if taken(task, params, predictions_file(name, folder), run=run, seed=seed):
        return f"{run}, seed {seed}: taken from {params.kept}"
    distill(task, teachers, with_seed, encoder=encoder, output=model)
    # What a sweep says decides settings, and no setting may be chosen by test data.
    splits = SPLITS[1:] if is_variant else SPLITS[1:2]
    answered = answers(task, with_seed, student.evaluate, model, command=command, splits=splits)
    predictions = [answer.of(answer.used) for answer in answered]
    write_predictions(task, name, predictions, folder=folder)
    shutil.rmtree(model)
    averages = validation_accuracy(task, predictions).items()
    said = ", ".join(f"{kind} {value:.1%}" for kind, value in averages)
    return f"{run}, seed {seed}: {said} (validation)"
