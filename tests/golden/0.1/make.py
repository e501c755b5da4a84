"""Made the data beside this file, in a checkout of the commit that ../README.md names.

    PYTHONPATH=.:tests python make.py FOLDER

A run of the tests' small task under DVC, with two folds for English; then soft labels of other kinds by the same
German teacher, in the same store; and what its student says.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import ROOT, tiny_params, write_input, write_params
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import stages.student.modeling_mblm
from cache import SoftLabelSet
from stages.task import SPLITS, read_examples

KINDS = {
    "plain": {},
    "hidden-zarr": {"hidden": True, "format": "zarr"},
    "top-k-zarr": {"top_k": 2, "format": "zarr"},
    "top-k-float16": {"top_k": 2, "logits": "float16"},
}
TEXTS = ["Hund 1", "blue 2", "drie 3", "", "ein Text, den niemand kennt"]


def main(output: Path) -> None:
    """Write everything to a folder."""
    run, store = output / "run", output / "store"
    os.environ["MBLM_TEACHER_CACHE"] = str(store)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, run / name)
    os.chdir(run)
    params = tiny_params()
    params["teachers"]["en"]["folds"] = 2
    write_params(params)
    write_input(run)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["dvc", "repro"], check=True)
    recorded: dict[str, Any] = {"kinds": {}, "texts": TEXTS}
    for kind, changes in KINDS.items():
        options = [f"--set=teacher.label.{key}={json.dumps(value)}" for key, value in changes.items()]
        command = [sys.executable, "-m", "pipeline", "teacher", "label", "--language", "de", *options]
        subprocess.run(command, check=True)
        recorded["kinds"][kind] = {"changes": changes, **read("de")}
        shutil.copytree("artifacts/soft_labels/de", output / "sets" / kind)
    recorded["folds"] = read("en")
    subprocess.run(["dvc", "checkout", "--force", "-q", "artifacts/soft_labels/de"], check=True)
    recorded["student"] = student_logits()
    (output / "recorded.json").write_text(json.dumps(recorded, indent=1), encoding="utf-8")
    keep = {"params.yaml", "dvc.lock", "data", "artifacts"}
    for path in run.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read(language: str) -> dict[str, Any]:
    """Give the producers of a soft-label set, and the logits of all examples in the order of the data."""
    label_set = SoftLabelSet.read(Path("artifacts/soft_labels") / language, language=language)
    import pyarrow as pa
    from pipeline.params import load_params

    task = load_params(Path("params.yaml")).task
    ids = pa.concat_tables(read_examples(task, language, split) for split in SPLITS)["example_id"]
    found = label_set.join(ids)
    return {
        "producers": [producer.id for producer in label_set.producers],
        "logits": found.logits.tolist(),
        "hidden": None if found.hidden is None else found.hidden.tolist(),
    }


def student_logits() -> dict[str, Any]:
    """Classify texts through each branch and through the mixture."""
    assert stages.student.modeling_mblm
    tokenizer = AutoTokenizer.from_pretrained("artifacts/student")
    model = AutoModelForSequenceClassification.from_pretrained("artifacts/student").eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return {
            name: model(**batch, language_ids=torch.full((len(TEXTS),), index)).logits.tolist()
            for name, index in {"mixture": -1, "de": 0, "en": 1}.items()
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
