"""A student without branches of its own is reported."""

import json
from pathlib import Path

from page_reader import PAGE
from tiny import Run


def test_a_student_of_one_branch_is_reported(finished: Path, run: Run) -> None:
    rows = json.loads(Path("artifacts/plots/accuracy_by_branch.json").read_text())
    mixture = [row | {"used": "mixture"} for row in rows if row["branch"] == "mixture"]
    Path("artifacts/plots/accuracy_by_branch.json").write_text(json.dumps(mixture))
    assert run("report", "--set", "student.distill.variant=distill").code == 0
    assert "The student has one branch" in PAGE.read_text(encoding="utf-8")
