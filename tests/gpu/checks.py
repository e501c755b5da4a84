"""The tests that are marked `gpu`."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import torch
from measure import heading, row

ROOT = Path(__file__).parents[2]


def main(pack: Path, *, tiny: bool) -> None:
    """Run the files that have such tests; others may need packages that a pack does not have."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *map(str, marked)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "MBLM_TEST_GPU": "1"}, check=False)
        suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    broken = counts["failures"] + counts["errors"]
    heading("Tests that are marked gpu")
    row("passed", counts["tests"] - broken - counts["skipped"])
    row("skipped", counts["skipped"], at_most=0 if torch.cuda.is_available() else None)
    row("failed", broken, at_most=0)
    sys.exit(broken > 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
