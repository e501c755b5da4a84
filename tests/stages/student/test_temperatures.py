"""A student's temperatures: fitted where labels are, and written where whoever loads it finds them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cache import Producer
from pipeline.params import load_params
from stages.data.examples import read_examples
from stages.models.batches import tokenize
from stages.models.configuration_mblm import MBLMConfig
from stages.results.measures import fit_temperature
from stages.student.calibration import _fitted, _Said, _surest, fitted_temperatures, noisy_tokens

STUDENT = "artifacts/student"


def test_each_is_fitted_on_validation_texts_through_the_branches_that_it_is_for(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(Path("params.yaml"))
    task = params.task
    model = AutoModelForSequenceClassification.from_pretrained(STUDENT, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    own, others, labels = [], [], []
    for number, language in enumerate(task.supervised):
        examples = read_examples(task, language, "validation")
        inputs = tokenizer(examples["text"].to_pylist(), padding=True, return_tensors="pt")
        # Two languages: the mixture without one's own branch is the other's.
        without = torch.eye(2)[1 - number].expand(examples.num_rows, -1)
        with torch.inference_mode():
            said = model(**inputs, language_ids=number, mixture_weights=without)
        own.append(said.logits.numpy())
        others.append(said.mixture_logits.numpy())
        labels.append(examples["label"].to_numpy())
    right = np.concatenate(labels)
    expected = [fit_temperature(np.concatenate(logits), right) for logits in (own, others)]
    written = [model.config.own_temperature, model.config.mixture_temperature]
    fitted = fitted_temperatures(model, tokenizer, task, params.student.distill)
    assert written == pytest.approx(fitted[:2])
    assert written[0] == pytest.approx(expected[0], rel=1e-3)
    monkeypatch.setattr("stages.student.calibration.noisy_tokens", lambda tokens, *_: tokens)
    monkeypatch.setattr("stages.student.calibration._FEWEST", 1.0)
    without_noise = fitted_temperatures(model, tokenizer, task, params.student.distill)
    assert without_noise[:2] == pytest.approx(expected, rel=1e-3)


def test_noise_counts_as_far_as_the_student_is_as_sure_of_it_as_of_other_languages() -> None:
    """Of 100 texts, the student is less sure and less often right the more of a text is noise."""
    shares = np.linspace(0, 1, 100)
    margin = 4 - 3 * shares
    logits = np.stack([margin, np.zeros(100)], axis=1).astype(np.float32)
    labels = (np.random.default_rng(0).random(100) < shares / 2).astype(np.int32)
    said = [_Said(logits, labels, shares)]
    by_all, by_few = _fitted(said), _fitted(said, surest=0.99)
    few = slice(0, 20)
    assert by_few == pytest.approx(fit_temperature(logits[few], labels[few]))
    confidence = 1 / (1 + np.exp(-margin))
    half = float(confidence[:50].mean()) - 1e-5
    assert _fitted(said, surest=half) == pytest.approx(fit_temperature(logits[:50], labels[:50]))
    assert by_few != by_all == _fitted(said, surest=0.0)


def test_a_student_that_is_surer_of_other_languages_than_of_its_own_knows_nothing_of_them() -> None:
    def said(margin: float) -> _Said:
        logits = np.array([[margin, 0.0]], np.float32)
        return _Said(logits, np.zeros(1, np.int32), np.zeros(1))

    own = [said(1.0), said(3.0)]
    assert _surest(own, [said(1.5)]) == pytest.approx(1 / (1 + np.exp(-1.5)))
    assert _surest(own, [said(2.5)]) is None
    assert _surest(own, []) is None


def test_noise_replaces_tokens_of_texts_and_no_others(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokens = tokenize(tokenizer, [["der Hund " * 20, "rot"]], max_tokens=48)
    ids = tokens.columns["input_ids"]
    special = np.isin(ids, tokenizer.all_special_ids)
    for share, least, most in ((0.0, 0.0, 0.0), (0.5, 0.2, 0.8), (1.0, 0.9, 1.0)):
        # Of the first text that was given, which is the longest, and so the first.
        shares = np.array([share, 0.0])
        noisy = noisy_tokens(tokens, tokenizer, shares, np.random.default_rng(0)).columns["input_ids"]
        assert (noisy == ids)[special].all()
        assert not np.isin(noisy[~special], tokenizer.all_special_ids).any()
        first = slice(0, tokens.lengths[0])
        assert least <= (noisy != ids)[first][~special[first]].mean() <= most
        assert (noisy == ids)[tokens.lengths[0] :].all()


def test_a_student_with_one_branch_is_less_sure_of_other_languages_too(finished: Path) -> None:
    config = json.loads(Path("artifacts/baseline/config.json").read_text())
    assert 1 != config["own_temperature"] != config["mixture_temperature"]


def test_they_change_no_logit_and_so_no_producer(finished: Path) -> None:
    before = Producer.of_teacher(Path(STUDENT), text_fields=["text"], max_tokens=48, dtype="float32")
    path = Path(STUDENT, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"own_temperature": 9.0}))
    after = Producer.of_teacher(Path(STUDENT), text_fields=["text"], max_tokens=48, dtype="float32")
    assert before.id == after.id


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=r"mixture_temperature is .*: a number above 0"):
        MBLMConfig(mplm_config={"model_type": "bert"}, mixture_temperature=value)


def test_a_mean_of_students_has_the_mean_of_their_temperatures(finished: Path, run: Run) -> None:
    changes = ["--set", "student.distill.epochs=1", "--set", "student.distill.init_seed=3"]
    temperatures = []
    for seed in (0, 1):
        assert run("student", "distill", *changes, "--set", f"student.distill.seed={seed}").code == 0
        Path(STUDENT).rename(f"student-{seed}")
        temperatures.append(json.loads(Path(f"student-{seed}/config.json").read_text())["own_temperature"])
    assert run("student", "average", "student-0", "student-1", "--output", "mean").code == 0
    mean = json.loads(Path("mean/config.json").read_text())["own_temperature"]
    assert mean == pytest.approx(np.mean(temperatures))
