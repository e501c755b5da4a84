"""Write the list of files in docs/architecture.md: each with the first sentence of its docstring.

python docs/file_map.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- files: python docs/file_map.py -->\n", "<!-- end of files -->\n"


def file_map() -> str:
    """Give a table for each folder of code, its files in the order of their names."""
    lines = []
    for folder in sorted({path.parent for name in ("pipeline", "stages", "cache") for path in code(name)}):
        lines += [f"### {folder.relative_to(ROOT)}/", "", f"{sentence(folder / '__init__.py')}", ""]
        lines += ["| file | |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"| `{path.name}` | {sentence(path)} |")
        lines.append("")
    return "\n".join(lines)


def code(package: str) -> list[Path]:
    """List a package's files."""
    return sorted((ROOT / package).rglob("*.py"))


def sentence(path: Path) -> str:
    """Give the first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"[.?](?= |$)", first)
    return first[: end.end()] if end else first


def with_map(text: str) -> str:
    """Replace the list in the page's text."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{file_map()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
