"""One run of the ablation: train a student, keep what it says of labelled examples, and delete it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical_json, write_atomically
from stages.ablation.finished import digests_of, evaluated, kind_of, read_column, write_column
from stages.ablation.params import AblationParams
from stages.ablation.plan import digest_of, settings_of, soft_labels_of
from stages.artifacts import ABLATION
from stages.data.examples import SPLITS, examples_digest, read_entities, read_examples, taught_splits
from stages.data.silver import silver_languages
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.checkpoints import code_and_versions
from stages.models.encoders import read_note
from stages.models.pins import model_digests, model_folder
from stages.progress import say
from stages.results.predictions import validation_accuracy, write_predictions
from stages.results.teachers import Teachers
from stages.student.distill import distill
from stages.student.evaluate import answers
from stages.student.params import DistillParams, StudentSection
from stages.student.variants import HARD_ONLY, not_inherited


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
        StageError: There is no such run, seed, or encoder for the seed, or the training failed.
        CacheError: Soft labels are missing or damaged.
    """
    settings = params.settings(student.distill)
    if run not in settings:
        raise StageError(f"'{run}' is no run of the ablation; these are: {', '.join(settings)}")
    is_variant = run in params.variants
    seeds, key = (params.seeds, "seeds") if is_variant else (params.sweep.seeds, "sweep.seeds")
    if seed not in seeds:
        raise StageError(f"{seed} is not in ablation.{key}, {seeds}; add it there, or name another --seed")
    name = f"{run}-{seed}"
    command = f"ablation train --run {run} --seed {seed}"
    encoder = ABLATION / "encoders" / str(seed)
    model_folder(encoder, command=f"ablation pretrain --seed {seed}")  # refuses what is not there
    model = ABLATION / "students" / name
    with_seed = settings[run].model_copy(update={"seed": seed})
    folder = ABLATION / kind_of(sweep=not is_variant)
    made_of = _made_of(task, teachers, with_seed, encoder)
    if params.kept and _taken(task, Path(params.kept), folder / f"{name}.arrow", made_of):
        return f"{run}, seed {seed}: taken from {params.kept}, whatever code it was trained with"
    trained = canonical_json({"made_of": made_of, **code_and_versions(__file__)})
    note = model / "made_of.json"
    if not note.is_file() or note.read_bytes() != trained:
        distill(task, teachers, with_seed, encoder=encoder, output=model)
        write_atomically(note, trained)
    else:
        say(f"{name}: a run that was interrupted has trained it")
    # What a sweep says decides settings, and no setting may be chosen by test data.
    splits = SPLITS[1:] if is_variant else SPLITS[1:2]
    answered = answers(
        task, with_seed, student.evaluate, model, command=command, splits=splits, only_used=True
    )
    predictions = [answer.of(answer.used) for answer in answered]
    write_predictions(task, name, predictions, folder=folder, made_of=made_of)
    shutil.rmtree(model)
    averages = validation_accuracy(task, predictions).items()
    said = ", ".join(f"{kind} {value:.1%}" for kind, value in averages)
    return f"{run}, seed {seed}: {said} (validation)"


def _made_of(
    task: TaskParams,
    teachers: Mapping[str, Teachers],
    settings: DistillParams,
    encoder: Path,
) -> dict[str, Any]:
    """Give all but code that decides a run: parameters, and digests of what they stand for.

    Returns:
        Sections of parameters; ``digest``, of everything; and of what runs that are compared have in common,
        a part each: ``encoder``, ``training_texts`` and, where they are used, ``soft_labels``.

    Raises:
        CacheError: There are no soft labels.
    """
    pooling = read_note(encoder)["pooling"]
    weights = model_digests(model_folder(encoder, command="ablation pretrain"))
    soft_labels = None if settings.variant in HARD_ONLY else soft_labels_of(task, teachers)
    facts: list[Any] = [settings.seed, pooling, weights, soft_labels]
    facts += not_inherited(settings, silver_languages(task, teachers)).values()
    texts = []
    has_translations = settings.average_translations or task.zero_shot_texts
    languages = [*task.supervised, *(task.zero_shot if task.zero_shot_texts else [])]
    for language in languages:
        splits = taught_splits(task, language)
        if language in task.supervised:
            splits.append("validation")
        for split in splits:
            texts.append(examples_digest(read_examples(task, language, split)))
            facts += [texts[-1], read_entities(language, split) if has_translations else None]
    parts: dict[str, Any] = {"digest": facts, "encoder": [pooling, weights], "training_texts": texts}
    parts |= {} if soft_labels is None else {"soft_labels": soft_labels}
    return settings_of(task, settings) | {name: digest_of(part) for name, part in parts.items()}


def _taken(task: TaskParams, kept: Path, output: Path, made_of: Mapping[str, Any]) -> bool:
    """Take a run from those that were kept, where one is made of the same; tells whether there was one.

    Raises:
        StageError: The file is broken.
    """
    path = kept / output.parent.name / output.name
    if not path.is_file():
        return False
    right, facts = read_column(path, "right", write_again="delete it")
    splits = {split for _, split in right}
    of_now = [by for by in evaluated(task) if by[1] in splits]
    wanted = digests_of(task, of_now)
    # An earlier version kept no digests of parts, and the batch size of evaluations, which decides nothing.
    kept_of = facts["made_of"] | {"evaluate": made_of["evaluate"]}
    if made_of | kept_of != made_of or not wanted.items() <= facts["examples"].items():
        return False
    right = {by: right[by] for by in of_now}  # a language may have lost its test file meanwhile
    write_column(output, "right", right, {"made_of": made_of, "examples": wanted})
    return True
