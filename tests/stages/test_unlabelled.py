"""Texts without labels that teach the student: prepared, labelled by the teachers, learned."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from tables import nli_task, write
from tiny import CLASSES, COMMANDS, Run, tiny_params, write_input, write_jsonl, write_params

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS
from stages.data.examples import (
    all_examples,
    pretraining_texts,
    read_entities,
    read_examples,
    taught_splits,
    training_texts,
)
from stages.data.task import FilesSource, HubSource, TaskParams
from stages.errors import StageError
from stages.prepare import prepare
from stages.student.objective import objective

KINDS = ("jsonl", "csv", "tsv", "parquet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path


def rows(*labels: Any, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"premise": f"p {start + i}", "hypothesis": f"h {i}", "label": label, **more}
        for i, label in enumerate(labels)
    ]


def task_of(suffix: str = "jsonl", train: list[dict[str, Any]] | None = None, **changes: Any) -> TaskParams:
    """Write the splits of two languages, one of them supervised, and give the task."""
    for language, split in (("de", "validation"), ("de", "test"), ("fr", "test")):
        start = {"validation": 100, "test": 200}[split]
        write(Path(f"data/{language}/{split}.{suffix}"), rows("yes", "no", start=start))
    write(Path(f"data/de/train.{suffix}"), train or rows("yes", "no", "yes", "no"))
    return nli_task(f"data/{{language}}/{{split}}.{suffix}", unlabelled=True, **changes)


def column(task: TaskParams, split: Any, name: str = "premise") -> list[Any]:
    found: list[Any] = read_examples(task, "de", split)[name].to_pylist()
    return found


# prepare


@pytest.mark.parametrize("suffix", KINDS)
def test_training_rows_may_have_no_label(suffix: str) -> None:
    nothing = "" if suffix in ("csv", "tsv") else None
    task = task_of(suffix, rows("yes", nothing, "no", nothing))
    table = prepare(task).table()
    assert column(task, "train") == ["p 0", "p 2"]
    assert column(task, "unlabelled") == ["p 1", "p 3"]
    assert column(task, "unlabelled", "label") == [None, None]
    head, of_de = table.splitlines()[:2]
    assert head.split()[-1] == "unlabelled"
    assert of_de.split() == ["de", "2", "2", "2", "0", "2"]


@pytest.mark.parametrize("suffix", KINDS)
def test_the_split_unlabelled_has_the_tasks_text_fields(suffix: str) -> None:
    task = task_of(suffix)
    new = [{"premise": "neu", "hypothesis": "alt"}, {"premise": "neu", "hypothesis": "alt"}]
    known = [{"premise": "p 0", "hypothesis": "h 0"}]
    write(Path(f"data/de/unlabelled.{suffix}"), new + known)
    prepare(task)
    assert column(task, "unlabelled") == ["neu"]  # once, and not again what has a label
    assert column(task, "train") == ["p 0", "p 1", "p 2", "p 3"]
    assert taught_splits(task, "de") == ["train", "unlabelled"]
    table = all_examples(task)  # as cache show and cache export have them
    assert table is not None
    (new_row,) = [row for row in table.to_pylist() if row["premise"] == "neu"]
    assert (new_row["split"], new_row["class"]) == ("unlabelled", None)


def test_a_task_that_finds_no_text_without_a_label_says_so() -> None:
    task = task_of()
    write(Path("data/de/unlabeled.jsonl"), rows(None, start=50))
    said = (
        "warning: task.unlabelled is true, but no text without a label was found: none in train, and none "
        "that is new in data/{language}/unlabelled.jsonl"
    )
    assert said in prepare(task).notes
    Path("data/de/unlabeled.jsonl").rename("data/de/unlabelled.jsonl")
    assert said not in prepare(task).notes


def test_texts_without_labels_that_teach_nobody_are_told_of() -> None:
    task = task_of()
    write(Path("data/de/unlabelled.jsonl"), [{"text": "neu"}])
    said = (
        "de: texts of the split unlabelled are for encoders from scratch alone; with task.unlabelled: true "
        "they teach the student"
    )
    assert said in prepare(task.model_copy(update={"unlabelled": False})).notes
    write(Path("data/de/unlabelled.jsonl"), rows(None, start=50))
    assert said not in prepare(task).notes


def test_empty_texts_are_no_lines_and_are_told_of_in_tables() -> None:
    task = task_of(text_fields=["premise"])
    Path("data/de/unlabelled.txt").write_text("eins\n\n \nzwei\n")
    prepare(task)
    assert column(task, "unlabelled") == ["eins", "zwei"]
    write(Path("data/de/unlabelled.jsonl"), [{"premise": ""}])
    assert "de: 1 unlabelled texts have an empty text" in prepare(task).notes


def test_a_text_file_for_a_task_of_pairs_is_named() -> None:
    task = task_of()
    Path("data/de/unlabelled.txt").write_text("eins\n")
    with pytest.raises(StageError, match=r"data/de/unlabelled.txt: plain text has one text per line"):
        prepare(task)


def test_minus_one_is_no_label_in_csv_too(folder: Path) -> None:
    lines = ["premise,hypothesis,label", "a,h,yes", "b,h,-1", "c,h,", "d,h,no", "e,h,-1.0"]
    task = task_of("csv")
    Path("data/de/train.csv").write_text("\n".join(lines), encoding="utf-8")
    prepare(task)
    assert column(task, "train") == ["a", "d"]
    assert column(task, "unlabelled") == ["b", "c", "e"]


def test_a_data_set_of_the_hub_may_have_unlabelled_rows(folder: Path) -> None:
    for split, labels in {
        "train": [1, -1, 0],
        "validation": [1, 0],
        "test": [0, 1],
        "more": [-1, -1],
    }.items():
        start = {"train": 0, "more": 50}.get(split, 100 if split == "test" else 200)
        for language in ("de", "fr"):
            path = folder / f"data/hub/{language}/{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows(*labels, start=start)), path)
    lines = ["---", "configs:"]
    for language in ("de", "fr"):
        lines += [f"- config_name: {language}", "  data_files:"]
        lines += [
            f"  - {{split: {split}, path: {language}/{split}.parquet}}"
            for split in ("train", "validation", "test", "more")
        ]
    (folder / "data/hub/README.md").write_text("\n".join([*lines, "---"]))
    source = HubSource(
        kind="hub", dataset=str(folder / "data/hub"), config="{language}", splits={"unlabelled": "more"}
    )
    task = nli_task("", source=source, unlabelled=True)
    prepare(task)
    assert column(task, "train") == ["p 0", "p 2"]
    assert column(task, "unlabelled") == ["p 1", "p 50", "p 51"]


def test_labels_are_hidden_but_for_some_of_each_language_the_same_entities_in_all() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl")
    task = task_of(source=source, supervised=["de", "fr"], zero_shot=[], max_labels=7)
    for language in ("de", "fr"):
        train = [
            {"premise": f"{language} {i}", "hypothesis": "h", "label": "yes", "entity": f"e{i}"}
            for i in range(30)
        ]
        write(Path(f"data/{language}/train.jsonl"), train)
        write(Path(f"data/{language}/validation.jsonl"), rows("yes", "no", start=100))
    prepare(task)
    kept = [read_entities(language, "train") for language in ("de", "fr")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 7
    hidden = read_entities("de", "unlabelled")
    assert len(hidden) == 23
    assert set(hidden).isdisjoint(kept[0])
    more = task.model_copy(update={"max_labels": 9})
    prepare(more)
    assert set(kept[0]) < set(read_entities("de", "train"))


def test_aligned_rows_stay_translations_of_each_other() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=True)
    task = task_of(source=source, supervised=["de", "fr"], zero_shot=[])
    write(Path("data/de/train.jsonl"), rows("yes", None, "no", None))
    write(Path("data/fr/train.jsonl"), rows(None, "no", "no", None))
    write(Path("data/fr/validation.jsonl"), rows("yes", "no", start=100))
    assert "another label" not in prepare(task).table()  # what is left of them is not compared by its place
    assert (read_entities("de", "train"), read_entities("de", "unlabelled")) == (["0", "2"], ["1", "3"])
    assert (read_entities("fr", "train"), read_entities("fr", "unlabelled")) == (["1", "2"], ["0", "3"])


def test_validation_is_taken_from_what_has_a_label() -> None:
    labels = ["yes", "no", None] * 60
    task = task_of(train=rows(*labels), validation_share=0.3)
    Path("data/de/validation.jsonl").unlink()
    prepare(task)
    n_train, n_validation = len(column(task, "train")), len(column(task, "validation"))
    assert n_train + n_validation == 120
    assert 15 < n_validation < 60
    assert len(column(task, "unlabelled")) == 60


def test_test_texts_among_the_unlabelled_are_told_of() -> None:
    task = task_of()
    write(Path("data/de/unlabelled.jsonl"), [{"premise": "p 200", "hypothesis": "h 0"}])
    assert "de: the unlabelled texts that are taught hold 1 of the test texts" in prepare(task).table()


def test_scratch_encoders_read_all_that_is_taught() -> None:
    task = task_of(train=rows("yes", None))
    prepare(task)
    assert set(pretraining_texts(task, "de").values()) == {"p 0", "h 0", "p 1", "h 1"}
    assert pretraining_texts(task, "fr") == {}


@pytest.mark.parametrize(
    ("train", "changes", "message"),
    [
        (rows("yes", None), {"unlabelled": False}, "is not one of task.classes.*say task.unlabelled: true"),
        (rows("yes", "no"), {"max_labels": 3}, "task.max_labels is 3, but 'de' has 2 training labels"),
        (rows(None, None), {}, "no row of the train split of 'de' has a label"),
        (rows("yes", "maybe"), {}, "label 'maybe' is not one of task.classes"),
    ],
)
def test_labels_that_are_missing_where_they_may_not_are_refused(
    train: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    task = task_of(train=train).model_copy(update=changes)
    with pytest.raises(StageError, match=message):
        prepare(task)
    assert not Path("artifacts/data").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_training_rows_may_have_no_label(split: str) -> None:
    task = task_of()
    write(Path(f"data/de/{split}.jsonl"), rows("yes", None))
    with pytest.raises(StageError, match=r"line 2: label null is not one of task\.classes: no, yes$"):
        prepare(task)


def test_hidden_labels_need_a_task_that_takes_texts_without() -> None:
    with pytest.raises(ValidationError, match="max_labels is 3, which needs unlabelled: true"):
        nli_task("data/{language}/{split}.jsonl", max_labels=3)


# The stages


def test_the_student_learns_what_teachers_say_of_unlabelled_texts(run: Run) -> None:
    params = tiny_params()
    params["task"] |= {"unlabelled": True, "max_labels": 18}
    params["student"]["distill"] |= {"hard_label_weight": 0.5, "class_weights": "balanced"}
    write_params(params)
    write_input(Path())
    write_jsonl(Path("data/de/unlabelled.jsonl"), [{"text": f"Pferd {i}"} for i in range(5)])
    for command in COMMANDS:
        done = run(*command)
        assert done.code == 0, done.err
        if command == ["student", "distill"]:
            assert "mblm: 20 steps" in done.out  # (18 + 18 + 5 + 18 + 18) examples, twice, in batches of 8
        if command == ["student", "baseline"]:
            assert "finetune: 20 steps" in done.out  # of 18 + 18, as many as the student takes
    label_set = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    task = TaskParams.model_validate(params["task"])
    said = label_set.join(read_examples(task, "de", "unlabelled")["example_id"])
    assert said.logits.shape == (23, len(CLASSES))
    counted = json.loads(Path("artifacts/metrics/teachers/de.json").read_text())
    assert set(counted) == {"train", "validation", "test"}
    page = Path("artifacts/report/report.html").read_text(encoding="utf-8")
    assert "unlabelled" in page


def test_an_example_without_a_label_has_none_of_the_hard_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, soft, mixed = (torch.randn(6, 3, generator=generator) for _ in range(3))
    labels = torch.tensor([0, -100, 2, -100, 1, -100])
    settings: dict[str, Any] = {
        "hidden": None,
        "temperature": 2.0,
        "mixture_weight": 0.3,
        "hard_label_weight": 0.5,
        "hidden_weight": 0.0,
    }

    def parts(rows: torch.Tensor, weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        tensors: dict[str, Any] = {
            "teacher_logits": soft[rows],
            "mixture_logits": mixed[rows],
            "class_weights": weights,
        }
        return objective(logits[rows], labels[rows], **tensors, **settings)

    every, known = parts(torch.arange(6)), parts(torch.tensor([0, 2, 4]))
    torch.testing.assert_close(every["hard"] * 6, known["hard"] * 3)
    torch.testing.assert_close(
        every["loss"], torch.lerp(every["own"], every["mixture"], 0.3) + 0.5 * every["hard"]
    )
    none = parts(torch.tensor([1, 3, 5]))
    assert none["hard"] == 0
    assert none["loss"].isfinite()
    weighted = parts(torch.tensor([1, 3, 5]), torch.tensor([9.0, 9.0, 9.0]))
    torch.testing.assert_close(weighted["own"], none["own"])  # there is no class to be weighted by


# What a second pair of eyes found


def test_aligned_rows_stay_aligned_where_validation_is_a_share_of_them() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=True)
    task = task_of(source=source, supervised=["de", "fr"], zero_shot=[], validation_share=0.3)
    Path("data/de/validation.jsonl").unlink()
    for language, missing in (("de", 3), ("fr", 7)):
        train = rows(*(None if i == missing else "yes" for i in range(40)))
        write(Path(f"data/{language}/train.jsonl"), train)
    prepare(task)
    for language in ("de", "fr"):
        for split in ("train", "validation", "unlabelled"):
            texts = read_examples(task, language, split)["premise"].to_pylist()
            assert read_entities(language, split) == [text.removeprefix("p ") for text in texts]


def test_a_limit_holds_for_unlabelled_texts_too() -> None:
    task = task_of(train=rows(*["yes", None] * 9), max_examples=5)
    write(Path("data/de/unlabelled.jsonl"), [{"premise": f"n {i}", "hypothesis": "h"} for i in range(50)])
    prepare(task)
    assert len(column(task, "unlabelled")) == 5


def test_texts_about_the_same_are_all_read_and_training_texts_counted_with_or_without() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl")
    train = [{"text": f"t {i}", "label": "yes", "entity": f"e{i // 5}"} for i in range(10)]
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        write(Path(f"data/{language}/{split}.jsonl"), train)
    write(Path("data/de/unlabelled.jsonl"), [{"text": f"u {i}"} for i in range(3)])
    for unlabelled in (False, True):
        task = nli_task("", source=source, text_fields=["text"], unlabelled=unlabelled)
        prepare(task)
        assert len(set(training_texts(task, "de"))) == 13
        assert training_texts(task, "fr") == []


# What is about the same as validation examples, and what people overlook


def entities_in(language: str, split: Any) -> set[str | None]:
    path = Path(f"artifacts/data/{language}/{split}.arrow")
    return set(read_entities(language, split)) if path.exists() else set()


@pytest.mark.parametrize("aligned", [False, True])
def test_translations_of_validation_examples_teach_nobody(aligned: bool) -> None:
    n = 200
    for language in ("de", "en", "fr"):
        labels = ["yes" if language != "en" or i % 2 else None for i in range(n)]
        train = [
            {"premise": f"{language} {i}", "hypothesis": "h", "label": label, "entity": f"e{i}"}
            for i, label in enumerate(labels)
        ]
        if aligned:
            train = [{key: value for key, value in row.items() if key != "entity"} for row in train]
        write(Path(f"data/{language}/train.jsonl"), train)
        write(Path(f"data/{language}/test.jsonl"), rows("yes", "no", start=500))
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=aligned)
    task = nli_task(
        "",
        source=source,
        supervised=["de", "en"],
        unlabelled=True,
        zero_shot_texts=True,
        validation_share=0.3,
        max_examples=100,
    )
    notes = prepare(task).notes
    held_out = entities_in("de", "validation") | entities_in("en", "validation")
    assert 40 < len(held_out) < 80
    for language in ("en", "fr"):
        assert len(entities_in(language, "unlabelled")) > 30
        assert not entities_in(language, "unlabelled") & held_out
    assert len(read_examples(task, "fr", "unlabelled")) == 100  # as many as may be, all of which teach
    left_out = [note.split()[1] for note in notes if "texts without labels are left out" in note]
    assert left_out[-1] == str(len(held_out))


def test_all_texts_of_a_language_may_be_translations_of_validation_examples() -> None:
    for language in ("de", "en"):
        write(Path(f"data/{language}/train.jsonl"), rows(*["yes", "no"] * 20, entity=None))
        write(Path(f"data/{language}/test.jsonl"), rows("yes", "no", start=500))
    task = nli_task(
        "data/{language}/{split}.jsonl",
        supervised=["de", "en"],
        unlabelled=True,
        zero_shot_texts=True,
        validation_share=0.5,
    )
    numbered = [{**row, "entity": f"e{i}"} for i, row in enumerate(rows(*["yes", "no"] * 20))]
    write(Path("data/de/train.jsonl"), numbered)
    write(Path("data/fr/test.jsonl"), rows("yes", "no", start=500))
    write(Path("data/fr/train.jsonl"), numbered[:1])
    write(Path("data/fr/unlabelled.jsonl"), rows("yes", start=900))
    prepare(task)
    (held_out, *_) = sorted(entities_in("de", "validation"), key=str)
    write(Path("data/fr/train.jsonl"), [row for row in numbered if row["entity"] == held_out])
    notes = prepare(task).notes
    assert any(note.startswith("fr: 1 texts without labels are left out") for note in notes)
    assert entities_in("fr", "unlabelled") == {None}
    Path("data/fr/unlabelled.jsonl").unlink()
    with pytest.raises(StageError, match="no zero-shot language has the split train or unlabelled"):
        prepare(task)


def test_texts_about_the_same_as_test_texts_are_noted() -> None:
    about = {"entity": "t"}
    for language, split in (("de", "validation"), ("de", "test"), ("fr", "test")):
        write(Path(f"data/{language}/{split}.jsonl"), rows("yes", "no", start=len(split) * 10, **about))
    write(Path("data/de/train.jsonl"), rows("yes", "no", entity="e"))
    write(Path("data/de/unlabelled.jsonl"), [{"premise": "neu", "hypothesis": "alt", **about}])
    notes = prepare(nli_task("data/{language}/{split}.jsonl", unlabelled=True)).notes
    for language, split in (("de", "validation"), ("de", "test"), ("fr", "test")):
        expected = f"{language}: 2 {split} texts are about the same as an unlabelled text that is taught"
        assert any(note.startswith(expected) for note in notes), (expected, notes)


def test_one_file_for_all_languages_may_hold_texts_of_some() -> None:
    task = task_of()
    for split in ("train", "validation", "test"):
        each = [
            {**row, "lang": language}
            for language in ("de", "fr")
            for row in map(json.loads, Path(f"data/de/{split}.jsonl").read_text().splitlines())
        ]
        write(Path(f"data/{split}.jsonl"), each)
    write(Path("data/unlabelled.jsonl"), [{"premise": "neu", "hypothesis": "alt", "lang": "de"}])
    source = FilesSource(kind="files", pattern="data/{split}.jsonl", language_field="lang")
    task = task.model_copy(update={"source": source})
    prepare(task)
    assert column(task, "unlabelled") == ["neu"]
    assert not Path("artifacts/data/fr/unlabelled.arrow").exists()


def test_texts_for_pre_training_may_stand_where_those_that_teach_do(folder: Path) -> None:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        write(Path(f"data/{language}/{split}.csv"), [{"satz": f"{split} 1", "label": "yes"}] * 2)
    task = nli_task("data/{language}/{split}.csv", text_fields=["satz"], unlabelled=True)
    for name in ("satz", "text"):  # the second as in earlier versions
        write(Path("data/fr/unlabelled.csv"), [{name: "neuf"}])
        prepare(task)
        assert list(pretraining_texts(task, "fr").values()) == ["neuf"]
    write(Path("data/fr/unlabelled.csv"), [{"phrase": "neuf"}])
    with pytest.raises(StageError, match="no column 'text'"):
        prepare(task)


def test_a_text_file_needs_no_column_that_tables_have() -> None:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        write(Path(f"data/{language}/{split}.jsonl"), [{"text": f"{split} 1", "label": "yes", "id": split}])
    Path("data/de/unlabelled.txt").write_text("neu\n")
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", entity_field="id")
    task = nli_task("", source=source, text_fields=["text"], unlabelled=True)
    prepare(task)
    assert column(task, "unlabelled", "text") == ["neu"]


def test_what_was_prepared_to_teach_is_not_read_as_texts_for_pre_training() -> None:
    task = task_of(zero_shot=[])
    write(Path("data/de/unlabelled.jsonl"), [{"premise": "neu", "hypothesis": "alt"}])
    prepare(task)
    with pytest.raises(StageError, match=r"written with task.unlabelled: true; write it again with: python"):
        pretraining_texts(task.model_copy(update={"unlabelled": False}), "de")


def test_minus_one_beside_one_is_asked_about() -> None:
    task = task_of(train=rows(1, -1, 1, -1))
    with pytest.raises(StageError, match=r"are the numbers 1 and -1, which stands for none; write the names"):
        prepare(task)


def test_labels_that_max_examples_hides_are_named() -> None:
    task = task_of(train=rows("yes", "no", *[None] * 98), max_examples=10, max_labels=2)
    with pytest.raises(
        StageError, match=r"training labels among the 10 examples that task.max_examples keeps"
    ):
        prepare(task)
