"""Trainings that two processes of a real torchrun share, on the CPU: one training, one of everything."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import let_teacher_speak
from safetensors.torch import load_file
from tiny import ROOT, Run, tiny_params, write_params
from warm import warm_python

pytestmark = pytest.mark.slow

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline"]


def torchrun(launcher: str, *arguments: str, **pipes: Any) -> subprocess.Popen[str]:
    """Start a command with two processes; `launcher` is the Python that torchrun itself runs in."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON_EXEC": warm_python()}
    return subprocess.Popen([launcher, *TORCHRUN, *arguments], env=environment, text=True, **pipes)


def share(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with two processes, to its end; what they say is said to a terminal, which sees bars."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    process = torchrun(warm_python(), *arguments, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # which is how a terminal tells that nobody is left to write to it
        while block := os.read(ours, 1 << 16):
            said += block
    os.close(ours)
    out, _ = process.communicate(timeout=200)
    return subprocess.CompletedProcess(
        process.args, process.returncode, out, said.decode().replace("\r\n", "\n")
    )


def losses() -> list[dict[str, float]]:
    curve: list[dict[str, float]] = json.loads(Path("artifacts/student/losses.json").read_text())
    return curve


def files() -> set[str]:
    return {str(path) for folder in ("artifacts", ".checkpoints") for path in Path(folder).rglob("*")}


def bars(err: str) -> list[str]:
    """Give the titles of the bars in order, of each as often as it began."""
    return re.findall(r"([^\r\n]+):   0%\|", err)


def without_dropout(section: str) -> None:
    """Take all chance out of params.yaml but the initial weights and the order."""
    params = tiny_params()
    params["teacher"]["finetune"]["scratch"]["dropout"] = 0.0
    params["teacher"]["finetune"]["subword_dropout"] = 0.0
    params["student"]["distill"]["subword_dropout"] = 0.0
    params["student"]["distill"]["mixture"]["weights"] = "uniform"
    stage, command = section.split(".")
    params[stage][command]["batch_size"] = 22  # of 72 or 36 examples: the last batch has 6 or 14
    write_params(params)


def test_two_processes_have_the_loss_curves_of_one_and_leave_what_one_leaves(
    finished: Path, run: Run
) -> None:
    let_teacher_speak()
    assert run("teacher", "label", "--language", "de", "--set", "teacher.label.hidden=true").code == 0
    assert run("teacher", "label", "--language", "en", "--set", "teacher.label.hidden=true").code == 0
    config = Path("artifacts/encoder/config.json")
    config.write_text(re.sub(r'(_dropout_prob": )0\.1', r"\g<1>0.0", config.read_text()))
    without_dropout("student.distill")
    command = ["student", "distill", "--set", "student.distill.hidden_weight=30"]
    command += ["--set", "student.distill.class_weights={animal: 5, colour: 1, number: 0.2}"]
    command += ["--set", "student.distill.average=4"]
    one = run(*command)
    assert one.code == 0, one.err
    alone, validation, left = losses(), Path("artifacts/student/validation.json").read_text(), files()
    shutil.rmtree("artifacts/student")

    two = share(*command)
    assert two.returncode == 0, two.stderr[-3000:]
    shared = losses()
    assert [log["step"] for log in shared] == [log["step"] for log in alone] == list(range(1, 9))
    for one_log, two_log in zip(alone, shared, strict=True):
        assert two_log == pytest.approx(one_log, rel=1e-4, abs=1e-7)
    # All parts are there, and each changes by far more than the tolerance.
    for name in ("loss", "own_loss", "mixture_loss", "hidden_loss", "hard_loss"):
        values = [log[name] for log in alone]
        assert max(values) > 1.001 * min(values)
    assert Path("artifacts/student/validation.json").read_text() == validation
    assert files() == left
    assert two.stdout == one.out
    assert bars(two.stderr) == ["student (mblm)"]


def test_two_processes_may_cut_their_batches_into_pieces(finished: Path, run: Run) -> None:
    """A piece of two texts often has none of one of the languages, whose branch then learns nothing."""
    config = Path("artifacts/encoder/config.json")
    config.write_text(re.sub(r'(_dropout_prob": )0\.1', r"\g<1>0.0", config.read_text()))
    without_dropout("student.distill")
    command = ["student", "distill", "--set", "student.distill.class_weights=balanced"]
    command += ["--set", "student.distill.variant=branches"]
    assert run(*command).code == 0
    alone = losses()
    again = "student.distill.gradient_checkpointing=true"
    two = share(*command, "--set", "student.distill.gradient_accumulation=4", "--set", again)
    assert two.returncode == 0, two.stderr[-3000:]
    for one_log, two_log in zip(alone, losses(), strict=True):
        assert two_log == pytest.approx(one_log, rel=1e-4, abs=1e-7)


def test_two_processes_make_the_teacher_of_one_on_a_base_that_one_of_them_pre_trained(
    finished: Path, run: Run
) -> None:
    without_dropout("teacher.finetune")
    command = ("teacher", "finetune", "--language", "de")
    one = run(*command)
    assert one.code == 0, one.err
    alone, left = load_file("artifacts/teachers/de/model.safetensors"), files()
    shutil.rmtree("artifacts/teachers/de")

    two = share(*command)
    assert two.returncode == 0, two.stderr[-3000:]
    shared = load_file("artifacts/teachers/de/model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-6)
    assert files() == left
    assert two.stdout == one.out
    assert bars(two.stderr) == ["pre-training for teacher 'de'", "teacher 'de'"]


def children(process: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def stop_at(checkpoint: int, stop: signal.Signals) -> str:
    """Start `student distill`; kill a process, or ask torchrun to stop, once it has the checkpoint."""
    process = torchrun(sys.executable, "student", "distill", stderr=subprocess.PIPE)
    state = f"student-student/*/checkpoint-{checkpoint}/trainer_state.json"
    deadline = time.monotonic() + 120
    while not list(Path(".checkpoints").glob(state)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    both = children(process.pid)
    assert len(both) == 2
    if stop == signal.SIGKILL:
        os.kill(both[1], signal.SIGUSR1)  # the server kills what it has forked for this one
    else:
        process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    for child in both:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    return err


def seed_of(states: Path) -> int:
    """Tell which seed a process's dropout and mixtures come from."""
    generator = torch.Generator()
    generator.set_state(torch.load(states, weights_only=False)["cpu"])
    return generator.initial_seed()


def test_a_shared_training_that_was_killed_and_stopped_ends_as_if_it_had_not(finished: Path) -> None:
    shutil.rmtree("artifacts/student")
    err = stop_at(4, signal.SIGKILL)
    # Torchrun stops the other process, where it is the first to see what has happened.
    ends = ("error: another process of this training has ended", "Aborted", "closing signal SIGTERM")
    assert any(end in err for end in ends), err
    (checkpoint,) = Path(".checkpoints").glob("student-student/*/checkpoint-4")
    assert [seed_of(checkpoint / f"rng_state_{index}.pth") for index in (0, 1)] == [0, 1]
    stop_at(12, signal.SIGTERM)
    assert not Path("artifacts/student").exists()
    resumed = share("student", "distill")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert len(re.findall("going on from .*/checkpoint-1[26]$", resumed.stderr, re.MULTILINE)) == 1
    curve = losses()

    assert share("student", "distill").returncode == 0
    assert len(curve) == 18
    for log, undisturbed in zip(curve, losses(), strict=True):
        assert log == pytest.approx(undisturbed, rel=1e-5, abs=1e-9)


def errors(err: str) -> list[str]:
    return re.findall(r"\berror: [^\r\n]*", err)


def test_two_processes_on_one_card_are_refused(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert errors(run("student", "distill").err) == [
        "error: torchrun has started 2 processes here, and there are cards for 1; set --nproc-per-node 1, or "
        "CUDA_VISIBLE_DEVICES= to train on the CPU"
    ]


def test_a_loss_that_is_no_number_ends_both_processes_in_one_line(finished: Path) -> None:
    changes = ["student.distill.learning_rate=1e38", "student.distill.warmup_share=0.0"]
    done = share("student", "distill", *(part for change in changes for part in ("--set", change)))
    assert done.returncode == 1
    assert errors(done.stderr) == [
        "error: the loss is nan at step 2; lower learning_rate, or try precision: float32"
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "student distill --set student.distill.batch_size=8",
            "student.distill.batch_size is 8, which 3 processes cannot share out equally; "
            "set it to a multiple of 3",
        ),
        (
            "teacher finetune --language de --set teacher.finetune.batch_size=7",
            "teacher.finetune.batch_size is 7, which 3 processes cannot share out equally; "
            "set it to a multiple of 3",
        ),
        (
            "student evaluate",
            "torchrun started 3 processes, which can share only trainings (teacher finetune, "
            "student distill, student baseline); run this with: python -m pipeline student evaluate",
        ),
    ],
)
def test_what_processes_cannot_share_is_refused(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")  # as torchrun tells the first of three
    monkeypatch.setenv("RANK", "0")
    before = files()
    done = run(*command.split())
    assert done.code == 1
    assert errors(done.err) == [f"error: {message}"]
    assert files() == before
