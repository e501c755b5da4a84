"""The tree explains itself: imports point one way, and file, command, DVC stage and section share a name."""

import ast
import json
import keyword
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import typer.main
from ruamel.yaml import YAML

from pipeline import __version__
from pipeline.commands.app import app
from stages.dependencies import code_of, imported, only_declares

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "cache")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


# Three files in stages/ are commands, which use the folders beside them; the others are what all build on.
COMMANDS = {"stages/plan.py", "stages/prepare.py", "stages/report.py"}
# Each folder and those that its files import from, no more and no less. What is not here is forbidden: above
# all, that the stages import each other, or that the store imports a stage.
ARROWS = {
    "cache": "cache.formats cache.identity",
    "cache.commands": "cache cache.formats cache.identity",
    "cache.formats": "cache cache.identity",
    "cache.identity": "cache",
    "stages": "cache",
    "stages.data": "cache stages",
    "stages.models": "cache stages",
    "stages.results": "cache stages stages.data",
    "stages.page": "cache stages stages.data stages.results",
    "stages.teacher": (
        "cache cache.commands stages stages.data stages.models stages.results stages.teacher.endpoint "
        "stages.teacher.labelling"
    ),
    "stages.teacher.endpoint": "cache stages stages.data stages.teacher stages.teacher.labelling",
    "stages.teacher.labelling": (
        "cache cache.commands cache.identity stages stages.data stages.models stages.results stages.teacher"
    ),
    "stages.student": (
        "cache stages stages.data stages.models stages.results stages.student.exporting "
        "stages.student.serving"
    ),
    "stages.student.exporting": "stages stages.data stages.models",
    "stages.student.serving": "stages stages.data",
    "stages.ablation": "cache stages stages.data stages.models stages.results stages.student",
    "stages commands": ("cache stages stages.data stages.page stages.results stages.student stages.teacher"),
    "pipeline": (
        "cache pipeline.commands stages stages.ablation stages.data stages.models stages.student "
        "stages.teacher stages.teacher.endpoint stages.teacher.labelling"
    ),
    "pipeline.commands": (
        "cache cache.commands pipeline stages stages commands stages.ablation stages.data stages.results "
        "stages.student stages.teacher stages.teacher.labelling"
    ),
}
# Of other libraries, these are not for the store, which anybody can read and write without them.
NOT_FOR_THE_STORE = {"torch", "transformers", "datasets"}


def room_of(path: Path) -> str:
    """Give the folder of a file."""
    place = path.relative_to(ROOT)
    return "stages commands" if place.as_posix() in COMMANDS else ".".join(place.parts[:-1])


def rooms_that(path: Path) -> set[str]:
    """Give the folders that a file imports from, its own left out; a package's names are the package's."""
    found = set()
    for module in imports_of(path):
        place = ROOT.joinpath(*module.split("."))
        if place.is_dir():
            found.add(module)
        elif place.with_suffix(".py").is_file():
            found.add(room_of(place.with_suffix(".py")))
    return found - {room_of(path)}


def test_folders_import_from_each_other_as_the_table_says() -> None:
    found: dict[str, set[str]] = {}
    for path in MODULES:
        found.setdefault(room_of(path), set()).update(rooms_that(path))
    assert {room: " ".join(sorted(others)) for room, others in found.items()} == ARROWS


def test_the_store_needs_no_library_of_the_stages() -> None:
    for path in MODULES:
        if room_of(path).startswith("cache"):
            assert not {name.partition(".")[0] for name in imports_of(path)} & NOT_FOR_THE_STORE, path


def test_an_exported_student_needs_none_of_our_files() -> None:
    for path in (ROOT / "stages/models").glob("*_mblm.py"):
        assert not rooms_that(path), path
        assert {name for name in imports_of(path) if name.startswith(".")} <= {".configuration_mblm"}, path


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for sub, leaf in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = leaf
    return found


def dvc_stages(folder: str = ".") -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(ROOT / folder / "dvc.yaml")["stages"]
    return stages


def all_dvc_stages() -> dict[str, Any]:
    """The stages of both projects; paths of the ablation's as if they were the pipeline's."""
    found = dvc_stages()
    for name, stage in dvc_stages("ablation").items():
        found[f"ablation-{name}"] = stage | {"deps": [path.removeprefix("../") for path in stage["deps"]]}
    return found


def test_every_stage_has_a_file_a_command_and_a_dvc_stage_of_its_name() -> None:
    stages = {command for command in commands() if not command.startswith("cache ")}
    for command in stages:
        assert (ROOT / "stages" / f"{command.replace(' ', '/')}.py").is_file()
    # What users do with a finished student is no part of a run.
    stages -= {"student predict", "student export", "student serve", "student average"}
    stages = {command for command in stages if not command.startswith("ablation ")}  # a project of its own
    assert {name.replace("-", " ", 1) for name in dvc_stages()} == stages
    for name, stage in dvc_stages().items():
        assert stage["cmd"].startswith(f"python -m pipeline {name.replace('-', ' ', 1)}")


def test_the_ablation_is_a_dvc_project_whose_stages_are_its_commands() -> None:
    """A stage of the sweep has the command of the stage that does the same for the variants."""
    stages = dvc_stages("ablation")
    names = {name.removesuffix("-sweep") for name in stages}
    assert {f"ablation {name}" for name in names} | {"ablation keep"} == {
        x for x in commands() if x.startswith("ablation ")
    }
    for name, stage in stages.items():
        command = f"cd .. && python -m pipeline ablation {name.removesuffix('-sweep')}"
        assert f"{stage['cmd']} ".startswith(f"{command} ")
        assert all(path.startswith("artifacts/") for path in stage["outs"])


def test_every_command_about_the_store_has_a_file_of_its_name() -> None:
    for command in commands():
        if command.startswith("cache "):
            name = "transfer" if command in ("cache push", "cache pull") else command.removeprefix("cache ")
            assert (ROOT / "cache/commands" / f"{name}{'_' * keyword.iskeyword(name)}.py").is_file()


def test_what_dvc_names_exists() -> None:
    for stage in all_dvc_stages().values():
        for path in stage["deps"]:
            assert path.startswith("artifacts/") or (ROOT / path).exists(), path


def test_every_stage_depends_on_its_plan_and_on_no_parameter_beside_it() -> None:
    for folder, plans in ((".", "artifacts/plan"), ("ablation", "artifacts/plan")):
        for name, stage in dvc_stages(folder).items():
            if name == "plan":
                assert stage["outs"][0] in (plans, {plans: {"persist": True}})
                assert list(stage["params"][0].values()) == [None]  # all of params.yaml
            else:
                assert "params" not in stage
                assert sum(path.startswith(f"{plans}/") for path in stage["deps"]) == 1, name


def test_code_that_a_stage_imports_is_its_dependency() -> None:
    for name, stage in all_dvc_stages().items():
        own = ROOT / f"stages/{name.removesuffix('-sweep').replace('-', '/', 1)}.py"
        needed = {path.relative_to(ROOT).as_posix() for path in code_of(own)}
        listed = {path for path in stage["deps"] if path.endswith(".py")}
        assert needed == listed, name


def test_code_that_does_more_than_declare_is_left_out_of_no_dependencies(tmp_path: Path) -> None:
    def declares(text: str) -> bool:
        file = tmp_path / "some.py"
        file.write_text(text)
        return only_declares(file)

    assert only_declares(ROOT / "stages/data/task.py")
    assert only_declares(ROOT / "stages/params.py")
    assert declares('class A(Params):\n    """Doc."""\n    x: int = 3\n')
    assert not declares("SPLITS = ('train', 'test')\n")
    assert not declares("def read() -> int:\n    return 3\n")
    assert not declares("class A(Params):\n    def read(self) -> int:\n        return 3\n")
    assert not declares(
        "class A(Params):\n    @property\n    def x(self) -> int:\n        y = 3\n        return y\n"
    )
    assert not declares("if True:\n    x = 3\n")
    assert not only_declares(ROOT / "stages/data/examples.py")
    assert not only_declares(ROOT / "stages/artifacts.py")


def test_a_name_that_a_package_passes_on_is_imported_from_where_it_is_defined() -> None:
    found = imported(ROOT / "stages/results/predictions.py")
    assert ROOT / "cache/identity/example_id.py" in found
    assert not {path.name for path in found} & {"store.py", "__init__.py"}


HELP = """
import io, json, os, sys
from pipeline.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        sys.argv, sys.stdout = ["pipeline", *command.split(), "--help"], io.StringIO()
        try:
            main()
        except SystemExit:
            slow = {"torch", "transformers", "datasets", "pyarrow"} & set(sys.modules)
            told = [command, sys.stdout.getvalue(), sorted(slow)]
        sys.__stdout__.write(json.dumps(told) + chr(10))
        sys.__stdout__.flush()
        os._exit(0)
    os.wait()
"""


def test_help_is_quick_and_ends_with_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(["", *sorted(commands())])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 1 + len(commands())
    for command, text, slow in told:
        assert not slow, f"{command}: a slow import"
        assert not command or f"python -m pipeline {command}" in " ".join(text.split())


def test_the_pages_name_every_command_and_the_readme_every_page() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    listed = pages["commands.md"] + pages["ablation.md"] + pages["store.md"]
    for command in commands():
        assert f"`{command}" in listed, command
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in pages:
        assert f"(docs/{name})" in readme, name


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    anchors = {page: {anchor_of(line) for line in headings(page)} for page in pages}
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors[there], f"{page.name}: {target}"


def headings(page: Path) -> list[str]:
    """Read the headings of a page, without what only looks like one in its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchor_of(heading: str) -> str:
    """Give the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_list_of_files_is_that_of_the_tree() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(ROOT / "docs/file_map.py"))["with_map"](page), "python docs/file_map.py"


def test_every_parameter_is_explained_where_it_is_declared() -> None:
    """As docs/training.md says; the class of a section explains it, and `kind` explains itself."""
    stages = ROOT / "stages"
    files = [stages / "data/task.py", stages / "params.py", *stages.glob("*/params.py")]
    fields, silent = 0, []
    for path in files:
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        for one in classes:
            for node, after in zip(one.body, [*one.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    fields += 1
                    told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    is_section = re.search(r"(Params|Source|Section)\b", ast.unparse(node.annotation))
                    if not told and not is_section and node.target.id not in ("kind", "model_config"):
                        silent.append(f"{one.name}.{node.target.id}")
    assert fields > 100
    assert silent == []


def test_the_version_stands_in_one_place_and_is_cited() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mblm {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.__version__"}
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
