"""Means of students: of several runs at once, and of students that are there."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Run
from torch import Tensor

from stages.models.training import TextTrainer


def distill(run: Run, *, keep: str | None = None, **options: Any) -> Any:
    """Train a student; keep it in another folder where that is named."""
    named = {key.rstrip("_"): value for key, value in options.items()}
    changes = [part for key, value in named.items() for part in ("--set", f"student.distill.{key}={value}")]
    done = run("student", "distill", *changes)
    if keep:
        assert done.code == 0, done.err
        shutil.move("artifacts/student", keep)
    return done


def weights(folder: str) -> dict[str, Tensor]:
    return load_file(f"{folder}/model.safetensors")


def test_several_runs_are_the_mean_of_students_that_began_alike(finished: Path, run: Run) -> None:
    assert distill(run, runs=2, seed=3, keep="both").out.startswith(
        "mblm: the mean of 2 runs of 18 steps; validation accuracy: de "
    )
    for seed in (6, 7):
        distill(run, seed=seed, init_seed=3, keep=f"of-{seed}")
    assert (
        run("student", "average", "of-6", "of-7", "--output", "mean").out == "mean: the mean of of-6, of-7\n"
    )
    both, mean, each = weights("both"), weights("mean"), [weights("of-6"), weights("of-7")]
    name = "head.classifier.out_proj.weight"
    assert not torch.equal(each[0][name], each[1][name])
    for key in both:
        torch.testing.assert_close(mean[key], (each[0][key] + each[1][key]) / 2)
        torch.testing.assert_close(both[key], mean[key])
    assert "The mean of 2 students' weights." in Path("mean/README.md").read_text()
    Path("texts.txt").write_text("rot\n")
    assert run("student", "predict", "texts.txt", "--model", "mean").code == 0
    assert run("student", "average", "mean", "of-6", "--output", "again").code == 0  # began alike, too
    curve = json.loads(Path("both/validation.json").read_text())
    assert [row["step"] for row in curve] == [9, 18]
    assert run("student", "average", "of-6", "of-7", "--output", "artifacts/student").code == 0
    for command in (["student", "evaluate"], ["report"]):
        done = run(*command)
        assert done.code == 0, done.err
    training = json.loads(Path("artifacts/student/training.json").read_text())
    assert training == {"variant": "mblm", "epochs": 4}


def test_a_finished_run_is_not_trained_again_after_an_interruption(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TextTrainer.training_step
    steps: list[str] = []

    def count(self: TextTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if len(steps) == 20:  # in the second run
            steps.append("stopped")
            raise KeyboardInterrupt
        steps.append("done")
        return step(self, *args, **kwargs)

    distill(run, runs=2, keep="whole")
    monkeypatch.setattr(TextTrainer, "training_step", count)
    assert distill(run, runs=2).code == 130
    assert not Path("artifacts/student").exists()
    done = distill(run, runs=2, keep="resumed")
    assert re.search("run 1 of 2: going on from .*-run-1/.*/checkpoint-18\n", done.err)
    assert steps.count("done") < 2 * 18 + 20
    for key, value in weights("whole").items():
        torch.testing.assert_close(weights("resumed")[key], value, rtol=1e-4, atol=2e-6)
    assert not list(Path(".checkpoints").glob("student-student*/*"))


def test_what_has_no_mean_is_refused_by_name(finished: Path, run: Run) -> None:
    def refused(*folders: str) -> str:
        done = run("student", "average", *folders, "--output", "mean")
        assert done.code == 1
        assert not Path("mean").exists()
        return done.err

    one = "artifacts/student"
    assert "error: a mean is of two students or more; name their folders" in refused(one)
    assert f"error: {one} is named twice" in refused(one, f"{one}/../student")
    assert "error: nowhere holds no model" in refused(one, "nowhere")
    said = (
        "artifacts/baseline and artifacts/student have no mean, since their configurations differ; students"
    )
    assert said in refused(one, "artifacts/baseline")
    shutil.copytree(one, "other")
    Path("other/start.json").write_text('{"weights": "of another encoder"}')
    assert "since their weights before the training differ" in refused(one, "other")
    Path("other/start.json").unlink()
    assert "error: other does not say which weights its training began with" in refused(one, "other")


def test_where_the_encoder_lay_makes_no_other_student(finished: Path, run: Run) -> None:
    one, other = Path("artifacts/student"), Path("other")
    shutil.copytree(one, other)
    config = json.loads((one / "config.json").read_text())
    assert not config["mplm_config"].get("_name_or_path")
    config["mplm_config"]["_name_or_path"] = "/of/an/earlier/version"
    (other / "config.json").write_text(json.dumps(config))
    assert run("student", "average", str(one), str(other), "--output", "mean").code == 0


def test_nothing_is_overwritten_but_another_student(finished: Path, run: Run) -> None:
    one, two = "studs/1", "studs/2"
    for folder in (one, two, "old"):
        shutil.copytree("artifacts/student", folder)
    Path("notes.txt").write_text("mine")

    def refused(output: str, *options: str) -> str:
        done = run("student", "average", one, two, "--output", output, *options)
        assert done.code == 1
        assert "Traceback" not in done.err
        return done.err

    assert "error: old is there; replace it with --overwrite, or choose another --output" in refused("old")
    for output in ("studs", one, ".", ".."):
        assert f"error: {output} is one of the students, or holds one" in refused(output, "--overwrite")
    assert "error: notes.txt is there, and is no student" in refused("notes.txt", "--overwrite")
    assert "is no student" in refused("artifacts", "--overwrite")
    assert run("student", "average", one, two, "--output", "old", "--overwrite").code == 0
    name = "head.classifier.out_proj.weight"
    broken = weights(two) | {name: torch.full_like(weights(two)[name], torch.nan)}
    save_file(broken, f"{two}/model.safetensors", {"format": "pt"})
    assert f"error: {two} has weights that are NaN or infinite; train it again" in refused("new")
    Path(one, "README.md").unlink()
    assert f"error: {one} is no student that `student distill` wrote" in refused("new")


def test_a_mean_of_best_epochs_says_its_own_accuracy(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    evaluate = TextTrainer.evaluate

    def note(self: TextTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(self.callback_handler.callbacks))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(TextTrainer, "evaluate", note)
    done = distill(run, runs=2, keep_="best", epochs=3)
    assert done.code == 0, done.err
    assert seen[-1] == seen[0] - 1  # the best epoch is no longer looked for
    curve = json.loads(Path("artifacts/student/validation.json").read_text())
    assert curve[-1]["step"] == 27
    said = ", ".join(f"{language} {curve[-1][language]:.1%}" for language in ("de", "en"))
    assert done.out.endswith(f"validation accuracy: {said}\n")


def test_students_of_other_seeds_begin_with_other_classifiers(finished: Path, run: Run) -> None:
    distill(run, seed=1, epochs=1, keep="of-1")
    distill(run, seed=2, epochs=1, keep="of-2")
    done = run("student", "average", "of-1", "of-2", "--output", "mean")
    assert "of-2 and of-1 have no mean, since their weights before the training differ" in done.err
