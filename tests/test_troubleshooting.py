"""An expected failure says what to do, or docs/troubleshooting.md does."""

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/troubleshooting.md"
MODULES = sorted(
    path for package in ("pipeline", "stages", "cache") for path in (ROOT / package).rglob("*.py")
)

# `main` prints the first three as `error: …`, and Typer the last. The others become a part of such a line, or
# the answer of `student serve`. Classes that derive from them are found.
ERRORS = {"StageError", "ParamsError", "CacheError", "BadValueError", "AnswerError", "RefusedError"}
ERRORS |= {"typer.BadParameter"}
# In a file that declares parameters, pydantic makes a ParamsError of each ValueError. Elsewhere it is a part
# of another message, such as that of a damaged shard, or a mistake of a programmer.
PARAMETERS = {"Params"}
VALUE = "…"
"""Stands for what only a run knows, here and on the page."""

# A message needs no explanation if it has a command, a list of what could be there instead, a requirement, or
# an imperative that begins a clause. A verb is in the list because a message uses it; add yours.
INSTRUCTION = re.compile(
    r"python -m pipeline|pip install|\b(?:make|dvc|git) [a-z]+"
    r"|did you mean|(?:these|there) are: |is none of|not one of|\b(?:needs|must) "
    r"|(?:^|[;:,?(] (?:or |and |so )?|\bor |\band )(?:"
    r"add|ask|check|choose|convert|delete|do not|empty|end|export|fine-tune|give|go on|install|leave|let|link"
    r"|list|lower|make|map|mind|name|pin|put|quote|replace|run|say|send|set|take|train|try|unpack|upgrade|use"
    r"|write)\b"
)
# Files in which all but a word of a message comes from a value: another message, which is checked where it is
# made, or what a library says.
PASSED_ON = {
    "pipeline/params.py",  # pydantic
    "stages/data/rows.py",  # the csv module
    "stages/student/predict.py",  # stages/data/languages.py
    "stages/student/serving/app.py",  # pydantic, stages/data/languages.py
    "stages/teacher/endpoint/identity.py",  # an AnswerError without the key
    "stages/teacher/endpoint/transport.py",  # a StageError becomes an AnswerError
    "stages/teacher/labelling/from_files.py",  # a BadValueError becomes a StageError
    "stages/teacher/labelling/imports.py",  # pydantic, a StoreError
    "stages/teacher/labelling/on_ray.py",  # what an actor raised
}
LEAST_LETTERS = 7
"""Of a piece by which the page may name a message; what has fewer must stand there as a whole."""


class Message(NamedTuple):
    """A message that the code can give, with `…` for values, and the file and line that do."""

    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Module:
    """A file's syntax tree, and the texts that its expressions may have."""

    def __init__(self, name: str, code: str) -> None:
        self.name, self.tree = name, ast.parse(code)
        self.around: dict[ast.AST, ast.AST] = {}
        self.called: dict[str, list[ast.Call]] = {}
        for node in ast.walk(self.tree):
            self.around.update(dict.fromkeys(ast.iter_child_nodes(node), node))
            if isinstance(node, ast.Call):
                self.called.setdefault(name_of(node), []).append(node)
        self.functions = {
            node.name: node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }

    def texts(self, node: ast.AST, depth: int = 0) -> list[str]:
        """Give what an expression may say; names and functions of this file are followed."""
        found = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node.left, node.right]
            each = [self.texts(part, depth + 1) for part in parts]
            found = ["".join(several) for several in itertools.islice(itertools.product(*each), 64)]
        elif depth < 9:
            found = [text for one in self.alternatives(node) for text in self.texts(one, depth + 1)]
        return list(dict.fromkeys(found)) or [VALUE]

    def alternatives(self, node: ast.AST) -> list[ast.AST]:
        """Give the expressions whose value an expression takes; none where this file does not tell."""
        if isinstance(node, ast.FormattedValue):
            return [node.value]
        if isinstance(node, ast.IfExp):
            return [node.body, node.orelse]
        if isinstance(node, ast.Name):
            return self.values_of(node)
        if isinstance(node, ast.Call) and (called := self.functions.get(name_of(node))):
            return [x.value for x in ast.walk(called) if isinstance(x, ast.Return) and x.value]
        return []

    def values_of(self, name: ast.Name) -> list[ast.AST]:
        """Find what a name is given: in its function or file, and where the function is called."""
        scope: ast.AST = name
        while scope in self.around:
            scope = self.around[scope]
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes = list(ast.walk(scope))
                found = assigned(nodes, name.id) + self.arguments_for(scope, name.id)
                if found:
                    return found
        return assigned(self.tree.body, name.id)

    def arguments_for(self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> list[ast.AST]:
        names = [arg.arg for arg in function.args.args if arg.arg != "self"]
        calls = self.called.get(function.name, [])
        found: list[ast.AST] = [key.value for call in calls for key in call.keywords if key.arg == name]
        return found + [
            arg for call in calls for one, arg in zip(names, call.args, strict=False) if one == name
        ]

    def classes(self) -> list[ast.ClassDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    def calls(self, names: set[str], within: ast.AST | None = None) -> list[ast.Call]:
        nodes = ast.walk(within or self.tree)
        return [x for x in nodes if isinstance(x, ast.Call) and x.args and ast.unparse(x.func) in names]

    def messages(self, calls: list[ast.Call]) -> list[Message]:
        """Give what exceptions say, whose last argument is the message."""
        found = [
            (" ".join(text.split()), call.lineno) for call in calls for text in self.texts(call.args[-1])
        ]
        # How many other errors there are does not belong to a message.
        return [Message(re.sub(r" \(and …+( more)?\)$", "", text), self.name, line) for text, line in found]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).removeprefix("self.")


def assigned(nodes: list[ast.stmt] | list[ast.AST], name: str) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                found += [value for one, value in pairs if isinstance(one, ast.Name) and one.id == name]
    return found


@cache
def modules() -> list[Module]:
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in MODULES]


def classes_below(roots: set[str], read: list[Module]) -> set[str]:
    bases = {
        one.name: {ast.unparse(base) for base in one.bases} for module in read for one in module.classes()
    }
    found = set(roots)
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def messages(read: list[Module]) -> Iterator[Message]:
    errors, sections = classes_below(ERRORS, read), classes_below(PARAMETERS, read)
    for module in read:
        for made in (one for one in module.classes() if one.name in errors):
            if own := [
                one for one in module.messages(module.calls({"super().__init__"}, made)) if words(one.text)
            ]:
                yield from own  # which the arguments become a part of
                errors = errors - {made.name}
    for module in read:
        declares = any(one.name in sections for one in module.classes())
        yield from module.messages(module.calls(errors | ({"ValueError"} if declares else set())))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{2,}", text)


def rows(page: str) -> list[str]:
    """Give the messages on the page: what is in backticks in the column that is headed so."""
    found, is_ours = [], False
    for line in page.splitlines():
        first = line.split(" | ")[0] if line.startswith("|") else ""
        is_ours = bool(first) and (is_ours or first == "| message")
        found += re.findall("`([^`]+)`", first) if is_ours else []
    return found


def tells(row: str, text: str) -> bool:
    """Tell whether a message is that of a row, whose pieces occur in it one after the other."""
    pieces = [piece.strip() for piece in row.split(VALUE)]
    if max(sum(map(len, words(piece))) for piece in pieces) < LEAST_LETTERS:
        return row == text
    return re.search(".*".join(map(re.escape, pieces)), text) is not None


def unexplained(read: list[Module], page: str) -> list[str]:
    explained = rows(page)
    return [
        str(one)
        for one in dict.fromkeys(messages(read))
        if not (len(words(one.text)) < 2 and one.file in PASSED_ON)
        and not INSTRUCTION.search(one.text)
        and not any(tells(row, one.text) for row in explained)
    ]


def test_a_message_says_what_to_do_or_the_page_does() -> None:
    assert unexplained(modules(), PAGE.read_text(encoding="utf-8")) == []


def test_the_page_explains_no_message_that_is_gone() -> None:
    known = {one.text for one in messages(modules())}
    for row in rows(PAGE.read_text(encoding="utf-8")):
        assert any(tells(row, text) for text in known), row


def test_files_that_pass_messages_on_still_do() -> None:
    assert {one.file for one in messages(modules()) if len(words(one.text)) < 2} == PASSED_ON


def test_a_new_message_without_a_way_out_is_found() -> None:
    code = """
class OwnError(StageError):
    pass

class FullError(StageError):
    def __init__(self, path):
        super().__init__(f"{path} is full")

def why(big):
    return "the moon is full" if big else "it is dark outside"

def fail(path, what):
    hint = "; write it again" if path else ""
    raise OwnError(f"{path} is gone{hint}")
    raise StageError(what)
    raise ParamsError(why(path))
    raise FullError(path)
    raise ValueError("a programmer's mistake")

fail(1, "the sun is down")
"""
    module = Module("stages/new.py", code)
    shown = "`… is dark outside`"
    page = f"| message | why |\n|---|---|\n| {shown} | Night. |\n\n| `is gone` | in no table of ours |\n"
    assert unexplained([module], page) == [
        "stages/new.py:7: … is full",
        "stages/new.py:14: … is gone",
        "stages/new.py:15: the sun is down",
        "stages/new.py:16: the moon is full",
    ]
    all_shown = f"{shown}, `… is full`, `… is gone`, `the sun is down`, `moon is full`"
    assert unexplained([module], page.replace(shown, all_shown)) == []
