"""Small labelled tables, and how people write them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.files import Input
from stages.data.rows import placed_rows
from stages.data.task import FilesSource, TaskParams
from stages.errors import StageError


def nli_task(pattern: str, **changes: Any) -> TaskParams:
    values: dict[str, Any] = {
        "source": changes.get("source") or FilesSource(kind="files", pattern=pattern),
        "text_fields": ["premise", "hypothesis"],
        "classes": ["no", "yes"],
        "supervised": ["de"],
        "zero_shot": ["fr"],
        "max_examples": None,
    }
    return TaskParams(**values | changes)


ROWS: list[dict[str, Any]] = [
    {"premise": 'Er sagte: "ja",\u00a0dann', "hypothesis": "null", "label": "yes"},
    {"premise": "u\u0308ber", "hypothesis": "NA", "label": "no"},
    {"premise": " leading", "hypothesis": "", "label": "yes"},
]


def read_or_refused(source: Input, names: Sequence[str]) -> tuple[list[tuple[Any, ...]], str]:
    """Read a table's rows, or the line with which it is refused."""
    try:
        return [tuple(row[name] for name in names) for _, row in placed_rows(source)], ""
    except StageError as error:
        return [], str(error)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def write_all(folder: Path, rows: list[dict[str, Any]] = ROWS, suffix: str = "jsonl") -> str:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        write(folder / "data" / language / f"{split}.{suffix}", rows)
    return f"data/{{language}}/{{split}}.{suffix}"
