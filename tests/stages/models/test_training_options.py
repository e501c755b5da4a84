"""Options of trainings that users of real encoders know: pieces of a batch, frozen layers, rates by layer."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, LANGUAGES, save_plain, student_of
from safetensors.torch import load_file, save_file
from tiny import ROOT, Run, tiny_params, write_params
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from stages.errors import StageError
from stages.models.averages import MeanInMemory
from stages.models.checkpoints import BestInMemory
from stages.models.layers import freeze, learning_rate
from stages.models.texts import Texts
from stages.models.training import TextTrainer, training_arguments
from stages.params import TrainingParams

DISTILL = ("student", "distill")
FINETUNE = ("teacher", "finetune", "--language", "de")
PIECES: dict[str, dict[str, Any]] = {
    "mblm": {"variant": "mblm", "hard_label_weight": 0.5},
    "balanced": {"variant": "branches", "class_weights": {"animal": 5.0, "colour": 1.0, "number": 0.2}},
    "finetune": {"variant": "finetune"},
}


def without_chance(**distill: Any) -> None:
    """Take dropout and drawn mixtures out of the finished run's trainings, and set options."""
    params = tiny_params()
    for section in (params["teacher"]["finetune"], params["student"]["distill"]):
        section["subword_dropout"] = 0.0
    params["teacher"]["finetune"]["scratch"]["dropout"] = 0.0
    mixture = {"weights": "uniform"}
    params["student"]["distill"] |= {"batch_size": 22, "mixture": mixture, **distill}
    params["teacher"]["finetune"]["batch_size"] = 22
    write_params(params)
    config = Path("artifacts/encoder/config.json")
    config.write_text(re.sub(r'(_dropout_prob": )0\.1', r"\g<1>0.0", config.read_text()))


def weights(folder: str = "student") -> dict[str, Tensor]:
    return load_file(f"artifacts/{folder}/model.safetensors")


def assert_close(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, value in some.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("options", PIECES.values(), ids=PIECES)
def test_a_batch_in_pieces_has_the_loss_of_the_whole(
    options: dict[str, Any], finished: Path, run: Run
) -> None:
    without_chance(**options)
    curves = []
    for pieces in (1, 3, 50):  # 8, 8 and 6 examples; 1 each
        done = run(*DISTILL, "--set", f"student.distill.gradient_accumulation={pieces}")
        assert done.code == 0, done.err
        curves.append(json.loads(Path("artifacts/student/losses.json").read_text()))
    for curve in curves[1:]:
        for whole, in_pieces in zip(curves[0], curve, strict=True):
            assert in_pieces == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_a_teachers_batch_in_pieces_makes_the_same_teacher(finished: Path, run: Run) -> None:
    without_chance()
    made = []
    for pieces in (1, 4):
        assert run(*FINETUNE, "--set", f"teacher.finetune.gradient_accumulation={pieces}").code == 0
        made.append(weights("teachers/de"))
    assert_close(*made)


def test_states_cannot_be_compared_in_pieces(finished: Path, run: Run) -> None:
    changes = ["student.distill.gradient_accumulation=2", "student.distill.hidden_weight=30"]
    done = run(*DISTILL, *(part for change in changes for part in ("--set", change)))
    assert done.code == 1
    assert "gradient_accumulation is 2, but hidden_weight compares all examples of a batch" in done.err


@pytest.mark.parametrize(("command", "folder"), [(DISTILL, "student"), (FINETUNE, "teachers/de")])
def test_layers_that_are_computed_again_learn_the_same(
    command: tuple[str, ...], folder: str, finished: Path, run: Run
) -> None:
    made = []
    for on in (False, True):
        option = f"{command[0]}.{command[1]}.gradient_checkpointing={str(on).lower()}"
        done = run(*command, "--set", option)
        assert done.code == 0, done.err
        made.append(weights(folder))
    assert_close(*made)


# What is frozen


def trainer_of(model: Any, folder: Path, **options: Any) -> TextTrainer:
    params = TrainingParams(**options)
    texts = Texts([["a"]], {"labels": np.zeros(1, np.int64)})
    arguments = training_arguments(params, folder, max_steps=1)
    return TextTrainer(params, model=model, args=arguments, train_dataset=texts)


def learning(trainer: TextTrainer) -> set[int]:
    """The weights that the optimizer knows, by identity."""
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    return {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    save_plain(request.param, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    return {"plain": plain, "student": student_of(tmp_path / "plain")}


@pytest.mark.parametrize("kind", ["plain", "student"])
@pytest.mark.parametrize("rates", [{}, {"layer_decay": 0.5}])
def test_word_embeddings_are_frozen_without_a_state(
    kind: str, rates: dict[str, float], models: dict[str, Any], tmp_path: Path
) -> None:
    model = models[kind]
    known = learning(trainer_of(model, tmp_path, freeze="embeddings", **rates))
    frozen = [name for name, weight in model.named_parameters() if id(weight) not in known]
    assert [model.get_parameter(name) is model.get_input_embeddings().weight for name in frozen] == [True]


@pytest.mark.parametrize("kind", ["plain", "student"])
def test_the_lowest_layers_are_frozen_with_all_embeddings(
    kind: str, models: dict[str, Any], tmp_path: Path
) -> None:
    model = models[kind]
    known = learning(trainer_of(model, tmp_path, freeze=1))
    frozen = {name for name, weight in model.named_parameters() if id(weight) not in known}
    of_layers = {name for name in frozen if re.search(r"layers?\.\d+\.", name)}
    assert {name for name, _ in model.named_parameters() if re.search(r"layers?\.0\.", name)} == of_layers
    assert all("embeddings" in name and "rel_embeddings" not in name for name in frozen - of_layers)
    assert any("word_embeddings" in name or "tok_embeddings" in name for name in frozen)


def test_only_the_classifier_may_be_left_to_learn(tmp_path: Path) -> None:
    model = save_plain("xlm-roberta", tmp_path / "plain")
    known = learning(trainer_of(model, tmp_path, freeze=3))
    names = {name for name, weight in model.named_parameters() if id(weight) in known}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("classifier.")}


def test_more_than_there_is_cannot_be_frozen(tmp_path: Path) -> None:
    model = save_plain("bert", tmp_path / "plain")
    with pytest.raises(StageError, match=r"freeze is 4, but the model has 3 layers; set it to 3 at most"):
        freeze(model, 4)
    student = student_of(tmp_path / "plain", branch_layers=2)
    with pytest.raises(StageError, match=r"freeze is 2, but the model has branches of 2 of its 3 layers"):
        freeze(student, 2)
    all_layers = student_of(tmp_path / "plain", branch_layers=3, languages=LANGUAGES)
    with pytest.raises(StageError, match="all stay the same; set it to embeddings, or to null"):
        freeze(all_layers, 1)
    freeze(student_of(tmp_path / "plain", branch_layers=1, n_branches=1, languages=LANGUAGES), 3)


def test_what_is_frozen_stays_as_it_was(finished: Path, run: Run) -> None:
    before = load_file("artifacts/encoder/model.safetensors")["roberta.embeddings.word_embeddings.weight"]
    name = "mblm.encoder.embeddings.word_embeddings.weight"
    assert run(*DISTILL).code == 0
    assert not torch.equal(weights()[name], before)
    assert run(*DISTILL, "--set", "student.distill.freeze=embeddings").code == 0
    assert torch.equal(weights()[name], before)
    done = run(*DISTILL, "--set", "student.distill.freeze=2")
    assert done.code == 1
    assert "error: freeze is 2, but the model has branches of 1 of its 2 layers" in done.err


def plain_of(kind: str, **sizes: Any) -> Any:
    config = AutoConfig.for_model(kind, vocab_size=50, num_labels=3, pad_token_id=0, **sizes)
    return AutoModelForSequenceClassification.from_config(config)


def test_layers_of_other_models_are_found_or_the_option_refused(tmp_path: Path) -> None:
    model = plain_of("gpt2", n_embd=16, n_layer=3, n_head=2)
    known = learning(trainer_of(model, tmp_path, freeze=2, layer_decay=0.5))
    names = {name for name, weight in model.named_parameters() if id(weight) in known}
    assert {re.sub(r"\.h\.(\d).*", r".h.\1", name) for name in names} == {
        "transformer.h.2",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "score.weight",
    }
    shared = plain_of("albert", hidden_size=16, num_hidden_layers=3, num_attention_heads=2, embedding_size=8)
    with pytest.raises(StageError, match="freeze needs layers that are known here, which a albert"):
        freeze(shared, 2)
    with pytest.raises(StageError, match="layer_decay needs layers"):
        learning(trainer_of(shared, tmp_path, layer_decay=0.5))


def test_all_layers_frozen_leave_the_classifier_alone(models: dict[str, Any], tmp_path: Path) -> None:
    model = models["plain"]
    known = learning(trainer_of(model, tmp_path, freeze=3))
    names = {name for name, weight in model.named_parameters() if id(weight) in known}
    assert names
    assert all(not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name for name in names)


# How fast layers learn


def test_each_layer_learns_slower_than_the_one_above_and_the_head_at_its_own_rate(
    models: dict[str, Any],
) -> None:
    params = TrainingParams(learning_rate=1.0, layer_decay=0.5, head_learning_rate=9.0)
    for model in models.values():
        rates: dict[str, set[float]] = {}
        for name, _ in model.named_parameters():
            layer = re.search(r"layers?\.(\d+)\.", name)
            part = layer[1] if layer else "embeddings" if "word_emb" in name or "tok_emb" in name else "other"
            rates.setdefault(part, set()).add(learning_rate(name, params, model))
        assert rates["2"] == {1.0}
        assert rates["1"] == {0.5}
        assert rates["0"] == {0.25}
        assert rates["embeddings"] == {0.125}
        assert 9.0 in rates["other"]


def test_rates_by_layer_change_what_is_learned_and_alike_they_change_nothing(
    finished: Path, run: Run
) -> None:
    made = []
    for options in ({}, {"head_learning_rate": 0.001}, {"layer_decay": 0.5}):
        assert run(*DISTILL, *changes("student.distill", learning_rate=0.001, **options)).code == 0
        made.append(weights())
    assert_close(made[0], made[1])
    lowest = "mblm.encoder.encoder.layer.0.output.dense.weight"
    assert not torch.allclose(made[0][lowest], made[2][lowest], atol=1e-5)


# Who is told


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_curves_are_written_for_tools_and_change_no_result(finished: Path, run: Run) -> None:
    assert run(*DISTILL).code == 0
    alone = weights()
    done = run(*DISTILL, "--set", 'student.distill.report_to=["tensorboard", "dvclive"]')
    assert done.code == 0, done.err
    assert_close(weights(), alone)
    [events] = Path("runs/student-student").glob("events.out.tfevents.*")
    assert b"mixture_loss" in events.read_bytes()
    metrics = json.loads(Path("dvclive/student-student/metrics.json").read_text())
    last = json.loads(Path("artifacts/student/validation.json").read_text())[-1]
    assert metrics["eval"]["de_accuracy"] == pytest.approx(last["de"])
    shutil.copy(ROOT / ".gitignore", ".gitignore")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    shown = subprocess.run(["dvc", "metrics", "show", "--json"], capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)[""]["data"]["dvclive/student-student/metrics.json"]["data"]
    assert found["eval"]["de_accuracy"] == pytest.approx(last["de"])
    assert "dvclive" not in Path("artifacts/student/README.md").read_text()
    params = tiny_params()
    params["teachers"]["de"]["more"] = [{"base": "scratch"}]
    params["teacher"]["finetune"]["report_to"] = ["tensorboard"]
    write_params(params)
    said = [line.partition(":")[0] for line in run(*FINETUNE).out.splitlines()]
    assert said == ["teacher 'de'", "teacher 'de.more.0'"]
    for name in ("steps-0", "steps-more-0-0"):
        assert len(list(Path(f"runs/teacher-finetune-de-{name}").glob("events.out.tfevents.*"))) == 1
    write_params(tiny_params())
    assert run("plan").code == 0
    again = run("plan", "--set", "student.distill.report_to=[dvclive]")
    assert again.out == "11 stages, none with other parameters than before\n"


def test_a_tool_that_is_not_there_is_named(finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.models.reporting.find_spec", lambda name: None)
    done = run(*FINETUNE, "--set", "teacher.finetune.report_to=[wandb]")
    assert done.code == 1
    assert (
        "error: report_to names wandb, which is not installed; install it with: pip install wandb" in done.err
    )


# Which weights are kept


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Say which accuracies validations see, one after the other; gives what is left to be said."""
    left = [0.2, 0.6, 0.9, 0.7, 0.1, 0.3, 0.2, 0.2, 0.1, 0.1]  # of de and en: the second epoch is best
    on_evaluate = BestInMemory.on_evaluate

    def tell(self: BestInMemory, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log = state.log_history[-1]
        (key,) = [name for name in log if name.endswith("_accuracy")]
        log[key] = left.pop(0)
        on_evaluate(self, args, state, control, **kwargs)

    monkeypatch.setattr(BestInMemory, "on_evaluate", tell)
    return left


def changes(section: str, **options: Any) -> list[str]:
    return [part for key, value in options.items() for part in ("--set", f"{section}.{key}={value}")]


def test_the_students_best_epoch_is_kept_where_asked_for(finished: Path, run: Run, told: list[float]) -> None:
    accuracies = list(told)
    done = run(*DISTILL, *changes("student.distill", keep="best", epochs=5))
    assert done.code == 0, done.err
    assert done.out == "mblm: 45 steps; validation accuracy: de 90.0%, en 70.0%\n"
    kept = weights()
    told[:] = accuracies
    done = run(*DISTILL, *changes("student.distill", patience=1, epochs=5))
    assert done.out == "mblm: 27 steps; validation accuracy: de 10.0%, en 30.0%\n"
    name = "head.classifier.out_proj.weight"
    assert not torch.equal(weights()[name], kept[name])
    told[:] = accuracies
    done = run(*DISTILL, *changes("student.distill", patience=2, keep="best", epochs=5))
    assert done.out == "mblm: 36 steps; validation accuracy: de 90.0%, en 70.0%\n"
    assert_close(weights(), kept)


def test_a_teacher_may_keep_its_last_epoch_or_end_early(finished: Path, run: Run, told: list[float]) -> None:
    made = []
    for options, said in (({}, "60.0%"), ({"keep": "last"}, "20.0%"), ({"patience": 1}, "60.0%")):
        told[:] = [0.6, 0.3, 0.2]
        done = run(*FINETUNE, *changes("teacher.finetune", epochs=3, learning_rate=0.01, **options))
        assert done.out == f"teacher 'de': {said} of 9 validation examples\n"
        made.append(weights("teachers/de"))
    assert told == [0.2]  # the third ended after its second epoch
    assert_close(made[0], made[2])
    assert not torch.equal(made[0]["classifier.out_proj.weight"], made[1]["classifier.out_proj.weight"])


def test_a_killed_training_that_keeps_its_best_epoch_ends_as_if_it_had_not(
    finished: Path, run: Run, told: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = list(told)
    options = changes("student.distill", keep="best", patience=2, epochs=5, save_steps=5)
    assert run(*DISTILL, *options).code == 0
    alone = weights()
    step = TextTrainer.training_step
    told[:] = accuracies

    def stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 23:  # in the third epoch
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TextTrainer, "training_step", stop)
        assert run(*DISTILL, *options).code == 130
    told[:] = accuracies[4:]  # it goes on behind the second epoch
    done = run(*DISTILL, *options)
    assert "going on from" in done.err
    assert done.out == "mblm: 36 steps; validation accuracy: de 90.0%, en 70.0%\n"
    assert_close(weights(), alone)


@pytest.mark.parametrize("why", ["patience", "steps"])
def test_a_training_that_was_killed_after_its_end_trains_no_more(
    finished: Path, run: Run, told: list[float], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "patience":
        options = changes("student.distill", patience=1, epochs=5, save_steps=1000)
    else:  # which end within an epoch of the texts with labels: others have more
        options = changes("task", unlabelled="true", max_labels=20)
        assert run("prepare", *options).code == 0
        options += changes("student.distill", variant="finetune", batch_size=7, save_steps=1000)
        options += changes("student.distill", patience=4, epochs=2)
    accuracies = [0.9, 0.9, 0.3, 0.3]

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    told[:] = accuracies
    whole = run(*DISTILL, *options)
    assert (whole.code, told) == (0, [])
    alone, curves = weights(), [Path(f"artifacts/student/{name}.json") for name in ("validation", "losses")]
    drawn = [path.read_bytes() for path in curves]
    told[:] = accuracies
    with monkeypatch.context() as patch:
        patch.setattr("stages.student.distill.fitted_temperatures", stop)
        assert run(*DISTILL, *options).code == 130
    done = run(*DISTILL, *options)  # nothing more is told: a validation would end in an error
    assert "going on from" in done.err
    assert done.out == whole.out
    assert_close(weights(), alone)
    assert [path.read_bytes() for path in curves] == drawn


def test_what_begins_anew_knows_no_best(tmp_path: Path) -> None:
    """A training that was killed before its first checkpoint begins anew, perhaps with other code."""
    save_file({"weight": torch.ones(1)}, tmp_path / "best.safetensors", {"accuracy": "0.9", "step": "3"})
    assert BestInMemory(tmp_path).accuracy == -1
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/trainer_state.json").write_text('{"global_step": 3}')
    assert BestInMemory(tmp_path).accuracy == 0.9


def test_a_best_validation_that_a_checkpoint_just_missed_is_known_again(tmp_path: Path) -> None:
    """The Trainer saves a step's checkpoint before it validates at the end of the epoch."""
    names = ["de", "en"]
    model, state = torch.nn.Linear(1, 1), TrainerState(global_step=3)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/trainer_state.json").write_text('{"global_step": 3}')
    arguments = TrainingArguments(str(tmp_path), save_strategy="steps", use_cpu=True, report_to="none")
    best = BestInMemory(tmp_path, names=names)
    for name, value in zip(names, (0.75, 0.5), strict=True):
        state.log_history.append({"step": 3, f"eval_{name}_accuracy": value})
        best.on_evaluate(arguments, state, TrainerControl(), model=model)
    for step, n in ((2, 0), (3, 1), (4, 1)):  # of the checkpoint that a run goes on from
        again = TrainerState(global_step=step)
        BestInMemory(tmp_path, names=names).on_train_begin(arguments, again, TrainerControl())
        assert again.log_history == [{"step": 3, "eval_de_accuracy": 0.75, "eval_en_accuracy": 0.5}] * n
    BestInMemory(tmp_path, names=names).on_train_begin(arguments, state, TrainerControl())
    assert len(state.log_history) == 2  # it was there


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Tensor]]:
    """Note the student's weights after each step from which they are averaged."""
    noted: dict[int, dict[str, Tensor]] = {}
    on_step_end = MeanInMemory.on_step_end

    def note(self: MeanInMemory, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        noted[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}
        on_step_end(self, args, state, control, model, **kwargs)

    monkeypatch.setattr(MeanInMemory, "on_step_end", note)
    return noted


def test_a_student_is_the_mean_of_the_trainings_last_checkpoints(
    finished: Path, run: Run, seen: dict[int, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "head.classifier.out_proj.weight"
    validated: list[Tensor] = []
    evaluate = TextTrainer.evaluate

    def note(self: TextTrainer, *args: Any, **kwargs: Any) -> Any:
        validated.append(self.model.state_dict()[name].clone())  # type: ignore[union-attr]
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(TextTrainer, "evaluate", note)
    done = run(*DISTILL, *changes("student.distill", average=3, epochs=2))
    assert done.code == 0, done.err
    made, expected = weights(), [seen[step] for step in (14, 16, 18)]  # of 18: 8, 9 and 10 tenths
    assert_close(made, {each: torch.stack([step[each] for step in expected]).mean(0) for each in made})
    assert not torch.equal(made[name], seen[18][name])
    assert torch.equal(validated[-1], made[name])
    curve = json.loads(Path("artifacts/student/validation.json").read_text())
    assert [row["step"] for row in curve] == [9, 18]


def test_a_killed_training_that_averages_ends_as_if_it_had_not(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = changes("student.distill", average=4, epochs=2, save_steps=5, freeze="embeddings")
    assert run(*DISTILL, *options).code == 0
    alone = weights()
    step = TextTrainer.training_step

    def stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 17:  # of 13, 14, 16 and 18; it goes on from 15
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TextTrainer, "training_step", stop)
        assert run(*DISTILL, *options).code == 130
    done = run(*DISTILL, *options)
    assert "going on from" in done.err
    assert_close(weights(), alone)


@pytest.mark.parametrize(
    ("other", "said"), [({"keep": "best"}, "keep: last"), ({"patience": 2}, "patience: null")]
)
def test_a_mean_of_the_last_checkpoints_is_no_choice_among_them(
    other: dict[str, Any], said: str, finished: Path, run: Run
) -> None:
    done = run(*DISTILL, *changes("student.distill", average=3, **other))
    assert done.code == 1
    assert f"average is 3, which is of the last checkpoints, however good they are; set {said}" in done.err
