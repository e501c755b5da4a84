"""The pipeline under real DVC: what runs, what does not, experiments, metrics, and no network."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clone import clone, commit_all, dvc, output_of, stages_run
from ruamel.yaml import YAML
from tiny import examples, may_unshare, tiny_params, write_input, write_jsonl, write_params

from pipeline.params import load_params

pytestmark = pytest.mark.slow

TEACHERS = {f"teacher-{what}@{language}" for what in ("finetune", "label") for language in ("de", "en")}
ALL = TEACHERS | {
    "plan",
    "prepare",
    "student-pretrain",
    "student-distill",
    "student-baseline",
    "student-evaluate",
    "report",
}


def change(folder: Path, **values: Any) -> None:
    path = folder / "params.yaml"
    params = YAML(typ="safe").load(path)
    params["student"]["distill"] |= values
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the small task in which `dvc repro` has run once, cut off from every network."""
    folder = tmp_path_factory.mktemp("dvc") / "clone"
    clone(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(tiny_params())
        write_input(folder)
    commit_all(folder, "start", ["init", "-q"])
    # A new network namespace has no interface but a loopback that is down.
    output = dvc(folder, "repro", prefix=("unshare", "-rn") if may_unshare("-rn") else ())
    assert stages_run(output) == ALL
    commit_all(folder, "reproduced")
    return folder


def test_a_second_repro_runs_nothing(reproduced: Path) -> None:
    assert stages_run(dvc(reproduced, "repro")) == set()
    assert "up to date" in dvc(reproduced, "status")


@pytest.mark.skipif(
    not may_unshare("-rn"),
    reason="needs network namespaces for unprivileged users",
)
def test_the_fixture_ran_without_a_network(reproduced: Path) -> None:
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert "Network is unreachable" in done.stderr


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
    assert stages_run(dvc(reproduced, "repro", "prepare")) == {"prepare"}
    output = dvc(reproduced, "repro", "--single-item", "teacher-label@de")
    assert "58 soft labels, 1 of them new" in output
    manifest = json.loads((reproduced / "artifacts/soft_labels/de/manifest.json").read_text())
    assert manifest["examples"] == 58
    path.write_text(before, encoding="utf-8")
    dvc(reproduced, "repro")


@pytest.mark.parametrize(("where", "variant"), [((), "branches"), (("--temp",), "distill")])
def test_experiments_run_in_place_and_apart(reproduced: Path, where: tuple[str, ...], variant: str) -> None:
    output = dvc(reproduced, "exp", "run", *where, "-S", f"student.distill.variant={variant}")
    ran = stages_run(output)
    assert "student-distill" in ran
    assert not ran & (TEACHERS | {"prepare", "student-pretrain", "student-baseline"})
    assert "plan" in ran
    shown = dvc(reproduced, "exp", "show", "--csv")
    assert variant in shown
    subprocess.run(["git", "checkout", "-q", "."], cwd=reproduced, check=True)
    dvc(reproduced, "checkout")


def test_metrics_and_plots_say_something(reproduced: Path) -> None:
    metrics = json.loads(dvc(reproduced, "metrics", "show", "--json"))[""]["data"]
    (summary,) = metrics.values()
    assert summary["data"] == json.loads((reproduced / "artifacts/report/summary.json").read_text())
    columns = dvc(reproduced, "exp", "show", "--csv").splitlines()[0].split(",")
    assert {"supervised.student", "zero_shot.student", "supervised.calibration_error"} <= set(columns)
    assert sum(column.startswith(("supervised", "zero_shot")) for column in columns) == 10
    change(reproduced, epochs=3, variant="branches")
    dvc(reproduced, "repro")
    assert "artifacts/report/summary.json" in dvc(reproduced, "metrics", "diff", "--all")
    dvc(reproduced, "plots", "diff", "HEAD", "workspace")
    page = (reproduced / "dvc_plots/index.html").read_text(encoding="utf-8")
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*?\});\s*vegaEmbed", page, re.DOTALL)]
    assert [spec["title"]["text"] for spec in specs] == [
        "Test accuracy per language",
        "Every branch on every language",
        "What is taken for what",
        "Calibration of the student",
        "Training losses",
        "Validation accuracy while training",
    ]
    for spec in specs:
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "workspace"}
    subprocess.run(["git", "checkout", "-q", "."], cwd=reproduced, check=True)
    dvc(reproduced, "checkout")


def test_soft_labels_travel_by_push_and_pull_and_suffice_for_stage_two(reproduced: Path) -> None:
    remote, other = reproduced.parent / "remote", reproduced.parent / "other"
    dvc(reproduced, "remote", "add", "--default", "--local", "-f", "there", str(remote))
    dvc(reproduced, "push")
    subprocess.run(["git", "clone", "-q", str(reproduced), str(other)], check=True)
    dvc(other, "remote", "add", "--default", "--local", "there", str(remote))
    dvc(other, "pull", "plan", "prepare", "teacher-label", "student-pretrain")
    assert not (other / "artifacts/teachers").exists()
    output = dvc(other, "repro", "--force", "--single-item", "student-distill")
    assert stages_run(output) == {"student-distill"}


def make(folder: Path, *arguments: str) -> str:
    """Run make as after its installation."""
    return output_of(folder, "make", "--no-print-directory", "--old-file", ".venv/installed", *arguments)


def test_the_ablation_runs_when_asked_for_and_goes_on_where_it_was(reproduced: Path) -> None:
    """All but one run are made; what is left, or changes, is made at the next call, and nothing else."""
    ablation = ("--cd", "ablation")
    runs = [f"{variant}-{seed}" for variant in ("finetune", "mblm") for seed in (0, 1)]
    dvc(reproduced, *ablation, "repro", *(f"train@{run}" for run in runs[1:]))
    assert stages_run(dvc(reproduced, "repro")) == set()
    assert "up to date" in dvc(reproduced, "status")
    dvc(reproduced, "checkout")  # fails where a stage that it knows of has not run

    output = make(reproduced, "ablation", "JOBS=2")
    assert stages_run(output) == {f"train@{runs[0]}", "compare"}
    assert output.endswith((reproduced / "ablation/artifacts/test.md").read_text(encoding="utf-8"))
    assert "up to date" in dvc(reproduced, *ablation, "status", "compare")

    params = (reproduced / "params.yaml").read_text(encoding="utf-8")
    changed = YAML(typ="safe").load(params)
    changed["student"]["distill"]["mixture"]["loss_weight"] = 0.4
    with (reproduced / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(changed, file)
    output = make(reproduced, "ablation", "JOBS=2")
    assert stages_run(output) == {"plan", "train@mblm-0", "train@mblm-1", "compare"}
    output = make(reproduced, "sweep")
    assert stages_run(output) == {"train-sweep@run0-1", "train-sweep@run1-1", "compare-sweep"}
    assert "lambda-0.9" in output.splitlines()[-5]
    (reproduced / "params.yaml").write_text(params, encoding="utf-8")
    assert stages_run(make(reproduced, "ablation")) <= {"plan"}  # DVC has kept what these parameters gave
