"""Classes are matched by name, and a wrong match is noticed on labelled examples."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.data.classes import check_class_order, match_classes
from stages.errors import StageError

Labels = NDArray[np.int64]
NLI = ["entailment", "neutral", "contradiction"]


def match(teacher: list[str], task: list[str], names: dict[str, str] | None = None) -> list[int]:
    order: list[int] = match_classes(teacher, task, names=names, language="de").tolist()
    return order


def test_classes_are_matched_by_name_not_by_position() -> None:
    assert match(["neutral", "contradiction", "entailment"], NLI) == [2, 0, 1]


def test_case_separators_and_usual_synonyms_do_not_matter() -> None:
    assert match(["CONTRADICTORY", "Neutral", "Entailment"], NLI) == [2, 1, 0]
    assert match(["not_duplicate", "duplicate"], ["paraphrase", "not paraphrase"]) == [1, 0]
    assert match(["5__stars", "1-star"], ["1 star", "5 Stars"]) == [1, 0]
    names = ["राजनीति समाचार", "health (general)", "c++ code", "business & finance", "sci tech"]
    given = ["राजनीति_समाचार", "Health_(general)", "C++_code", "business_&_finance", "Sci - Tech"]
    assert match(given, names) == [0, 1, 2, 3, 4]


def test_signs_are_a_part_of_a_name() -> None:
    assert match(["1", "-1", "0"], ["-1", "0", "1"]) == [1, 2, 0]
    assert match(["a", "a-", "b"], ["A-", "A", "B"]) == [1, 0, 2]


def test_unnamed_classes_are_refused_unless_mapped() -> None:
    unnamed = ["LABEL_0", "LABEL_1", "LABEL_2"]
    with pytest.raises(StageError, match=r"does not name its classes .*teachers.de.labels: \{LABEL_0: ent"):
        match(unnamed, NLI)
    names = {"LABEL_0": "contradiction", "LABEL_1": "entailment", "LABEL_2": "neutral"}
    assert match(unnamed, NLI, names) == [1, 2, 0]


@pytest.mark.parametrize(
    ("teacher", "names", "message"),
    [
        (["entailment", "neutral"], None, r"has 2 classes \(entailment, neutral\), the task has 3"),
        (["entailment", "neutral", "joke"], None, "has no class 'contradiction' among entailment"),
        (NLI, {"entails": "neutral"}, "the teacher has no class entails"),
        (NLI, {"neutral": "entailment"}, "has no class 'neutral'"),
    ],
)
def test_classes_without_a_counterpart_are_refused(
    teacher: list[str], names: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        match(teacher, NLI, names)


def predictions(accuracy: float, *, n: int = 300, seed: int = 0, n_classes: int = 3) -> tuple[Labels, Labels]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=n)
    noise = generator.integers(n_classes, size=n)
    return np.where(generator.random(n) < accuracy, labels, noise), labels


def check(predicted: Labels, labels: Labels, classes: list[str] = NLI) -> None:
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (predicted, labels), 1)
    check_class_order(confusion, classes=classes, names=[f"{name} de" for name in classes], language="de")


@pytest.mark.parametrize("swap", [[1, 0, 2], [1, 2, 0], [2, 1, 0]])
def test_a_permuted_class_order_is_noticed_and_printed(swap: list[int]) -> None:
    predicted, labels = predictions(0.8)
    with pytest.raises(
        StageError, match=r"right on .*%.*but on 8\d.\d% if its classes are read as"
    ) as caught:
        check(np.array(swap)[predicted], labels)
    for wrong, right in zip(swap, range(3), strict=True):
        assert wrong == right or f"{NLI[wrong]} de: {NLI[right]}" in str(caught.value)


@pytest.mark.parametrize("accuracy", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_the_declared_order_passes_however_weak_the_teacher(accuracy: float, seed: int) -> None:
    for n in (9, 30, 300):
        check(*predictions(accuracy, n=n, seed=seed))


@pytest.mark.parametrize("seed", range(10))
def test_many_classes_are_told_from_noise(seed: int) -> None:
    intents = [f"intent {i}" for i in range(40)]
    for accuracy in (0.0, 0.1, 0.2):
        check(*predictions(accuracy, n=960, seed=seed, n_classes=40), intents)
    predicted, labels = predictions(0.4, n=960, seed=seed, n_classes=40)
    with pytest.raises(StageError, match="if its classes are read as"):
        check(np.roll(np.arange(40), 1)[predicted], labels, intents)


def test_a_teacher_that_always_says_the_same_passes() -> None:
    _, labels = predictions(0.5)
    check(np.full_like(labels, 1), np.minimum(labels, 1) * 2)
