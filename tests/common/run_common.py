"""Run transformers' own common tests on students and on plain models of the same families.

    make test-transformers

Prints how many pass, fail and are skipped, and fails where a student fails what its plain model passes. The
tests are not in transformers' wheel: they come out of the pinned version's sdist, from the package index.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from xml.etree import ElementTree

import typer
from tabulate import tabulate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FAMILIES = (
    *("bert", "camembert", "deberta-v2", "distilbert"),
    *("electra", "modernbert", "roberta", "xlm-roberta"),
)

_TAKEN = ("test_configuration_common.py", "test_modeling_common.py", "test_training_mixin.py")
# What the sdist leaves out of what these import, and no encoder needs: generation and a family's exports. The
# options are those that every configuration has.
_STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16', "
        "'output_attentions': True, 'architectures': ['BertModel'], 'problem_type': 'regression', "
        "'id2label': {0: 'label'}, 'label2id': {'label': '0'}}"
    ),
}
# A plain model fails it as well: it takes every model for one that predicts tokens.
_FOR_DECODERS = "test_training_overfit"
_KINDS = ("Plain", "Student")


def main(
    families: Annotated[list[str], typer.Argument(help="Families of encoders.")] = ["bert", "modernbert"],  # noqa: B006
    all_: Annotated[bool, typer.Option("--all", help="All families that a student can be made of.")] = False,
) -> None:
    """Fetch the tests, run them and print a table."""
    chosen = list(FAMILIES) if all_ else families
    with TemporaryDirectory() as folder:
        _fetch(Path(folder))
        results = _run(Path(folder), chosen)
    rows = []
    worse: dict[str, list[str]] = {"failed": [], "skipped": []}
    for family in chosen:
        plain, student = (results[f"{kind}_{family.replace('-', '_')}"] for kind in _KINDS)
        for kind, outcomes in (("plain", plain), ("student", student)):
            counts = Counter(outcomes.values())
            rows.append([family, kind, counts["passed"], counts["failed"], counts["skipped"]])
        for name, outcome in student.items():
            if outcome in worse and plain.get(name) == "passed":
                worse[outcome].append(f"{family}: {name}")
    typer.echo(f"transformers {version('transformers')}, common tests\n")
    typer.echo(tabulate(rows, ["family", "model", "pass", "fail", "skip"], "github"))
    for outcome, names in worse.items():
        if names:
            typer.echo(f"\nPassed by the plain model and {outcome} by the student:\n" + "\n".join(names))
    if worse["failed"]:
        raise typer.Exit(1)


def _fetch(folder: Path) -> None:
    """Put transformers' common tests, as a package, and what they import into a folder.

    Raises:
        Exit: The package index does not give them.
    """
    pinned = f"transformers=={version('transformers')}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    download = [*pip, "download", pinned, "--no-deps", "--no-binary=:all:", f"--dest={folder}"]
    install = [*pip, "install", "parameterized==0.9.0", "--no-deps", f"--target={folder / 'lib'}"]
    for command in (download, install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            typer.echo(f"error: cannot fetch the tests of {pinned} from the package index: {last}", err=True)
            raise typer.Exit(1)
    package = folder / "transformers_tests"
    for name in _STAND_INS:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(_STAND_INS[name] + "\n")
    (package / "__init__.py").touch()
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as sdist:
        for member in sdist.getmembers():
            parent, _, name = member.name.rpartition("/")
            if parent.endswith("/tests") and parent.count("/") == 1 and name in _TAKEN:
                content = sdist.extractfile(member)
                assert content is not None
                (package / name).write_bytes(content.read())
    shutil.copy(HERE / "classes.py", package / "test_classes.py")


def _run(folder: Path, families: list[str]) -> dict[str, dict[str, str]]:
    """Run them; gives the outcome of each test by class."""
    report = folder / "report.xml"
    names = " or ".join(f"{kind}_{family.replace('-', '_')}" for family in families for kind in _KINDS)
    command = [
        *(sys.executable, "-m", "pytest", "--quiet", "-c", os.devnull, f"--rootdir={folder}", "-W", "ignore"),
        *("-p", "no:cacheprovider", "--numprocesses", "2", f"--junitxml={report}", "--tb=short"),
        *("-k", f"({names}) and not {_FOR_DECODERS}", str(folder / "transformers_tests/test_classes.py")),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (folder, folder / "lib", ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run(command, cwd=folder, env=environment, check=False)
    results: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind = case.get("classname", "").rpartition(".")[2]
        name = case.get("name", "")
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        of_class = results.setdefault(kind, {})
        if of_class.get(name) != "failed":  # a failed subtest is a case of its own
            of_class[name] = outcome
    return results


if __name__ == "__main__":
    typer.run(main)
