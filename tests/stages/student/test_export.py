"""What an export holds says what the student says: as plain models, and as ONNX."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from families import FAMILIES, LANGUAGES, B, inputs, perturbed, save_plain, student_of
from tiny import CLASSES, ROOT, Run
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from warm import warm_python

from pipeline.params import load_params
from stages.errors import StageError
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.students import load_student
from stages.results.predictions import read_predictions
from stages.student.export import Exported, _measured, export
from stages.student.exporting.quantized import quantized

# The others are as these in what matters to an exporter: bert, camembert and xlm-roberta as roberta, which is
# the finished student's family.
EXPORTED = ["deberta-v2", "distilbert", "electra"]
EXPORT = ("student", "export", "served")


def exported(folder: Path, *, max_tokens: int, **options: Any) -> Exported:
    """Export with the committed parameters, but for the longest input."""
    params = load_params(ROOT / "params.yaml")
    distill = params.student.distill.model_copy(update={"max_tokens": max_tokens})
    return export(folder, distill, params.student.evaluate, params.task, **options)


def refused(run: Run, *arguments: str) -> str:
    done = run(*EXPORT, *arguments)
    assert done.code == 1
    assert "Traceback" not in done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return line


def saved(
    family: str, finished_once: Path, folder: Path, *, layers: int = 3, **config: Any
) -> MBLMForSequenceClassification:
    """Save a student of a family whose branches differ, with a tokenizer of the family's inputs."""
    save_plain(
        family, folder / "plain", **{"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
    )
    student = perturbed(student_of(folder / "plain", **{"branch_layers": layers - 1, **config}))
    student.save_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(finished_once / "artifacts/student")
    segments = ["token_type_ids"] if family in ("bert", "deberta-v2", "electra") else []
    tokenizer.model_input_names = ["input_ids", *segments, "attention_mask"]
    tokenizer.save_pretrained(folder / "student")
    return student


def logits_of(model: Any, **inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits
    return logits


@pytest.fixture
def served(exported_once: Path) -> Path:
    return exported_once / "served"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_languages_plain_model_has_the_students_logits_and_classes(
    family: str, finished_once: Path, tmp_path: Path
) -> None:
    student = saved(family, finished_once, tmp_path)
    done = exported(tmp_path / "served", max_tokens=30, model=tmp_path / "student")
    assert done.languages == sorted(path.name for path in (tmp_path / "served").glob("*/")) == LANGUAGES
    for branch, language in enumerate(LANGUAGES):
        folder = tmp_path / "served" / language
        plain, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == FAMILIES[family][0]
        assert config["id2label"] == dict(zip("0123", "abcd", strict=True))
        assert config["label2id"] == dict(zip("abcd", range(4), strict=True))
        expected = logits_of(student, **inputs(), language_ids=torch.full((B,), branch))
        torch.testing.assert_close(logits_of(plain.eval(), **inputs()), expected, atol=1e-6, rtol=1e-6)


def require_the_students_logits(student: MBLMForSequenceClassification, onnx: Path) -> None:
    """Compare ONNX with a student, whatever the batch, the length and the languages in it."""
    session = onnxruntime.InferenceSession(onnx / "student.onnx")
    own, mixture = student.config.own_temperature, student.config.mixture_temperature
    for language_ids, length in (([0], 2), ([-1, 1], 30), ([1, 1, 1], 11), ([1, -1, 0, 0, -1, 1, 0], 11)):
        language = torch.tensor(language_ids)
        ids = torch.randint(5, 50, (len(language), length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[0, 1:] = 0
        given = {"input_ids": ids, "attention_mask": mask, "language_ids": language}
        [logits] = session.run(None, {key: value.numpy() for key, value in given.items()})
        temperatures = torch.where(language < 0, mixture, own).unsqueeze(1)
        np.testing.assert_allclose(logits, logits_of(student, **given) / temperatures, atol=1e-4)


def test_int8_is_refused_where_two_tables_could_be_that_of_the_words() -> None:
    words, positions = (np.ones((7, 3), np.float32) for _ in range(2))
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gather", ["words", "ids"], ["of_words"]),
            onnx.helper.make_node("Gather", ["positions", "ids"], ["of_positions"]),
            onnx.helper.make_node("Add", ["of_words", "of_positions"], ["sum"]),
        ],
        "embeddings",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["texts"])],
        [onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ["texts", 3])],
        [
            onnx.numpy_helper.from_array(words, "words"),
            onnx.numpy_helper.from_array(positions, "positions"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(StageError, match="2 tables of 7 rows"):
        quantized(model, vocabulary=7)


def test_onnx_has_the_students_logits_whatever_the_batch_and_the_length(served: Path) -> None:
    student = MBLMForSequenceClassification.from_pretrained(served.with_name("student")).eval()
    require_the_students_logits(student, served / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("branch_layers", [1, 2], ids=["a trunk", "branches of all layers"])
def test_onnx_of_modernbert_has_the_students_logits(
    finished_once: Path, tmp_path: Path, branch_layers: int
) -> None:
    given = {"languages": LANGUAGES[:2], "n_branches": 2, "branch_layers": branch_layers}
    student = saved("modernbert, mean", finished_once, tmp_path, layers=2, **given)
    exported(tmp_path / "served", max_tokens=30, model=tmp_path / "student", onnx=True)
    require_the_students_logits(student, tmp_path / "served/onnx")


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_other_families_can_be_exported_to_onnx(family: str, finished_once: Path, tmp_path: Path) -> None:
    pooling = "mean" if family == "electra" else None
    saved(family, finished_once, tmp_path, layers=2, languages=["de"], n_branches=1, pooling=pooling)
    done = exported(tmp_path / "served", max_tokens=30, model=tmp_path / "student", onnx=True)
    assert done.largest_difference is not None
    assert done.largest_difference < 1e-4


def test_an_onnx_folder_is_all_that_a_server_needs(served: Path) -> None:
    facts = json.loads((served / "onnx/model.json").read_text())
    assert facts["classes"] == CLASSES
    assert facts["text_fields"] == ["text"]  # which the student learned from, whatever params.yaml says now
    tokenizer = AutoTokenizer.from_pretrained(served / "onnx")
    session = onnxruntime.InferenceSession(served / "onnx/student.onnx")
    names = [*tokenizer.model_input_names, "language_ids"]
    assert facts["inputs"] == [one.name for one in session.get_inputs()] == names
    assert facts["languages"] == {"de": 0, "en": 1}
    assert facts["outputs"] == [one.name for one in session.get_outputs()]
    batch = tokenizer(["Hund 1", "rot"], padding=True, return_tensors="np")
    batch["language_ids"] = np.full(2, facts["languages"]["de"])
    [logits] = session.run(facts["outputs"], {name: batch[name] for name in facts["inputs"]})
    classify = pipeline("text-classification", str(served / "de"), device="cpu")
    expected = [one["label"] for one in classify(["Hund 1", "rot"])]
    assert [facts["classes"][i] for i in logits.argmax(axis=1)] == expected


def test_a_branch_runs_for_those_alone_who_want_it(served: Path, tmp_path: Path) -> None:
    graph = onnx.load(served / "onnx/student.onnx")
    conditions = {node.output[0]: node for node in graph.graph.node if node.op_type == "If"}
    assert sorted(conditions) == ["states_0", "states_1"]
    [english] = [part.g for part in conditions["states_1"].attribute if part.name == "then_branch"]
    for weight in english.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            broken = np.full(onnx.numpy_helper.to_array(weight).shape, np.nan, np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    onnx.save(graph, tmp_path / "broken.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "broken.onnx")
    ids = np.full((3, 7), 6)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for language_ids, is_finite in (([0, 0, 0], True), ([1, 1, 1], False), ([0, 0, -1], False)):
        [logits] = session.run(None, given | {"language_ids": np.array(language_ids)})
        assert np.isfinite(logits).all() == is_finite


def test_int8_says_nearly_the_same_and_is_smaller(served: Path) -> None:
    ids = np.random.default_rng(0).integers(5, 50, (64, 9))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "language_ids": np.arange(64) % 3 - 1}
    said = []
    for name in ("student.onnx", "student.int8.onnx"):
        [logits] = onnxruntime.InferenceSession(served / "onnx" / name).run(None, given)
        said.append(logits)
    assert 0 < np.abs(said[0] - said[1]).max() < 0.1 * np.ptp(said[0])
    sizes = [(served / "onnx" / name).stat().st_size for name in ("student.onnx", "student.int8.onnx")]
    assert sizes[1] < sizes[0]


def test_int8_is_compared_on_the_examples_that_are_there(finished: Path, run: Run) -> None:
    assert refused(run, "--quantize", "int8") == "error: --quantize is for ONNX: add --onnx"
    done = run(*EXPORT, "--onnx", "--quantize", "int8")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1].startswith("student.int8.onnx: ")
    student = read_predictions(load_params(Path("params.yaml")).task, "student")
    for language in ("de", "en", "nl"):
        one = student[language, "test"]
        accuracy = (one.predicted == one.labels).mean()
        [line] = [line for line in lines if line.startswith(f"{language}, test: ")]
        assert f"{accuracy:.1%}" in line
    assert lines[-1].startswith("largest change of accuracy: ")


def test_int8_is_not_measured_on_other_text_fields(served: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    student, tokenizer = load_student(served.with_name("student"))
    student.config.text_fields = ["premise", "hypothesis"]
    task = params.task.model_copy(update={"classes": CLASSES})
    student.config.id2label = dict(enumerate(CLASSES))
    sections = params.student.distill, params.student.evaluate
    found = _measured(served / "onnx", student, tokenizer, *sections, task)
    assert found.lines()[0].endswith(
        "not measured: the student reads other text fields than params.yaml names"
    )


def test_a_plain_models_probabilities_are_those_of_predict(finished: Path, run: Run) -> None:
    path = Path("artifacts/student/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"own_temperature": 0.05}))
    assert run(*EXPORT).code == 0
    Path("texts.txt").write_text("Hund 1\nrot\n", encoding="utf-8")
    rows = [
        json.loads(line)
        for line in run("student", "predict", "texts.txt", "--language", "de").out.splitlines()
    ]
    classify: Any = pipeline("text-classification", "served/de", device="cpu", top_k=None)
    for row, said in zip(rows, classify(["Hund 1", "rot"]), strict=True):
        found = {one["label"]: one["score"] for one in said}
        assert found == pytest.approx(row["probabilities"], abs=1e-5)


def test_the_command_writes_plain_models_and_says_where(finished: Path, run: Run) -> None:
    done = run(*EXPORT)
    assert (done.code, done.out) == (0, "served: plain models of de, en\n")
    assert sorted(path.name for path in Path("served").glob("*/")) == ["de", "en"]


def test_a_folder_in_use_is_replaced_only_on_request_and_only_what_is_ours(finished: Path, run: Run) -> None:
    Path("served/de").mkdir(parents=True)
    Path("served/de/old").touch()
    Path("served/mine.txt").touch()
    Path("served/de/config.json").touch()  # as somebody's own model of the language has it
    assert refused(run, "--overwrite") == (
        "error: served/de is there, and served/export.json does not list it as an export's; delete it, or "
        "name a folder for the export alone"
    )
    Path("served/en").write_text("mine")
    Path("served/export.json").write_text('["de"]')
    assert refused(run, "--overwrite").startswith("error: served/en is there, and served/export.json does")
    assert Path("served/en").read_text() == "mine"
    Path("served/en").unlink()
    Path("served/fr").mkdir()
    assert refused(run) == "error: served is not empty; replace what is in it with --overwrite"
    assert run(*EXPORT, "--overwrite").code == 0
    expected = ["de", "en", "export.json", "fr", "mine.txt"]
    assert sorted(path.name for path in Path("served").iterdir()) == expected
    assert not Path("served/de/old").exists()


def test_nothing_of_an_earlier_export_stays_beside_a_new_one(finished: Path, run: Run) -> None:
    Path("served/onnx").mkdir(parents=True)
    Path("served/fr").mkdir()
    Path("served/export.json").write_text('["de", "fr", "onnx", "../mine", ".."]')
    Path("mine").mkdir()
    assert run(*EXPORT, "--overwrite").code == 0
    assert sorted(path.name for path in Path("served").iterdir()) == ["de", "en", "export.json"]
    assert Path("mine").exists()


def test_a_models_own_folder_is_no_place_for_an_export(finished: Path, run: Run) -> None:
    done = run("student", "export", "artifacts/student", "--overwrite")
    assert (done.code, "artifacts/student holds a model" in done.err) == (1, True)


def test_what_cannot_be_exported_is_refused(finished: Path, run: Run) -> None:
    line = refused(run, "--model", "artifacts/teachers/de")
    assert line == "error: artifacts/teachers/de holds a roberta model and no student"
    assert "make it with: python -m pipeline student distill" in refused(run, "--model", "nowhere")
    Path("served").touch()
    assert refused(run) == "error: served is no folder"


def test_an_onnx_file_that_differs_from_pytorch_is_refused(finished_once: Path, tmp_path: Path) -> None:
    # Weights so large that sums in another order differ: what rounds to 1e-7 of them is above the tolerance.
    student = saved("distilbert", finished_once, tmp_path, layers=2, languages=["de"], n_branches=1)
    for parameter in student.head.parameters():
        parameter.data *= 1e6
    student.save_pretrained(tmp_path / "student")
    served = tmp_path / "served"
    (served / "onnx").mkdir(parents=True)
    (served / "onnx/student.onnx").write_bytes(b"of before")
    (served / "export.json").write_text('["onnx"]')
    with pytest.raises(StageError, match=r"the logits of student.onnx differ from PyTorch's by"):
        exported(served, max_tokens=30, model=tmp_path / "student", onnx=True, overwrite=True)
    assert sorted(path.name for path in served.iterdir()) == ["export.json", "onnx"]
    assert (served / "onnx/student.onnx").read_bytes() == b"of before"


def test_inputs_longer_than_the_model_takes_are_refused_before_the_export(finished: Path, run: Run) -> None:
    line = refused(run, "--onnx", "--set", "student.distill.max_tokens=3000")
    assert line.startswith(
        "error: student.distill.max_tokens is 3000, but the student was trained with at most"
    )
    assert not Path("served").exists()


def test_without_its_packages_onnx_says_what_to_install(finished: Path) -> None:
    script = (
        "import sys; sys.modules['onnxscript'] = None; from pipeline.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [warm_python(), "-c", script, *EXPORT, "--onnx"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: --onnx needs onnx, onnxscript, onnxruntime; install them with: "
        "pip install --constraint constraints.txt --editable '.[onnx]'\n"
    )
    assert not Path("served").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_what_is_exported_may_be_read_by_whom_the_umask_allows(
    finished: Path, run: Run, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        assert run(*EXPORT).code == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in Path("served/de").iterdir()} == {mode}
