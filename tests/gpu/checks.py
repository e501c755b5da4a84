"""The tests that are marked `gpu`."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from measure import heading, row

ROOT = Path(__file__).parents[2]


def main(pack: Path, *, tiny: bool) -> None:
    """Run the files that have such tests; others may need packages that a pack does not have."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *map(str, marked)], cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    broken = counts["failures"] + counts["errors"]
    heading("Tests that are marked gpu")
    row("passed", counts["tests"] - broken - counts["skipped"])
    row("skipped", counts["skipped"])
    row("failed", broken, at_most=0)
    sys.exit(broken > 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
