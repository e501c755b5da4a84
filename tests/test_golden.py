"""What version 0.1 wrote is read by the code as it is: soft labels, params, a finished run, a student."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_dvc import copy_of_the_tree, dvc, environment, output_of, stages_run
from tiny import Run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import stages.student.modeling_mblm
from cache import Producer, SoftLabelSet, Store
from cache.store import producer_ids
from pipeline.params import load_params
from stages.examples import SPLITS, read_examples

GOLDEN = Path(__file__).parent / "golden/0.1"
RECORDED: dict[str, Any] = json.loads((GOLDEN / "recorded.json").read_text(encoding="utf-8"))
KINDS = sorted(RECORDED["kinds"])

ADOPTION = ("python -m pipeline plan", "dvc commit --force")
"""What CHANGELOG.md tells owners of a finished run to type."""


@pytest.fixture
def run_of_0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, with its store."""
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN / "run", folder)
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "store"))
    return folder


def options_of(kind: str) -> list[str]:
    changes = RECORDED["kinds"][kind]["changes"]
    return [f"--set=teacher.label.{key}={json.dumps(value)}" for key, value in changes.items()]


def ids_of(language: str) -> pa.ChunkedArray:
    task = load_params(Path("params.yaml")).task
    return pa.concat_tables(read_examples(task, language, split) for split in SPLITS)["example_id"]


def assert_as_recorded(label_set: SoftLabelSet, recorded: dict[str, Any], language: str) -> None:
    assert [producer.id for producer in label_set.producers] == recorded["producers"]
    found = label_set.join(ids_of(language))
    assert np.array_equal(found.logits, np.array(recorded["logits"], np.float32))
    if recorded["hidden"] is not None:
        assert found.hidden is not None
        assert np.array_equal(found.hidden, np.array(recorded["hidden"], np.float16))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cached_label_is_found_and_is_what_it_was(run_of_0_1: Path, run: Run, kind: str) -> None:
    done = run("teacher", "label", "--language", "de", *options_of(kind))
    assert done.code == 0, done.err
    assert "57 soft labels, 0 of them new" in done.out
    label_set = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    assert_as_recorded(label_set, RECORDED["kinds"][kind], "de")


def test_every_cached_label_of_folds_is_found(run_of_0_1: Path, run: Run) -> None:
    done = run("teacher", "label", "--language", "en")
    assert "57 soft labels, 0 of them new" in done.out
    label_set = SoftLabelSet.read(Path("artifacts/soft_labels/en"), language="en")
    assert len(label_set.producers) == 2
    assert_as_recorded(label_set, RECORDED["folds"], "en")


@pytest.mark.parametrize("kind", KINDS)
def test_soft_label_sets_are_read(run_of_0_1: Path, kind: str) -> None:
    label_set = SoftLabelSet.read(GOLDEN / "sets" / kind, language="de")
    assert_as_recorded(label_set, RECORDED["kinds"][kind], "de")


def test_readers_of_the_store_need_nothing_but_its_files() -> None:
    wanted = {one for kind in KINDS for one in RECORDED["kinds"][kind]["producers"]}
    assert set(producer_ids(GOLDEN / "store")) == wanted | set(RECORDED["folds"]["producers"])
    for producer_id in producer_ids(GOLDEN / "store"):
        store = Store.open(GOLDEN / "store", producer_id)
        read = dict(store.read(store.shards()))
        assert read
        assert not store.damaged
        assert store.producer.id == producer_id


def test_a_producer_may_be_identified_without_the_pipeline() -> None:
    """As other projects do, with the few arguments that the README gives."""
    how: dict[str, Any] = {"text_fields": ["text"], "max_tokens": 48, "dtype": "float32"}
    teacher = Producer.of_teacher(GOLDEN / "run/artifacts/teachers/de", **how)
    assert [teacher.id] == RECORDED["kinds"]["plain"]["producers"]


def test_the_student_says_what_it_said() -> None:
    assert stages.student.modeling_mblm  # tells transformers of the student's classes
    folder = GOLDEN / "run/artifacts/student"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = RECORDED["texts"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for name, index in (("mixture", -1), ("de", 0), ("en", 1)):
        with torch.inference_mode():
            logits = model(**batch, language_ids=torch.full((len(texts),), index)).logits
        expected = torch.tensor(RECORDED["student"][name])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_finished_run_is_evaluated_and_reported_as_it_was(run_of_0_1: Path, run: Run) -> None:
    metrics = Path("artifacts/metrics/student.json")
    before = json.loads(metrics.read_text())
    for command in (["student", "evaluate"], ["report"]):
        done = run(*command)
        assert done.code == 0, done.err
    assert json.loads(metrics.read_text()) == before
    assert run("student", "predict", "data/de/test.jsonl", "--language", "de", "--prefix", "its_").code == 0


@pytest.mark.slow
def test_a_finished_run_is_adopted_without_computing_anything_again(tmp_path: Path) -> None:
    folder = copy_of_the_tree(tmp_path / "clone")
    shutil.copytree(GOLDEN / "run", folder, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    subprocess.run(["git", "init", "-q"], cwd=folder, env=environment(tmp_path), check=True)
    for command in ADOPTION:
        output_of(folder, *command.split())
        assert command in (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "up to date" in dvc(folder, "status")
    assert stages_run(dvc(folder, "repro")) == set()
