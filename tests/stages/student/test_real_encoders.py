"""Encoders that exist, as users bring them: pinned or cut, pooled in their own way, without a classifier."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, config_of
from safetensors.torch import load_file, save_file
from tiny import Run, examples, write_jsonl
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS
from stages.models.loading import _say_once
from stages.models.scratch import build_tokenizer
from stages.models.training import TextTrainer
from stages.student.params import PretrainParams
from stages.student.pretrain import pretrain


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    _say_once.cache_clear()


def save_encoder(folder: Path, family: str = "bert", *, finished: Path, **changes: Any) -> Path:
    """Save a base model of a family, as sentence encoders come: no classifier, no pooler."""
    tokenizer = AutoTokenizer.from_pretrained(finished / "artifacts/encoder")
    set_seed(0)
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = AutoModel.from_config(
        config_of(family, **{**vocabulary, "max_position_embeddings": 64, **changes})
    )
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def change(folder: Path, **options: Any) -> list[str]:
    options = {"student.pretrain.base": folder, **options}
    return [part for key, value in options.items() for part in ("--set", f"{key}={value}")]


def test_a_cut_encoder_that_pools_by_the_mean_becomes_a_student(finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished)
    options = {"student.pretrain.layers": 2, "student.pretrain.pooling": "mean"}
    made = run("student", "pretrain", *change(encoder, **options))
    assert (made.code, made.out.strip()) == (0, f"encoder: {encoder}, 2 layers")
    assert "LOAD REPORT" not in made.err
    trained = run("student", "distill")
    assert trained.code == 0
    assert "LOAD REPORT" not in trained.err
    assert "artifacts/encoder has no pooler and no classifier: training starts with new ones" in trained.err
    config = json.loads(Path("artifacts/student/config.json").read_text())
    assert (config["pooling"], config["mplm_config"]["num_hidden_layers"]) == ("mean", 2)
    assert "bert (bert, the first 2 of its layers, 16 wide, pooling: mean)" in (
        Path("artifacts/student/README.md").read_text()
    )
    assert run("student", "baseline").code == 0
    assert run("student", "evaluate").code == 0
    exported = run("student", "export", "served")
    assert exported.code == 0
    assert "one-branch models, with their code, of de, en" in exported.out
    assert (Path("served/de/modeling_mblm.py")).is_file()


def test_a_pinned_encoder_that_pools_by_the_mean_is_not_copied(finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished)
    assert run("student", "pretrain", *change(encoder, **{"student.pretrain.pooling": "mean"})).code == 0
    assert not list(Path("artifacts/encoder").glob("*.safetensors"))
    assert run("student", "distill").code == 0
    assert json.loads(Path("artifacts/student/config.json").read_text())["pooling"] == "mean"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_those_of_the_encoder(finished: Path, family: str) -> None:
    encoder = save_encoder(finished / "whole", family, finished=finished)
    params = PretrainParams(base=str(encoder), layers=2)
    pretrain_into = finished / "cut"
    pretrain(task_of_no_matter(), params, output=pretrain_into)
    whole, cut = (AutoModel.from_pretrained(folder).eval() for folder in (encoder, pretrain_into))
    assert cut.config.num_hidden_layers == 2
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = whole(ids, output_hidden_states=True).hidden_states[2]
        found = cut(ids, output_hidden_states=True).hidden_states[-1]
        if family.startswith("modernbert"):
            expected = whole.final_norm(expected)
    torch.testing.assert_close(found, expected)
    names = {path.name for path in pretrain_into.glob("*token*")}
    assert names == {path.name for path in encoder.glob("*token*")}
    kept = load_file(pretrain_into / "model.safetensors")
    assert not [name for name in kept if "pooler" in name]


def task_of_no_matter() -> Any:
    from pipeline.params import load_params

    return load_params(Path("params.yaml")).task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student.pretrain.layers": 4}, "student.pretrain.layers is 4, but {folder} has 3 layers"),
        ({"student.pretrain.layers": 0}, "student.pretrain.layers is 0"),
        ({"student.pretrain.pooling": "max"}, "student.pretrain.pooling is 'max'"),
    ],
)
def test_what_an_encoder_has_not_is_refused(
    options: dict[str, Any], message: str, finished: Path, run: Run
) -> None:
    encoder = save_encoder(finished / "bert", finished=finished)
    done = run("student", "pretrain", *change(encoder, **options))
    assert done.code == 1
    assert message.format(folder=encoder) in done.err


def test_a_vocabulary_is_cut_to_what_a_corpus_uses(finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished, vocab_size=300)
    every = [row["text"] for name in ("de", "en", "nl") for row in examples(name, "train")]
    build_tokenizer([*every, "Unbenutztes"] * 9, merges=150).save_pretrained(encoder)
    Path("data/corpus").mkdir()
    Path("data/corpus/nl.txt").write_text("rood blauw groen\nhond kat vogel\neen twee drie\n")
    write_jsonl(Path("data/corpus/more.jsonl"), [{"text": "dog", "note": "bird"}])
    options = {"texts": "data/corpus/*", "columns": ["text", "note"]}
    made = run(
        "student", "pretrain", *change(encoder, **{"student.pretrain.vocabulary": json.dumps(options)})
    )
    assert made.code == 0, made.err
    first, kept, head, *lines = made.out.splitlines()
    assert re.fullmatch(r"encoder: .*bert, \d+ pieces", first)
    assert re.fullmatch(
        r"kept: \d+ of \d+ pieces, with single characters: those that 77 texts use", kept
    )  # 5 and those of two languages
    assert head.split() == ["tokens", "per", "validation", "text", "before", "now"]
    assert [line.split()[0] for line in lines] == ["de", "en", "nl"]
    config = json.loads(Path("artifacts/encoder/config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained("artifacts/encoder")
    assert config["vocab_size"] == len(tokenizer) < len(AutoTokenizer.from_pretrained(encoder))
    assert run("student", "distill").code == 0
    assert run("student", "evaluate").code == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("data/none/*.txt", "student.pretrain.vocabulary.texts is data/none/*.txt: there is no such file"),
        ("corpus/*.txt", "vocabulary.texts: corpus/*.txt must begin with data/, which DVC watches"),
        ("data/a.txt", "student.pretrain.vocabulary.texts lack the words of 'de': its validation texts"),
        ("data/a.pdf", "cannot read data/a.pdf: it is not one of"),
    ],
)
def test_texts_that_do_not_serve_are_refused(texts: str, message: str, finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished)
    for path in (Path("data/a.txt"), Path("data/a.pdf")):
        path.write_text("Hund\n")
    words = [row["text"] for row in examples("nl", "validation")]
    build_tokenizer(words * 9, merges=40).save_pretrained(encoder)
    done = run("student", "pretrain", *change(encoder, **{"student.pretrain.vocabulary.texts": texts}))
    assert done.code == 1
    assert message in done.err


def test_layers_of_an_encoder_from_scratch_are_set_elsewhere(finished: Path, run: Run) -> None:
    done = run("student", "pretrain", "--set", "student.pretrain.layers=1")
    assert done.code == 1
    assert "layers is 1, but base is scratch: set scratch.layers instead" in done.err


@pytest.mark.parametrize("stage", ["pretrain", "distill", "teacher"])
def test_a_tokenizer_of_another_model_is_refused(stage: str, finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished, vocab_size=20)
    if stage == "teacher":
        options = ["--set", f"teachers.de.base={encoder}"]
        done = run("teacher", "finetune", "--language", "de", *options)
    else:
        layers = {"student.pretrain.layers": 2} if stage == "pretrain" else {}
        done = run("student", "pretrain", *change(encoder, **layers))
        if stage == "distill":
            assert done.code == 0
            done = run("student", "distill")
    assert done.code == 1
    n_tokens = len(AutoTokenizer.from_pretrained(encoder))
    assert f"has a tokenizer of {n_tokens} tokens, but embeddings of 20; take weights" in done.err


def test_a_teacher_that_pools_by_the_mean_is_labelled_with(finished: Path, run: Run) -> None:
    encoder = save_encoder(finished / "bert", finished=finished)
    language = ("--language", "de")
    options = ["--set", f"teachers.de.base={encoder}", "--set", "teacher.finetune.pooling=mean"]
    made = run("teacher", "finetune", *language, *options)
    assert made.code == 0
    assert "the base of teachers.de has no pooler and no classifier" in made.err
    assert "LOAD REPORT" not in made.err
    hidden = ["--set", "teacher.label.hidden=true"]
    assert run("teacher", "label", *language, *hidden).code == 0
    kept = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    assert kept.producers[0].facts["hidden_token"] == "mean"
    assert kept.producers[0].columns["hidden"].width == 16
    model: Any = AutoModelForSequenceClassification.from_pretrained("artifacts/teachers/de").eval()
    tokenizer = AutoTokenizer.from_pretrained("artifacts/teachers/de")
    table, text = example_of("de")
    soft = kept.join(table)
    with torch.inference_mode():
        inputs = tokenizer(text, return_tensors="pt")
        states = model.mblm(**inputs).last_hidden_state[0]
        logits = model(**inputs).logits[0]
    assert soft.hidden is not None
    np.testing.assert_allclose(soft.hidden[0], states.mean(dim=0).numpy(), atol=2e-3)
    np.testing.assert_allclose(soft.logits[0], logits.numpy(), atol=1e-5)


def example_of(language: str) -> tuple[Any, str]:
    """Give the id of a language's first training example, as a column, and its text."""
    from stages.data.examples import read_examples

    table = read_examples(task_of_no_matter(), language, "train").slice(0, 1)
    return table["example_id"], table["text"][0].as_py()


def test_a_student_may_start_as_the_baseline(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_loss() -> float:
        losses = json.loads(Path("artifacts/student/losses.json").read_text())
        return float(losses[0]["hard_loss"])

    changes = ["learning_rate=0.01", "class_weights={animal: 99, colour: 1, number: 1}", "start=baseline"]
    options = [part for one in changes for part in ("--set", f"student.distill.{one}")]
    assert run("student", "distill", *options[:4]).code == 0
    from_encoder = first_loss()
    done = run("student", "distill", *options)
    assert done.code == 0, done.err
    assert abs(first_loss() - from_encoder) > 0.5  # a new classifier says log 3; the baseline, animal
    assert not list(Path(".checkpoints").glob("student-student*/*"))
    weights = load_file("artifacts/student/model.safetensors")

    step = TextTrainer.training_step

    def stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 6 and self.params.variant != "finetune":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TextTrainer, "training_step", stop)
        assert run("student", "distill", *options).code == 130
    done = run("student", "distill", *options)
    assert (
        done.err.count("going on from") == 2
    )  # from the end of the first training, and from within the second
    for name, value in load_file("artifacts/student/model.safetensors").items():
        assert torch.equal(value, weights[name])


def test_only_what_a_family_cannot_do_makes_a_teacher_of_another_class(finished: Path, run: Run) -> None:
    for pooling, kind in (("first", "bert"), ("last", "mblm")):
        encoder = save_encoder(finished / pooling, finished=finished)
        options = ["--set", f"teachers.de.base={encoder}", "--set", f"teacher.finetune.pooling={pooling}"]
        assert run("teacher", "finetune", "--language", "de", *options).code == 0
        assert json.loads(Path("artifacts/teachers/de/config.json").read_text())["model_type"] == kind
        shutil.rmtree("artifacts/teachers/de")
