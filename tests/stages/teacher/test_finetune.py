"""Fine-tuning: the best epoch's weights are kept, few checkpoints are written, and a stop changes nothing."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import Run, tiny_params, write_params
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cache import file_digest
from stages.models.checkpoints import BestInMemory, InTime
from stages.models.training import TextTrainer

FINETUNE = ("teacher", "finetune", "--language", "de")
WEIGHTS = Path("artifacts/teachers/de/model.safetensors")
BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.fixture
def accuracies(finished: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation accuracies by epoch of a training whose best epoch is not the last: they rise, then fall."""
    params = tiny_params()
    params["teacher"]["finetune"] |= {"epochs": 5}
    write_params(params)
    told = iter([0.2, 0.4, 0.9, 0.3, 0.1] * 3)
    seen: list[float] = []
    on_evaluate = BestInMemory.on_evaluate

    def tell(self: BestInMemory, *args: Any, **kwargs: Any) -> None:
        seen.append(next(told))
        args[1].log_history[-1]["eval_accuracy"] = seen[-1]
        on_evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BestInMemory, "on_evaluate", tell)
    return seen


def stop_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    training_step = TextTrainer.training_step

    def maybe_stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == step and self.args.max_steps > 2:  # not while it is pre-trained
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    patch.setattr(TextTrainer, "training_step", maybe_stop)


def test_the_weights_of_the_best_epoch_are_kept_without_a_checkpoint(
    accuracies: list[float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(*FINETUNE)
    assert accuracies == [0.2, 0.4, 0.9, 0.3, 0.1]
    assert done.out == "teacher 'de': 90.0% of 9 validation examples\n"
    best = file_digest(WEIGHTS)
    # One that ends right after its best epoch has the same weights: six steps an epoch.
    with monkeypatch.context() as patch:
        stop_at_step(patch, 18)
        patch.setattr("stages.models.checkpoints._SECONDS", 0)
        accuracies.clear()
        assert run(*FINETUNE).code == 130
    assert len(list(Path(".checkpoints").glob("teacher-finetune-de/*/steps-0/checkpoint-18"))) == 1
    (kept,) = Path(".checkpoints").glob("teacher-finetune-de/*/steps-0/checkpoint-18/model.safetensors")
    assert file_digest(kept) == best


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_teacher_that_learned_nothing_is_called_so(keep: str, accuracies: list[float], run: Run) -> None:
    params = tiny_params()
    params["teacher"]["finetune"] |= {"epochs": 5, "keep": keep}
    write_params(params)
    said = "teacher 'de' is no better on validation examples than one class for every text; lower"
    assert (said in run(*FINETUNE).err) is (keep == "last")


def test_finished_models_of_a_killed_run_are_not_trained_again(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params()
    params["teachers"]["de"] |= {"folds": 2, "more": [{"base": "scratch"}]}
    write_params(params)
    whole = run(*FINETUNE)
    models = sorted(WEIGHTS.parent.rglob("*fold-*/model.safetensors"))
    assert len(models) == 4
    before = [file_digest(path) for path in models]
    trained: list[str] = []
    train = TextTrainer.train

    def fourth_is_killed(self: TextTrainer, *args: Any, **kwargs: Any) -> Any:
        if "/steps" in str(self.args.output_dir):  # not while a base is pre-trained
            trained.append(str(self.args.output_dir))
            if len(trained) == 4:
                raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TextTrainer, "train", fourth_is_killed)
        assert run(*FINETUNE).code == 130
        again = run(*FINETUNE)
    assert trained[4:] == trained[3:4]
    assert again.out == whole.out
    assert [file_digest(path) for path in models] == before
    assert {path.stat().st_nlink for path in models} == {1}
    assert not list(Path(".checkpoints").glob("teacher-finetune-de/*"))


def test_a_run_that_is_killed_while_it_deletes_its_checkpoints_leaves_none_in_part(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*FINETUNE).code == 0
    before = {path.name: file_digest(path) for path in WEIGHTS.parent.iterdir()}
    rmtree = shutil.rmtree

    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        models = list(Path(path).rglob("made-0/*"))
        for file in models:
            file.unlink()
        if models:
            raise KeyboardInterrupt
        rmtree(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        assert run(*FINETUNE).code == 130
    for _ in range(2):
        assert {path.name: file_digest(path) for path in WEIGHTS.parent.iterdir()} == before
        assert run(*FINETUNE).code == 0
    assert not list(Path(".checkpoints").glob("teacher-finetune-de/*"))


def test_a_stopped_training_goes_on_and_ends_with_the_same_weights(
    accuracies: list[float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*FINETUNE)
    uninterrupted = file_digest(WEIGHTS)
    assert not list(Path(".checkpoints").rglob("checkpoint-*"))
    monkeypatch.setattr("stages.models.checkpoints._SECONDS", 0)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 26)  # in the last epoch, behind the best one
        assert run(*FINETUNE).code == 130
    monkeypatch.setattr("stages.models.checkpoints._SECONDS", 300)
    done = run(*FINETUNE)
    assert "going on from" in done.err
    assert done.out == "teacher 'de': 90.0% of 9 validation examples\n"
    assert file_digest(WEIGHTS) == uninterrupted


def test_a_teacher_goes_on_within_an_epoch_and_knows_the_best_one_before_it(
    accuracies: list[float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*FINETUNE)
    uninterrupted = file_digest(WEIGHTS)

    def in_time(self: InTime, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save |= state.global_step == 20

    monkeypatch.setattr(InTime, "on_step_end", in_time)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 22)  # six steps an epoch; the third is the best one
        assert run(*FINETUNE).code == 130
    (left,) = Path(".checkpoints").glob("teacher-finetune-de/*/steps-0/checkpoint-*")
    assert left.name == "checkpoint-20"
    done = run(*FINETUNE)
    assert "going on from" in done.err
    assert done.out == "teacher 'de': 90.0% of 9 validation examples\n"
    assert file_digest(WEIGHTS) == uninterrupted


def test_a_stopped_teacher_from_scratch_goes_on_over_the_texts_that_it_was_made_of(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_step(monkeypatch, 0)
    for texts in ("eins\nzwei\n", "eins\nzwei\n", "eins\ndrei\n"):
        Path("data/de/unlabelled.txt").write_text(texts * 9)
        assert run("prepare").code == 0
        assert run(*FINETUNE).code == 130
    made = Path(".checkpoints").glob("teacher-finetune-de/*/base/model.safetensors")
    assert len({file_digest(path) for path in made}) == 2


def finetuned(base: Path, run: Run) -> str:
    params = tiny_params()
    params["teachers"]["de"]["base"] = f"./{base}"
    write_params(params)
    done = run(*FINETUNE)
    assert done.code == 0, done.err
    return done.out


def test_a_base_that_gives_a_text_several_labels_becomes_a_classifier(finished: Path, run: Run) -> None:
    base = Path("base")
    shutil.copytree("artifacts/teachers/de", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    finetuned(base, run)
    made = json.loads((WEIGHTS.parent / "config.json").read_text())
    assert made["problem_type"] == "single_label_classification"


def test_an_encoder_decoder_is_fine_tuned(finished: Path, run: Run) -> None:
    base = Path("base")
    tokenizer = AutoTokenizer.from_pretrained("artifacts/teachers/de")
    tokenizer.save_pretrained(base)
    sizes = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in BART.items()}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        "bart",
        vocab_size=len(tokenizer),
        d_model=16,
        max_position_embeddings=64,
        num_labels=2,
        **sizes,
        **ids,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    said = finetuned(base, run)
    assert re.fullmatch(r"teacher 'de': [0-9.]+% of 9 validation examples\n", said)
