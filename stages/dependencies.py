"""What decides a stage's outputs: parameters that depart from their defaults, and the code that it imports.

Code is read as text, so nothing is imported for it. DVC's dependencies are checked against it by a test, and
trainings note the digests, so as not to go on from a checkpoint of other code.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cache import file_digest

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("cache", "pipeline", "stages")


def departures(section: BaseModel, *keys: str) -> dict[str, Any]:
    """Give the parameters of a section that depart from their defaults.

    Args:
        section: A section of params.yaml.
        keys: Those of its keys that matter; none stands for all.
    """
    return section.model_dump(mode="json", exclude_defaults=True, include=set(keys) or None)


def code_of(file: Path) -> set[Path]:
    """List the files that a file needs, itself included, but for those that only declare.

    Args:
        file: One of ours.
    """
    found: set[Path] = set()
    left = [file]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [other for other in imported(path) if not only_declares(other)]
    return found


def code_digests(file: Path) -> dict[str, str]:
    """Hash the files that a file needs; sha256, by their paths below the project's folder."""
    return {path.relative_to(_ROOT).as_posix(): file_digest(path) for path in sorted(code_of(file))}


def imported(file: Path) -> set[Path]:
    """List the files of ours that a file imports by itself, wherever in it.

    A name that a package's ``__init__.py`` passes on counts as imported from where it is defined.
    """
    found = set()
    for module, name in _imports_of(file):
        path = _ROOT.joinpath(*module.split("."))
        if module.split(".")[0] not in _PACKAGES:
            continue
        if path.is_dir():
            passed_on = {alias: where for where, alias in _imports_of(path / "__init__.py")}
            inside = [
                path / f"{name}.py",
                _ROOT.joinpath(*passed_on.get(name, "").split(".")).with_suffix(".py"),
            ]
            found |= {place for place in inside if place.is_file()}
        else:
            found.add(path.with_suffix(".py"))
    return found


def _imports_of(file: Path) -> frozenset[tuple[str, str]]:
    """List a file's imports: modules, and the names taken from them, empty for a module as a whole."""
    return _imports(file.read_text(encoding="utf-8"), file.relative_to(_ROOT).parts)


# Each file is imported by many: it is looked through once in a process, or whenever its text has changed.
@functools.cache
def _imports(text: str, place: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    found = set()
    for node in _statements(_parsed(text)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = place[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {(module, alias.name) for alias in node.names}
    return frozenset(found)


@functools.cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Give what stands in a module, a class, a function or any other block, but no expressions."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, part, ()):
            yield inner
            yield from _statements(inner)


def only_declares(file: Path) -> bool:
    """Tell whether a file holds nothing but sections of params.yaml, errors and types.

    What a declaration can change are values of parameters, which `stages.plan` writes down. So a file that
    only declares has no functions but private ones, which validate; its classes have no methods but
    validators and properties of one expression; and it has no constants but types.
    """
    return all(_declares(node) for node in _parsed(file.read_text(encoding="utf-8")).body)


def _declares(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return all(_declares_member(member) for member in node.body)
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("_")
    if isinstance(node, ast.Assign):  # a type's other name, such as Literal["a", "b"]
        return isinstance(node.value, ast.Subscript)
    return _is_docstring(node) or isinstance(node, ast.Import | ast.ImportFrom)


def _declares_member(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        names = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
        body = [statement for statement in node.body if not _is_docstring(statement)]
        is_expression = len(body) <= 1 and all(isinstance(statement, ast.Return) for statement in body)
        return bool(names & {"field_validator", "model_validator"}) or ("property" in names and is_expression)
    is_config = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "model_config"
    return is_config or _is_docstring(node) or isinstance(node, ast.AnnAssign | ast.Pass)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
