"""Reading a task: the built-in one, files of every kind, folders laid out as on the Hub, and bad input."""

import csv
import io
import json
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tables import ROWS, nli_task, read_or_refused, write, write_all
from tiny import ROOT

from cache import example_id, file_digest
from stages.data.examples import (
    SPLITS,
    columns_of,
    pretraining_texts,
    read_asked,
    read_entities,
    read_examples,
)
from stages.data.files import Input
from stages.data.names import CLASSES, read_names, split_of
from stages.data.task import FilesSource, HubSource, NamesSource, TaskParams
from stages.errors import StageError
from stages.prepare import prepare

SHARED = ROOT.parent / "shared" / "data"


def names_task(**changes: Any) -> TaskParams:
    values: dict[str, Any] = {
        "source": NamesSource(kind="names"),
        "text_fields": ["text"],
        "classes": list(CLASSES),
        "supervised": ["de", "zh-Hant"],
        "zero_shot": ["el"],
        "max_examples": None,
    }
    return TaskParams(**values | changes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Read by `datasets` when it is imported, which `prepare` does for the Hub alone.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path


def test_a_label_that_differs_in_case_alone_is_told_so(folder: Path) -> None:
    task = nli_task("data/{language}/{split}.jsonl", supervised=["de"], zero_shot=[])
    for split in SPLITS:
        rows = [
            {"premise": f"{split} {i}", "hypothesis": "b", "label": "Yes " if i else "no"} for i in (0, 1)
        ]
        write(Path(f"data/de/{split}.jsonl"), rows)
    with pytest.raises(StageError, match=r"label 'Yes ' is not one of .*'yes' is written otherwise: change"):
        prepare(task)


def test_a_label_in_another_normal_form_is_told_so(folder: Path) -> None:
    task = nli_task("data/{language}/{split}.jsonl", supervised=["de"], zero_shot=[])
    task = task.model_copy(update={"classes": ["caf\u00e9", "no"]})
    for split in SPLITS:
        rows = [
            {"premise": f"{split} {i}", "hypothesis": "b", "label": "cafe\u0301" if i else "no"}
            for i in (0, 1)
        ]
        write(Path(f"data/de/{split}.jsonl"), rows)
    with pytest.raises(StageError, match="write both in the same Unicode normal form"):
        prepare(task)


def test_classes_that_no_teacher_could_tell_apart_are_refused_before_anything_runs(folder: Path) -> None:
    task = nli_task("data/{language}/{split}.jsonl", supervised=["de"], zero_shot=[])
    for pair in (["card_lost", "card-lost"], ["a", "A"], ["duplicate", "equivalent"], ["\u00e9", "e\u0301"]):
        with pytest.raises(StageError, match=f"task.classes: '{pair[0]}' and '{pair[1]}' are one class"):
            prepare(task.model_copy(update={"classes": pair}))


def test_a_class_that_no_test_example_has_is_named_where_there_are_many(folder: Path) -> None:
    task = nli_task("data/{language}/{split}.jsonl", supervised=["de"], zero_shot=[])
    for split in SPLITS:
        n = 20 if split == "test" else 4
        rows = [
            {
                "premise": f"{split} {i}",
                "hypothesis": "b",
                "label": "no" if split != "train" or i % 2 else "yes",
            }
            for i in range(n)
        ]
        write(Path(f"data/de/{split}.jsonl"), rows)
    assert prepare(task).notes == ["de: no test example of yes; is the source sorted?"]


# The built-in task


def test_names_are_distinct_and_of_all_classes() -> None:
    names = read_names("de")
    assert len({name.text for name in names}) == len(names) > 1500
    assert min(Counter(name.label for name in names).values()) > 100
    assert {name.label for name in names} == set(CLASSES)


def test_no_entity_is_in_two_splits_in_any_language(folder: Path) -> None:
    prepared = prepare(names_task())
    splits: dict[str, set[str]] = {}
    for language in ("de", "zh-Hant", "el"):
        for name in read_names(language):
            splits.setdefault(name.entity, set()).add(split_of(name.entity))
    assert all(len(found) == 1 for found in splits.values())
    unlabelled = pa.ipc.open_file("artifacts/data/el/unlabelled.arrow").read_all()
    assert {split_of(entity) for entity in unlabelled["entity"].to_pylist()} == {"train"}
    assert prepared.overlap == {"de": 0, "zh-Hant": 0}
    shares = prepared.examples["de"]
    assert 0.65 < shares["train"] / sum(shares.values()) < 0.75
    assert not Path("artifacts/data/el/train.arrow").exists()


def test_preparing_twice_gives_the_same_bytes(folder: Path) -> None:
    prepare(names_task())
    first = {path: path.read_bytes() for path in Path("artifacts").rglob("*.arrow")}
    shutil.rmtree("artifacts")
    prepare(names_task())
    assert {path: path.read_bytes() for path in Path("artifacts").rglob("*.arrow")} == first


def test_the_manifest_says_what_was_written_and_of_which_version_of_the_source(folder: Path) -> None:
    task = names_task(max_examples=9)
    prepare(task)
    data = folder / "artifacts/data"
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["revision"] == f"babel {version('babel')}"
    assert manifest["source"] == {"kind": "names"}
    files = {path.relative_to(data).as_posix(): path for path in data.rglob("*.arrow")}
    assert manifest["files"] == {name: file_digest(path) for name, path in files.items()}
    assert set(manifest["examples"]) == set(task.languages)
    assert set(manifest["examples"]["de"].values()) == {9}


def test_the_built_in_task_refuses_other_classes_and_unknown_languages(folder: Path) -> None:
    with pytest.raises(StageError, match=r"task 'names' needs task.text_fields"):
        prepare(names_task(classes=["a", "b"]))
    with pytest.raises(StageError, match="no language 'qqq'"):
        prepare(names_task(zero_shot=["qqq"]))


# Files


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_files_of_every_kind_give_the_text_as_it_is(folder: Path, suffix: str) -> None:
    task = nli_task(write_all(folder, suffix=suffix))
    prepared = prepare(task)
    table = read_examples(task, "de", "train")
    assert table.schema.names == ["example_id", "premise", "hypothesis", "label"]
    assert table["premise"].to_pylist() == [row["premise"] for row in ROWS]
    assert table["hypothesis"].to_pylist() == ["null", "NA", ""]
    assert table["label"].to_pylist() == [1, 0, 1]
    expected = [example_id(row["premise"], row["hypothesis"]) for row in ROWS]
    assert table["example_id"].to_pylist() == expected
    assert prepared.overlap == {"de": 3}
    assert prepared.table().splitlines()[1].split() == ["de", "3", "3", "3", "3"]
    assert prepared.table().splitlines()[2].split() == ["fr", "–", "–", "3", "–"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_suffix_may_be_in_capitals(folder: Path, suffix: str) -> None:
    pattern = write_all(folder, suffix=suffix)
    for path in folder.glob("data/*/*"):
        path.rename(path.with_suffix(f".{suffix.upper()}"))
    task = nli_task(pattern.replace(suffix, suffix.upper()))
    assert prepare(task).examples["de"]["train"] == 3


def test_several_files_of_a_split_are_read_in_the_order_of_their_names(folder: Path) -> None:
    write_all(folder)
    write(folder / "data/de/train-2.jsonl", [{"premise": "z", "hypothesis": "z", "label": "no"}])
    task = nli_task("data/{language}/{split}*.jsonl")
    prepare(task)
    assert read_examples(task, "de", "train")["premise"].to_pylist()[0] == "z"
    assert read_examples(task, "de", "train").num_rows == 4


def test_labels_may_be_positions_in_the_classes(folder: Path) -> None:
    task = nli_task(write_all(folder, [{**row, "label": i % 2} for i, row in enumerate(ROWS)]))
    prepare(task)
    assert read_examples(task, "de", "test")["label"].to_pylist() == [0, 1, 0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_that_are_class_names_are_names_even_if_they_are_numbers(folder: Path, suffix: str) -> None:
    rows = [{**row, "label": stars} for row, stars in zip(ROWS, (5, 1, 2), strict=True)]
    task = nli_task(write_all(folder, rows, suffix), classes=["1", "2", "3", "4", "5"])
    prepare(task)
    assert read_examples(task, "de", "test")["label"].to_pylist() == [4, 0, 1]
    write_all(folder, [{**row, "label": 0} for row in ROWS], suffix)
    with pytest.raises(StageError, match=r"label '?0'? is not one of task.classes: 1, 2"):
        prepare(task)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_classes_that_are_decimals_are_names(folder: Path, suffix: str) -> None:
    labels = [0, 1, 0.5] if suffix != "parquet" else [0.0, 1.0, 0.5]
    rows = [row | {"label": label} for row, label in zip(ROWS, labels, strict=True)]
    task = nli_task(write_all(folder, rows, suffix), classes=["0.0", "0.5", "1.0"])
    prepare(task)
    assert read_examples(task, "de", "train")["label"].to_pylist() == [0, 2, 1]


def test_teachers_that_a_column_of_whole_numbers_with_gaps_names_are_found(folder: Path) -> None:
    asked = (1.0, None, float("nan"))
    rows = [row | {"asked": name} for row, name in zip(ROWS, asked, strict=True)]
    pattern = write_all(folder, rows, "parquet")
    source = FilesSource(kind="files", pattern=pattern, label_field="label", teacher_field="asked")
    prepare(nli_task(pattern, source=source))
    found = read_asked("de", ["train"], ["1", "2"])
    assert found is not None
    assert found.tolist() == [[True, True, True], [False, True, True]]


def test_words_that_look_like_values_are_class_names(folder: Path) -> None:
    rows = [{**row, "label": name} for row, name in zip(ROWS, ("true", "null", "true"), strict=True)]
    task = nli_task(write_all(folder, rows, "csv"), classes=["null", "true"])
    prepare(task)
    assert read_examples(task, "de", "test")["label"].to_pylist() == [1, 0, 1]


def test_a_cut_of_the_built_in_task_has_all_classes(folder: Path) -> None:
    task = names_task(max_examples=100)
    assert prepare(task).examples["de"] == {"train": 100, "validation": 100, "test": 100}
    assert set(read_examples(task, "de", "train")["label"].to_pylist()) == set(range(6))


def test_rows_that_are_aligned_are_translations_of_each_other(folder: Path) -> None:
    pattern = write_all(folder)
    source = FilesSource(kind="files", pattern=pattern, label_field="label", aligned=True)
    prepare(nli_task(pattern, source=source))
    assert read_entities("de", "test") == read_entities("fr", "test") == ["0", "1", "2"]
    prepare(nli_task(pattern))
    assert read_entities("fr", "test") == [None, None, None]
    write(folder / "data/fr/test.jsonl", [{**row, "entity": "a"} for row in ROWS])
    with pytest.raises(StageError, match="only some rows of the test split"):
        prepare(nli_task(pattern, source=source))
    write(folder / "data/de/test.jsonl", [{**row, "entity": "a"} for row in ROWS])
    prepare(nli_task(pattern, source=source))
    assert read_entities("fr", "test") == ["a", "a", "a"]  # what the source says itself counts
    write(folder / "data/fr/test.jsonl", ROWS[:2])
    with pytest.raises(StageError, match="the test split has 3 rows in 'de' and 2 in 'fr'; set it to false"):
        prepare(nli_task(pattern, source=source))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_max_examples_keeps_a_sample_and_the_same_of_all_languages(folder: Path, suffix: str) -> None:
    rows = [
        {"premise": f"p {i}", "hypothesis": "h", "label": ("no", "yes")[i >= 300], "entity": i}
        for i in range(600)
    ]
    pattern = write_all(folder, rows, suffix)
    french = [{**row, "premise": f"q {row['premise']}"} for row in rows]
    write(folder / f"data/fr/test.{suffix}", french)
    task = nli_task(pattern, max_examples=200)
    assert prepare(task).examples["de"] == {"train": 200, "validation": 200, "test": 200}
    labels = read_examples(task, "de", "train")["label"].to_pylist()
    assert 60 < sum(labels) < 140
    assert labels == sorted(labels)  # they stay in their order
    assert read_entities("de", "test") == read_entities("fr", "test")
    write(
        folder / f"data/de/train.{suffix}", [{k: v for k, v in row.items() if k != "entity"} for row in rows]
    )
    prepare(task)
    assert 60 < sum(read_examples(task, "de", "train")["label"].to_pylist()) < 140


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"premise": None}, r"data/de/train.jsonl, line 2: premise is null, not a text"),
        (
            {"label": "maybe"},
            r"data/de/train.jsonl, line 2: label 'maybe' is not one of task.classes: no, yes",
        ),
        ({"label": None}, r"line 2: label null"),
    ],
)
def test_a_bad_example_is_named_with_its_line(folder: Path, change: dict[str, Any], message: str) -> None:
    task = nli_task(write_all(folder, [ROWS[1], ROWS[0] | change]))
    with pytest.raises(StageError, match=message):
        prepare(task)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_of_the_classes_is_refused(folder: Path, label: int) -> None:
    task = nli_task(write_all(folder, [{**row, "label": label} for row in ROWS]))
    with pytest.raises(StageError, match=rf"line 1: label {label} is not one of"):
        prepare(task)


def test_a_missing_or_misspelt_column_is_named(folder: Path) -> None:
    pattern = write_all(folder, [{"premise": "a", "hypotesis": "b", "label": "no"}])
    with pytest.raises(StageError, match=r"has no column 'hypothesis'; did you mean hypotesis\?"):
        prepare(nli_task(pattern))
    pattern = write_all(folder, [{"x": "a", "y": "b", "label": "no"}])
    with pytest.raises(StageError, match="has no column 'premise'; there are: x, y, label"):
        prepare(nli_task(pattern))


def test_an_empty_or_absent_split_is_refused(folder: Path) -> None:
    pattern = write_all(folder)
    (folder / "data/fr/test.jsonl").unlink()
    with pytest.raises(StageError, match=r"the test split of 'fr' is empty: there is no file data/fr/test"):
        prepare(nli_task(pattern))
    (folder / "data/de/validation.jsonl").unlink()
    with pytest.raises(StageError, match="the validation split of 'de' is empty"):
        prepare(nli_task(pattern))
    write_all(folder, suffix="csv")
    (folder / "data/de/train.csv").write_text("premise,hypothesis,label\n")
    with pytest.raises(StageError, match=r"data/de/train.csv holds no examples; delete it"):
        prepare(nli_task("data/{language}/{split}.csv"))


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("jsonl", b"\n{not json\n", r"data/de/train.jsonl, line 2: not JSON"),
        ("parquet", b"PAR1 no", r"cannot read data/de/train.parquet: "),
        ("jsonl", '{"premise": "für"}'.encode("latin-1"), r"data/de/train.jsonl, line 1: not UTF-8"),
        ("csv", "premise,hypothesis,label\nfür,b,yes\n".encode("latin-1"), r"train.csv, line 2: not UTF-8"),
        (
            "csv",
            b'premise,hypothesis,label\n"a,b,yes\nc,d,no\n"e f",g,no\n',
            r"lines 2 to 4: .*a quote may",
        ),
        ("csv", b'premise,hypothesis,label\na,b,yes\n"c,d,no\n', r"line 3: .*a quote may be missing"),
        ("csv", b'premise,hypothesis,label\n"He said \\"hi\\" to me",b,yes\n', r"line 2: ',' expected after"),
        ("csv", b'premise,hypothesis,label\na,b,yes\n\n"c" d,b,yes\n', r"line 4: ',' expected after"),
        ("csv", b"premise,hypothesis,label\na,b\n", r"train.csv, line 2: 2 values in 3 columns"),
    ],
)
def test_a_broken_file_is_named_with_the_line(
    folder: Path, suffix: str, content: bytes, message: str
) -> None:
    pattern = write_all(folder, suffix=suffix)
    (folder / f"data/de/train.{suffix}").write_bytes(content)
    with pytest.raises(StageError, match=message) as refused:
        prepare(nli_task(pattern))
    assert "\n" not in str(refused.value)


QUOTED = [
    {"premise": 'er sagte "ja"', "hypothesis": "b", "label": "yes"},
    {"premise": 'sie "nein"', "hypothesis": "b", "label": "no"},
    {"premise": "er schwieg", "hypothesis": "b", "label": "no"},
]


def test_tsv_that_looks_quoted_is_read_once_it_is_said_how(folder: Path) -> None:
    pattern = write_all(folder, QUOTED, "tsv")
    prepare(nli_task(pattern))  # whose quotes are not those of CSV
    with (folder / "data/de/train.tsv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(QUOTED[0]), delimiter="\t")
        rows.writeheader()
        rows.writerows(QUOTED)
    with pytest.raises(StageError, match=r"train.tsv: 2 fields look quoted, the last on line 3; .*quoting"):
        prepare(nli_task(pattern))
    texts = {}
    for quoting in ("csv", "none"):
        (folder / "data/de/train.tsv").rename(folder / "data/de/train.txt")
        write_all(folder, QUOTED[2:], "tsv")
        (folder / "data/de/train.txt").rename(folder / "data/de/train.tsv")
        task = nli_task(pattern, source=FilesSource(kind="files", pattern=pattern, quoting=quoting))
        prepare(task)
        texts[quoting] = read_examples(task, "de", "train")["premise"].to_pylist()
    assert texts["csv"] == [row["premise"] for row in QUOTED]
    assert texts["none"] == ['"er sagte ""ja"""', '"sie ""nein"""', "er schwieg"]


def test_rows_may_be_long_and_other_columns_hold_anything(folder: Path) -> None:
    long = "wort " * 600_000
    rows = [{**ROWS[0], "premise": long, "other": 1}, {**ROWS[1], "other": [{"a": "b"}]}, {**ROWS[2]}]
    task = nli_task(write_all(folder, rows))
    prepare(task)
    assert read_examples(task, "de", "train")["premise"].to_pylist() == [row["premise"] for row in rows]


def test_class_names_that_a_parquet_file_notes_decide(folder: Path) -> None:
    pattern = write_all(folder, suffix="parquet")
    names = {"info": {"features": {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}}}}
    rows = [{**row, "label": ["yes", "no"].index(row["label"])} for row in ROWS]
    noted = {"huggingface": json.dumps(names)}
    pq.write_table(
        pa.Table.from_pylist(rows).replace_schema_metadata(noted), folder / "data/de/train.parquet"
    )
    task = nli_task(pattern)
    prepare(task)
    assert read_examples(task, "de", "train")["label"].to_pylist() == [1, 0, 1]
    others = {"huggingface": json.dumps(names).replace("no", "nein")}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(others)
    pq.write_table(table, folder / "data/de/train.parquet")
    with pytest.raises(StageError, match=r"row 2: label 'nein' is not one of task.classes"):
        prepare(task)


@pytest.mark.parametrize("split", ["train", "test"])
def test_bare_numbers_beside_a_file_that_numbers_classes_otherwise_are_refused(
    folder: Path, split: str
) -> None:
    pattern = write_all(folder, suffix="parquet")
    rows = [{**row, "label": ["yes", "no"].index(row["label"])} for row in ROWS]
    for names in (["yes", "no"], ["no", "yes"]):
        noted = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
        table = pa.Table.from_pylist(rows).replace_schema_metadata(noted)
        pq.write_table(table, folder / "data/de/validation.parquet")
        write(folder / f"data/de/{split}.parquet", rows)  # as pandas writes them again, without the names
        if names == ["no", "yes"]:  # as task.classes has them
            prepare(nli_task(pattern))
            continue
        with pytest.raises(StageError, match=rf"/validation.parquet says .*/{split}.parquet has bare"):
            prepare(nli_task(pattern))
    source = FilesSource(kind="files", pattern=pattern, first_class_number=0)
    prepare(nli_task(pattern, source=source))


def test_numbers_that_never_are_0_are_asked_about(folder: Path) -> None:
    rows = [{**row, "label": number} for row, number in zip(ROWS, (1, 2, 1), strict=True)]
    pattern = write_all(folder, rows, "csv")
    task = nli_task(pattern, classes=["a", "b", "c"])
    with pytest.raises(StageError, match=r"labels of 'de' are the numbers 1, 2 and never 0; .*first_class"):
        prepare(task)
    for first, expected in ((1, [0, 1, 0]), (0, [1, 2, 1])):
        source = FilesSource(kind="files", pattern=pattern, first_class_number=first)
        said = nli_task(pattern, classes=["a", "b", "c"], source=source)
        prepare(said)
        assert read_examples(said, "de", "train")["label"].to_pylist() == expected
    with pytest.raises(StageError, match=r"label '2' .*begin with 1, say task.source.first_class_number: 1"):
        prepare(nli_task(pattern))


def test_numbers_of_a_test_split_alone_are_asked_about_unless_there_is_a_0(folder: Path) -> None:
    pattern = write_all(folder, suffix="csv")
    task = nli_task(pattern, classes=["yes", "no", "maybe"])
    for numbers in ((1, 2, 1), (0, 1, 0)):
        rows = [{**row, "label": number} for row, number in zip(ROWS, numbers, strict=True)]
        write(folder / "data/de/test.csv", rows)
        if 0 in numbers:
            prepare(task)
            continue
        with pytest.raises(StageError, match=r"the test labels of 'de' are the numbers 1, 2 and never 0"):
            prepare(task)


def test_prepare_says_what_people_want_to_know_of_their_data(folder: Path) -> None:
    pattern = write_all(folder)
    table = prepare(nli_task(pattern, classes=["maybe", "no", "yes"])).table().splitlines()
    assert [line.split() for line in table[4:8]] == [
        ["class,", "in", "train", "de"],
        ["maybe", "0"],
        ["no", "1"],
        ["yes", "2"],
    ]
    assert table[9:] == [
        "de: 1 train examples have an empty text",
        "warning: de: no training example of maybe",
        *(f"de: 1 {split} examples have an empty text" for split in SPLITS[1:]),
        "fr: 1 test examples have an empty text",
        "de: 3 validation texts are test texts",
        "de: 3 validation texts are training texts",
        "fr: 3 test texts are another language's training texts",
    ]
    write(folder / "data/de/train.jsonl", [*ROWS, {**ROWS[0], "label": "no"}])
    assert "de: 1 training texts stand there with several labels" in prepare(nli_task(pattern)).notes


def test_rows_of_other_languages_in_a_languages_own_file_are_noted(folder: Path) -> None:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        said = [language, language, "FR" if language == "fr" else language]
        each = [{**row, "lang": one} for row, one in zip(ROWS, said, strict=True)]
        write(folder / f"data/{language}/{split}.jsonl", each)
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", language_field="lang")
    notes = prepare(nli_task("", source=source)).notes
    assert [note for note in notes if "left out" in note] == ["fr, test: 1 rows of 'FR' are left out"]


def test_a_validation_file_that_cannot_be_used_is_noted(folder: Path) -> None:
    pattern = write_all(folder)
    write(folder / "data/fr/validation.jsonl", [{**row, "label": None, "gold": "yes"} for row in ROWS])
    lines = (folder / "data/fr/validation.jsonl").read_text().replace('"label": null, ', "")
    (folder / "data/fr/validation.jsonl").write_text(lines)
    (note,) = [note for note in prepare(nli_task(pattern)).notes if "no validation split" in note]
    assert note.startswith("warning: fr: no validation split, since data/fr/validation.jsonl")


def test_a_column_that_names_few_things_is_noted(folder: Path) -> None:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        each = [
            {"premise": f"{split} {i}", "hypothesis": "h", "label": "yes", "entity": "Microsoft"}
            for i in range(20)
        ]
        write(folder / f"data/{language}/{split}.jsonl", each)
    pattern = "data/{language}/{split}.jsonl"
    notes = prepare(nli_task(pattern)).notes
    assert any(note.startswith("de: the 20 training examples have 1 values of entity; ") for note in notes)
    (folder / "data/de/validation.jsonl").unlink()
    with pytest.raises(StageError, match=r"rows of train; (raise|lower) it \(rows with the same entity go"):
        prepare(nli_task(pattern, validation_share=0.5))


def test_languages_that_differ_in_spelling_alone_are_refused() -> None:
    for one, other in (("de", "DE"), ("zh_Hans", "zh-Hans")):
        with pytest.raises(ValidationError, match=f"'{one}' and '{other}' are the same language"):
            names_task(supervised=[one], zero_shot=[other])


def test_a_language_without_entities_beside_others_is_noted(folder: Path) -> None:
    for language in ("de", "en", "fr"):
        for split in SPLITS:
            each = [{**row, "entity": f"{split} {i}"} for i, row in enumerate(ROWS)]
            if language == "en":
                each = [{("Entity" if key == "entity" else key): row[key] for key in row} for row in each]
            write(folder / f"data/{language}/{split}.jsonl", each)
    task = nli_task("data/{language}/{split}.jsonl", supervised=["de", "en"])
    assert "en: no training example has an entity, as those of other languages have" in prepare(task).notes


def test_a_folder_into_which_dvc_does_not_look_is_named(folder: Path) -> None:
    pattern = write_all(folder)
    shutil.move("data/de", "elsewhere")
    Path("data/de").symlink_to(folder / "elsewhere")
    assert [note for note in prepare(nli_task(pattern)).notes if "link" in note] == [
        "warning: data/de is a link to a folder, in which DVC sees no changes; link its files instead"
    ]


def test_texts_about_the_same_entity_all_serve_for_pretraining(folder: Path) -> None:
    pattern = write_all(folder)
    rows = [{"text": f"Satz {i}", "entity": str(i // 3)} for i in range(9)]
    write(folder / "data/de/unlabelled.jsonl", rows)
    task = nli_task(pattern)
    prepare(task)
    texts = pretraining_texts(task, "de")
    assert sorted(texts.values()) == [row["text"] for row in rows]
    assert texts["1"] == "Satz 3"


def test_labels_that_are_lists_are_named(folder: Path) -> None:
    pattern = write_all(folder, suffix="parquet")
    table = pq.read_table(folder / "data/de/train.parquet")
    lists = pa.array([["yes"]] * len(table))
    pq.write_table(table.drop_columns("label").append_column("label", lists), "data/de/train.parquet")
    with pytest.raises(StageError, match=r"row 1: label \['yes'\] is not one of"):
        prepare(nli_task(pattern))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_unlabelled_files_are_texts_for_pretraining(folder: Path, suffix: str) -> None:
    pattern = write_all(folder, suffix=suffix)
    write(
        folder / f"data/de/unlabelled.{suffix}",
        [{"text": "eins", "entity": "1"}, {"text": "zwei", "entity": "2"}],
    )
    write(folder / f"data/fr/unlabelled.{suffix}", [{"text": "deux", "entity": "2"}])
    task = nli_task(pattern)
    prepare(task)
    assert pretraining_texts(task, "de") == {"1": "eins", "2": "zwei"}
    assert pretraining_texts(task, "fr") == {"2": "deux"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("entities", "read"), [(["07", "8", ""], ["07", "8", None]), ([7, 8, 9], ["7", "8", "9"])]
)
def test_training_examples_may_say_what_they_are_about(
    folder: Path, suffix: str, entities: list[Any], read: list[Any]
) -> None:
    pattern = write_all(folder, suffix=suffix)
    rows = [{**row, "entity": entity} for row, entity in zip(ROWS, entities, strict=True)]
    write(folder / f"data/de/train.{suffix}", rows)
    task = nli_task(pattern)
    prepare(task)
    assert read_entities("de", "train") == read
    assert read_entities("de", "test") == [None, None, None]
    assert read_examples(task, "de", "train").schema == columns_of(task)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("entity", "read"), [(["a"], None), (None, None), ("a", "a")])
def test_a_column_that_says_nothing_of_translations_is_left_alone(
    folder: Path, suffix: str, entity: Any, read: str | None
) -> None:
    pattern = write_all(folder, suffix=suffix)
    write(folder / f"data/de/train.{suffix}", [{**row, "entity": entity} for row in ROWS])
    prepare(nli_task(pattern))
    assert read_entities("de", "train") == [read] * 3


def test_unlabelled_texts_need_no_entity_and_are_no_translations_without(folder: Path) -> None:
    pattern = write_all(folder)
    for language in ("de", "fr"):
        write(folder / f"data/{language}/unlabelled.jsonl", [{"text": "a"}, {"text": "a"}])
    task = nli_task(pattern)
    prepare(task)
    assert pretraining_texts(task, "de") == {"de:0": "a", "de:1": "a"}
    assert pretraining_texts(task, "fr") == {"fr:0": "a", "fr:1": "a"}


def test_a_bad_unlabelled_text_is_named_with_its_row(folder: Path) -> None:
    pattern = write_all(folder)
    write(folder / "data/de/unlabelled.jsonl", [{"text": "a"}, {"text": None}])
    with pytest.raises(StageError, match=r"unlabelled.jsonl, line 2: text is null"):
        prepare(nli_task(pattern))
    write(folder / "data/de/unlabelled.jsonl", [{"tekst": "a"}])
    with pytest.raises(StageError, match=r"no column 'text'; did you mean tekst"):
        prepare(nli_task(pattern))


def test_files_of_an_unknown_kind_are_refused(folder: Path) -> None:
    pattern = write_all(folder).replace("jsonl", "xml")
    for path in folder.glob("data/*/*.jsonl"):
        path.rename(path.with_suffix(".xml"))
    with pytest.raises(StageError, match=r"data/de/train.xml: it is not one of .csv, .tsv"):
        prepare(nli_task(pattern))


def test_examples_of_another_task_are_refused(folder: Path) -> None:
    task = nli_task(write_all(folder))
    with pytest.raises(StageError, match="is not there; write it with: python -m pipeline prepare"):
        read_examples(task, "de", "train")
    prepare(task)
    other = nli_task("data/{language}/{split}.jsonl", text_fields=["premise"])
    with pytest.raises(StageError, match="was written for other text fields or classes"):
        read_examples(other, "de", "train")
    swapped = nli_task("data/{language}/{split}.jsonl", classes=["yes", "no"])
    with pytest.raises(StageError, match="was written for other text fields or classes"):
        read_examples(swapped, "de", "train")
    Path("artifacts/data/de/train.arrow").write_bytes(b"torn")
    with pytest.raises(StageError, match="is broken"):
        read_examples(task, "de", "train")


# The Hub


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets in ../shared/data")
def test_a_folder_laid_out_as_on_the_hub_is_read_by_configuration_and_class_names(folder: Path) -> None:
    hub = folder / "data/hub"
    lines = ["---", "configs:"]
    for language in ("de", "en", "ru"):
        lines += [f"- config_name: {language}", "  data_files:"]
        for split in ("train", "validation", "test"):
            source = SHARED / "xnli" / language / f"{split}.parquet"
            if source.is_file():
                (hub / language).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, hub / language)
                lines += [f"  - split: {split}", f"    path: {language}/{split}.parquet"]
    (hub / "README.md").write_text("\n".join([*lines, "---"]))
    task = nli_task(
        "data/{language}{split}",
        source=HubSource(
            kind="hub", dataset=str(hub), config="{language}", revision=None, label_field="label"
        ),
        classes=["contradiction", "entailment", "neutral"],
        supervised=["de", "en"],
        zero_shot=["ru"],
        max_examples=50,
    )
    assert prepare(task).examples == {
        "de": {"train": 50, "validation": 50, "test": 50},
        "en": {"train": 50, "validation": 50, "test": 50},
        "ru": {"validation": 50, "test": 50},
    }
    assert set(read_examples(task, "en", "train")["label"].to_pylist()) == {0, 1, 2}


def test_a_data_set_that_cannot_be_loaded_is_named(folder: Path) -> None:
    source = HubSource(kind="hub", dataset="./absent", config="{language}")
    with pytest.raises(StageError, match=r"task.source.dataset is ./absent: no folder of that name; name"):
        prepare(nli_task("data/{language}{split}", source=source))


@pytest.mark.parametrize("dataset", ["corpus", "data/../corpus", "/tmp"])
def test_a_folder_that_dvc_does_not_watch_is_no_data_set(folder: Path, dataset: str) -> None:
    (folder / "corpus").mkdir()
    (folder / "data").mkdir()
    source = HubSource(kind="hub", dataset=dataset, config="{language}")
    with pytest.raises(StageError, match=rf"task.source.dataset is {dataset}, a folder outside data/"):
        prepare(nli_task("", source=source))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"premise": "cut', "JSON parse error: "),
        ("{}", "must have the same columns, but there are 1 new"),
    ],
)
def test_a_file_of_a_data_set_that_cannot_be_read_is_told_with_the_reason(
    folder: Path, bad: str, message: str
) -> None:
    write(folder / "data/hub-de/train.jsonl", ROWS)
    other = bad.replace("{}", '{"other": 1}')
    (folder / "data/hub-de/test.jsonl").write_text(f"{other}\n")
    source = HubSource(kind="hub", dataset="data/hub-{language}")
    with pytest.raises(StageError, match=rf"cannot load data/hub-de for 'de': .*{message}"):
        prepare(nli_task("", source=source, zero_shot=[]))


def test_a_data_set_must_tell_languages_apart() -> None:
    source = HubSource(kind="hub", dataset="acme/data")
    with pytest.raises(ValidationError, match=r"source.dataset or source.config needs \{language\} in it"):
        nli_task("", source=source)
    nli_task("", source=source, zero_shot=[])
    for changes in (
        {"config": "{language}"},
        {"language_field": "lang"},
        {"text_fields": ["a_{language}", "b_{language}"]},
    ):
        nli_task("", source=source.model_copy(update=changes))


# Random tables

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TABLES = st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["no", "yes"])), min_size=1, max_size=6)


def as_bytes(rows: list[tuple[str, str, str]], kind: str) -> bytes:
    """Write a table as others do."""
    names = ["premise", "hypothesis", "label"]
    if kind == "jsonl":
        return b"".join(json.dumps(dict(zip(names, row, strict=True))).encode() + b"\n" for row in rows)
    text = io.StringIO(newline="")
    table = [names, *rows]
    if kind == "quoted csv":
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(table)
    else:
        csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode()


DAMAGE = st.none() | st.tuples(st.integers(0, 200), st.sampled_from(b'",\n\\\xff'))


@pytest.mark.parametrize("kind", ["csv", "quoted csv", "jsonl"])
@hypothesis.given(rows=TABLES, damage=DAMAGE)
def test_a_random_table_is_read_as_it_is_or_refused(
    kind: str, rows: list[tuple[str, str, str]], damage: tuple[int, int] | None
) -> None:
    data = as_bytes(rows, kind)
    if damage:
        place = damage[0] % (len(data) + 1)
        data = data[:place] + bytes([damage[1]]) + data[place:]
    names = ["premise", "hypothesis", "label"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table.{kind.split()[-1]}"
        path.write_bytes(data)
        source = Input(path, None, names[:2], None, needed=names[2:])
        found, refused = read_or_refused(source, names)
    if damage is None and "CR alone" not in refused:  # which a writer may leave unquoted
        assert (found, refused) == (rows, "")
    elif refused:
        assert str(path) in refused
    else:
        assert len(found) in (len(rows), len(rows) + 1)  # the rest may well be a table


def test_a_random_table_in_parquet_is_read_as_it_is(folder: Path) -> None:
    rng = np.random.default_rng(0)
    letters = ['"', ",", "\t", "\n", "\r", "\\", "ü", "中", " ", "a"]
    rows = [
        {
            "premise": "".join(rng.choice(letters, 5)),
            "hypothesis": "".join(rng.choice(letters, 3)),
            "label": "yes",
        }
        for _ in range(300)
    ]
    task = nli_task(write_all(folder, rows, "parquet"))
    prepare(task)
    assert read_examples(task, "de", "train")["premise"].to_pylist() == [row["premise"] for row in rows]
