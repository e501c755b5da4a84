"""What keeping only the largest logits changes: measured by stage one, looked up by stage two."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labels import producer, soft_labels, texts
from processes import let_teacher_speak
from safetensors.torch import load_file, save_file
from tiny import LABEL, Ran, Run, tiny_params, write_params

from cache import Outputs, SoftLabels, SoftLabelSet, Store, TopKChange, example_ids
from cache.commands.gc import Victim, delete
from cache.commands.ls import ls
from cache.commands.transfer import compare, copy
from cache.store import producer_ids
from cache.top_k import TEMPERATURES, TOP_K, Change
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS, TEACHERS
from stages.errors import StageError
from stages.results.teachers import said_by
from stages.student.objective import distillation_loss
from stages.student.top_k import require_small_top_k_change
from stages.teacher.labelling.inference import Teacher

B, C = 50, 9


def logits_of(n: int = B, *, n_classes: int = C, scale: float = 3.0) -> Any:
    return np.random.default_rng(0).normal(scale=scale, size=(n, n_classes)).astype(np.float32)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_what_is_measured_is_what_the_loss_of_stage_two_makes_of_it(temperature: float) -> None:
    logits, outputs = logits_of(), Outputs(top_k=3)
    kept = SoftLabels.pack(example_ids([texts(B)]), logits, outputs=outputs).logits
    measured = TopKChange.measure(logits, outputs).by_temperature[temperature]
    all_, top = torch.from_numpy(logits).double(), torch.from_numpy(kept).double()
    nothing = torch.zeros(B, C, dtype=torch.float64)
    divergences, gradients = [], []
    for student in (top, nothing):
        loss = distillation_loss(student, all_, temperature=temperature) / temperature**2
        divergences.append(float(loss))
    for student, targets in ((torch.randn(B, C).double(), (all_, top)), (nothing, (all_, nothing))):
        found = []
        for target in targets:
            answer = student.clone().requires_grad_()
            distillation_loss(answer, target, temperature=temperature).backward()
            assert answer.grad is not None
            found.append(answer.grad * B / temperature)
        gradients.append(float((found[0] - found[1]).norm(dim=1).mean()))
    wanted = Change(divergences[0], divergences[1], gradients[0], gradients[1])
    np.testing.assert_allclose(measured, wanted, rtol=1e-6, atol=1e-12)


def test_one_class_left_out_changes_nothing_and_more_change_more_the_higher_the_temperature() -> None:
    exact = TopKChange.measure(logits_of(), Outputs(top_k=C - 1))
    assert all(change.relative < 1e-5 for change in exact.by_temperature.values())
    lossy = TopKChange.measure(logits_of(), Outputs(top_k=2))
    one, two, four = (lossy.by_temperature[t].relative for t in (1.0, 2.0, 4.0))
    assert one < two < four
    assert two > 0.01


def test_a_teacher_that_says_nothing_has_nothing_to_lose() -> None:
    change = TopKChange.measure(np.zeros((5, C), np.float32), Outputs(top_k=2))
    assert change.relative(2.0) == 0.0


def test_temperatures_between_measured_ones_take_the_larger_change() -> None:
    change = TopKChange.measure(logits_of(), Outputs(top_k=2))
    assert change.relative(3.0) == change.by_temperature[4.0].relative
    assert change.relative(0.1) == change.by_temperature[0.5].relative
    assert change.relative(0.7) == max(change.by_temperature[t].relative for t in (0.5, 1.0))
    assert change.relative(16.5) is None


def test_measurements_of_parts_are_together_that_of_everything() -> None:
    logits, outputs = logits_of(), Outputs(top_k=2)
    together = TopKChange.measure(logits[:13], outputs) + TopKChange.measure(logits[13:], outputs)
    whole = TopKChange.measure(logits, outputs)
    assert together.examples == whole.examples == B
    for temperature, change in whole.by_temperature.items():
        np.testing.assert_allclose(together.by_temperature[temperature], change)


NO_MEASUREMENTS: list[Any] = [None, [], {"examples": 1}, {"examples": "x", "by_temperature": {}}]


@pytest.mark.parametrize("values", NO_MEASUREMENTS, ids=str)
def test_a_measurement_that_makes_no_sense_is_none(values: Any) -> None:
    assert TopKChange.decode(values) is None
    change = TopKChange.measure(logits_of(), Outputs(top_k=2))
    assert TopKChange.decode(json.loads(json.dumps(change.encode()))) == change


def test_a_set_gives_back_what_was_measured_and_one_of_an_earlier_version_none(tmp_path: Path) -> None:
    outputs = Outputs(top_k=1)
    (one, other), labels = (producer(outputs=outputs, fold=i) for i in (0, 1)), soft_labels
    parts = [(one, labels(texts(4), outputs=outputs)), (other, labels(texts(3, 4), outputs=outputs))]
    changes = [TopKChange.measure(logits_of(n, n_classes=3), outputs) for n in (4, 3)]
    by_producer = {one.id: changes[0], other.id: changes[1]}
    SoftLabelSet.write(tmp_path, language="de", parts=parts, top_k_changes=by_producer)
    assert SoftLabelSet.read(tmp_path, language="de").top_k_change == changes[0] + changes[1]
    SoftLabelSet.write(tmp_path, language="de", parts=parts, top_k_changes={one.id: changes[0]})
    assert SoftLabelSet.read(tmp_path, language="de").top_k_change is None
    SoftLabelSet.write(tmp_path, language="de", parts=parts)
    assert "top_k_change" not in (tmp_path / "manifest.json").read_text()
    assert SoftLabelSet.read(tmp_path, language="de").top_k_change is None


@pytest.fixture
def speaking(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose German teacher gives each class a probability worth keeping; an empty store."""
    let_teacher_speak()
    path = TEACHERS / "de/model.safetensors"
    weights = load_file(path)
    weights["classifier.out_proj.bias"] = torch.tensor([1.0, 0.0, -2.0])
    save_file(weights, path, metadata={"format": "pt"})
    write_params(tiny_params())
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(finished / "new"))
    return finished


def label_top_1(run: Run, *options: str) -> Ran:
    return run(*LABEL, "--set", "teacher.label.top_k=1", *options)


def test_stage_one_measures_what_top_k_changes_and_stage_two_refuses_too_much(
    speaking: Path, run: Run
) -> None:
    assert label_top_1(run).code == 0
    change = SoftLabelSet.read(SOFT_LABELS / "de", language="de").top_k_change
    assert change is not None
    assert change.examples == 57
    relative = change.relative(2.0)
    assert relative is not None
    assert relative > 0.01
    refused = run("student", "distill")
    assert refused.code == 1
    assert "error: the soft labels of 'de' keep 1 of 3 logits, which changes what is learned" in refused.err
    assert f"student.distill.temperature 2.0 by {relative:.1%}, more than 1%; set a larger" in refused.err
    assert "set student.distill.allow_top_k_error: true" in refused.err
    too_hot = run("student", "distill", "--set", "student.distill.temperature=20.0")
    assert "temperature 20.0 by more than was measured" in too_hot.err
    assert run("student", "distill", "--set", "student.distill.allow_top_k_error=true").code == 0
    # The class that is most probable was kept, but not how probable the right one is, at temperature 1.
    of_trust = change.relative(1.0)
    assert of_trust is not None
    assert of_trust > 0.01
    pseudo = ("student", "distill", "--set", "student.distill.variant=pseudo", "--set")
    refused = run(*pseudo, "student.distill.trust=probability")
    assert refused.code == 1
    assert f"changes what is learned at temperature 1.0 by {of_trust:.1%}, more than 1%" in refused.err
    assert "lower the temperature" not in refused.err
    cold = ("student", "distill", "--set", "student.distill.temperature=0.1", "--set")
    assert run(*cold, "student.distill.trust=probability").code == 1
    assert run(*cold, "student.distill.trust=right").code == 0
    assert run(*pseudo, "student.distill.trust=right").code == 0


def test_how_sure_teachers_are_is_judged_at_temperature_one(speaking: Path, run: Run) -> None:
    assert label_top_1(run).code == 0
    params = load_params(Path("params.yaml"), ["student.distill.temperature=0.1"])
    said = said_by(params.task, params.teachers["de"], "de", ["train"])
    label_set = said.each[0].label_set
    for by_confidence, refused in (
        (False, nullcontext()),
        (True, pytest.raises(StageError, match="temperature 1")),
    ):
        two = said._replace(each=said.each * 2, by_confidence=by_confidence)
        with refused:
            require_small_top_k_change(params.task, label_set, params.student.distill, two)


@pytest.mark.parametrize("how", ["producer", "file"])
def test_what_was_exported_and_imported_is_refused_like_what_it_was(
    speaking: Path, run: Run, how: str
) -> None:
    assert label_top_1(run).code == 0
    [own] = [one["producer"] for one in json.loads(run("cache", "ls", "--json").out)]
    assert run("cache", "export", own, "data/de.parquet").code == 0
    params = tiny_params()
    teacher: dict[str, Any] = {"soft_labels": {"file": "data/de.parquet"}}
    if how == "producer":
        done = run("cache", "import", "data/de.parquet", "--language", "de", "--name", "mine", "--json")
        assert done.code == 0, done.err
        teacher = {"producer": "mine"}
    params["teachers"]["de"] = teacher
    write_params(params)
    assert run("teacher", "finetune", "--language", "de").code == run(*LABEL).code == 0
    refused = run("student", "distill")
    assert refused.code == 1
    assert "the soft labels of 'de' keep 1 of 3 logits, which changes what is learned" in refused.err


def test_the_logits_that_are_measured_are_those_of_the_teacher(speaking: Path, run: Run) -> None:
    assert run(*LABEL).code == 0
    everything = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    (producer_id,) = producer_ids(speaking / "new")
    store = Store.open(speaking / "new", producer_id)
    ((_, labels),) = store.read(store.shards())
    wanted = TopKChange.measure(labels.logits, Outputs(top_k=1))
    assert everything.top_k_change is None
    assert label_top_1(run).code == 0
    found = SoftLabelSet.read(SOFT_LABELS / "de", language="de").top_k_change
    assert found is not None
    for temperature, change in wanted.by_temperature.items():
        np.testing.assert_allclose(found.by_temperature[temperature], change, rtol=1e-3, atol=1e-6)


def test_a_store_that_was_measured_loads_no_teacher_again_and_one_that_was_not_asks_it(
    speaking: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label_top_1(run, "--part", "1/2").code == 0
    assert label_top_1(run, "--part", "2/2").code == 0
    (folder,) = (speaking / "new").iterdir()
    assert json.loads((folder / TOP_K).read_text())["examples"] == 57
    n_loaded, load = 0, Teacher.__init__

    def count(self: Teacher, *given: Any) -> None:
        nonlocal n_loaded
        n_loaded += 1
        load(self, *given)

    monkeypatch.setattr(Teacher, "__init__", count)
    assert label_top_1(run).code == 0
    assert n_loaded == 0
    measured = SoftLabelSet.read(SOFT_LABELS / "de", language="de").top_k_change
    (folder / TOP_K).unlink()  # as an earlier version leaves it
    done = label_top_1(run)
    assert "de: asking the teacher about 57 examples, to measure what top_k 1 changes" in done.err
    assert "57 soft labels, 0 of them new" in done.out
    again = SoftLabelSet.read(SOFT_LABELS / "de", language="de").top_k_change
    assert n_loaded == 1
    assert measured is not None
    assert again is not None
    assert again.relative(2.0) == pytest.approx(measured.relative(2.0), rel=1e-3)
    assert run("cache", "verify").code == 0
    assert TOP_K not in run("cache", "verify").out


def test_a_set_of_an_earlier_version_trains_and_says_what_is_not_known(speaking: Path, run: Run) -> None:
    assert label_top_1(run).code == 0
    path = SOFT_LABELS / "de/manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["producers"]:
        del entry["top_k_change"]
    path.write_text(json.dumps(manifest))
    done = run("student", "distill")
    assert done.code == 0
    assert "keep 1 of 3 logits; what that changes is not known, measure it with: python -m" in done.err


def test_a_store_that_is_copied_takes_its_measurement_along(speaking: Path, run: Run, tmp_path: Path) -> None:
    assert label_top_1(run).code == 0
    target = tmp_path / "target"
    plan = compare(speaking / "new", target, producer_ids(speaking / "new"))
    copy(speaking / "new", target, plan, on_bytes=lambda _: None)
    (here,), (there,) = (list(root.glob(f"*/{TOP_K}")) for root in (speaking / "new", target))
    assert here.read_bytes() == there.read_bytes()
    (victim,) = ls(target)
    assert delete(target, Victim(victim, "a test"))
    assert not list(target.iterdir())
