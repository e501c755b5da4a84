"""The whole pipeline on a small real task: what it writes, what it keeps, and how it fails."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_reader import read_page
from safetensors.torch import load_file, save_file
from tiny import (
    CLASSES,
    COMMANDS,
    LABEL,
    ROOT,
    Run,
    examples,
    set_bias,
    tiny_params,
    use_ready_teacher,
    write_jsonl,
    write_params,
)
from warm import warm_python

from cache import SoftLabelSet, example_ids
from stages.models.checkpoints import checkpoints_of
from stages.models.modeling_mblm import MBLMForSequenceClassification

# What a finished run leaves


def test_a_finished_run_leaves_metrics_curves_and_a_report(finished: Path) -> None:
    for name in ("student", "baseline"):
        metrics = json.loads((finished / f"artifacts/metrics/{name}.json").read_text())
        for kind in ("supervised", "zero_shot"):
            assert 0 <= metrics["test"][kind]["accuracy"] <= 1
            assert 0 <= metrics["validation"][kind]["macro_f1"] <= 1
    teacher = json.loads((finished / "artifacts/metrics/teachers/de.json").read_text())
    assert set(teacher) == {"train", "validation", "test"}
    rows = json.loads((finished / "artifacts/plots/accuracy_by_branch.json").read_text())
    cells = {(row["language"], row["branch"]) for row in rows if row["split"] == "test"}
    assert cells == {(x, y) for x in ("de", "en", "nl") for y in ("de", "en", "mixture")}
    losses = json.loads((finished / "artifacts/student/losses.json").read_text())
    assert {"step", "loss", "own_loss", "mixture_loss", "hard_loss"} <= set(losses[-1])
    table = (finished / "artifacts/report/accuracy.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "de",
        "en",
        "**supervised average**",
        "nl",
        "**zero-shot average**",
    ]


def test_the_metrics_of_a_language_are_those_of_its_path(finished: Path) -> None:
    by_branch = json.loads((finished / "artifacts/plots/accuracy_by_branch.json").read_text())
    by_language = json.loads((finished / "artifacts/plots/accuracy_by_language.json").read_text())
    used = {row["language"]: row["branch"] for row in by_language if row["model"] == "student"}
    assert used == {"de": "de", "en": "en", "nl": "mixture"}
    assert all(row["accuracy"] in [r["accuracy"] for r in by_branch] for row in by_language[:3])


def test_the_plot_of_calibration_is_of_calibrated_confidences(finished: Path, run: Run) -> None:
    path = Path("artifacts/student/config.json")
    config = json.loads(path.read_text())
    for temperature, least, most in ((1e-6, 0.95, 1.0), (1e6, 0.3, 0.4)):  # of three classes
        config |= dict.fromkeys(("own_temperature", "mixture_temperature"), temperature)
        path.write_text(json.dumps(config))
        assert run("student", "evaluate").code == 0
        bins = json.loads(Path("artifacts/plots/calibration.json").read_text())
        found = [one["confidence"] for one in bins if one["supervised"] is not None]
        assert least < min(found) <= max(found) < most


def test_every_command_that_reads_texts_says_how_many_it_cuts(finished: Path, run: Run) -> None:
    rows = [json.loads(line) for line in Path("data/de/test.jsonl").read_text().splitlines()]
    for row in rows[:5]:
        row["text"] += "".join(f" {n}" for n in range(20))
    for split in ("train", "test"):
        write_jsonl(Path(f"data/de/{split}.jsonl"), rows)
    assert run("prepare").code == 0
    Path("new.txt").write_text("".join(f"{row['text']}\n" for row in rows))
    limits = [
        f"{section}.max_tokens=16" for section in ("teacher.finetune", "teacher.label", "student.distill")
    ]
    changes = [word for limit in limits for word in ("--set", limit)]

    def said(*command: str) -> str:
        done = run(*command, *changes)
        assert done.code == 0, done.err
        return done.err + done.out

    training = "5 of 12 training texts are longer than teacher.finetune.max_tokens, 16, and are cut"
    assert training in said("teacher", "finetune", "--language", "de")
    labelling = "de: 5 of the texts to label are longer than teacher.label.max_tokens, 16, and were cut"
    assert labelling in said(*LABEL)
    assert "to label are longer" not in said(*LABEL)  # there are none
    assert said("teacher", "label", "--language", "en")
    assert "5 of 48 training texts are longer than student.distill.max_tokens" in said("student", "distill")
    assert "; 5 cut to student.distill.max_tokens, 16" in said("student", "predict", "new.txt")
    said("student", "evaluate")
    said("report")
    assert read_page().table("Examples by language and split")["de"]["test, cut to max_tokens"] == "5"


def test_no_file_that_could_run_code_is_written(finished: Path) -> None:
    suffixes = {path.suffix for path in (finished / "artifacts").rglob("*") if path.is_file()}
    assert suffixes <= {".arrow", ".json", ".safetensors", ".md", ".html", ".py"}


def test_a_torch_for_cuda_computes_on_the_cpu_where_no_card_is(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")  # as such a torch says without a card

    monkeypatch.setattr(torch.accelerator, "current_accelerator", named)
    shutil.rmtree("store")
    Path("texts.jsonl").write_text('{"text": "Hund 1"}\n')
    for command in (
        LABEL,
        ("student", "evaluate"),
        ("student", "predict", "texts.jsonl", "--language", "de"),
    ):
        done = run(*command)
        assert done.code == 0, done.err


# Stage one


def test_labelling_again_asks_no_teacher_and_does_not_load_one(finished: Path) -> None:
    before = Path("artifacts/soft_labels/de/manifest.json").read_bytes()
    script = (
        "import sys; sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "from pipeline.__main__ import main\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *LABEL],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "de: 57 cached, 0 to label" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert Path("artifacts/soft_labels/de/manifest.json").read_bytes() == before


def test_one_new_example_labels_one_and_a_new_order_labels_none(finished: Path, run: Run) -> None:
    rows = examples("de", "train")
    write_jsonl(finished / "data/de/train.jsonl", rows[::-1])
    assert run("prepare").code == 0
    assert "57 cached, 0 to label" in run(*LABEL).err
    write_jsonl(finished / "data/de/train.jsonl", [*rows, {"text": "Hund 99999", "label": "animal"}])
    assert run("prepare").code == 0
    done = run(*LABEL)
    assert "57 cached, 1 to label" in done.err
    assert "58 soft labels, 1 of them new" in done.out


def test_a_changed_teacher_labels_everything_again(finished: Path, run: Run) -> None:
    set_bias(finished / "artifacts/teachers/de", [0.0, 0.1, 0.0])
    assert "0 cached, 57 to label" in run(*LABEL).err


def test_soft_labels_are_the_teachers_logits(finished: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [row["text"] for row in examples("de", "train")]
    cached = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    tokenizer = AutoTokenizer.from_pretrained("artifacts/teachers/de")
    model = AutoModelForSequenceClassification.from_pretrained("artifacts/teachers/de").eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in texts]
    np.testing.assert_allclose(cached.join(example_ids([texts])).logits, logits, atol=1e-5)


def test_a_damaged_shard_of_the_store_is_reported_and_its_examples_labelled_again(
    finished: Path, run: Run
) -> None:
    for path in (finished / "store").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-1])
    done = run(*LABEL)
    assert "is damaged" in done.err
    assert "0 cached, 57 to label" in done.err
    assert done.code == 0


def test_a_pinned_teacher_labels_and_a_change_of_its_weights_is_noticed(finished: Path, run: Run) -> None:
    folder = use_ready_teacher(finished / "artifacts/teachers/de")
    assert "pinned" in run("teacher", "finetune", "--language", "de").out
    assert "57 cached, 0 to label" in run(*LABEL).err
    set_bias(folder, [0.0, 0.1, 0.0])
    done = run(*LABEL)
    assert done.code == 1
    assert "pin it again with: python -m pipeline teacher finetune --language de, or under DVC" in done.err
    assert "dvc repro --force --single-item teacher-finetune@de\n" in done.err
    shutil.rmtree(folder)
    assert "ready, which was pinned, is not there; put it back" in run(*LABEL).err


def test_a_pinned_folder_may_move_with_the_clone(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params()
    use_ready_teacher(finished / "artifacts/teachers/de")
    params["teachers"]["de"] |= {"base": "ready", "finetune": False}
    write_params(params)
    assert run("teacher", "finetune", "--language", "de").code == 0
    moved = finished.rename(finished.with_name("moved"))
    monkeypatch.chdir(moved)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(moved / "store"))
    assert "57 soft labels, 0 of them new" in run(*LABEL).out


def test_what_stage_one_wrote_of_a_language_that_is_gone_goes(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["task"] |= {"supervised": ["en"], "zero_shot": ["de", "nl"]}
    write_params(params)
    assert run("prepare").code == 0
    for folder in ("soft_labels", "metrics/teachers"):
        assert [path.stem for path in Path("artifacts", folder).iterdir()] == ["en"]
    assert Path("artifacts/teachers/de").is_dir()


def test_a_teacher_that_changes_while_it_is_loaded_labels_nothing(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.teacher.labelling.inference import Teacher

    folder = finished / "artifacts/teachers/de"
    set_bias(folder, [0.0, 0.1, 0.0])
    load = Teacher.__init__

    def load_what_another_process_writes(*arguments: Any) -> None:
        set_bias(folder, [5.0, 0.0, 0.0])
        load(*arguments)

    monkeypatch.setattr(Teacher, "__init__", load_what_another_process_writes)
    before = sorted((finished / "store").rglob("*.arrow"))
    done = run(*LABEL)
    assert (done.code, "changed while the teacher was loaded; run it again" in done.err) == (1, True)
    assert sorted((finished / "store").rglob("*.arrow")) == before


def test_a_teacher_that_was_saved_in_half_precision_is_run_in_the_precision_asked_for(
    finished: Path, run: Run
) -> None:
    folder = use_ready_teacher(finished / "artifacts/teachers/de", dtype="bfloat16")
    weights = load_file(folder / "model.safetensors")
    half = {name: value.bfloat16() for name, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    run("teacher", "finetune", "--language", "de")
    assert "0 cached, 57 to label" in run(*LABEL).err
    ids = example_ids([[row["text"] for row in examples("de", "train")]])
    logits = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de").join(ids).logits
    assert not np.array_equal(logits, torch.tensor(logits).bfloat16().float().numpy())


def test_a_command_that_is_stopped_as_it_starts_says_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pipeline.commands.app':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from pipeline.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [warm_python(), "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_labelling_that_is_stopped_keeps_what_it_has(finished: Path, stop: signal.Signals) -> None:
    shutil.rmtree(finished / "store")
    params = tiny_params()
    params["teacher"]["label"] |= {"batch_tokens": 8}
    write_params(params)
    # One example at a time, and a teacher that stops for good after some of them.
    script = (
        "import sys, time, numpy, transformers\n"
        "from transformers import RobertaForSequenceClassification as Model\n"
        "forward, calls = Model.forward, []\n"
        "def slow(*args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 11:\n"
        "        print('here', flush=True); time.sleep(60)\n"
        "    return forward(*args, **kwargs)\n"
        "Model.forward = slow\n"
        "from pipeline.__main__ import main\n"
        "sys.argv = ['pipeline', *sys.argv[1:]]; sys.exit(main())"
    )
    process = subprocess.Popen(
        [warm_python(), "-c", script, *LABEL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(stop)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "stopped; 10 of 57 soft labels are kept" in err
    done = subprocess.run(
        [warm_python(), "-m", "pipeline", *LABEL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "10 cached, 47 to label" in done.stderr


def use_second_teacher(source: Path) -> Path:
    """Let params.yaml name one more teacher of German: the first with its classes in another order."""
    folder = Path("second").absolute()
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"id2label": {str(i): CLASSES[(i + 1) % 3] for i in range(3)}})
    )
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        weights[name] = weights[name].roll(-1, dims=0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    params = tiny_params()
    ready = {"base": str(folder), "revision": None, "finetune": False, "labels": None}
    params["teachers"]["de"]["more"] = [ready]
    write_params(params)
    return folder


def test_several_teachers_of_a_language_are_asked_and_averaged_by_class_name(
    finished: Path, run: Run
) -> None:
    use_second_teacher(finished / "artifacts/teachers/de")
    alone = run(*LABEL, "--set", "teachers.de.more=[]").out
    assert len(run("teacher", "finetune", "--language", "de").out.splitlines()) == 2
    done = run(*LABEL)
    assert "57 cached, 0 to label" in done.err
    assert "0 cached, 57 to label" in done.err
    assert "114 soft labels, 57 of them new" in done.out
    assert done.out.partition("accuracy")[2] == alone.partition("accuracy")[2]
    ids = example_ids([[row["text"] for row in examples("de", "train")]])
    first, second = (
        SoftLabelSet.read(Path("artifacts/soft_labels/de") / place, language="de").join(ids).logits
        for place in ("", "more-1")
    )
    np.testing.assert_allclose(first, np.roll(second, 1, axis=1), atol=1e-5)
    before = load_file("artifacts/student/model.safetensors")
    assert run("student", "distill").code == 0
    after = load_file("artifacts/student/model.safetensors")
    for name, value in before.items():  # twice the same teacher is that teacher
        torch.testing.assert_close(after[name], value, atol=1e-3, rtol=1e-3)
    card = Path("artifacts/student/README.md").read_text(encoding="utf-8")
    assert len(set(re.findall("[0-9a-f]{64}", card))) == 6
    assert '"examples": 57' in run("cache", "verify", "--sample", "57", "--json").out
    assert run("cache", "verify", "--sample", "5").out.count("examples asked again, 0 differ") == 3


def test_each_teacher_of_a_language_that_is_made_here_has_a_seed_of_its_own(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["teachers"]["de"]["more"] = [
        {"base": "scratch", "revision": None, "finetune": True, "labels": None}
    ]
    write_params(params)
    first = Path("artifacts/teachers/de/model.safetensors").read_bytes()
    assert len(run("teacher", "finetune", "--language", "de").out.splitlines()) == 2
    assert Path("artifacts/teachers/de/model.safetensors").read_bytes() == first
    assert Path("artifacts/teachers/de/more-1/model.safetensors").read_bytes() != first
    assert not list(Path(".checkpoints").glob("teacher-*/*"))


def test_a_teacher_that_is_no_longer_named_leaves_no_soft_labels(finished: Path, run: Run) -> None:
    use_second_teacher(finished / "artifacts/teachers/de")
    run("teacher", "finetune", "--language", "de")
    run(*LABEL)
    run(*LABEL, "--set", "teachers.de.more=[]")
    assert not Path("artifacts/soft_labels/de/more-1").exists()


# Stage two


@pytest.mark.parametrize("variant", ["finetune", "distill", "branches", "mblm"])
def test_every_variant_trains_after_teachers_and_store_are_deleted(
    finished: Path, run: Run, variant: str
) -> None:
    shutil.rmtree("artifacts/teachers")
    shutil.rmtree("store")
    done = run("student", "distill", "--set", f"student.distill.variant={variant}")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{variant}: 18 steps")
    student = MBLMForSequenceClassification.from_pretrained("artifacts/student")
    assert student.config.n_branches == (2 if variant in ("branches", "mblm") else 1)


def test_both_trainings_run_in_bfloat16_with_weights_in_float32(finished: Path, run: Run) -> None:
    for stage, command in (
        ("teacher.finetune", ("teacher", "finetune", "--language", "de")),
        ("student.distill", ("student", "distill")),
    ):
        done = run(*command, "--set", f"{stage}.precision=bfloat16")
        assert done.code == 0, done.err
    for path in ("artifacts/teachers/de", "artifacts/student"):
        weights = load_file(f"{path}/model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_student_of_an_encoder_in_half_precision_has_weights_in_float32(finished: Path, run: Run) -> None:
    path = Path("artifacts/encoder/model.safetensors")
    half = {name: value.bfloat16() for name, value in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    config = json.loads(Path("artifacts/encoder/config.json").read_text())
    Path("artifacts/encoder/config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert run("student", "distill").code == 0
    student = load_file("artifacts/student/model.safetensors")
    assert {weight.dtype for weight in student.values()} == {torch.float32}


def test_the_variant_finetune_is_the_baseline(finished: Path, run: Run) -> None:
    run("student", "distill", "--set", "student.distill.variant=finetune")
    student = load_file("artifacts/student/model.safetensors")
    baseline = load_file("artifacts/baseline/model.safetensors")
    assert all(torch.equal(student[name], baseline[name]) for name in baseline)


def test_the_baseline_does_not_depend_on_what_only_branches_have(finished: Path, run: Run) -> None:
    folder = Path("artifacts/baseline")
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}
    changes = ("student.distill.branch_layers=2", "student.distill.mixture.of=logits")
    assert run("student", "baseline", *(part for change in changes for part in ("--set", change))).code == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_training_is_deterministic_and_the_seed_matters(finished: Path, run: Run) -> None:
    before = load_file("artifacts/student/model.safetensors")
    run("student", "distill")
    again = load_file("artifacts/student/model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)
    run("student", "distill", "--set", "student.distill.seed=1")
    other = load_file("artifacts/student/model.safetensors")
    assert not all(torch.equal(before[name], other[name]) for name in before)


def stop_after_a_checkpoint(options: list[str], code: Path = ROOT, step: int = 8) -> None:
    """Start `student distill` in a process of its own, and kill it once it has the checkpoint of a step."""
    process = subprocess.Popen(
        [warm_python(), "-m", "pipeline", "student", "distill", *options],
        env={**os.environ, "PYTHONPATH": str(code)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(Path(".checkpoints").glob(f"student-student/*/checkpoint-{step}/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)  # the server kills what it has forked for this one
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 9], ids=["within an epoch", "at its end"])
def test_a_training_that_was_killed_goes_on_and_ends_as_if_it_had_not(finished: Path, step: int) -> None:
    # An epoch has nine steps, and dropout and mixtures draw from the same generator as what comes before.
    options = settings(save_steps="4" if step == 8 else "9")
    before = load_file("artifacts/student/model.safetensors")
    curve = Path("artifacts/student/validation.json").read_text()
    shutil.rmtree("artifacts/student")
    stop_after_a_checkpoint(options, step=step)
    # As if it had been killed while it wrote the next one.
    (unfinished,) = Path(".checkpoints").glob(f"student-student/*/checkpoint-{step}")
    shutil.copytree(unfinished, unfinished.with_name("checkpoint-99"))
    (unfinished.with_name("checkpoint-99") / "trainer_state.json").write_text("{")
    assert not Path("artifacts/student").exists()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [warm_python(), "-m", "pipeline", "student", "distill", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "going on from" in done.stderr
    assert Path("artifacts/student/validation.json").read_text() == curve
    after = load_file("artifacts/student/model.safetensors")
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)
    assert not list(Path(".checkpoints").glob("student-student/*"))


@pytest.mark.slow
def test_a_training_goes_on_over_changed_code_only_when_told_to_and_the_card_says_so(
    finished: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    for package in ("cache", "pipeline", "stages"):
        shutil.copytree(ROOT / package, code / package)
    objective = code / "stages/student/objective.py"
    command = [warm_python(), "-m", "pipeline", "student", "distill"]

    def go_on(*options: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(code)}
        done = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, check=True
        )
        return done.stderr

    def card() -> str:
        return (finished / "artifacts/student/README.md").read_text(encoding="utf-8")

    uninterrupted = card()
    stop_after_a_checkpoint([], code)
    (code / "cache/commands/gc.py").write_text("# of no concern\n")
    assert "going on from" in go_on()
    stop_after_a_checkpoint([], code)
    objective.write_text(objective.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    told = go_on("--resume")
    assert "going on from" in told
    assert "Interrupted: the training went on" in card()
    assert "objective" in card()
    stop_after_a_checkpoint([], code)
    objective.write_text(objective.read_text(encoding="utf-8") + "\n# again\n", encoding="utf-8")
    told = go_on()
    assert "other: stages/student/objective.py; training starts anew (--resume goes on" in told
    assert "going on from" not in told
    assert card() == uninterrupted


def test_what_has_changed_of_code_and_libraries_is_named(workspace: Path) -> None:
    here, torch_now = str(ROOT / "stages/student/sampling.py"), torch.__version__
    folder = checkpoints_of("some", [1], file=here, resume=False).folder
    noted = json.loads((folder / "made_by.json").read_text())
    assert set(noted["now"]["code"]) > {"stages/student/sampling.py", "stages/models/training.py"}
    noted["now"]["versions"]["torch"] = "1.0"
    (folder / "made_by.json").write_text(json.dumps(noted))
    # Killed before its first checkpoint, it has left nothing to go on from.
    assert checkpoints_of("some", [1], file=here, resume=True).went_on_over == []
    (folder / "made_by.json").write_text(json.dumps(noted))
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4/config.json").write_text("{}")
    over = checkpoints_of("some", [1], file=here, resume=True).went_on_over
    assert over == [f"torch {torch_now} (was 1.0)"]
    assert checkpoints_of("some", [1], file=here, resume=False).went_on_over == over
    (folder / "made_by.json").unlink()  # as 0.1 left it
    assert checkpoints_of("some", [1], file=here, resume=False) == (folder, [])
    assert not (folder / "checkpoint-4").exists()


def settings(**values: str) -> list[str]:
    """Give options that change parameters of `student.distill`."""
    return [part for key, value in values.items() for part in ("--set", f"student.distill.{key}={value}")]


def student_weights(name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(f"artifacts/{name}/model.safetensors")


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return not all(torch.equal(one[name], other[name]) for name in one)


def test_fixed_mixture_weights_are_those_of_the_languages_that_they_name(finished: Path, run: Run) -> None:
    """With two branches, the other one alone is mixed, whatever its weight is."""
    run("student", "distill", *settings(**{"mixture.weights": "uniform"}))
    uniform = student_weights()
    done = run("student", "distill", *settings(**{"mixture.weights": "{en: 0.2, de: 3}"}))
    assert done.code == 0, done.err
    assert not differ(student_weights(), uniform)
    own = {"mixture.own_branch": "true"}
    run("student", "distill", *settings(**{"mixture.weights": "{en: 0, de: 1}"}, **own))
    only_de = student_weights()
    run("student", "distill", *settings(**{"mixture.weights": "{en: 1, de: 0}"}, **own))
    assert differ(student_weights(), only_de)


def test_the_mixtures_share_in_the_loss_rises_from_nothing(finished: Path, run: Run) -> None:
    done = run("student", "distill", *settings(**{"mixture.loss_weight": "0.8", "mixture.ramp_share": "0.5"}))
    assert done.code == 0, done.err
    logs = json.loads(Path("artifacts/student/losses.json").read_text())
    n_steps = logs[-1]["step"]
    assert len(logs) == n_steps > 8  # one for each step
    for log in logs:
        share = min(1.0, (log["step"] - 1) / (n_steps / 2)) * 0.8
        expected = log["own_loss"] + share * (log["mixture_loss"] - log["own_loss"])
        assert log["loss"] == pytest.approx(expected, abs=1e-4), log


def test_hidden_states_that_are_not_there_are_asked_for_in_one_line(finished: Path, run: Run) -> None:
    done = run("student", "distill", *settings(hidden_weight="10"))
    assert done.code == 1
    assert done.err.strip().splitlines()[-1] == (
        "error: student.distill.hidden_weight is 10.0, but the soft labels of 'de' hold no hidden states; "
        "set teacher.label.hidden: true in params.yaml, and write them with: "
        "python -m pipeline teacher label --language de"
    )
    assert run("student", "distill", *settings(hidden_weight="10", variant="finetune")).code == 0


def test_hidden_states_of_teachers_of_different_widths_are_distilled(finished: Path, run: Run) -> None:
    wider = ("--set", "teacher.finetune.scratch.hidden=24")
    assert run("teacher", "finetune", "--language", "de", *wider).code == 0
    keep = ("--set", "teacher.label.hidden=true")
    for language in ("de", "en"):
        assert run("teacher", "label", "--language", language, *keep).code == 0
    students = []
    for weight, variant in (("0", "mblm"), ("10", "mblm"), ("10", "distill")):
        done = run("student", "distill", *settings(hidden_weight=weight, variant=variant))
        assert done.code == 0, done.err
        students.append(student_weights())
        losses = json.loads(Path("artifacts/student/losses.json").read_text())
        assert all(("hidden_loss" in log) == (weight != "0") for log in losses)
    assert differ(students[0], students[1])


def test_translations_share_their_soft_labels(finished: Path, run: Run) -> None:
    before = student_weights()
    done = run("student", "distill", *settings(average_translations="true"))
    assert done.code == 1
    assert "no two training texts have the same entity" in done.err
    for language in ("de", "en"):
        rows = [row | {"entity": str(number)} for number, row in enumerate(examples(language, "train"))]
        write_jsonl(finished / f"data/{language}/train.jsonl", rows)
    assert run("prepare").code == 0
    assert run("student", "distill", *settings(average_translations="false")).code == 0
    assert not differ(student_weights(), before)
    assert run("student", "distill", *settings(average_translations="true")).code == 0
    assert differ(student_weights(), before)


def test_class_weights_decide_what_the_baseline_learns(finished: Path, run: Run) -> None:
    before = student_weights("baseline")
    assert run("student", "baseline", *settings(class_weights="{animal: 9, colour: 1, number: 1}")).code == 0
    assert differ(student_weights("baseline"), before)
    # Each class has a third of the examples, so that balanced weights are all 1.
    assert run("student", "baseline", *settings(class_weights="balanced")).code == 0
    balanced = student_weights("baseline")
    for name in before:
        torch.testing.assert_close(balanced[name], before[name], atol=1e-5, rtol=1e-4)


def test_a_class_without_examples_cannot_be_balanced(finished: Path, run: Run) -> None:
    for language in ("de", "en"):
        rows = [row for row in examples(language, "train") if row["label"] != "colour"]
        write_jsonl(finished / f"data/{language}/train.jsonl", rows)
    assert run("prepare").code == 0
    done = run("student", "baseline", *settings(class_weights="balanced"))
    assert done.code == 1
    assert "class_weights is balanced, but no training example has the class 'colour'" in done.err
    assert run("student", "baseline", *settings(class_weights="{animal: 1, colour: 1, number: 2}")).code == 0


@pytest.mark.slow
def test_a_killed_training_that_samples_languages_goes_on_and_ends_as_if_it_had_not(
    finished: Path, run: Run
) -> None:
    write_jsonl(finished / "data/en/train.jsonl", examples("en", "train")[:9])
    assert run("prepare").code == 0
    options = settings(sampling_temperature="4", class_weights="balanced")
    assert run("student", "distill", "--set", "student.distill.class_weights=balanced").code == 0
    without = student_weights()
    assert run("student", "distill", *options).code == 0
    before = student_weights()
    assert differ(before, without)
    stop_after_a_checkpoint(options)
    done = run("student", "distill", *options)
    assert "going on from" in done.err
    after = student_weights()
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)


def test_texts_that_are_empty_do_not_stop_pre_training(workspace: Path, run: Run) -> None:
    rows = [{**row, "text": "" if i % 2 else row["text"]} for i, row in enumerate(examples("de", "train"))]
    write_jsonl(workspace / "data/de/train.jsonl", rows)
    assert run("prepare").code == 0
    assert run("student", "pretrain").code == 0


def test_small_encoders_may_be_modernbert_which_reads_the_mean_of_all_tokens(
    finished: Path, run: Run
) -> None:
    params = tiny_params()
    for section in (params["teacher"]["finetune"], params["student"]["pretrain"]):
        section["scratch"] |= {"architecture": "modernbert", "hidden": 24, "layers": 3}
    write_params(params)
    for command in COMMANDS[1:]:
        done = run(*command)
        assert done.code == 0, done.err
    for folder, key in (("teachers/de", None), ("student", "mplm_config")):
        config = json.loads((finished / "artifacts" / folder / "config.json").read_text())
        config = config[key] if key else config
        assert config["model_type"] == "modernbert"
        assert config["classifier_pooling"] == "mean"
        assert (config["hidden_size"], config["intermediate_size"]) == (24, 64)
        assert set(config["layer_types"]) == {"full_attention"}


def test_changed_parameters_do_not_go_on_from_a_foreign_checkpoint(finished: Path, run: Run) -> None:
    stale = Path(".checkpoints/student-student/0123456789abcdef/checkpoint-8")
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(bytes(3_400_000))
    said = run("student", "distill", "--set", "student.distill.temperature=3").err
    assert "going on" not in said
    assert ".checkpoints/student-student still holds 3 MB of interrupted trainings with other" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("student", "export", "served"), "error: "),
        (("student", "predict", "texts.txt", "--output", "out.jsonl"), "error: cannot write out.jsonl: "),
    ],
)
def test_a_file_that_finds_no_room_is_said_in_one_line(
    finished: Path, run: Run, command: tuple[str, ...], said: str
) -> None:
    Path("texts.txt").write_text("Hund 1\n" * 400, encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        done = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 1
    assert "File too large" in done.err
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] == [
        done.err.splitlines()[-1]
    ]
    assert said in done.err
    assert not Path("out.jsonl").exists()
