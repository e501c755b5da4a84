"""Whether the teachers know more than the baseline: on the page, and in the line of `student evaluate`."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from page_reader import percent, read_page
from scipy import stats
from scipy.special import softmax
from tiny import Run, examples, write_jsonl

from cache import SoftLabels, SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.data.examples import SPLITS, read_examples
from stages.page.taught import read_taught
from stages.results.predictions import read_predictions, write_predictions
from stages.results.premise import Gain, premise
from stages.results.teachers import said_by

CAPTION = "Teachers and finetune on validation data"


def test_the_page_compares_them_first_of_all(varied: Path) -> None:
    params = load_params(Path("params.yaml"))
    rows = read_page().table(CAPTION)
    assert list(rows) == [*params.task.supervised, "average"]
    baseline = read_predictions(params.task, "baseline")
    for language in params.task.supervised:
        taught = read_taught(params.task, params.teachers[language], language)
        own = baseline[language, "validation"]
        row = rows[language]
        assert row["teachers"] == percent(taught.accuracy["validation"])
        assert row["teachers on their training texts"] == percent(taught.accuracy["train"])
        assert row["finetune"] == percent(float((own.predicted == own.labels).mean()))
        of_teachers = taught.accuracy["validation"] - float((own.predicted == own.labels).mean())
        assert row["teachers over finetune"].startswith(
            f"{100 * of_teachers:+.1f} points [".replace("-", "−")
        )
    assert read_page().texts.index(("h2", "Do the teachers know more?")) < read_page().texts.index(
        ("h2", "Accuracy per language")
    )


def test_the_interval_of_one_language_is_that_of_a_paired_t_test(varied: Path) -> None:
    params = load_params(Path("params.yaml"))
    task = params.task
    labels = {
        language: read_examples(task, language, "validation")["label"].to_numpy() for language in ("de", "en")
    }
    generator = np.random.default_rng(0)
    said = read_predictions(task, "baseline")
    for (language, split), one in said.items():
        if split == "validation" and language in labels:
            guessed = generator.integers(len(task.classes), size=len(one.logits))
            said[language, split] = one._replace(logits=np.eye(len(task.classes), dtype=np.float32)[guessed])
    write_predictions(task, "baseline", said.values())
    gains = premise(task, params.teachers, read_predictions(task, "baseline"), keep_best=False)
    taught = read_taught(task, params.teachers["de"], "de")
    assert taught.accuracy["validation"] == 1  # so that a difference is 1 where the baseline is wrong
    own = said["de", "validation"]
    differences = 1.0 - (own.predicted == labels["de"])
    n = len(differences)
    error = max(differences.var(ddof=1) / n, 3 / n / (n - 1)) ** 0.5  # as if three texts differed
    bounds = stats.t.interval(0.95, n - 1, differences.mean(), error)
    found = gains.languages["de"]
    assert (found.low, found.high) == pytest.approx(tuple(np.clip(bounds, -1, 1)))  # no difference is larger
    assert found.mean == pytest.approx(differences.mean())
    assert gains.average.mean == pytest.approx(np.mean([one.mean for one in gains.languages.values()]))
    logits = said_by(task, params.teachers["de"], "de", ["validation"]).together()
    assert found.confidence == pytest.approx(softmax(logits.astype(np.float64), axis=1).max(axis=1).mean())


def test_a_run_whose_training_texts_have_no_soft_label_is_told(finished: Path, run: Run) -> None:
    rows = [{**row, "text": f"{row['text']} anew"} for row in examples("de", "train")]
    write_jsonl(Path("data/de/train.jsonl"), rows)
    assert run("prepare").code == 0
    why = "no training text of 'de' has a soft label; write them with: python -m pipeline teacher label"
    assert why in run("student", "evaluate").out
    done = run("report")
    assert (done.code, why in done.err) == (1, True)


def test_the_temperature_makes_teachers_as_sure_as_they_are_right(varied: Path) -> None:
    params = load_params(Path("params.yaml"))
    tables = {split: read_examples(params.task, "de", split) for split in SPLITS}
    shown = {split: table["label"].to_numpy().copy() for split, table in tables.items()}
    n = len(shown["validation"])
    shown["validation"][0] = (shown["validation"][0] + 1) % 3  # one of them is wrong
    ids = pa.concat_tables(tables.values())["example_id"].combine_chunks()
    soft_labels = SoftLabels.pack(ids, np.eye(3, dtype=np.float32)[np.concatenate(list(shown.values()))] / 2)
    producer = SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0]
    SoftLabelSet.write(SOFT_LABELS / "de", language="de", parts=[(producer, soft_labels)])
    found = premise(
        params.task, params.teachers, read_predictions(params.task, "baseline"), keep_best=False
    ).languages["de"]
    assert found.confidence == pytest.approx(1 / (1 + 2 * np.exp(-0.5)))
    # One logit above two equal ones is most likely where it is right in n - 1 of n cases.
    assert found.temperature == pytest.approx(0.5 / np.log(2 * (n - 1)), rel=1e-3)


def test_the_temperature_of_several_teachers_is_of_what_they_say_together_at_it(varied: Path) -> None:
    params = load_params(Path("params.yaml"))
    tables = {split: read_examples(params.task, "de", split) for split in SPLITS}
    labels = {split: table["label"].to_numpy() for split, table in tables.items()}
    ids = pa.concat_tables(tables.values())["example_id"].combine_chunks()
    producer = SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0]
    numbers, said = np.random.default_rng(0), []
    for place in (SOFT_LABELS / "de", SOFT_LABELS / "de/more-1"):
        logits = numbers.normal(size=(len(ids), 3)) + 0.8 * np.eye(3)[np.concatenate(list(labels.values()))]
        SoftLabelSet.write(
            place, language="de", parts=[(producer, SoftLabels.pack(ids, logits.astype(np.float32)))]
        )
        start = len(labels["train"])
        said.append(logits[start : start + len(labels["validation"])])
    german = params.teachers["de"]
    teachers = params.teachers | {"de": german.model_copy(update={"more": [german]})}
    found = premise(
        params.task, teachers, read_predictions(params.task, "baseline"), keep_best=False
    ).languages["de"]

    def loss(temperature: float) -> float:
        probs = np.mean([softmax(one / temperature, axis=1) for one in said], axis=0)
        return -float(np.log(probs[np.arange(len(probs)), labels["validation"]]).mean())

    assert 0 < loss(found.temperature) < min(loss(0.97 * found.temperature), loss(1.03 * found.temperature))


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [(0.01, 0.1, "are better than"), (-0.1, -0.01, "are worse than"), (-0.1, 0.1, "cannot be told apart")],
)
def test_a_difference_is_read_by_its_interval(low: float, high: float, reading: str) -> None:
    assert reading in Gain(0.5, 0.5, 1, 0.5, low, high, 0.6, only_labelled=True, chosen=False).reading()


@pytest.mark.parametrize("low", [0.01, -0.1])
def test_teachers_whose_epochs_these_texts_chose_only_look_better(low: float) -> None:
    reading = Gain(0.5, 0.5, 1, 0.5, low, 0.1, 0.6, only_labelled=True, chosen=True).reading()
    assert ("teachers look better than" in reading) == (low > 0)
    assert reading.endswith("; these texts chose the epochs of the teachers, which favours them")


@pytest.mark.parametrize(("by_heart", "only_labelled"), [(0.98, True), (0.98, False), (0.93, True)])
def test_better_teachers_that_know_all_there_is_by_heart_may_not_be_enough(
    by_heart: float, only_labelled: bool
) -> None:
    reading = Gain(
        0.9, 0.9, 1, 0.8, 0.05, 0.15, by_heart, only_labelled=only_labelled, chosen=False
    ).reading()
    is_told = by_heart == 0.98 and only_labelled
    assert (
        "but know 98% of the training texts by heart: texts without labels, or folds" in reading
    ) == is_told
    assert ("by heart" in reading) == is_told


@pytest.mark.parametrize(("confidence", "is_told"), [(0.47, True), (0.85, False), (0.99, False)])
def test_better_teachers_that_are_far_from_sure_may_teach_their_doubts(
    confidence: float, is_told: bool
) -> None:
    reading = Gain(0.9, confidence, 0.458, 0.8, 0.05, 0.15, 0.93, only_labelled=True, chosen=False).reading()
    assert ("but only 47% sure on average" in reading) == is_told
    assert ("at a student.distill.temperature of 0.5, they would be as sure" in reading) == is_told


def test_evaluate_says_it_in_its_line_and_needs_no_soft_labels_for_the_rest(finished: Path, run: Run) -> None:
    done = run("student", "evaluate")
    assert done.code == 0
    last = done.out.strip().splitlines()[-1]
    assert last.startswith("teachers over finetune, validation: ")
    assert " points [" in last
    alike = "the encoder fine-tuned on the labels cannot be told apart"
    assert last.endswith(f"{alike}; these texts chose the epochs of the teachers, which favours them")
    fair = run("student", "evaluate", "--set", "teacher.finetune.keep=last").out
    assert fair.strip().endswith(alike)
    done = run("student", "evaluate", "--set", "teachers.de.labels={one: animal}")
    assert done.code == 0
    assert "validation: not known: " in done.out
    shutil.rmtree(SOFT_LABELS)
    done = run("student", "evaluate")
    assert done.code == 0
    assert "teachers over finetune, validation: not known: " in done.out
