"""A model's folder never runs code of its own, whatever standard input says to transformers' question."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT, Run
from warm import warm_python


@pytest.mark.parametrize(
    "command",
    [
        ["teacher", "finetune", "--language", "de", "--set", "teachers.de.base=./hostile"],
        [
            "student",
            "pretrain",
            "--set",
            "student.pretrain.base=./hostile",
            "--set",
            "student.pretrain.layers=1",
        ],
        ["student", "predict", "--model", "hostile"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_folder_with_code_is_refused_and_its_code_does_not_run(finished: Path, command: list[str]) -> None:
    folder = finished / "hostile"
    folder.mkdir()
    has_run = finished / "has-run"
    (folder / "hostile.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(has_run)!r}).touch()\n\nclass Hostile(PretrainedConfig):\n    model_type = 'hostile'\n"
    )
    config = {"model_type": "hostile", "auto_map": {"AutoConfig": "hostile.Hostile"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((finished / "artifacts/student" / name).read_bytes())
    done = subprocess.run(
        [warm_python(), "-m", "pipeline", *command],
        input="y\n" * 100_000,  # longer than what the command reads ahead
        cwd=finished,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(finished), "HF_HOME": str(finished / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not has_run.exists()


def test_pickled_weights_of_a_student_are_not_read(finished: Path, run: Run) -> None:
    student = finished / "artifacts/student"
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    (finished / "texts.txt").write_text("ein Hund\n")
    done = run("student", "predict", "texts.txt")
    assert (done.code, done.out) == (1, "")
    assert "no file named model.safetensors" in done.err
