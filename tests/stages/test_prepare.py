"""Reading a task: the built-in one, files of every kind, folders laid out as on the Hub, and bad input."""

import csv
import json
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import ROOT

from cache import example_id, file_digest
from stages.data.examples import columns_of, pretraining_texts, read_entities, read_examples
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


def nli_task(pattern: str, **changes: Any) -> TaskParams:
    values: dict[str, Any] = {
        "source": FilesSource(kind="files", pattern=pattern, label_field="label"),
        "text_fields": ["premise", "hypothesis"],
        "classes": ["no", "yes"],
        "supervised": ["de"],
        "zero_shot": ["fr"],
        "max_examples": None,
    }
    return TaskParams(**values | changes)


ROWS: list[dict[str, Any]] = [
    {"premise": 'Er sagte: "ja",\u00a0dann', "hypothesis": "null", "label": "yes"},
    {"premise": "u\u0308ber", "hypothesis": "NA", "label": "no"},
    {"premise": " leading", "hypothesis": "", "label": "yes"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Read by `datasets` when it is imported, which `prepare` does for the Hub alone.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path


def write_all(folder: Path, rows: list[dict[str, Any]] = ROWS, suffix: str = "jsonl") -> str:
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        write(folder / "data" / language / f"{split}.{suffix}", rows)
    return f"data/{{language}}/{{split}}.{suffix}"


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
    with pytest.raises(StageError, match=r"label '?0'? .3 times. is not one of task.classes: 1, 2"):
        prepare(task)


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
    prepare(nli_task(pattern, source=source))
    assert read_entities("fr", "test") == ["a", "a", "a"]  # what the source says itself counts
    write(folder / "data/fr/test.jsonl", ROWS[:2])
    with pytest.raises(StageError, match="the test split has 3 rows in 'de' and 2 in 'fr'; set it to false"):
        prepare(nli_task(pattern, source=source))


def test_max_examples_keeps_the_first(folder: Path) -> None:
    task = nli_task(write_all(folder), max_examples=2)
    assert prepare(task).examples["de"] == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"premise": None}, r"de/train, row 0: premise is None, not a text"),
        (
            {"label": "maybe"},
            r"de/train, row 0: label 'maybe' \(1 times\) is not one of task.classes: no, yes",
        ),
        ({"label": None}, r"row 0: label None"),
    ],
)
def test_a_bad_example_is_named_with_its_row(folder: Path, change: dict[str, Any], message: str) -> None:
    task = nli_task(write_all(folder, [ROWS[0] | change, ROWS[1]]))
    with pytest.raises(StageError, match=message):
        prepare(task)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_of_the_classes_is_refused(folder: Path, label: int) -> None:
    task = nli_task(write_all(folder, [{**row, "label": label} for row in ROWS]))
    with pytest.raises(StageError, match=rf"label {label} \(3 times\)"):
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
    with pytest.raises(StageError, match=r"the test split of 'fr' is empty; task.source.pattern is data/"):
        prepare(nli_task(pattern))
    (folder / "data/de/validation.jsonl").unlink()
    with pytest.raises(StageError, match="the validation split of 'de' is empty"):
        prepare(nli_task(pattern))
    write_all(folder, suffix="csv")
    (folder / "data/de/train.csv").write_text("premise,hypothesis,label\n")
    with pytest.raises(StageError, match="the train split of 'de' is empty"):
        prepare(nli_task("data/{language}/{split}.csv"))


@pytest.mark.parametrize(
    ("suffix", "content"), [("jsonl", b"{not json\n"), ("parquet", b"PAR1 no"), ("jsonl", b"\xff\xfe")]
)
def test_a_broken_file_is_named(folder: Path, suffix: str, content: bytes) -> None:
    pattern = write_all(folder, suffix=suffix)
    (folder / f"data/de/train.{suffix}").write_bytes(content)
    with pytest.raises(StageError, match=rf"cannot read data/de/train.{suffix}"):
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
    with pytest.raises(StageError, match=r"unlabelled.jsonl, row 1: text is None"):
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
    hub = folder / "hub"
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
    source = HubSource(kind="hub", dataset="./absent", config=None, revision=None, label_field="label")
    with pytest.raises(
        StageError, match=r"task.source.dataset is ./absent: no folder of that name, and the Hub"
    ):
        prepare(nli_task("data/{language}{split}", source=source))
