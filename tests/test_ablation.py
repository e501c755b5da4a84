"""The ablation: its statistics against what is known of them, and the whole of it on the small task."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from tiny import LABEL, ROOT, Run, examples, set_bias, tiny_params, write_jsonl, write_params

from cache import file_digest
from pipeline.__main__ import main
from pipeline.params import ParamsError, load_params
from stages.ablation.bootstrap import interval, resampled_accuracies
from stages.artifacts import ABLATION
from stages.predictions import read_predictions
from stages.student.params import Variant
from stages.student.variants import relevant

VARIANTS: list[Variant] = ["finetune", "distill", "branches", "mblm"]

# The bootstrap


def random_answers(
    *sizes: int, n_models: int, n_seeds: int, share: float = 0.7, seed: int = 0
) -> list[NDArray[np.bool_]]:
    """Make up whether predictions are right: for each language ``(M, S, N)``."""
    generator = np.random.default_rng(seed)
    return [generator.random((n_models, n_seeds, n)) < share for n in sizes]


def differences(right: list[NDArray[np.bool_]], *, n_resamples: int = 2000) -> NDArray[np.float64]:
    """Give resampled differences of the second model and the first, averaged over languages, ``(R,)``."""
    resampled = resampled_accuracies(right, n_resamples=n_resamples, seed=1).mean(axis=-1)
    found: NDArray[np.float64] = resampled[:, 1] - resampled[:, 0]
    return found


def every_resample(right: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Do it the long way: each draw of S - 1 seeds with each draw of N examples, and all are as likely."""
    n_seeds = right[0].shape[1]
    found = []
    for seeds in itertools.product(range(n_seeds), repeat=max(1, n_seeds - 1)):
        draws = [itertools.product(range(part.shape[2]), repeat=part.shape[2]) for part in right]
        for chosen in itertools.product(*draws):
            by_language = []
            for part, drawn in zip(right, chosen, strict=True):
                values = [part[:, s, n] for s in seeds for n in drawn]
                by_language.append(np.mean(values, axis=0))
            found.append(np.mean(by_language, axis=0))
    together: NDArray[np.float64] = np.array(found)  # (all, M)
    return together


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_resamples_are_spread_as_all_that_there_can_be(n_seeds: int) -> None:
    right = random_answers(2, 3, n_models=3, n_seeds=n_seeds, share=0.5, seed=n_seeds)
    expected = every_resample(right)
    resampled = resampled_accuracies(right, n_resamples=40_000, seed=0)
    assert resampled.shape == (40_000, 3, 2)
    found = resampled.mean(axis=-1)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.006)
    np.testing.assert_allclose(np.cov(found.T), np.cov(expected.T), atol=0.003)
    for model in range(3):  # the distributions, not only their moments
        for value in np.unique(expected[:, model].round(9)):
            share = (expected[:, model] <= value + 1e-6).mean()
            assert (found[:, model] <= value + 1e-6).mean() == pytest.approx(share, abs=0.01)


def test_models_that_answer_alike_do_not_differ() -> None:
    right = [np.repeat(part, 2, axis=0) for part in random_answers(50, 31, n_models=1, n_seeds=5)]
    np.testing.assert_array_equal(interval(differences(right)), [0.0, 0.0])


def test_a_model_that_is_better_everywhere_is_found_better_and_a_worse_one_worse() -> None:
    right = random_answers(80, 43, n_models=2, n_seeds=5)
    for part in right:
        part[1] |= part[0]
    low, high = interval(differences(right))
    assert 0 < low < np.mean([part[1].mean() - part[0].mean() for part in right]) < high
    swapped = interval(differences([part[::-1] for part in right]))
    np.testing.assert_allclose(swapped, [-high, -low], atol=1e-9)


def test_models_are_compared_on_the_same_seeds_and_examples() -> None:
    """A hundred examples that both models find hard tell nothing of their difference."""
    right = random_answers(40, n_models=2, n_seeds=4)
    hard = np.zeros((2, 4, 100), bool)
    together = np.concatenate([right[0], hard], axis=2)
    alone, diluted = (np.diff(interval(differences([part])))[0] for part in (right[0], together))
    assert diluted < alone * 0.4


def test_languages_count_alike_whatever_their_size() -> None:
    right = [np.ones((1, 3, 10), bool), np.zeros((1, 3, 990), bool)]
    resampled = resampled_accuracies(right, n_resamples=10, seed=0)
    np.testing.assert_array_equal(resampled.mean(axis=-1), np.full((10, 1), 0.5))


def test_the_same_seed_draws_the_same() -> None:
    right = random_answers(30, n_models=2, n_seeds=3)
    one, again = (resampled_accuracies(right, n_resamples=500, seed=7) for _ in range(2))
    other = resampled_accuracies(right, n_resamples=500, seed=8)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("seed_effect", "least"), [(0.0, 0.97), (0.3, 0.9)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seed_effect: float, least: float) -> None:
    """Five seeds, four languages; a model's skill differs with the seed, and examples differ."""
    n_worlds, n_seeds, n_languages, n = 400, 5, 4, 100

    def answers(generator: np.random.Generator, n_seeds: int, n: int) -> Iterator[NDArray[np.bool_]]:
        skill = np.array([1.0, 1.2])[:, None] + seed_effect * generator.normal(size=(2, n_seeds))
        for _ in range(n_languages):
            logits = skill[..., None] + 2 * generator.normal(size=n)
            yield generator.random((2, n_seeds, n)) < 1 / (1 + np.exp(-logits))

    many = [part.mean(axis=(1, 2)) for part in answers(np.random.default_rng(0), 2000, 500)]
    truth = np.diff(np.mean(many, axis=0))[0]
    n_held = 0
    for world in range(n_worlds):
        right = list(answers(np.random.default_rng(world + 1), n_seeds, n))
        low, high = interval(differences(right, n_resamples=500))
        n_held += low <= truth <= high
    assert least <= n_held / n_worlds


# What a run depends on


def settings_of(*changes: str) -> dict[str, Any]:
    """Give what decides each variant's student, with changes to params.yaml."""
    params = load_params(ROOT / "params.yaml", changes)
    runs = params.ablation.settings(params.student.distill)
    return {name: relevant(runs[name]) for name in VARIANTS}


@pytest.mark.parametrize(
    ("change", "concerned"),
    [
        ("epochs=3", VARIANTS),
        ("class_weights=balanced", VARIANTS),
        ("temperature=9", ["distill", "branches", "mblm"]),
        ("hard_label_weight=0.5", ["distill", "branches", "mblm"]),
        ("branch_layers=1", ["branches", "mblm"]),
        ("mixture.of=logits", ["branches", "mblm"]),
        ("mixture.loss_weight=0.9", ["mblm"]),
        ("mixture.own_branch=true", ["mblm"]),
        ("seed=5", VARIANTS),
        ("save_steps=7", []),
        ("variant=branches", []),
    ],
)
def test_a_changed_parameter_concerns_the_variants_that_use_it(change: str, concerned: list[str]) -> None:
    before, after = settings_of(), settings_of(f"student.distill.{change}")
    assert [name for name in VARIANTS if before[name] != after[name]] == concerned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sweep.runs=[{name: a, changes: {mixture.lambda: 1}}]", "a: mixture.lambda is not a parameter"),
        (
            "sweep.runs=[{name: a, changes: {epochs.x: 1}}]",
            "a: epochs.x is not a parameter of student.distill",
        ),
        ("sweep.runs=[{name: a, changes: {seed: 1}}]", "a: seed is each run's own"),
        ("sweep.runs=[{name: a, changes: {temperature: -1}}]", "a: temperature: Input should be greater"),
        (
            "sweep.runs=[{name: a, changes: {mixture.weights: {de: 1}}}]",
            "a: mixture: weights is {'de': 1.0}, but",
        ),
        (
            "sweep.runs=[{name: a, changes: {mixture.weights: {de: 1, fr: 1}}}]",
            "ablation.sweep.runs: a.mixture.weights is {'de': 1.0, 'fr': 1.0}; it needs one weight for",
        ),
        ("sweep.runs=[{name: mblm, changes: {}}]", "run: mblm is named twice"),
        ("sweep.runs=[{name: a/b, changes: {}}]", "ablation.sweep.runs.0.name is 'a/b'"),
        ("sweep.runs=[]", "ablation.sweep.runs is []: list should have at least 1 item"),
        ("sweep.seeds=[7]", "sweep.seeds: 7 is not among ablation.seeds"),
        ("seeds=[0, 1, 1]", "seeds: 1 is named twice"),
        ("variants=[best]", "ablation.variants.0 is 'best'"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(change: str, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load_params(ROOT / "params.yaml", [f"ablation.{change}"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The whole


@pytest.fixture(scope="module")
def compared_once(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the ablation and its sweep have run; not to be changed."""
    folder = tmp_path_factory.mktemp("ablation") / "work"
    shutil.copytree(finished_once, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = tiny_params()
        params["ablation"]["variants"] = list(VARIANTS)
        write_params(params)
        runs = [(name, seed) for name in VARIANTS for seed in (0, 1)] + [("as-it-is", 1), ("lambda-0.9", 1)]
        for command in (
            ["plan"],
            *(["pretrain", "--seed", str(seed)] for seed in (0, 1)),
            *(["train", "--run", name, "--seed", str(seed)] for name, seed in runs),
            ["compare"],
            ["compare", "--sweep"],
        ):
            patch.setattr(sys, "argv", ["pipeline", "ablation", *command])
            with pytest.raises(SystemExit, match="0"):
                main()
    return folder


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which the ablation has run."""
    folder = tmp_path / "work"
    shutil.copytree(compared_once, folder)
    monkeypatch.chdir(folder)
    return folder


def values_of(table: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ABLATION / f"{table}.json").read_text())
    return values


def test_a_run_with_the_seed_of_the_pipeline_says_what_its_student_says(compared: Path) -> None:
    for run, model in (("finetune-0", "baseline"), ("mblm-0", "student")):
        predictions = ABLATION / "predictions" / f"{run}.arrow"
        assert predictions.read_bytes() == (compared / f"artifacts/predictions/{model}.arrow").read_bytes()
    digest = file_digest(ABLATION / "trunks/0/model.safetensors")
    assert digest == file_digest(compared / "artifacts/trunk/model.safetensors")
    assert digest != file_digest(ABLATION / "trunks/1/model.safetensors")


def test_no_student_is_kept_and_no_test_example_is_shown_to_the_sweep(compared: Path) -> None:
    assert not list(ABLATION.glob("students/*"))
    assert {path.stem for path in ABLATION.glob("sweep/*")} == {"as-it-is-1", "lambda-0.9-1"}
    for folder, splits in (("sweep", {"validation"}), ("predictions", {"validation", "test"})):
        for path in (ABLATION / folder).iterdir():
            table = pa.ipc.open_file(path).read_all()
            assert set(table["split"].to_pylist()) == splits


def test_the_tables_hold_the_accuracies_of_the_runs(compared: Path) -> None:
    task = load_params(Path("params.yaml")).task
    for split in ("test", "validation"):
        values = values_of(split)
        assert (values["split"], values["seeds"], list(values["runs"])) == (split, [0, 1], VARIANTS)
        for run, of_run in values["runs"].items():
            accuracies = np.array(
                [
                    [
                        (one.predicted == one.labels).mean()
                        for language in task.languages
                        for one in [said[language, split]]
                    ]
                    for seed in (0, 1)
                    for said in [read_predictions(task, f"{run}-{seed}", folder=ABLATION / "predictions")]
                ]
            )
            assert of_run["supervised"]["by_seed"] == pytest.approx(accuracies[:, :2].mean(axis=1))
            assert of_run["zero-shot"]["mean"] == pytest.approx(accuracies[:, 2].mean())
            deviation = accuracies[:, 2].std(ddof=1)
            assert of_run["languages"]["nl"]["deviation"] == pytest.approx(deviation)
        teachers = json.loads(Path("artifacts/metrics/teachers/de.json").read_text())
        assert values["teachers"]["languages"]["de"] == teachers[split]["accuracy"]
        assert "zero-shot" not in values["teachers"]


def test_the_tables_can_be_read(compared: Path) -> None:
    text = (ABLATION / "test.md").read_text()
    assert (
        "Test accuracy, mean ± standard deviation of 2 seeds, averaged over 2 supervised and 1 zero" in text
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert lines[0] == ["", "supervised", "over finetune", "zero-shot", "over finetune"]
    assert [line[0] for line in lines if not line[0].startswith("-")] == [
        *("", "teachers", *VARIANTS),
        *("", "de", "en", "nl"),
    ]
    one = values_of("test")["runs"]["mblm"]["zero-shot"]
    low, high = (one["difference"][bound] for bound in ("low", "high"))
    assert low <= one["difference"]["mean"] <= high
    row = next(line for line in lines if line[0] == "mblm")
    assert row[3] == f"{one['mean']:.3f} ± {one['deviation']:.3f}"
    assert row[4] == f"{one['difference']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert len({len(line) for line in text.split("\n\n")[1].splitlines()}) == 1


def test_a_sweep_is_compared_with_its_first_run(compared: Path) -> None:
    values = values_of("sweep")
    assert (values["split"], values["seeds"]) == ("validation", [1])
    assert list(values["runs"]) == ["as-it-is", "lambda-0.9"]
    assert values["runs"]["as-it-is"]["supervised"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    by_variant = values_of("validation")["runs"]["mblm"]["supervised"]
    assert values["runs"]["as-it-is"]["supervised"]["mean"] == by_variant["by_seed"][1]
    assert "Validation accuracy, 1 seed," in (ABLATION / "sweep.md").read_text()


def test_the_plan_changes_with_what_a_run_depends_on(compared: Path, run: Run) -> None:
    def changed(*options: str) -> set[str]:
        before = {path.stem: path.read_bytes() for path in ABLATION.glob("plan/runs/*.json")}
        done = run("ablation", "plan", *options)
        assert done.code == 0, done.err
        after = {path.stem: path.read_bytes() for path in ABLATION.glob("plan/runs/*.json")}
        return {name for name, facts in after.items() if before.get(name) != facts}

    assert changed() == set()
    assert changed("--set", "student.distill.seed=7") == set()  # each run has its own
    assert changed("--set", "student.distill.mixture.loss_weight=0.4") == {"mblm", "as-it-is"}
    more = "ablation.sweep.runs=[{name: as-it-is, changes: {}}, {name: c, changes: {temperature: 1.0}}]"
    assert changed("--set", "student.distill.mixture.loss_weight=0.4", "--set", more) == {"c"}
    changed()
    set_bias(Path("artifacts/teachers/de"), [0.0, 0.1, 0.0])
    run(*LABEL)
    assert changed() == {"distill", "branches", "mblm", "as-it-is", "lambda-0.9"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train --run best --seed 0",
            "'best' is no run of the ablation; these are: finetune, distill, branches, ",
        ),
        (
            "train --run mblm --seed 5",
            "trunks/5 holds no model; make it with: python -m pipeline ablation pretrain --seed 5",
        ),
        (
            "compare --set ablation.seeds=[0,1,2]",
            "write it with: python -m pipeline ablation train --run finetune --seed 2",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(compared: Path, run: Run, command: str, message: str) -> None:
    done = run("ablation", *command.split())
    assert done.code == 1
    assert message in done.err.strip().splitlines()[-1]


# What becomes of the shared layers


@pytest.mark.slow
def test_translations_that_are_the_same_text_are_each_others_neighbours(finished: Path, run: Run) -> None:
    rows = [row | {"entity": str(number)} for number, row in enumerate(examples("en", "test"))]
    for language in ("de", "en", "nl"):
        write_jsonl(finished / f"data/{language}/test.jsonl", rows)
    assert run("prepare").code == 0
    script = [sys.executable, str(ROOT / "docs/trunk.py"), "--n-seeds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(script, env=environment, check=True, capture_output=True, text=True).stdout
    rows_of_table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]]
    assert rows_of_table == [[name, "1.000 ± 0.000", "1.000 ± 0.000"] for name in ("before", *VARIANTS)]
