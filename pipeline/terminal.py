"""What commands print: tables, JSON, sizes, a bar; safe for a terminal whatever the names hold."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer


def print_json(value: Any) -> None:
    """Print values for programs: dataclasses as mappings, times as ISO 8601."""

    def encode(other: Any) -> Any:
        if isinstance(other, datetime):
            return other.isoformat(timespec="seconds")
        return dataclasses.asdict(other)

    typer.echo(json.dumps(value, default=encode, indent=2, ensure_ascii=False))


def print_line(line: str) -> None:
    """Print a line that may hold names from a store."""
    typer.echo(visible(line))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; a head that ends with ``>`` is that of a column of numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head.rstrip(">"), justify="right" if head.endswith(">") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    # In a file or a pipe nothing is cut off.
    console = Console(width=None if sys.stdout.isatty() else 10_000, soft_wrap=True, highlight=False)
    console.print(table)


def in_bytes(n_bytes: int) -> str:
    """Write a size as people do, such as ``1.2 MB``."""
    from rich.filesize import decimal

    return str(decimal(n_bytes))


def counted(count: int, what: str) -> str:
    """Write ``1 shard`` or ``2 shards``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


@contextmanager
def bytes_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of some bytes are done; gives what counts them."""
    from stages.progress import Bar

    with Bar(total=total, desc=title, unit="B", unit_scale=True, delay=1) as bar:

        def advance(size: int) -> None:
            bar.update(size)

        yield advance


def visible(text: str) -> str:
    """Escape what a terminal would obey: names come from stores that others write."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
