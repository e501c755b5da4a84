"""Teachers without a model, and several teachers of one language: by weight, by confidence, by a column."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import read_page
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy
from tables import write
from tiny import CLASSES, SIZES, Run, examples, tiny_params, write_jsonl, write_params

from cache import SoftLabelSet, example_ids
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.errors import StageError
from stages.page.tables import percent
from stages.page.taught import read_taught
from stages.results.averages import average_teachers
from stages.student.taught import taught_texts
from stages.teacher.folds import Fold
from stages.teacher.labelling.audit import Current

Array = np.ndarray[Any, Any]
LABEL = ("teacher", "label", "--language", "de")
FINETUNE = ("teacher", "finetune", "--language", "de")


def likely(split: str, seed: int = 0) -> Array:
    """Probabilities of one split's German texts; shape ``(N, 3)``."""
    logits = np.random.default_rng([seed, list(SIZES).index(split)]).normal(size=(SIZES[split], 3))
    logits[np.arange(SIZES[split]), [CLASSES.index(row["label"]) for row in examples("de", split)]] += 4
    probs: Array = softmax(logits, axis=1)
    return probs


def write_soft(path: str, *splits: str, seed: int = 0) -> None:
    rows = [
        {"text": row["text"], "probabilities": dict(zip(CLASSES, probs.tolist(), strict=True))}
        for split in splits
        for row, probs in zip(examples("de", split), likely(split, seed), strict=True)
    ]
    write_jsonl(Path(path), rows)


def set_german(teacher: dict[str, Any], *, source: dict[str, Any] | None = None) -> None:
    params = tiny_params()
    params["teachers"]["de"] = teacher
    params["task"]["source"] |= source or {}
    write_params(params)


def taught(language: str = "de", numbers: str = "teacher_logits", **changes: Any) -> Array:
    """What the student learns of a language's N training texts."""
    params = load_params(Path("params.yaml"))
    distill = params.student.distill.model_copy(update={"temperature": 1.0, **changes})
    texts = taught_texts(params.task, params.teachers, distill).texts
    of_language = texts.numbers["language_ids"] == params.task.supervised.index(language)
    found: Array = texts.numbers[numbers][of_language]
    return found


# A file


def test_a_file_of_an_unknown_kind_is_refused(finished: Path, run: Run) -> None:
    Path("data/soft.xlsx").write_bytes(b"PK")
    set_german({"soft_labels": "data/soft.xlsx"})
    assert run(*FINETUNE).code == 0
    assert run(*LABEL).err == (
        "error: cannot read data/soft.xlsx: it is not one of .csv, .tsv, .jsonl, .json, .parquet\n"
    )


def test_a_file_is_a_teacher(finished: Path, run: Run) -> None:
    write_soft("data/soft.jsonl", *SIZES)
    set_german({"soft_labels": {"file": "data/soft.jsonl", "facts": {"name": "crowd", "licence": "CC-BY"}}})
    assert run(*FINETUNE).out == "teacher 'de': the soft labels in data/soft.jsonl, pinned\n"
    assert run(*LABEL).out.startswith("de: 57 soft labels, 0 of them new; the teacher's accuracy: train ")
    np.testing.assert_allclose(taught(), np.log(likely("train")), rtol=1e-5)
    for command in (["student", "distill"], ["student", "evaluate"], ["report"]):
        assert run(*command).code == 0
    card = Path("artifacts/student/README.md").read_text().replace("\\", "")
    assert "data/soft.jsonl (licence: CC-BY, name: crowd)" in card
    assert read_page().table("Who wrote the soft labels")["de"]["reads"] == "licence: CC-BY, name: crowd"
    assert not list(Path("artifacts/teachers/de").glob("*.safetensors"))


def test_a_file_of_training_texts_alone_is_enough(finished: Path, run: Run) -> None:
    write_soft("data/soft.jsonl", "train")
    set_german({"soft_labels": "data/soft.jsonl"})
    assert run(*FINETUNE).code == 0
    done = run(*LABEL)
    assert "36 soft labels" in done.out
    assert "covered: validation 0%, test 0%" in done.out
    metrics = json.loads(Path("artifacts/metrics/teachers/de.json").read_text())
    assert (set(metrics), metrics["train"]["coverage"]) == ({"train"}, 1)
    for command in (["student", "distill"], ["student", "evaluate"], ["report"]):
        assert run(*command).code == 0
    lines = Path("artifacts/report/accuracy.md").read_text(encoding="utf-8").splitlines()
    teacher = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in lines[2:]}
    assert teacher["de"] == teacher["**supervised average**"] == "–"  # English alone is no average to compare
    assert 0 <= float(teacher["en"]) <= 1
    quality = read_page().table("Teachers against the hard labels")["de"]
    assert (quality["accuracy, test"], quality["covered, test"], quality["temperature"]) == (
        "–",
        "0.0 %",
        "–",
    )
    cost = read_page().table("Soft labels, and forward passes of the teachers")["de"]
    assert cost["of them with a soft label"] == percent(SIZES["train"] / sum(SIZES.values()))
    assert cost["passes without the cache"] == "0"
    assert set(read_page().table("Teachers and finetune on validation data")) == {"en", "average"}
    assert set(read_page().table("Student and teacher")) == {"en"}


def test_no_soft_label_of_a_validation_text_is_no_end_of_a_report(finished: Path, run: Run) -> None:
    params = tiny_params()
    for language in ("de", "en"):
        rows = [
            {"text": row["text"], "votes": {row["label"]: 3, CLASSES[0]: 1}}
            for row in examples(language, "train")
        ]
        write_jsonl(Path(f"data/soft-{language}.jsonl"), rows)
        params["teachers"][language] = {"soft_labels": f"data/soft-{language}.jsonl"}
    write_params(params)
    for language in ("de", "en"):
        assert run("teacher", "finetune", "--language", language).code == 0
        assert run("teacher", "label", "--language", language).code == 0
    assert run("student", "distill").code == 0
    done = run("student", "evaluate")
    assert "not known: no validation text of a supervised language has soft labels" in done.out
    assert run("report").code == 0
    assert "No validation text has soft labels" in Path("artifacts/report/report.html").read_text()
    assert "No test text of a supervised language" in Path("artifacts/report/report.html").read_text()


def test_every_training_text_needs_a_soft_label(finished: Path, run: Run) -> None:
    write_soft("data/soft.jsonl", *SIZES)
    lines = Path("data/soft.jsonl").read_text().splitlines()
    Path("data/soft.jsonl").write_text("\n".join(lines[2:]) + "\n")
    set_german({"soft_labels": "data/soft.jsonl"})
    assert run(*FINETUNE).code == 0
    done = run(*LABEL)
    first = examples("de", "train")[0]["text"]
    assert done.err == (
        "error: data/soft.jsonl has no soft label for 2 of the 36 texts of 'de' that teach the student, "
        f"such as '{first}'\n"
    )


def test_a_file_that_changed_is_pinned_again(finished: Path, run: Run) -> None:
    write_soft("data/soft.jsonl", *SIZES)
    set_german({"soft_labels": "data/soft.jsonl"})
    assert run("plan").code == run(*FINETUNE).code == run(*LABEL).code == 0
    assert run("plan").out.strip().endswith("none with other parameters than before")
    write_soft("data/soft.jsonl", *SIZES, seed=1)
    assert "data/soft.jsonl is not the file that was pinned" in run(*LABEL).err
    assert run("plan").out.strip().endswith("with other parameters than before: teacher-finetune@de")
    assert run(*FINETUNE).code == run(*LABEL).code == 0
    np.testing.assert_allclose(taught(), np.log(likely("train", 1)), rtol=1e-5)
    Path("data/soft.jsonl").unlink()
    assert "teachers.de.soft_labels is data/soft.jsonl, which is not there" in run(*FINETUNE).err


def test_a_file_with_classes_in_another_order_is_refused(finished: Path, run: Run) -> None:
    rows = [
        {"text": row["text"], "probabilities": probs.tolist()}
        for split in SIZES
        for row, probs in zip(examples("de", split), likely(split), strict=True)
    ]
    write_jsonl(Path("data/soft.jsonl"), rows)
    set_german({"soft_labels": {"file": "data/soft.jsonl", "classes": ["colour", "number", "animal"]}})
    assert run(*FINETUNE).code == 0
    assert "if its classes are read as" in run(*LABEL).err
    set_german({"soft_labels": {"file": "data/soft.jsonl", "classes": CLASSES}})
    assert run(*LABEL).code == 0


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({}, "a teacher is one of base, soft_labels, producer and endpoint, and none is given"),
        ({"base": "scratch", "producer": "x"}, "and base and producer are both given"),
        ({"soft_labels": "soft.jsonl"}, "teachers.de.soft_labels.file"),
        ({"soft_labels": {"field": "x", "values": "votes"}}, "field describes a file; name it with file"),
        ({"soft_labels": {}}, "say values: logits, log_probabilities, probabilities or votes"),
        ({"soft_labels": "data/a.jsonl", "folds": 2}, "folds is 2, but nobody knows what a teacher has seen"),
        ({"base": "scratch", "weight": 0}, "teachers.de.weight"),
        (
            {"base": "scratch", "name": "a", "more": [{"base": "scratch", "name": "a"}]},
            "two teachers are called 'a'",
        ),
        ({"base": "scratch", "combine": "median"}, "teachers.de.combine"),
    ],
)
def test_a_teacher_that_is_none_is_refused(
    workspace: Path, run: Run, teacher: dict[str, Any], said: str
) -> None:
    set_german(teacher)
    done = run("plan")
    assert (done.code, said in done.err, done.err.count("\n")) == (1, True, 1)


# The store


def test_a_producer_of_the_store_is_a_teacher(finished: Path, run: Run) -> None:
    before = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    assert run("cache", "name", before.producers[0].id[:12], "de@1").code == 0
    expected = taught()
    set_german({"producer": "de@1"})
    id_ = before.producers[0].id
    assert (
        run(*FINETUNE).out == f"teacher 'de': the soft labels of producer {id_[:12]} in the store, pinned\n"
    )
    # The name may become another's: what was pinned stays what it is.
    assert run("cache", "name", id_, "de@0").code == 0
    assert run(*LABEL).code == 0
    after = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    assert [one.id for one in after.producers] == [one.id for one in before.producers]
    np.testing.assert_array_equal(taught(), expected)
    set_german({"producer": "fr@1"})
    assert "no producer in" in run(*FINETUNE).err


def test_another_producer_than_the_pinned_one_is_refused(finished: Path, run: Run) -> None:
    ids = {one: SoftLabelSet.read(SOFT_LABELS / one, language=one).producers[0].id for one in ("de", "en")}
    set_german({"producer": ids["de"]})
    assert run(*FINETUNE).code == run(*LABEL).code == 0
    assert run("cache", "name", ids["en"], "en@1").code == 0
    for other in (ids["en"], ids["en"][:9], "en@1", "0" * 64):
        set_german({"producer": other})
        assert run(*LABEL).err == (
            f"error: '{other}' is not the producer that was pinned; pin it again with: "
            "python -m pipeline teacher finetune --language de\n"
        )


def test_a_producer_that_lacks_a_training_text_says_so(finished: Path, run: Run) -> None:
    producer = SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0]
    rows = [*examples("de", "train"), {"text": "noch einer", "label": "animal"}]
    write_jsonl(Path("data/de/train.jsonl"), rows)
    assert run("prepare").code == 0
    set_german({"producer": producer.id[:16]})
    assert run(*FINETUNE).code == 0
    assert "has no soft label for 1 of the 37 texts of 'de' that teach" in run(*LABEL).err


def test_the_store_calls_a_teacher_as_params_do(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["teachers"]["de"]["name"] = params["teachers"]["en"]["name"] = "both@1"
    write_params(params)
    assert run(*LABEL).code == 0
    assert "both@1" in run("cache", "ls").out
    done = run("teacher", "label", "--language", "en")
    assert done.code == 0
    assert "'both@1' is producer" in done.err
    assert "goes without this name" in done.err


def test_a_producer_keeps_the_name_that_it_has(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["teachers"]["de"]["name"] = "de@2"
    write_params(params)
    id_ = SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0].id
    assert run("cache", "name", id_, "de@1").code == 0
    done = run(*LABEL)
    assert (
        f"{id_[:12]} keeps its name 'de@1'; to call it 'de@2', type: python -m pipeline cache name "
        f"{id_[:12]} de@2\n"
    ) in done.err
    assert "de@1" in run("cache", "ls").out
    assert run("cache", "name", id_, "de@2").code == 0
    assert "keeps its name" not in run(*LABEL).err


# A column of the data


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("field", ["votes", "votes_{class}"])
def test_a_column_of_the_data_is_a_teacher(workspace: Path, run: Run, field: str, suffix: str) -> None:
    for language in ("en", "nl"):
        for path in Path("data", language).glob("*.jsonl"):
            write(
                path.with_suffix(f".{suffix}"), [json.loads(line) for line in path.read_text().splitlines()]
            )
    for split in SIZES:
        rows = []
        for row in examples("de", split):
            votes = {name: 3 if name == row["label"] else 1 for name in CLASSES}
            extra = (
                {"votes": votes} if field == "votes" else {f"votes_{name}": n for name, n in votes.items()}
            )
            rows.append(row | (extra if split == "train" else {}))  # other files need no such column
        write(Path(f"data/de/{split}.{suffix}"), rows)
    source = {"soft_label_field": field, "pattern": f"data/{{language}}/{{split}}.{suffix}"}
    set_german({"soft_labels": {"values": "votes"}}, source=source)
    assert run("prepare").code == 0
    assert run(*FINETUNE).out == "teacher 'de': the soft labels in its data, pinned\n"
    assert "36 soft labels" in run(*LABEL).out
    found = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    ids = example_ids([[row["text"] for row in examples("de", "train")]])
    labels = [CLASSES.index(row["label"]) for row in examples("de", "train")]
    expected = np.full((36, 3), 0.2) + 0.4 * np.eye(3)[labels]
    np.testing.assert_allclose(softmax(found.join(ids).logits, axis=1), expected, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_votes_for_some_classes_alone_are_refused(suffix: str, workspace: Path, run: Run) -> None:
    for language, split in ((one, split) for one in ("de", "en", "nl") for split in SIZES):
        write(Path(f"data/{language}/{split}.{suffix}"), examples(language, split))
    rows = [
        row | {f"votes_{name}": 1 for name in ("Animal", *CLASSES[1:])} for row in examples("de", "train")
    ]
    write(Path(f"data/de/train.{suffix}"), rows)
    source = {"soft_label_field": "votes_{class}", "pattern": f"data/{{language}}/{{split}}.{suffix}"}
    set_german({"soft_labels": {"values": "votes"}}, source=source)
    done = run("prepare")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"data/de/train.{suffix}" in done.err
    assert "has no column 'votes_animal'; " in done.err


def test_a_column_of_something_else_is_refused(workspace: Path, run: Run) -> None:
    def write_votes(votes: Any) -> None:
        rows = [row | {"votes": {"animal": 1}} for row in examples("de", "train")]
        write_jsonl(Path("data/de/train.jsonl"), [*rows[:4], rows[4] | {"votes": votes}, *rows[5:]])

    set_german({"soft_labels": {"values": "votes"}}, source={"soft_label_field": "votes"})
    for votes in ([1, 2, 3], {"verb": 1}, {"animal": "many"}, "x", '{"animal": 1, "animal": 2}'):
        write_votes(votes)
        done = run("prepare")
        assert "data/de/train.jsonl, line 5: the soft label is" in done.err
    set_german({"soft_labels": {"values": "votes"}})
    assert run("prepare").code == run(*FINETUNE).code == 0
    assert "name their column: task.source.soft_label_field" in run(*LABEL).err


# Several together


def two_teachers(run: Run, **changes: Any) -> tuple[Array, Array]:
    """Let a file and another one teach German; gives what each says of the training texts."""
    write_soft("data/a.jsonl", *SIZES, seed=1)
    write_soft("data/b.jsonl", "train", seed=2)
    more = [{"soft_labels": "data/b.jsonl", "name": "b", "weight": 3}]
    set_german({"soft_labels": "data/a.jsonl", "name": "a", "more": more, **changes})
    assert run(*FINETUNE).code == 0
    assert run(*LABEL).code == 0
    return likely("train", 1), likely("train", 2)


def test_teachers_count_by_their_weight(finished: Path, run: Run) -> None:
    a, b = two_teachers(run)
    np.testing.assert_allclose(softmax(taught(), axis=1), 0.25 * a + 0.75 * b, rtol=1e-5)
    # At another temperature, it is the softened probabilities whose mean is taken.
    soft = [softmax(np.log(one) / 2, axis=1) for one in (a, b)]
    expected = 0.25 * soft[0] + 0.75 * soft[1]
    np.testing.assert_allclose(softmax(taught(temperature=2.0) / 2, axis=1), expected, rtol=1e-5)
    metrics = json.loads(Path("artifacts/metrics/teachers/de.json").read_text())
    assert set(metrics) == {"train"}  # of the other splits, one teacher says nothing
    right = (0.25 * a + 0.75 * b).argmax(axis=1) == [
        CLASSES.index(r["label"]) for r in examples("de", "train")
    ]
    assert metrics["train"]["accuracy"] == pytest.approx(right.mean())


def test_classes_and_trust_are_those_of_the_average_at_temperature_1(finished: Path, run: Run) -> None:
    two_teachers(run)
    for name, probs in (("a", (0.999, 0.0005, 0.0005)), ("b", (0.245, 0.6, 0.155))):
        _, *others = Path(f"data/{name}.jsonl").read_text().splitlines()
        first = {
            "text": examples("de", "train")[0]["text"],
            "probabilities": dict(zip(CLASSES, probs, strict=True)),
        }
        Path(f"data/{name}.jsonl").write_text("\n".join([json.dumps(first), *others]))
    assert run(*FINETUNE).code == run(*LABEL).code == 0
    labels = [CLASSES.index(row["label"]) for row in examples("de", "train")]
    mean = softmax(taught(), axis=1)
    at_ten = softmax(taught(temperature=10.0) / 10, axis=1)
    assert (mean[0].argmax(), at_ten[0].argmax()) == (1, 0)
    pseudo = taught(variant="pseudo", temperature=10.0)
    assert pseudo.argmax(axis=1).tolist() == mean.argmax(axis=1).tolist()
    trust = taught(numbers="trust", trust="probability", temperature=10.0)
    np.testing.assert_allclose(trust, mean[np.arange(len(labels)), labels], rtol=1e-5)


def test_teachers_count_by_how_sure_they_are(finished: Path, run: Run) -> None:
    a, b = two_teachers(run, combine="confidence")
    sure = [w * (1 - entropy(one, axis=1) / np.log(3)) for one, w in ((a, 1), (b, 3))]
    expected = (sure[0][:, None] * a + sure[1][:, None] * b) / (sure[0] + sure[1])[:, None]
    np.testing.assert_allclose(softmax(taught(), axis=1), expected, rtol=1e-4)


def test_teachers_who_know_nothing_count_alike() -> None:
    logits = np.zeros((2, 4, 3))
    together = average_teachers(logits, by_confidence=True)
    np.testing.assert_allclose(softmax(together, axis=1), 1 / 3)


def test_the_average_without_weights_is_what_it_was() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    each = log_softmax(logits / 2, axis=2)
    np.testing.assert_array_equal(
        average_teachers(logits, temperature=2.0), 2 * (logsumexp(each, axis=0) - np.log(3))
    )
    weighted = average_teachers(logits, temperature=2.0, weights=np.full((3, 5), 0.7))
    np.testing.assert_array_equal(weighted, average_teachers(logits, temperature=2.0))


def test_a_column_says_whose_each_text_is(workspace: Path, run: Run) -> None:
    names = ["news", "web", None]
    rows = [row | {"domain": names[i % 3]} for i, row in enumerate(examples("de", "train"))]
    write_jsonl(Path("data/de/train.jsonl"), rows)
    for language, split in (
        ("de", "validation"),
        ("de", "test"),
        ("nl", "test"),
        ("nl", "validation"),
        *(("en", s) for s in SIZES),
    ):
        write_jsonl(
            Path(f"data/{language}/{split}.jsonl"),
            [row | {"domain": ""} for row in examples(language, split)],
        )
    write_soft("data/news.jsonl", "train", seed=1)
    write_soft("data/web.jsonl", *SIZES, seed=2)
    # Of texts that are for another teacher, nobody needs to say anything.
    kept = [line for i, line in enumerate(Path("data/news.jsonl").read_text().splitlines()) if i % 3 != 1]
    Path("data/news.jsonl").write_text("\n".join(kept))
    more = [{"soft_labels": "data/web.jsonl", "name": "web"}]
    teacher = {"soft_labels": "data/news.jsonl", "name": "news", "more": more}
    set_german(teacher, source={"teacher_field": "domain"})
    assert run("prepare").code == run(*FINETUNE).code == 0
    done = run(*LABEL)
    assert (done.code, done.err) == (0, "")
    news, web = likely("train", 1), likely("train", 2)
    expected = np.where((np.arange(36) % 3 == 0)[:, None], news, web)
    expected[2::3] = (news[2::3] + web[2::3]) / 2
    params = load_params(Path("params.yaml"))
    from stages.results.teachers import said_by

    said = said_by(params.task, params.teachers["de"], "de", ["train"])
    np.testing.assert_allclose(softmax(said.together(), axis=1), expected, rtol=1e-5)
    assert [int(one.has.sum()) for one in said.each] == [24, 24]
    assert [one.n_asked for one in read_taught(params.task, params.teachers["de"], "de").sets] == [24, 24]
    current = Current("de", Path(), said.each[1].label_set.producers[0], Fold(0, 1), 1, ["news", "web"])
    assert len(current.examples(params.task)) == 24 + SIZES["validation"] + SIZES["test"]  # of 57
    with pytest.raises(StageError, match="hidden_weight needs hidden states of each teacher for each text"):
        taught(hidden_weight=1.0)
    # The same text, once for one teacher and once for the other, is both's.
    rows = [row | {"domain": names[i % 2]} for i, row in enumerate(examples("de", "train"))]
    write_jsonl(Path("data/de/train.jsonl"), [*rows, rows[0] | {"domain": "web"}])
    write_soft("data/news.jsonl", "train", seed=1)
    assert run("prepare").code == run(*FINETUNE).code == run(*LABEL).code == 0
    said = said_by(params.task, params.teachers["de"], "de", ["train"])
    assert [int(one.has.sum()) for one in said.each] == [19, 20]  # web has the text's two rows
    np.testing.assert_allclose(softmax(said.together()[[0, -1]], axis=1), [news[0], web[0]], rtol=1e-5)
    idle = [*more, {"soft_labels": "data/web.jsonl", "name": "idle"}]
    for name in ("train", "validation", "test"):  # that all texts are for others, and none for all
        rows = [row | {"domain": names[i % 2]} for i, row in enumerate(examples("de", name))]
        write_jsonl(Path(f"data/de/{name}.jsonl"), rows)
    write_soft("data/news.jsonl", *SIZES, seed=1)
    set_german(teacher | {"more": idle}, source={"teacher_field": "domain"})
    assert run("prepare").code == run(*FINETUNE).code == 0
    assert "no text of 'de' is for teacher 'idle', by task.source.teacher_field" in run(*LABEL).err
    set_german(teacher | {"name": "press"}, source={"teacher_field": "domain"})
    assert run(*LABEL).err == (
        "error: 29 examples of 'de' are for teacher 'news'; teachers.de has: press, web\n"
    )
