"""What an older version left on disk is read today: same ids, same labels, same student, nothing re-run."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clone import clone, commit_all, dvc, output_of, stages_run
from page_reader import PAGE, read_page
from ruamel.yaml import YAML
from tiny import ROOT, Run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cache import SoftLabels, SoftLabelSet, Store
from cache.soft_labels import id_bytes
from pipeline.params import load_params
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.students import load_student
from stages.teacher.labelling.identity import producer_of

GOLDEN = ROOT / "tests/golden/0.1"
FINISHED = GOLDEN / "run"
STUDENT = FINISHED / "artifacts/student"

ADOPT = (
    "mv artifacts/trunk artifacts/encoder",
    "python -m pipeline plan",
    "python -m pipeline teacher silver",
    "dvc commit --force",
)
"""What CHANGELOG.md tells owners of a finished run to type after an upgrade, in this order."""

KINDS = {
    "plain": [],
    "hidden": ["teacher.label.hidden=true", "teacher.label.format=zarr"],
    "top_k": ["teacher.label.top_k=2"],
    "float16": ["teacher.label.logits=float16", "teacher.label.format=zarr"],
}
"""What is kept of the teachers' answers, and the changes in params.yaml that say so."""

MODELS = {"de": ["de"], "de/more-1": ["de/more-1"], "en": ["en/fold-0", "en/fold-1"]}
"""The soft-label sets, and the models that label the examples of each, in the order of their folds."""


@pytest.fixture
def finished_long_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the golden run, with its store, to work in."""
    folder = tmp_path / "work"
    shutil.copytree(FINISHED, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MBLM_TEACHER_CACHE", raising=False)
    return folder


def soft_label_sets(kind: str) -> Path:
    return FINISHED / "artifacts/soft_labels" if kind == "plain" else GOLDEN / "soft_labels" / kind


def manifest(kind: str, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((soft_label_sets(kind) / name / "manifest.json").read_bytes())
    return read


def stored(kind: str, name: str) -> SoftLabels:
    """Give what the golden store's shards say of the examples of a golden set."""
    parts = []
    for entry in manifest(kind, name)["producers"]:
        store = Store.open(FINISHED / "store", entry["id"])
        parts += [soft_labels for _, soft_labels in store.read(store.shards())]
    return SoftLabels.concatenate(parts)


def assert_same(found: SoftLabels, expected: SoftLabels) -> None:
    assert found.ids.equals(expected.ids)
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_producer_ids_of_golden_teachers_are_those_of_their_soft_labels(kind: str) -> None:
    params = load_params(FINISHED / "params.yaml", KINDS[kind])
    for name, models in MODELS.items():
        folders = [FINISHED / "artifacts/teachers" / model for model in models]
        ids = [producer_of(folder, params.task, params.teacher.label).id for folder in folders]
        assert ids == [entry["id"] for entry in manifest(kind, name)["producers"]]


@pytest.mark.parametrize("extension", [".arrow", ".zarr.zip"])
def test_golden_shards_hold_what_was_written_into_them(extension: str) -> None:
    lines = [json.loads(line) for line in (GOLDEN / "store.jsonl").read_text(encoding="utf-8").splitlines()]
    of_format = {line["shard"]: line["columns"] for line in lines if line["shard"].endswith(extension)}
    assert len(of_format) == sum(map(len, MODELS.values())) * len(KINDS)
    for path, columns in of_format.items():
        producer_id, _, shard = path.partition("/")
        [(_, found)] = Store.open(FINISHED / "store", producer_id).read([shard])
        decoded = {"example_id": id_bytes(found.ids), **found.columns}
        assert decoded.keys() == columns.keys()
        for name, values in decoded.items():
            expected = columns[name]
            assert (values.dtype.name, list(values.shape)) == (expected["dtype"], expected["shape"])
            assert hashlib.sha256(values.tobytes()).hexdigest() == expected["sha256"], f"{path}: {name}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_golden_soft_label_sets_join(kind: str, name: str) -> None:
    found = SoftLabelSet.read(soft_label_sets(kind) / name, language=name.partition("/")[0])
    expected = stored(kind, name)
    assert len(expected) == manifest(kind, name)["examples"]
    assert found.classes == load_params(FINISHED / "params.yaml").task.classes
    assert_same(found.join(expected.ids), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_labelling_again_finds_every_golden_soft_label(kind: str, finished_long_ago: Path, run: Run) -> None:
    def shards() -> set[Path]:
        root = finished_long_ago / "store"
        return {path for ending in ("arrow", "zarr.zip") for path in root.rglob(f"*.{ending}")}

    before = shards()
    shutil.rmtree(finished_long_ago / "artifacts/soft_labels")
    for language in ("de", "en"):
        changes = [f"--set={change}" for change in KINDS[kind]]
        ran = run("teacher", "label", "--language", language, *changes)
        assert ran.code == 0, ran.err
        assert " soft labels, 0 of them new" in ran.out
    assert shards() == before
    for name in MODELS:
        language = name.partition("/")[0]
        expected = stored(kind, name)
        again = SoftLabelSet.read(finished_long_ago / "artifacts/soft_labels" / name, language=language)
        assert_same(again.join(expected.ids), expected)


def test_golden_params_mean_what_they_say() -> None:
    """Every key is read, and none has another value than the file gives it."""

    def compare(written: Any, read: Any, place: str) -> None:
        if isinstance(written, dict):
            for key, value in written.items():
                compare(value, read[key], f"{place}.{key}")
        elif isinstance(written, list):
            assert len(written) == len(read), place
            for index, (one, other) in enumerate(zip(written, read, strict=True)):
                compare(one, other, f"{place}[{index}]")
        else:
            assert read == written, place

    path = FINISHED / "params.yaml"
    compare(YAML(typ="safe").load(path), load_params(path).model_dump(), "")


@pytest.mark.parametrize("loader", ["transformers", "stages"])
def test_the_golden_student_gives_the_same_logits(loader: str) -> None:
    recorded = json.loads((GOLDEN / "student.json").read_bytes())
    if loader == "stages":
        model, tokenizer = load_student(STUDENT)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(STUDENT).eval()
        tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    assert isinstance(model, MBLMForSequenceClassification)
    batch = tokenizer(recorded["texts"], padding=True, return_tensors="pt")
    assert recorded["logits_by_language_id"].keys() == {"-1", "0", "1"}
    for language_id, expected in recorded["logits_by_language_id"].items():
        ids = torch.full((len(expected),), int(language_id))
        with torch.inference_mode():
            logits = model(**batch, language_ids=ids).logits
        torch.testing.assert_close(logits, torch.tensor(expected), rtol=0, atol=1e-5)


def test_the_golden_student_predicts_the_same_probabilities(finished_long_ago: Path, run: Run) -> None:
    recorded = json.loads((GOLDEN / "student.json").read_bytes())
    texts = Path("texts.jsonl")
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in recorded["texts"]), "utf-8")
    for language_id, language in (("-1", ()), ("0", ("--language", "de")), ("1", ("--language", "en"))):
        ran = run("student", "predict", "texts.jsonl", *language)
        assert ran.code == 0, ran.err
        found = [list(json.loads(line)["probabilities"].values()) for line in ran.out.splitlines()]
        expected = torch.tensor(recorded["logits_by_language_id"][language_id]).softmax(dim=-1)
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


def test_golden_models_are_evaluated_and_reported_as_before(finished_long_ago: Path, run: Run) -> None:
    metrics = finished_long_ago / "artifacts/metrics"
    names = ("student.json", "baseline.json")
    before = [json.loads((metrics / name).read_bytes()) for name in names]
    for written in ("plots", "predictions", "report"):
        shutil.rmtree(finished_long_ago / "artifacts" / written)
    for command in (("student", "evaluate"), ("report",)):
        ran = run(*command)
        assert ran.code == 0, ran.err
    for name, expected in zip(names, before, strict=True):
        found = json.loads((metrics / name).read_bytes())
        for split, kinds in expected.items():
            for kind, values in kinds.items():
                assert found[split][kind]["accuracy"] == pytest.approx(values["accuracy"]), (name, split)
    assert "<html" in PAGE.read_text(encoding="utf-8")


def test_the_golden_run_gets_the_same_page(finished_long_ago: Path, run: Run) -> None:
    """The same headings, figures and numbers; sections and parameters may be added."""
    shutil.rmtree(finished_long_ago / "artifacts/report")
    ran = run("report")
    assert ran.code == 0, ran.err
    expected = json.loads((GOLDEN / "report.json").read_bytes())
    found = read_page().extract()
    before, today = (page["tables"].pop("Parameters") for page in (expected, found))
    # The further teachers are in one row, with parameters that are newer.
    assert [key for key, *value in before if [key, *value] not in today] == ["teachers.de.more"]
    added = [heading for heading in found["headings"] if heading not in expected["headings"]]
    assert added == [["h2", "Do the teachers know more?"], ["h2", "Where to use it"]]
    found["headings"] = [heading for heading in found["headings"] if heading not in added]
    for added_table in (
        "Teachers and finetune on validation data",
        "Test accuracy beside chance, baseline and teacher",
        *(f"Recall by class, {kind} languages" for kind in ("supervised", "zero-shot")),
        "Accuracy of the surest answers of mblm",
    ):
        del found["tables"][added_table]
    for part in ("figures", "charts"):
        found[part] = [one for one in found[part] if "Accuracy of the surest answers" not in one]
    # Version 0.1 fitted a temperature for the page; its students have none.
    for kind in ("supervised", "zero-shot"):
        del expected["tables"][f"mblm, {kind} languages"], found["tables"][f"mblm, {kind} languages"]
        name = f"Expected calibration error on the test split, {kind} languages"
        for row, former in zip(found["tables"].pop(name), expected["tables"].pop(name), strict=True):
            assert row[:4] == former[:4]  # of teachers
            assert (row[5], row[8]) == (former[5], former[8])  # before calibration
    for row in found["tables"]["Who wrote the soft labels"]:
        assert row.pop(1) in ("teacher", "scratch")  # what people call it is told since 0.2
    assert found == expected


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of today's tree in which the golden run lies finished."""
    folder = tmp_path_factory.mktemp("golden") / "clone"
    clone(folder)
    shutil.rmtree(folder / "data")
    shutil.copytree(FINISHED, folder, dirs_exist_ok=True)
    commit_all(folder, "finished", ["init", "-q"])
    for command in ADOPT:  # fills DVC's cache, which the golden data leaves out
        output_of(folder, *command.split())
    for new in ("plan", "silver"):
        shutil.rmtree(folder / "artifacts" / new)
    (folder / "artifacts/encoder").rename(folder / "artifacts/trunk")
    shutil.copy(FINISHED / "dvc.lock", folder)
    return folder


@pytest.mark.slow
def test_dvc_finds_the_golden_outputs_as_the_lock_says(upgraded: Path) -> None:
    changes = json.loads(dvc(upgraded, "status", "--json"))
    of_outs = {stage for stage, found in changes.items() if any("changed outs" in one for one in found)}
    # 0.1 had no plan and no silver labels, and the encoder lay elsewhere.
    assert of_outs <= {"plan", "student-pretrain", "teacher-silver"}


@pytest.mark.slow
def test_a_golden_run_is_adopted_although_all_code_has_changed(upgraded: Path) -> None:
    stages = YAML(typ="safe").load(upgraded / "dvc.yaml")["stages"].values()
    code = {path for stage in stages for path in stage["deps"] if path.endswith(".py")}
    for path in (*code, "cache/store.py"):
        with (upgraded / path).open("a", encoding="utf-8") as file:
            file.write("# Changed.\n")
    changed = json.loads(dvc(upgraded, "status", "--json"))
    assert "prepare" in changed
    assert "teacher-label@de" in changed
    for command in ADOPT:
        assert not stages_run(output_of(upgraded, *command.split()))
        assert command in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert json.loads(dvc(upgraded, "status", "--json")) == {}
    assert stages_run(dvc(upgraded, "repro")) == set()
    assert not output_of(upgraded, "git", "status", "--porcelain", "params.yaml", "data")
