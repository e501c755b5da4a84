"""A small real task: two supervised languages, one zero-shot language, tiny models, no network."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]

CLASSES = ["animal", "colour", "number"]
WORDS = {
    "de": (["Hund", "Katze", "Vogel"], ["rot", "blau", "grün"], ["eins", "zwei", "drei"]),
    "en": (["dog", "cat", "bird"], ["red", "blue", "green"], ["one", "two", "three"]),
    "nl": (["hond", "kat", "vogel"], ["rood", "blauw", "groen"], ["een", "twee", "drie"]),
}
SIZES = {"train": 36, "validation": 9, "test": 12}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the pipeline in this process, in the current folder."""

    def run_command(*arguments: str) -> Ran:
        from pipeline.__main__ import main

        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_command


def examples(language: str, split: str) -> list[dict[str, Any]]:
    """Make labelled texts: a noun of one of three kinds and a running number."""
    rows = []
    offset = list(SIZES).index(split) * 1000
    for i in range(SIZES[split]):
        label = i % 3
        word = WORDS[language][label][(i // 3) % 3]
        rows.append({"text": f"{word} {offset + i}", "label": CLASSES[label]})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_params() -> dict[str, Any]:
    """The committed params.yaml, with another task and everything as small as it goes."""
    params: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    params["task"] = {
        "source": {
            "kind": "files",
            "pattern": "data/{language}/{split}.jsonl",
            "label_field": "label",
        },
        "text_fields": ["text"],
        "classes": CLASSES,
        "supervised": ["de", "en"],
        "zero_shot": ["nl"],
        "max_examples": None,
    }
    teacher = {"base": "scratch", "revision": None, "finetune": True, "labels": None}
    params["teachers"] = {"de": dict(teacher), "en": dict(teacher)}
    size = {"layers": 2, "hidden": 16, "heads": 2, "merges": 30, "mlm_steps": 2, "mlm_batch_size": 4}
    params["teacher"]["finetune"]["scratch"] |= size
    params["teacher"]["finetune"] |= {"epochs": 2, "batch_size": 6}
    params["student"]["pretrain"]["scratch"] |= size
    params["student"]["distill"] |= {"epochs": 2, "batch_size": 8, "branch_layers": 1, "save_steps": 4}
    return params


def write_params(params: dict[str, Any]) -> None:
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with tiny parameters, input data and a store of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "store"))
    write_params(tiny_params())
    for language in WORDS:
        for split in SIZES:
            write_jsonl(folder / "data" / language / f"{split}.jsonl", examples(language, split))
    return folder


COMMANDS = (
    ["prepare"],
    *(["teacher", "finetune", "--language", language] for language in ("de", "en")),
    *(["teacher", "label", "--language", language] for language in ("de", "en")),
    ["student", "pretrain"],
    ["student", "distill"],
    ["student", "baseline"],
    ["student", "evaluate"],
    ["report"],
)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command has run once, as a user would run it; not to be changed."""
    import subprocess

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(tiny_params())
        patch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
        patch.setenv("PYTHONPATH", str(ROOT))
        for language in WORDS:
            for split in SIZES:
                write_jsonl(folder / "data" / language / f"{split}.jsonl", examples(language, split))
        for command in COMMANDS:
            subprocess.run([sys.executable, "-m", "pipeline", *command], check=True)
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which every command has run once."""
    folder = tmp_path / "work"
    shutil.copytree(finished_once, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
    return folder
