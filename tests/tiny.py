"""The small task of the tests: three languages, three classes, models as small as they go."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]

CLASSES = ["animal", "colour", "number"]
WORDS = {
    "de": (["Hund", "Katze", "Vogel"], ["rot", "blau", "grün"], ["eins", "zwei", "drei"]),
    "en": (["dog", "cat", "bird"], ["red", "blue", "green"], ["one", "two", "three"]),
    "nl": (["hond", "kat", "vogel"], ["rood", "blauw", "groen"], ["een", "twee", "drie"]),
}
SIZES = {"train": 36, "validation": 9, "test": 12}


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


VARIANTS = ["finetune", "distill", "branches", "mblm"]
LABEL = ("teacher", "label", "--language", "de")
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
    teacher: dict[str, Any] = {
        "base": "scratch",
        "revision": None,
        "finetune": True,
        "labels": None,
        "more": [],
        "folds": 1,
    }
    params["teachers"] = {"de": dict(teacher), "en": dict(teacher)}
    size = {
        "architecture": "roberta",
        "layers": 2,
        "hidden": 16,
        "heads": 2,
        "merges": 30,
        "mlm_steps": 2,
        "mlm_batch_size": 4,
    }
    params["teacher"]["finetune"]["scratch"] |= size
    params["teacher"]["finetune"] |= {"epochs": 2, "batch_size": 6}
    params["student"]["pretrain"]["scratch"] |= size
    params["student"]["distill"] |= {"epochs": 2, "batch_size": 8, "branch_layers": 1, "save_steps": 4}
    params["ablation"] = {
        "seeds": [0, 1],
        "variants": ["finetune", "mblm"],
        "sweep": {
            "seeds": [1],
            "runs": [
                {"name": "as-it-is", "changes": {}},
                {"name": "lambda-0.9", "changes": {"mixture.loss_weight": 0.9}},
            ],
        },
    }
    return params


def write_params(params: dict[str, Any]) -> None:
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


def write_input(folder: Path) -> None:
    """Write the examples of all languages and splits to ``data/``."""
    for language in WORDS:
        for split in SIZES:
            write_jsonl(folder / "data" / language / f"{split}.jsonl", examples(language, split))


def use_ready_teacher(source: Path, **config: Any) -> Path:
    """Let params.yaml name a copy of a fine-tuned teacher, with changes in its configuration."""
    folder = Path("ready").absolute()
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    params = tiny_params()
    params["teachers"]["de"] |= {"base": str(folder), "finetune": False}
    write_params(params)
    return folder


@cache
def may_unshare(flags: str) -> bool:
    """Tell whether this machine gives anybody namespaces of their own, as most Linux machines do."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", flags, "true"], capture_output=True, check=False).returncode == 0


def set_bias(folder: Path, bias: list[float]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["classifier.out_proj.bias"] = torch.tensor(bias)
    save_file(weights, path, metadata={"format": "pt"})
