"""Metrics, plots and the ablation under real DVC; test_readme.py runs experiments."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clone import change, dvc, make, stages_run
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow


def test_metrics_and_plots_say_something(reproduced: Path) -> None:
    metrics = json.loads(dvc(reproduced, "metrics", "show", "--json"))[""]["data"]
    (summary,) = metrics.values()
    assert summary["data"] == json.loads((reproduced / "artifacts/report/summary.json").read_text())
    columns = dvc(reproduced, "exp", "show", "--csv").splitlines()[0].split(",")
    assert {"supervised.student", "zero_shot.student", "supervised.calibration_error"} <= set(columns)
    assert sum(column.startswith(("supervised", "zero_shot")) for column in columns) == 13
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


def write(folder: Path, params: dict[str, Any]) -> None:
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


@pytest.mark.parametrize("target", ["ablation", "sweep"])
def test_make_asks_for_the_ablations_parameters_before_teachers_train(reproduced: Path, target: str) -> None:
    params = YAML(typ="safe").load(reproduced / "params.yaml")
    del params["ablation"]
    write(reproduced, params)
    with pytest.raises(AssertionError, match="add or mend the keys of section ablation") as refused:
        make(reproduced, target)
    assert "Running stage" not in str(refused.value)
    subprocess.run(["git", "checkout", "-q", "params.yaml"], cwd=reproduced, check=True)


def test_the_ablation_runs_when_asked_for_and_goes_on_where_it_was(reproduced: Path) -> None:
    """One run is made; what is left, or changes, is made at the next call, and nothing else."""
    ablation = ("--cd", "ablation")
    params = YAML(typ="safe").load(reproduced / "params.yaml")
    params["ablation"] |= {"seeds": [0], "variants": ["finetune", "distill", "mblm"]}
    params["ablation"]["sweep"]["seeds"] = [0]
    write(reproduced, params)
    dvc(reproduced, "repro", "plan")
    dvc(reproduced, *ablation, "repro", "train@mblm-0")
    assert stages_run(dvc(reproduced, "repro")) == set()
    assert "up to date" in dvc(reproduced, "status")
    dvc(reproduced, "checkout")  # fails where a stage that it knows of has not run

    output = make(reproduced, "ablation", "JOBS=2")
    assert stages_run(output) == {"train@finetune-0", "train@distill-0", "compare"}
    assert output.endswith((reproduced / "ablation/artifacts/test.md").read_text(encoding="utf-8"))
    assert "up to date" in dvc(reproduced, *ablation, "status", "compare")

    before = params["student"]["distill"]["mixture"]["loss_weight"]
    params["student"]["distill"]["mixture"]["loss_weight"] = 0.4
    write(reproduced, params)
    output = make(reproduced, "ablation", "JOBS=2")
    assert stages_run(output) == {"plan", "train@mblm-0", "compare"}
    output = make(reproduced, "sweep")
    assert stages_run(output) == {"train-sweep@run0-0", "train-sweep@run1-0", "compare-sweep"}
    assert "lambda-0.9" in output.splitlines()[-5]
    params["student"]["distill"]["mixture"]["loss_weight"] = before
    write(reproduced, params)
    assert stages_run(make(reproduced, "ablation")) <= {"plan"}  # DVC has kept what these parameters gave
