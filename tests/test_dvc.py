"""The pipeline under real DVC: what runs, what does not, experiments, metrics, and no network."""

import json
import subprocess
from pathlib import Path

import pytest
from clone import NO_NETWORK, TEACHERS, change, dvc, make, output_of, stages_run
from ruamel.yaml import YAML
from tiny import examples, may_unshare, write_jsonl

from pipeline.params import load_params

pytestmark = pytest.mark.slow


def test_after_make_demo_nothing_is_left_to_do(reproduced: Path) -> None:
    assert stages_run(dvc(reproduced, "repro")) == set()
    assert "up to date" in dvc(reproduced, "status")
    lock = (reproduced / "dvc.lock").read_bytes()
    table = (reproduced / "artifacts/report/accuracy.md").read_text(encoding="utf-8")
    page = reproduced / "artifacts/report/report.html"
    assert make(reproduced, "demo") == f"\n{table}\nThe report: {page}\n"
    assert (reproduced / "dvc.lock").read_bytes() == lock


@pytest.mark.skipif(
    not may_unshare("-rn"),
    reason="needs network namespaces for unprivileged users",
)
def test_the_fixture_ran_without_a_network(reproduced: Path) -> None:
    probe = (
        "import socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "except OSError as error: print(error)"
    )
    for before, reason in ((NO_NETWORK, "Network is unreachable"), ((), "Connection refused")):
        assert reason in output_of(reproduced, *before, "python", "-c", probe)


def test_what_would_run_again_after_a_change(reproduced: Path) -> None:
    """`dvc repro --dry` after each change of code, which is then taken back."""

    def would_run(path: str, text: str) -> set[str]:
        file = reproduced / path
        before = file.read_text(encoding="utf-8")
        file.write_text(before + text, encoding="utf-8")
        try:
            return stages_run(dvc(reproduced, "repro", "--dry"))
        finally:
            file.write_text(before, encoding="utf-8")

    assert "student-distill" in would_run("stages/student/objective.py", "\n# changed\n")
    assert not would_run("stages/student/objective.py", "\n# changed\n") & TEACHERS
    assert "teacher-label@de" in would_run("stages/teacher/labelling/inference.py", "\n# changed\n")
    assert "teacher-finetune@de" not in would_run("stages/teacher/labelling/inference.py", "\n# changed\n")
    assert "student-pretrain" in would_run("stages/data/examples.py", "\n# changed\n")
    for path in (
        "pipeline/commands/app.py",
        "stages/data/task.py",
        "stages/student/params.py",
        "cache/commands/gc.py",
    ):
        assert would_run(path, "\n# changed\n") == set(), path


def test_a_changed_parameter_runs_what_it_decides(reproduced: Path) -> None:
    before = (reproduced / "params.yaml").read_text(encoding="utf-8")
    change(reproduced, temperature=7.0)
    output = dvc(reproduced, "repro", "plan")
    assert "with other parameters than before: student-distill, report" in output
    assert stages_run(dvc(reproduced, "repro", "--dry")) <= {"student-distill", "student-evaluate", "report"}
    assert "student-distill" in stages_run(dvc(reproduced, "repro", "--dry"))
    (reproduced / "params.yaml").write_text(before, encoding="utf-8")
    assert stages_run(dvc(reproduced, "repro")) <= {"plan"}


def test_what_launch_says_starts_the_trainings_and_runs_none_again(reproduced: Path) -> None:
    path = reproduced / "params.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\nlaunch: torchrun --nproc-per-node 2 -m pipeline\n", encoding="utf-8")
    assert stages_run(dvc(reproduced, "repro")) == {"plan"}
    output = dvc(reproduced, "repro", "--force", "--single-item", "student-baseline")
    assert output.count("finetune: 18 steps") == 1
    path.write_text(before, encoding="utf-8")
    dvc(reproduced, "repro", "--force", "--single-item", "student-baseline")


def test_options_of_a_newer_version_and_defaults_left_out_run_nothing_again(reproduced: Path) -> None:
    """Every key is written down in the run; without those that have their defaults, no stage runs again."""
    path = reproduced / "params.yaml"
    before = path.read_text(encoding="utf-8")
    params = load_params(path)
    for defaults in (False, True):
        values = params.model_dump(mode="json", exclude_defaults=defaults)
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(values | {"ablation": params.ablation.model_dump(mode="json")}, file)
        assert stages_run(dvc(reproduced, "repro")) == {"plan"}
    path.write_text(before, encoding="utf-8")
    assert stages_run(dvc(reproduced, "repro")) <= {"plan"}


def test_stages_run_alone_with_what_they_need(reproduced: Path) -> None:
    assert stages_run(dvc(reproduced, "repro", "--force", "--single-item", "teacher-label@de")) == {
        "teacher-label@de"
    }
    assert stages_run(dvc(reproduced, "repro", "student-distill")) == set()


def test_one_new_example_labels_one(reproduced: Path) -> None:
    path = reproduced / "data/de/train.jsonl"
    before = path.read_text(encoding="utf-8")
    write_jsonl(path, [*examples("de", "train"), {"text": "Hund 99999", "label": "animal"}])
    assert stages_run(dvc(reproduced, "repro", "prepare")) == {"plan", "prepare"}
    output = dvc(reproduced, "repro", "--single-item", "teacher-label@de")
    assert "58 soft labels, 1 of them new" in output
    manifest = json.loads((reproduced / "artifacts/soft_labels/de/manifest.json").read_text())
    assert manifest["examples"] == 58
    path.write_text(before, encoding="utf-8")
    dvc(reproduced, "repro")


def test_soft_labels_travel_by_push_and_pull_and_suffice_for_stage_two(reproduced: Path) -> None:
    remote, other = reproduced.parent / "remote", reproduced.parent / "other"
    dvc(reproduced, "remote", "add", "--default", "--local", "-f", "there", str(remote))
    dvc(reproduced, "push")
    subprocess.run(["git", "clone", "-q", str(reproduced), str(other)], check=True)
    dvc(other, "remote", "add", "--default", "--local", "there", str(remote))
    dvc(other, "pull", "plan", "prepare", "teacher-label", "teacher-silver", "student-pretrain")
    assert not (other / "artifacts/teachers").exists()
    output = dvc(other, "repro", "--force", "--single-item", "student-distill")
    assert stages_run(output) == {"student-distill"}
