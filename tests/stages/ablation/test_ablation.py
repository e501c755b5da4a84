"""The ablation: its statistics against what is known of them, and the whole of it on the small task."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from scipy import stats
from tiny import LABEL, ROOT, VARIANTS, Run, examples, set_bias, write_jsonl
from warm import warm_python

from cache import file_digest
from pipeline.params import ParamsError, load_params
from stages.artifacts import ABLATION
from stages.data.examples import SPLITS, read_examples
from stages.data.task import Split, TaskParams
from stages.prepare import prepare
from stages.results.intervals import interval
from stages.results.predictions import read_predictions, write_predictions
from stages.student.variants import relevant

# How sure differences are


def random_differences(*sizes: int, n_seeds: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Make up differences of two models that answer by chance: for each language ``(S, N)``."""
    generator = np.random.default_rng(seed)
    return [generator.integers(-1, 2, size=(n_seeds, n)) for n in sizes]


def different_texts(differences: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Number the texts of all languages, none of which is a translation of another."""
    ends = np.cumsum([part.shape[1] for part in differences])
    return [
        np.arange(end - part.shape[1], end, dtype=np.int64)
        for end, part in zip(ends, differences, strict=True)
    ]


def width(differences: list[NDArray[np.int64]], entities: list[NDArray[np.int64]]) -> float:
    low, high = interval(differences, entities)
    return high - low


def test_an_interval_ends_where_differences_do() -> None:
    differences = [np.array([[1, 1, 0, 0], [-1, -1, 0, 0]])]
    assert interval(differences, different_texts(differences)) == (-1.0, 1.0)


def test_models_that_never_agree_are_not_alike() -> None:
    differences = [np.ones((1, 5), np.int64), -np.ones((1, 5), np.int64)]
    assert width(differences, different_texts(differences)) > 1.5


def test_the_interval_of_one_seed_and_language_is_that_of_a_paired_t_test() -> None:
    differences = random_differences(31, n_seeds=1)
    expected = stats.ttest_1samp(differences[0][0], 0).confidence_interval(0.95)
    assert interval(differences, different_texts(differences)) == pytest.approx(tuple(expected))


def test_seeds_that_agree_by_chance_make_nobody_surer_than_these_seeds_alone() -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(-1, 2, size=200)
    two = [np.stack([one, generator.permutation(one)])]  # the same mean, on other texts
    low, high = interval(two, different_texts(two))
    of_these = two[0].mean(axis=0)
    least = stats.t.ppf(0.975, 199) * of_these.std(ddof=1) / 200**0.5
    assert (high - low) / 2 == pytest.approx(least)


def test_one_text_with_several_examples_says_nothing_of_others() -> None:
    assert interval([np.array([[0, 0, 1]])], [np.zeros(3, np.int64)]) == (-1, 1)


def test_one_text_of_a_language_says_nothing_of_the_average() -> None:
    differences = [np.array([[1]]), random_differences(1000, n_seeds=1)[0]]
    assert interval(differences, different_texts(differences)) == (-1, 1)


def test_seeds_that_differ_by_rounding_alone_are_alike() -> None:
    # Both seeds have the same mean, of languages that add up in another order, on other texts.
    differences = [np.zeros((2, 10), np.int64) for _ in range(3)]
    for part, first, second in zip(differences, (1, 2, 3), (3, 2, 1), strict=True):
        part[0, :first], part[1, -second:] = 1, 1
    assert np.ptp(np.mean([part.mean(axis=1) for part in differences], axis=0)) > 0
    low, high = interval(differences, different_texts(differences))
    assert 0 < low < 0.2 < high < 0.4


def test_where_all_texts_are_alike_the_interval_is_that_of_a_t_test_of_the_seeds() -> None:
    by_seed = np.array([1, 0, 1, -1, 1])
    differences = [np.repeat(by_seed[:, None], n, axis=1) for n in (7000, 4000)]
    low, high = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert high > 1  # which no difference is
    assert interval(differences, different_texts(differences)) == pytest.approx((low, 1.0), rel=1e-4)


def test_the_variance_is_that_of_the_mean_squares_of_seeds_and_texts() -> None:
    """Two-way analysis of variance without replication, as textbooks have it."""
    n_seeds, n = 5, 13
    generator = np.random.default_rng(0)
    answers = generator.normal(size=n) + generator.normal(size=(n_seeds, 1)) / 2
    values = np.sign(answers + generator.normal(size=(n_seeds, n)) / 2).astype(np.int64)
    of_seeds, of_texts = (values.mean(axis=axis, keepdims=True) - values.mean() for axis in (1, 0))
    seeds = n * (of_seeds**2).sum() / (n_seeds - 1)
    texts = n_seeds * (of_texts**2).sum() / (n - 1)
    both = ((values - values.mean() - of_seeds - of_texts) ** 2).sum() / ((n_seeds - 1) * (n - 1))
    assert texts > both
    parts = np.array([seeds, texts - both]) / (n_seeds * n)
    quantile = (parts * stats.t.ppf(0.975, [n_seeds - 1, n - 1])).sum() / parts.sum()
    half = quantile * parts.sum() ** 0.5
    found = interval([values], [np.arange(n)])
    assert found == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_translations_that_are_answered_alike_count_as_one_text(n_seeds: int) -> None:
    one = random_differences(37, n_seeds=n_seeds)
    alone = interval(one, [np.arange(37)])
    order = np.random.default_rng(1).permutation(37)
    together = interval([one[0], one[0][:, order], one[0]], [np.arange(37), order, np.arange(37)])
    assert together == pytest.approx(alone)


def test_different_texts_of_two_languages_have_the_variance_of_independent_means() -> None:
    differences = random_differences(200, 50, n_seeds=1)
    found = width(differences, different_texts(differences))
    alone = [width([part], [np.arange(part.shape[1])]) for part in differences]
    assert found == pytest.approx(
        np.hypot(alone[0], alone[1]) / 2, rel=0.02
    )  # their t quantiles differ a little


def test_partly_aligned_texts_are_between_aligned_and_different_ones() -> None:
    differences = random_differences(100, n_seeds=1) * 2
    aligned = [np.arange(100), np.arange(100)]
    half = [np.arange(100), np.where(np.arange(100) < 50, np.arange(100), np.arange(100) + 100)]
    widths = [width(differences, entities) for entities in (different_texts(differences), half, aligned)]
    assert widths[0] == pytest.approx(widths[2] / 2**0.5)
    assert widths[0] < 0.95 * widths[1] < 0.95 * 0.95 * widths[2]


def test_two_texts_of_an_entity_in_a_language_count_as_one() -> None:
    one = random_differences(40, n_seeds=2)[0]
    twice = interval([np.concatenate([one, one], axis=1)], [np.tile(np.arange(40), 2)])
    assert twice == pytest.approx(interval([one], [np.arange(40)]))


def coverage(sizes: Sequence[int], better: float, worse: float) -> float:
    """Give how often the interval holds the truth: entities of one language, all examples of each alike."""
    generator, n_held = np.random.default_rng(0), 0
    about = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(1000):
        drawn = generator.random(len(sizes))
        of_entities = np.select([drawn < better, drawn < better + worse], [1, -1])
        low, high = interval([of_entities[None, about]], [about])
        n_held += low <= better - worse <= high
    return n_held / 1000


@pytest.mark.parametrize("n", [20, 50, 200])
def test_models_that_rarely_differ_are_no_surer_than_others(n: int) -> None:
    assert coverage([1] * n, 0.03, 0.01) > 0.94


def test_few_entities_of_many_examples_are_few() -> None:
    assert coverage([39] + [1] * 39, 0.3, 0.15) > 0.94


def test_languages_count_alike_whatever_their_size() -> None:
    differences = [np.ones((3, 10), np.int64), np.zeros((3, 990), np.int64)]
    differences[0][:, 0] = 0
    assert np.mean(interval(differences, different_texts(differences))) == pytest.approx(0.45)


@pytest.mark.parametrize("answers", [np.ones((1, 3)), np.ones((3, 3)), np.zeros((1, 1)), np.ones((1, 1))])
def test_a_handful_of_texts_that_agree_say_nothing_of_others(answers: NDArray[np.float64]) -> None:
    differences = [answers.astype(np.int64)]
    assert interval(differences, different_texts(differences)) == (-1.0, 1.0)


def test_models_that_answer_alike_may_differ_in_three_of_as_many_texts() -> None:
    differences = [np.zeros((5, 50), np.int64)]
    half = stats.t.ppf(0.975, 49) * 3**0.5 / 50 * (50 / 49) ** 0.5
    assert interval(differences, different_texts(differences)) == pytest.approx((-half, half))


def test_swapped_models_have_the_opposite_interval() -> None:
    differences = random_differences(80, 43, n_seeds=5)
    entities = different_texts(differences)
    low, high = interval(differences, entities)
    assert interval([-part for part in differences], entities) == pytest.approx((-high, -low))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """The simulation of the documentation, with fewer runs than there."""
    script = [warm_python(), str(ROOT / "docs/coverage.py"), "--n-runs", "300", "--seeds", "1,5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(script, env=environment, check=True, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]]
    assert len(rows) == 16
    for what, texts, *cells in rows:
        shares = [float(cell.removesuffix(" %")) for cell in cells]
        if texts != "translations, not known":
            most = 99.5 if what == "both at once" else 98
            assert all(92 <= share <= most for share in shares), (what, texts, shares)
        elif what == "texts":
            assert max(shares) < 85


# What a run depends on


def settings_of(*changes: str) -> dict[str, Any]:
    """Give what decides each variant's student, with changes to params.yaml."""
    params = load_params(ROOT / "params.yaml", changes)
    runs = params.ablation.settings(params.student.distill)
    return {name: relevant(runs[name]) for name in VARIANTS}


def test_every_run_reports_where_the_student_does() -> None:
    params = load_params(ROOT / "params.yaml", ["student.distill.report_to=[tensorboard]"])
    runs = params.ablation.settings(params.student.distill)
    assert {name: one.report_to for name, one in runs.items()} == {name: ["tensorboard"] for name in runs}


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
            "ablation, run a: student.distill.mixture.weights is {'de': 1.0, 'fr': 1.0}; it needs one weight",
        ),
        ("sweep.runs=[{name: mblm, changes: {}}]", "run: mblm is named twice"),
        ("sweep.runs=[{name: a/b, changes: {}}]", "ablation.sweep.runs.0.name is 'a/b'"),
        ("sweep.runs=[]", "ablation.sweep.runs is []: list should have at least 1 item"),
        ("sweep.seeds=[7]", "sweep.seeds: 7 is not among ablation.seeds"),
        ("seeds=[0, 1, 1]", "seeds: 1 is named twice"),
        (
            "variants=[best]",
            "variants: best is none of linear, finetune, pseudo, distill, branches, mblm; to",
        ),
        (
            "changes={bset: {epochs: 1}}",
            "changes: bset is not among ablation.variants, and none of linear",
        ),
        (
            "changes={mblm: {variant: distill}}",
            "changes: mblm cannot be another variant; give that one a",
        ),
        ("sweep.runs=[{name: linear}]", "sweep.runs: linear is the name of a variant; give the run another"),
        ("changes={mblm: {epoch: 1}}", "ablation.changes.mblm: epoch is not a parameter of student.distill"),
        (
            "variants=[x] ablation.changes={x: {variant: best}}",
            "ablation.changes.x: variant: Input should be 'linear', ",
        ),
    ],
)
def test_what_is_wrong_in_the_section_is_named(change: str, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load_params(ROOT / "params.yaml", [f"ablation.{one}" for one in change.split(" ablation.")])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The whole


def values_of(table: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ABLATION / f"{table}.json").read_text())
    return values


def test_a_run_with_the_seed_of_the_pipeline_says_what_its_student_says(compared: Path) -> None:
    for run, model in (("finetune-0", "baseline"), ("mblm-0", "student")):
        predictions = ABLATION / "predictions" / f"{run}.arrow"
        of_pipeline = compared / f"artifacts/predictions/{model}.arrow"
        assert pa.ipc.open_file(predictions).read_all() == pa.ipc.open_file(of_pipeline).read_all()
    digest = file_digest(ABLATION / "encoders/0/model.safetensors")
    assert digest == file_digest(compared / "artifacts/encoder/model.safetensors")
    assert digest != file_digest(ABLATION / "encoders/1/model.safetensors")


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
    assert [line[0] for line in lines if not line[0].startswith(":-")] == [
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


def entities_known(task: TaskParams, known: set[Split]) -> None:
    """Prepare the same data again, with a row's number for its entity in the splits that are named."""
    for language in task.languages:
        for split in SPLITS:
            path = Path(f"data/{language}/{split}.jsonl")
            if path.is_file():
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for number, row in enumerate(rows):
                    row |= {"entity": str(number)} if split in known else {}
                write_jsonl(path, rows)
    prepare(task)


def answered_alike(task: TaskParams, run: str, seed: int, right: NDArray[np.bool_]) -> None:
    """Write predictions of a run that are right on the same rows ``(N,)`` in all languages."""
    said = []
    for one in read_predictions(task, f"{run}-{seed}", folder=ABLATION / "predictions").values():
        wanted = (one.labels + ~right[: len(one.labels)]) % len(task.classes)
        said.append(one._replace(logits=np.eye(len(task.classes), dtype=np.float32)[wanted]))
    write_predictions(task, f"{run}-{seed}", said, folder=ABLATION / "predictions")


def test_translations_make_an_average_no_surer_than_one_language(compared: Path, run: Run) -> None:
    task = load_params(Path("params.yaml")).task
    generator = np.random.default_rng(0)
    for name in VARIANTS:
        for seed in (0, 1):
            answered_alike(task, name, seed, generator.random(1000) < 0.6)

    def widths(split: str) -> tuple[float, float]:
        of_run = values_of(split)["runs"]["mblm"]
        found = [
            one["difference"]["high"] - one["difference"]["low"]
            for one in (of_run["supervised"], of_run["languages"]["de"])
        ]
        return found[0], found[1]

    entities_known(task, {"test"})
    one_seed = ("--set", "ablation.seeds=[0]", "--set", "ablation.sweep.seeds=[0]")
    assert run("ablation", "compare", *one_seed).code == 0
    average, language = widths("test")
    assert average == pytest.approx(language)
    assert "translations of a text count as one." in (ABLATION / "test.md").read_text()
    average, language = widths("validation")
    assert average == pytest.approx(language / 2**0.5)
    assert "of which none is known to be a translation" in (ABLATION / "validation.md").read_text()
    n_validation = sum(read_examples(task, x, "validation").num_rows for x in task.languages)
    assert values_of("validation")["entities"] == n_validation
    assert values_of("test")["entities"] == read_examples(task, "de", "test").num_rows


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


def test_a_change_of_a_part_of_a_section_leaves_the_rest_of_it() -> None:
    params = load_params(
        ROOT / "params.yaml",
        [
            "student.distill.mixture={weights: uniform, own_branch: true}",
            "ablation.variants=[finetune, nested]",
            "ablation.changes={nested: {variant: mblm, mixture: {loss_weight: 0.5}}, idle: {variant: mblm}}",
        ],
    )
    settings = params.ablation.settings(params.student.distill)
    assert set(settings) >= {"finetune", "nested"}
    assert "idle" not in settings
    weights = {"variant": "mblm", "mixture.weights": {"de": 0.5, "fr": 0.5}}
    both = params.ablation.model_copy(
        update={"changes": {"nested": weights | {"mixture.weights.de": 0.9, "mixture.weights.fr": 0.1}}}
    )
    assert both.settings(params.student.distill)["nested"].mixture.weights == {"de": 0.9, "fr": 0.1}
    mixture = settings["nested"].mixture
    assert (mixture.weights, mixture.own_branch, mixture.loss_weight) == ("uniform", True, 0.5)


@pytest.mark.parametrize("command", ["pretrain", "train --run mblm"])
def test_a_seed_that_no_generator_takes_is_refused(run: Run, command: str) -> None:
    done = run("ablation", *command.split(), "--seed", str(2**32))
    assert (done.code, "should be less than or equal to 4294967295" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train --run best --seed 0",
            "'best' is no run of the ablation; these are: finetune, distill, branches, ",
        ),
        (
            "train --run mblm --seed 5 --set ablation.seeds=[1,5]",
            "encoders/5 holds no model; make it with: python -m pipeline ablation pretrain --seed 5",
        ),
        ("train --run mblm --seed 5", "5 is not in ablation.seeds, [0, 1]; add it there, or name another"),
        ("train --run as-it-is --seed 0", "0 is not in ablation.sweep.seeds, [1]; add it there, or name"),
        ("pretrain --seed 7", "7 is not in ablation.seeds, [0, 1]; add it there, or name another --seed"),
        (
            "plan --set task.supervised=[de]",
            "names only de; add a language, leave mblm out of student.distill.variant and ablation",
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


def test_a_student_whose_evaluation_was_interrupted_is_not_trained_again(compared: Path, run: Run) -> None:
    train = ("ablation", "train", "--run", "mblm", "--seed", "1")
    predictions = ABLATION / "predictions/mblm-1.arrow"
    whole = pa.ipc.open_file(predictions.read_bytes()).read_all()
    predictions.unlink()
    texts = Path("artifacts/data/nl/test.arrow")
    content = texts.read_bytes()
    texts.write_bytes(content[:100])
    assert run(*train).code == 1
    texts.write_bytes(content)
    changed = run(*train, "--set", "student.distill.learning_rate=0.002")
    assert "has trained it" not in changed.err
    texts.write_bytes(content[:100])
    assert run(*train).code == 1
    texts.write_bytes(content)
    done = run(*train)
    assert (done.code, "mblm-1: a run that was interrupted has trained it" in done.err) == (0, True)
    assert pa.ipc.open_file(predictions).read_all() == whole
    assert not list(ABLATION.glob("students/*"))


def test_a_run_without_a_language_is_named(compared: Path, run: Run) -> None:
    """Such as one that was trained before the language was added to the task."""
    path = ABLATION / "predictions/mblm-1.arrow"
    whole = path.read_bytes()
    said = pa.ipc.open_file(whole).read_all()
    kept = said.filter(pc.not_equal(said["language"].cast("string"), "nl"))
    try:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, kept.schema) as writer:
            writer.write_table(kept)
        done = run("ablation", "compare")
    finally:
        path.write_bytes(whole)
    assert (done.code, "run mblm-1 has no predictions of nl/validation; train" in done.err) == (1, True)


# What becomes of the shared layers


@pytest.mark.slow
def test_translations_that_are_the_same_text_are_each_others_neighbours(finished: Path, run: Run) -> None:
    rows = [row | {"entity": str(number)} for number, row in enumerate(examples("en", "test"))]
    for language in ("de", "en", "nl"):
        write_jsonl(finished / f"data/{language}/test.jsonl", rows)
    assert run("prepare").code == 0
    script = [warm_python(), str(ROOT / "docs/trunk.py"), "--n-seeds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(script, env=environment, check=True, capture_output=True, text=True).stdout
    rows_of_table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]]
    assert rows_of_table == [[name, "1.000 ± 0.000", "1.000 ± 0.000"] for name in ("before", *VARIANTS)]
