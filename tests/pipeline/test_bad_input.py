"""Bad input ends with one line that says what, where and what to type next, and with exit code 1."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import (
    CLASSES,
    LABEL,
    Run,
    examples,
    set_bias,
    tiny_params,
    use_ready_teacher,
    write_jsonl,
    write_params,
)


def refused(run: Run, *command: str) -> str:
    done = run(*command)
    assert done.code == 1
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.err.rstrip().endswith(lines[-1])
    assert "Traceback" not in done.err
    return lines[-1]


def test_an_unknown_parameter_is_refused(workspace: Path, run: Run) -> None:
    line = refused(run, "prepare", "--set", "task.text_field=[text]")
    assert line == "error: params.yaml: task.text_field is not a parameter; did you mean text_fields?"


def test_a_language_without_a_teacher_is_refused(workspace: Path, run: Run) -> None:
    line = refused(run, "prepare", "--set", "task.supervised=[de, en, fr]")
    assert "task.supervised names 'fr', which has no teacher; add teachers.fr with a base" in line
    assert "'nl' is not in task.supervised; these are: de, en" in refused(
        run, "teacher", "label", "--language", "nl"
    )


def test_stages_name_what_they_are_missing(workspace: Path, run: Run) -> None:
    assert "python -m pipeline prepare" in refused(run, "teacher", "finetune", "--language", "de")
    run("prepare")
    assert "make it with: python -m pipeline teacher finetune --language de" in refused(run, *LABEL)
    line = refused(run, "student", "distill")
    assert "artifacts/soft_labels/de: there are no soft labels" in line
    assert "python -m pipeline teacher label --language de" in line
    assert "python -m pipeline student pretrain" in refused(run, "student", "baseline")
    assert "python -m pipeline student distill" in refused(run, "student", "evaluate")
    assert "python -m pipeline student evaluate" in refused(run, "report")


def test_a_language_whose_examples_are_not_there_is_not_left_out(finished: Path, run: Run) -> None:
    line = refused(run, "student", "evaluate", "--set", "task.zero_shot=[nl, fr]")
    assert "artifacts/data/fr/test.arrow is not there; write it with: python -m pipeline prepare" in line


def test_a_base_that_is_nowhere_is_refused_without_a_connection(workspace: Path, run: Run) -> None:
    params = tiny_params()
    params["teachers"]["de"]["base"] = "./absent"
    write_params(params)
    run("prepare")
    line = refused(run, "teacher", "finetune", "--language", "de")
    assert "teachers.de.base is ./absent: no folder of that name" in line


def test_a_teacher_with_the_wrong_number_of_classes_is_refused(finished: Path, run: Run) -> None:
    use_ready_teacher(finished / "artifacts/teachers/de", id2label={"0": "animal", "1": "colour"})
    run("teacher", "finetune", "--language", "de")
    assert "has 2 classes (animal, colour), the task has 3" in refused(run, *LABEL)


def test_a_teacher_with_unnamed_classes_is_refused_until_they_are_mapped(finished: Path, run: Run) -> None:
    unnamed = {str(i): f"LABEL_{i}" for i in range(3)}
    use_ready_teacher(finished / "artifacts/teachers/de", id2label=unnamed)
    run("teacher", "finetune", "--language", "de")
    assert "name them in params.yaml: teachers.de.labels" in refused(run, *LABEL)
    names = ", ".join(f"LABEL_{i}: {name}" for i, name in enumerate(CLASSES))
    assert run(*LABEL, "--set", f"teachers.de.labels={{{names}}}").code == 0


def test_a_teacher_without_a_classifier_is_refused(finished: Path, run: Run) -> None:
    folder = use_ready_teacher(finished / "artifacts/teachers/de")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    run("teacher", "finetune", "--language", "de")
    assert "has no weights for classifier.dense.bias" in refused(run, *LABEL)


def test_a_teacher_whose_classes_are_in_another_order_is_refused(finished: Path, run: Run) -> None:
    # A teacher that knows the task by heart, since the tiny one does not.
    params = tiny_params()
    params["teacher"]["finetune"] |= {"epochs": 40, "subword_dropout": 0.0, "learning_rate": 5e-3}
    write_params(params)
    run("teacher", "finetune", "--language", "de")
    assert run(*LABEL).code == 0
    folder = finished / "artifacts/teachers/de"
    wrong = {str(i): CLASSES[(i + 1) % 3] for i in range(3)}
    use_ready_teacher(folder, id2label=wrong)
    run("teacher", "finetune", "--language", "de")
    before = Path("artifacts/soft_labels/de/manifest.json").read_bytes()
    line = refused(run, *LABEL)
    assert "if its classes are read as {animal: number, colour: animal, number: colour}" in line
    assert Path("artifacts/soft_labels/de/manifest.json").read_bytes() == before


def test_a_teacher_with_nan_logits_is_refused_and_nothing_is_written(finished: Path, run: Run) -> None:
    folder = use_ready_teacher(finished / "artifacts/teachers/de")
    set_bias(folder, [0.0, float("nan"), 0.0])
    run("teacher", "finetune", "--language", "de")
    n_shards = len(list(Path("store").rglob("*.arrow")))
    assert "gives NaN or infinite logits, first for '" in refused(run, *LABEL)
    assert len(list(Path("store").rglob("*.arrow"))) == n_shards


def test_soft_labels_that_miss_examples_are_refused(finished: Path, run: Run) -> None:
    rows = [*examples("de", "train"), {"text": "neu", "label": "animal"}, {"text": "x", "label": "number"}]
    write_jsonl(finished / "data/de/train.jsonl", rows)
    run("prepare")
    line = refused(run, "student", "distill")
    assert line == (
        "error: 2 of 38 examples in 'de' have no soft label in artifacts/soft_labels/de; "
        "write them with: python -m pipeline teacher label --language de"
    )


def test_a_branch_deeper_than_the_model_is_refused(finished: Path, run: Run) -> None:
    line = refused(run, "student", "distill", "--set", "student.distill.branch_layers=9")
    assert "branch_layers is 9, but roberta has 2 layers" in line


def test_a_student_of_other_classes_is_not_evaluated(finished: Path, run: Run) -> None:
    swapped = f"task.classes=[{', '.join(reversed(CLASSES))}]"
    line = refused(run, "student", "evaluate", "--set", swapped)
    assert "was trained for other classes or languages" in line
    assert "was written for other text fields or classes" in refused(run, *LABEL, "--set", swapped)


def test_inputs_longer_than_the_model_takes_are_refused(finished: Path, run: Run) -> None:
    for key, command in (
        ("teacher.finetune.max_tokens", ("teacher", "finetune", "--language", "de")),
        ("teacher.label.max_tokens", LABEL),
        ("student.distill.max_tokens", ("student", "distill")),
    ):
        line = refused(run, *command, "--set", f"{key}=600")
        assert f"{key} is 600, but the model takes at most 510 tokens" in line


def test_files_that_make_no_model_are_refused(finished: Path, run: Run) -> None:
    for path, command in (
        ("artifacts/encoder", ("student", "distill")),
        ("artifacts/student", ("student", "evaluate")),
    ):
        weights = Path(path) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        assert "cannot load the" in refused(run, *command)


def test_a_store_that_is_no_folder_is_refused_before_the_teacher_runs(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("MBLM_TEACHER_CACHE", "file/store")
    assert "Not a directory" in refused(run, *LABEL)


def test_a_mixture_of_one_language_is_refused(finished: Path, run: Run) -> None:
    line = refused(run, "student", "distill", "--set", "task.supervised=[de]")
    assert "mixes the branches of other languages, but task.supervised names only de" in line
    other = ("--set", "task.supervised=[de]", "--set", "student.distill.variant=distill")
    line = refused(run, "ablation", "plan", *other)
    assert "leave mblm out of student.distill.variant and ablation.variants" in line


def test_a_loss_that_is_not_finite_stops_the_training(finished: Path, run: Run) -> None:
    path = Path("artifacts/encoder/model.safetensors")
    weights = load_file(path)
    weights["roberta.encoder.layer.0.output.dense.bias"][:] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    before = Path("artifacts/student/model.safetensors").read_bytes()
    assert "the loss is nan at step 1" in refused(run, "student", "distill")
    assert Path("artifacts/student/model.safetensors").read_bytes() == before


def test_an_unexpected_failure_keeps_its_traceback(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.prepare.prepare", lambda task: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("prepare")
