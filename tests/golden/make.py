"""Make golden data: a finished run of a tiny task, its store, its soft labels and what they hold.

Run it in a checkout of the commit whose data is wanted; this file may lie elsewhere. The folder is replaced:

    python $golden/make.py $golden/0.1

It starts the checkout's commands and imports nothing of ours: soft labels are decoded with pyarrow and zarr
alone, and the student is loaded with the code that lies beside its weights.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import zarr
from ruamel.yaml import YAML
from transformers import AutoModelForSequenceClassification, AutoTokenizer

WORDS = {
    "de": {
        "animal": ("Hund", "Katze", "Vogel"),
        "colour": ("rot", "blau", "grün"),
        "day": ("Montag", "Dienstag", "Freitag"),
        "number": ("eins", "zwei", "drei"),
        "tool": ("Hammer", "Säge", "Zange"),
    },
    "en": {
        "animal": ("dog", "cat", "bird"),
        "colour": ("red", "blue", "green"),
        "day": ("Monday", "Tuesday", "Friday"),
        "number": ("one", "two", "three"),
        "tool": ("hammer", "saw", "pliers"),
    },
    "nl": {
        "animal": ("hond", "kat", "vogel"),
        "colour": ("rood", "blauw", "groen"),
        "day": ("maandag", "dinsdag", "vrijdag"),
        "number": ("een", "twee", "drie"),
        "tool": ("hamer", "zaag", "tang"),
    },
}
SPLITS = {"train": 45, "validation": 15, "test": 15}
SUPERVISED = ["de", "en"]
# What is kept of the answers: the format of the set and of most shards, and the changes in teacher.label.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("arrow", {}),
    "hidden": ("zarr", {"hidden": True}),
    "top_k": ("arrow", {"top_k": 2}),
    "float16": ("zarr", {"logits": "float16"}),
}
ASKED = ["Hund 1", "green 2001", "zaag 5", "dinsdag 17", "três", ""]


def params(checkout: Path) -> dict[str, Any]:
    """Give the checkout's params.yaml with a tiny task: every key is there."""
    values: dict[str, Any] = YAML(typ="safe").load(checkout / "params.yaml")
    values["task"] = {
        "source": {"kind": "files", "pattern": "data/{language}/{split}.jsonl", "label_field": "label"},
        "text_fields": ["text"],
        "classes": list(WORDS["de"]),
        "supervised": SUPERVISED,
        "zero_shot": ["nl"],
        "max_examples": None,
    }
    one = {"base": "scratch", "revision": None, "finetune": True, "labels": None}
    values["teachers"] = {"de": {**one, "more": [one], "folds": 1}, "en": {**one, "more": [], "folds": 2}}
    size = {"layers": 2, "hidden": 16, "heads": 2, "merges": 30, "mlm_steps": 20, "mlm_batch_size": 8}
    values["teacher"]["finetune"]["scratch"] |= size
    values["teacher"]["finetune"] |= {"epochs": 12, "batch_size": 8, "learning_rate": 0.01}
    values["student"]["pretrain"]["scratch"] |= size
    values["student"]["distill"] |= {
        "epochs": 8,
        "batch_size": 16,
        "learning_rate": 0.01,
        "branch_layers": 1,
        "save_steps": 50,
    }
    values["cache"]["root"] = "store"
    return values


def write_inputs(work: Path, values: dict[str, Any]) -> None:
    """Write params.yaml and the examples of all languages and splits."""
    with (work / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    for language, classes in WORDS.items():
        for place, (split, count) in enumerate(SPLITS.items()):
            rows = []
            for i in range(count):
                name, words = list(classes.items())[i % 5]
                rows.append({"text": f"{words[i // 5 % 3]} {1000 * place + i}", "label": name})
            path = work / "data" / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def start(work: Path, *command: str) -> None:
    """Run a command in a folder, with a home, thread count and store of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "MBLM_TEACHER_CACHE"}
    environment |= {
        "HOME": str(work.parent),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(work),
    }
    subprocess.run(command, cwd=work, env=environment, check=True)


def label(work: Path, kind: str) -> None:
    """Write half of the examples to shards of the other format, then all that is left in the kind's own."""
    format_, changes = KINDS[kind]
    other = "zarr" if format_ == "arrow" else "arrow"
    for language in SUPERVISED:
        for used, part in ((other, ["--shard=1/2"]), (format_, [])):
            changed = changes | {"format": used}
            more = part + [f"--set=teacher.label.{key}={json.dumps(value)}" for key, value in changed.items()]
            start(work, "python", "-m", "pipeline", "teacher", "label", f"--language={language}", *more)


def decode(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Give a shard's columns, ids as bytes ``(N, 16)``, with pyarrow or zarr alone."""
    if path.suffix == ".zip":
        group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
        yield from sorted((name, np.asarray(array[:])) for name, array in group.arrays())
        return
    batch = pa.ipc.open_file(path).get_batch(0)
    for name, column in sorted(zip(batch.schema.names, batch.columns, strict=True)):
        if name == "example_id":
            values = np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, 16)
        elif pa.types.is_fixed_size_list(column.type):
            values = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        else:
            values = column.to_numpy()
        yield name, values


def contents(folder: Path) -> Iterator[str]:
    """Say what the shards below a folder hold, one line of JSON each.

    For each column: type, shape, sha256 of its bytes, and its first number for the eye.
    """
    for path in sorted([*folder.rglob("*.arrow"), *folder.rglob("*.zarr.zip")]):
        columns = {
            name: {
                "dtype": values.dtype.name,
                "shape": list(values.shape),
                "sha256": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
                "first": values.reshape(-1)[0].item(),
            }
            for name, values in decode(path)
        }
        yield json.dumps({"shard": path.relative_to(folder).as_posix(), "columns": columns})


def answers(student: Path) -> dict[str, Any]:
    """Give the student's logits for a few texts by language id: of each branch, and of the mixture, -1."""
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(student, trust_remote_code=True).eval()
    batch = AutoTokenizer.from_pretrained(student)(ASKED, padding=True, return_tensors="pt")
    logits = {}
    with torch.inference_mode():
        for language_id in (-1, 0, 1):
            ids = torch.full((len(ASKED),), language_id)
            logits[str(language_id)] = model(**batch, language_ids=ids).logits.tolist()
    return {"texts": ASKED, "logits_by_language_id": logits}


def main() -> None:
    """Run the tiny task under DVC in a copy of the checkout and keep what it leaves."""
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["HF_MODULES_CACHE"] = f"{temporary}/modules"
        work = Path(temporary) / "work"
        subprocess.run(["git", "clone", "-q", ".", str(work)], check=True)
        for project in (work, work / "ablation"):
            (project / "dvc.lock").unlink(missing_ok=True)
        write_inputs(work, params(work))
        start(work, "dvc", "repro", "teacher-finetune")
        label(work, "plain")
        start(work, "dvc", "repro")
        shutil.rmtree(target, ignore_errors=True)
        run = target / "run"
        for name in ("artifacts", "data"):
            shutil.copytree(work / name, run / name)
        for kind in KINDS:
            if kind != "plain":  # that one is in artifacts/
                label(work, kind)
                shutil.copytree(work / "artifacts/soft_labels", target / "soft_labels" / kind)
        shutil.copytree(work / "store", run / "store")
        for name in ("params.yaml", "dvc.lock"):
            shutil.copy(work / name, run / name)
        lines = contents(run / "store")
        (target / "store.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        text = json.dumps(answers(run / "artifacts/student"), ensure_ascii=False)
        (target / "student.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
