"""Files as people have them: other names of splits and columns, compressed, without a header, one array."""

import csv
import datetime
import decimal
import gzip
import io
import json
import re
import tempfile
import uuid
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tables import ROWS, nli_task, read_or_refused, write, write_all
from tiny import ROOT

from pipeline.params import load_params
from stages.data import rows as reading
from stages.data import sources
from stages.data.examples import pretraining_texts, read_entities, read_examples
from stages.data.files import Input
from stages.data.rows import placed_rows
from stages.data.task import FilesSource, HubSource, TaskParams
from stages.errors import StageError
from stages.prepare import prepare


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path


def files(pattern: str, **changes: Any) -> FilesSource:
    return FilesSource(kind="files", pattern=pattern, **changes)


def premises(language: str, split: Any, **changes: Any) -> list[str]:
    found: list[str] = read_examples(nli_task("data/{language}{split}", **changes), language, split)[
        "premise"
    ].to_pylist()
    return found


EXPECTED = [row["premise"] for row in ROWS]


def zstandard(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


COMPRESS = {".gz": gzip.compress, ".zst": zstandard}


# What docs/own-data.md says


def test_the_ten_lines_of_the_documentation_are_a_params_file(folder: Path) -> None:
    text = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
    lines = text.partition("```yaml\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 10
    Path("params.yaml").write_text(lines, encoding="utf-8")
    task = load_params(Path("params.yaml")).task
    rows = [{"text": f"{name} text", "label": name} for name in task.classes]
    for split in ("de/train", "de/validation", "de/test", "en/train", "en/validation", "en/test", "fr/test"):
        write(folder / f"data/{split}.csv", rows)
    assert prepare(task).examples["fr"] == {"test": 3}
    options = set(re.findall(r"`(\w+): ", text.partition("# File layouts")[2])) - {"source"}
    assert options <= {*FilesSource.model_fields, *TaskParams.model_fields}
    assert len(options) > 10


# Splits


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_splits_may_have_other_names(folder: Path, suffix: str) -> None:
    pattern = write_all(folder, suffix=suffix)
    for old, new in (("validation", "dev"), ("train", "training")):
        path = folder / f"data/de/{old}.{suffix}"
        path.rename(path.with_stem(new))
    write(folder / f"data/fr/raw.{suffix}", [{"text": "un"}])
    splits: dict[Any, str] = {"validation": "dev", "train": "training", "unlabelled": "raw"}
    task = nli_task(pattern, source=files(pattern, splits=splits))
    prepare(task)
    assert premises("de", "validation") == premises("de", "train") == EXPECTED
    assert pretraining_texts(task, "fr") == {"fr:0": "un"}
    with pytest.raises(
        ValidationError, match="Input should be 'train', 'validation', 'test' or 'unlabelled'"
    ):
        files(pattern, splits={"dev": "validation"})


def rows_about(entities: range, word: str) -> list[dict[str, Any]]:
    return [
        {"premise": f"{word} {i}", "hypothesis": "h", "label": ("no", "yes")[i % 2], "entity": f"e{i}"}
        for i in entities
    ]


def test_a_validation_split_may_be_a_share_of_train_the_same_in_all_languages(folder: Path) -> None:
    write_all(folder, ROWS)
    for language in ("de", "en"):
        write(folder / f"data/{language}/train.jsonl", rows_about(range(400), language))
    write(folder / "data/en/test.jsonl", ROWS)
    (folder / "data/de/validation.jsonl").unlink()
    pattern = "data/{language}/{split}.jsonl"
    task = nli_task(pattern, supervised=["de", "en"], validation_share=0.25)
    done = prepare(task)
    counts = done.examples["de"]
    assert 70 < counts["validation"] < 130
    assert counts["train"] + counts["validation"] == 400
    validation = read_entities("de", "validation")
    assert validation == read_entities("en", "validation")
    assert not set(validation) & set(read_entities("de", "train"))
    assert "de: 25% of train, by hash, are the validation split" in done.notes
    write(folder / "data/de/train.jsonl", rows_about(range(200, 600), "de"))
    prepare(task)  # another file, and what both have stays where it was
    both = {f"e{i}" for i in range(200, 400)}
    assert set(validation) & both == set(read_entities("de", "validation")) & both
    write(folder / "data/de/validation.jsonl", ROWS)
    prepare(task)  # a split that is there stays as it is
    assert premises("de", "validation") == EXPECTED
    (folder / "data/de/validation.jsonl").unlink()
    with pytest.raises(
        StageError, match=r"validation split of 'de' is empty: .*; task.validation_share takes a"
    ):
        prepare(nli_task(pattern))


def test_a_share_of_texts_without_entities_keeps_equal_texts_together(folder: Path) -> None:
    pattern = write_all(folder)
    rows = [row | {"premise": row["premise"][:4]} for row in rows_about(range(300), "de")]
    write(folder / "data/de/train.jsonl", [{k: v for k, v in row.items() if k != "entity"} for row in rows])
    (folder / "data/de/validation.jsonl").unlink()
    done = prepare(nli_task(pattern, validation_share=0.3))
    assert not [note for note in done.notes if "validation texts are training texts" in note]


def test_aligned_languages_share_the_validation_rows(folder: Path) -> None:
    write_all(folder)
    for language in ("de", "en"):
        rows = [{k: v for k, v in row.items() if k != "entity"} for row in rows_about(range(200), language)]
        write(folder / f"data/{language}/train.jsonl", rows)
    write(folder / "data/en/test.jsonl", ROWS)
    (folder / "data/de/validation.jsonl").unlink()
    source = files("data/{language}/{split}.jsonl", aligned=True)
    done = prepare(nli_task("", source=source, supervised=["de", "en"], validation_share=0.2))
    numbers = [[text.split()[1] for text in premises(one, "validation")] for one in ("de", "en")]
    assert numbers[0] == numbers[1] != []
    assert not [note for note in done.notes if "translations" in note]
    # Another language has a validation split of its own, which is no part of anybody's training rows.
    for language in ("de", "en"):
        write(folder / f"data/{language}/validation.jsonl", ROWS)
    (folder / "data/fr/validation.jsonl").write_bytes((folder / "data/de/validation.jsonl").read_bytes())
    task = nli_task("", source=source, supervised=["de", "en"], validation_share=0.2)
    prepare(task)
    (folder / "data/en/validation.jsonl").unlink()
    with pytest.raises(StageError, match=r"makes the validation split of 'en' of rows that 'de', which"):
        prepare(task)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (
            1e-9,
            "validation split of 'de' is empty: .* is 1e-09, which takes none of the 3 rows of train; raise",
        ),
        (1 - 1e-9, "train split of 'de' is empty: .* which takes all 3 rows of train; lower it"),
    ],
)
def test_a_share_that_leaves_a_split_empty_is_named(folder: Path, share: float, message: str) -> None:
    task = nli_task(write_all(folder), validation_share=share)
    (folder / "data/de/validation.jsonl").unlink()
    with pytest.raises(StageError, match=message):
        prepare(task)


def test_numbers_with_a_zero_behind_the_point_are_the_same_entities(folder: Path) -> None:
    pattern = write_all(folder)
    for language, entities in (("de", [1, 2, 30]), ("fr", [None, 2.0, 30.0])):  # as pandas writes them
        rows = [row | {"entity": entity} for row, entity in zip(ROWS, entities, strict=True)]
        write(folder / f"data/{language}/test.jsonl", rows)
    prepare(nli_task(pattern))
    assert read_entities("de", "test") == ["1", "2", "30"]
    assert read_entities("fr", "test") == [None, "2", "30"]


# Formats


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_compressed_files_are_read_as_what_is_in_them(folder: Path, suffix: str, compression: str) -> None:
    pattern = write_all(folder, suffix=suffix)
    for path in folder.glob("data/*/*"):
        data = path.read_bytes()
        half = len(data) // 2  # such as two files that were put behind each other
        parts = [COMPRESS[compression](part) for part in (data[:half], data[half:])]
        path.with_name(path.name + compression).write_bytes(b"".join(parts))
        path.unlink()
    prepare(nli_task(pattern + compression))
    assert premises("de", "train") == EXPECTED


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "head", "none at all"])
def test_a_compressed_file_that_is_damaged_is_refused(folder: Path, compression: str, damage: str) -> None:
    write_all(folder)
    for path in folder.glob("data/*/*"):
        data = path.read_bytes() * 200
        compressed = COMPRESS[compression](data)
        broken = {"cut": compressed[:-3], "head": b"xxxx" + compressed[4:], "none at all": data}[damage]
        path.with_name(path.name + compression).write_bytes(broken)
    with pytest.raises(StageError, match=rf"cannot read data/de/train.jsonl{compression}: ") as refused:
        prepare(nli_task("data/{language}/{split}.jsonl" + compression))
    assert "\n" not in str(refused.value)


def test_parquet_in_gzip_is_not_taken(folder: Path) -> None:
    write_all(folder, suffix="parquet")
    for path in folder.glob("data/*/*"):
        path.rename(f"{path}.gz")
    with pytest.raises(StageError, match=r"train.parquet.gz: Parquet is compressed within; unpack it"):
        prepare(nli_task("data/{language}/{split}.parquet.gz"))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("begin", ["", "\ufeff\n "])
def test_a_json_file_may_be_one_array(folder: Path, indent: int | None, begin: str) -> None:
    write_all(folder)
    for path in folder.glob("data/*/*"):
        text = json.dumps(ROWS, indent=indent, ensure_ascii=False)
        path.with_suffix(".json").write_text(begin + text + "\n", encoding="utf-8")
    prepare(nli_task("data/{language}/{split}.json"))
    assert premises("de", "train") == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"premise": "a", "hypothesis": "b", "label": "no"}',
            r"line 1: not JSON .a comma or \] is missing",
        ),
        (
            '[\n{"premise": "a"\n',
            r"line 2 .item 1.: not JSON that can be read .*delimiter; the file ends",
        ),
        (
            '[{"premise": "a',
            r"line 1 .item 1.: not JSON that can be read .*string; the file ends",
        ),
        ("[\n{},]", r"line 2 .item 1. has no column 'premise'; there are: none"),
        ("[1]", r".item 1.: 1 is no JSON object"),
        ('[{"premise": 3, "hypothesis": "b", "label": "no"}]', r".item 1.: premise is 3, not a text"),
        ('[{"premise": NaN}]', r"line 1 .item 1.: not JSON that can be read .NaN is no JSON"),
        (
            '[{"premise": "a", "hypothesis": "b", "label": "no"},]',
            r".item 2.: not JSON that can be read .Expecting value\)",
        ),
        ('[{"premise": "a", "hypothesis": "b", "label": "no"}] x', r"something follows the array"),
        ('[{"premise": "a", "hypothesis": "b", "label": "what"}]', r".item 1.: label 'what' is not one of"),
    ],
)
def test_an_array_that_is_broken_is_refused_with_its_item(folder: Path, text: str, message: str) -> None:
    write_all(folder)
    for path in folder.glob("data/*/*"):
        path.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=message) as refused:
        prepare(nli_task("data/{language}/{split}.json"))
    assert "data/de/train.json" in str(refused.value)


def test_an_array_that_is_not_utf_8_names_the_line(folder: Path) -> None:
    pattern = write_all(folder)
    (folder / "data/de/train.jsonl").write_bytes(b'[\n\n{"premise": "f\xfcr"}]')
    with pytest.raises(StageError, match=r"train.jsonl, line 3: not UTF-8 .invalid start byte"):
        prepare(nli_task(pattern))


@pytest.mark.parametrize("quoting", [None, "none"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_of_files_without_a_header_are_named_in_the_params(
    folder: Path, suffix: str, quoting: Any
) -> None:
    pattern = write_all(folder, [{"label": "yes", "premise": "p", "hypothesis": "h"}], suffix)
    for path in folder.glob("data/*/*"):
        path.write_text(path.read_text().partition("\n")[2])
    write_text = folder / f"data/fr/unlabelled.{suffix}"
    write_text.write_text("un\ndeux\n")
    source = files(pattern, columns=["label", "premise", "hypothesis"], quoting=quoting)
    task = nli_task(pattern, source=source)
    prepare(task)
    assert premises("de", "train") == ["p"]
    assert list(pretraining_texts(task, "fr").values()) == ["un", "deux"]
    with (folder / f"data/de/train.{suffix}").open("a") as file:
        file.write({"csv": "yes,p", "tsv": "yes\tp"}[suffix])
    with pytest.raises(StageError, match=r"line 2: 2 values in 3 columns"):
        prepare(task)
    separator = {"csv": ",", "tsv": "\t"}[suffix]
    (folder / f"data/de/train.{suffix}").write_text(separator.join(["label", "premise", "hypothesis"]) + "\n")
    with pytest.raises(StageError, match=r"train.\w+ has a header line; do not name its columns beside it"):
        prepare(task)


def test_columns_are_named_of_csv_and_tsv_alone(folder: Path) -> None:
    pattern = write_all(folder)
    with pytest.raises(
        StageError, match=r"only CSV and TSV have columns without names, and data/de/train.jsonl"
    ):
        prepare(nli_task(pattern, source=files(pattern, columns=["premise", "hypothesis", "label"])))


def test_unlabelled_text_may_be_a_text_file(folder: Path) -> None:
    write_all(folder)
    (folder / "data/de/unlabelled.txt").write_text('eins "zwei"\ndrei\n')
    done = prepare(nli_task("data/{language}/{split}.jsonl"))
    assert done.table().splitlines()[:2] == [
        "language      train    validation    test    test in train    unlabelled",
        "de                3             3       3                3             2",
    ]
    task = nli_task("data/{language}/{split}.*")
    prepare(task)
    assert list(pretraining_texts(task, "de").values()) == ['eins "zwei"', "drei"]
    (folder / "data/de/train.txt").write_text("eins\n")
    with pytest.raises(StageError, match=r"cannot read data/de/train.txt: it is not one of .csv"):
        prepare(task)


def test_a_text_file_is_of_the_language_that_its_name_ends_with(folder: Path) -> None:
    write_all(folder)
    for path in folder.glob("data/*/*.jsonl"):
        path.rename(folder / f"data/{path.stem}.{path.parent.name}.jsonl")
    (folder / "data/unlabelled.de.txt").write_text("eins\n")
    (folder / "data/unlabelled.fr.txt").write_text("un\n")
    (folder / "data/unlabelled.txt").write_text("of no language\n")
    task = nli_task("data/{split}.{language}.jsonl")
    prepare(task)
    assert [list(pretraining_texts(task, one).values()) for one in ("de", "fr")] == [["eins"], ["un"]]


# Columns


def test_columns_may_have_the_language_in_their_names(folder: Path) -> None:
    rows = [
        {f"{key}_{language}": f"{value} {language}" for key, value in row.items() if key != "label"}
        | {f"gold_{language}": row["label"]}
        for language in ("de", "fr")
        for row in ROWS
    ]
    merged = [one | other for one, other in zip(rows[:3], rows[3:], strict=True)]
    for split in ("train", "validation", "test"):
        write(folder / f"data/{split}.csv", merged)
    source = files(
        "data/{split}.csv",
        text_fields=["premise_{language}", "hypothesis_{language}"],
        label_field="gold_{language}",
    )
    task = nli_task("", source=source)
    prepare(task)
    assert premises("de", "train") == [f"{text} de" for text in EXPECTED]
    assert premises("fr", "test") == [f"{text} fr" for text in EXPECTED]
    assert read_examples(task, "fr", "test").schema.names == ["example_id", "premise", "hypothesis", "label"]
    write(folder / "data/unlabelled.csv", [{"text": "eins"}])
    with pytest.raises(StageError, match=r"data/unlabelled.csv: of which language\? write \{language\} into"):
        prepare(task)
    bad = merged[0] | {"premise_fr": ""}
    del bad["hypothesis_fr"]
    write(folder / "data/test.csv", [bad])
    with pytest.raises(StageError, match=r"data/test.csv has no column 'hypothesis_fr'; did you mean hyp"):
        prepare(nli_task("", source=source.model_copy(update={"splits": {"unlabelled": "none"}})))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_one_file_may_hold_all_languages(folder: Path, suffix: str) -> None:
    rows = [
        row | {"lang": lang, "premise": f"{row['premise']} {lang}"} for row in ROWS for lang in ("de", "fr")
    ]
    for split in ("train", "validation", "test"):
        write(folder / f"data/{split}.{suffix}", rows)
    write(
        folder / f"data/unlabelled.{suffix}", [{"text": "un", "lang": "fr"}, {"text": "eins", "lang": "de"}]
    )
    task = nli_task("", source=files(f"data/{{split}}.{suffix}", language_field="lang"))
    prepare(task)
    assert premises("de", "train") == [f"{text} de" for text in EXPECTED]
    assert premises("fr", "test") == [f"{text} fr" for text in EXPECTED]
    assert list(pretraining_texts(task, "fr").values()) == ["un"]
    rows[5] = rows[5] | {"label": "what"}
    write(folder / f"data/test.{suffix}", rows)
    place = {"csv": "line 7", "jsonl": "line 6", "parquet": "row 6"}[suffix]
    with pytest.raises(StageError, match=rf"data/test.{suffix}, {place}: label 'what'"):
        prepare(task)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_or_window_may_have_no_row_of_a_language(
    folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WINDOW", 3)
    german, french = ([row | {"lang": lang} for row in ROWS] for lang in ("de", "fr"))
    for split in ("train", "validation", "test"):
        write(folder / f"data/{split}.{suffix}", [*german, *(french if split == "test" else [])])
    texts = [
        {"text": f"{lang} {i}", "lang": lang, "entity": f"e{i}"} for lang in ("de", "fr") for i in range(3)
    ]
    write(folder / f"data/unlabelled.{suffix}", texts)
    source = files(f"data/{{split}}.{suffix}", language_field="lang")
    task = nli_task("", source=source)
    prepare(task)
    assert premises("fr", "test") == EXPECTED
    assert pretraining_texts(task, "fr") == {f"e{i}": f"fr {i}" for i in range(3)}
    with pytest.raises(StageError, match=r"has no row with lang 'es'; there are: de"):
        prepare(nli_task("", source=source, supervised=["es"]))
    if suffix == "csv":  # in which `datasets` reads NA as null
        return
    for split in ("train", "validation", "test"):  # the same as a data set
        target = folder / f"data/hub/{split}.{suffix}"
        target.parent.mkdir(exist_ok=True)
        (folder / f"data/{split}.{suffix}").rename(target)
    hub = HubSource(kind="hub", dataset="data/hub", language_field="lang")
    prepare(nli_task("", source=hub))
    with pytest.raises(StageError, match=r"data/hub has no row with lang 'es'; there are: de"):
        prepare(nli_task("", source=hub, supervised=["es"]))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_texts_of_other_languages_may_be_missing(folder: Path, suffix: str) -> None:
    rows = [row | {"lang": lang} for row in ROWS for lang in ("de", "fr")]
    for split in ("train", "validation", "test"):
        write(folder / f"data/{split}.{suffix}", [*rows, ROWS[0] | {"lang": "it", "premise": None}])
    task = nli_task("", source=files(f"data/{{split}}.{suffix}", language_field="lang"))
    prepare(task)
    assert premises("de", "train") == EXPECTED
    write(folder / f"data/test.{suffix}", [*rows, ROWS[0] | {"lang": "fr", "premise": None}])
    with pytest.raises(StageError, match=rf"data/test.{suffix}, \w+ 7: premise is null, not a text"):
        prepare(task)


def test_a_file_that_a_pattern_finds_for_two_languages_is_refused(folder: Path) -> None:
    write_all(folder)
    write(folder / "data/de-AT/test.jsonl", ROWS)
    task = nli_task("data/{language}*/{split}.jsonl", zero_shot=["fr", "de-AT"])
    message = (
        "task.source.pattern finds data/de-AT/test.jsonl for 'de' and for 'de-AT'; write one that finds a "
        "file for one language"
    )
    with pytest.raises(StageError, match=f"^{re.escape(message)}$"):
        prepare(task)
    prepare(nli_task("data/{language}*/{split}.jsonl"))  # de-AT is German, where no language is called so


def test_a_pattern_must_tell_languages_apart() -> None:
    with pytest.raises(ValidationError, match=r"data/\*\*\{language\}/.*: \*\* must stand alone"):
        files("data/**{language}/{split}.csv")
    with pytest.raises(ValidationError, match=r"name the column with the language, language_field, or one"):
        files("data/{split}.csv")
    with pytest.raises(ValidationError, match=r"pattern needs \{split\} in it"):
        files("data/{language}.csv")
    with pytest.raises(ValidationError, match=r"source.text_fields names 1 columns, and text_fields 2"):
        nli_task("", source=files("data/{language}/{split}.csv", text_fields=["text"]))
    with pytest.raises(ValidationError, match=r"columns with a language in their names go into source"):
        nli_task("data/{language}/{split}.csv", text_fields=["text_{language}"])


ENTITIES = {
    "date": (datetime.date(2024, 1, 5), "2024-01-05"),
    "time": (datetime.datetime(2024, 1, 5, 12, 30), "2024-01-05 12:30:00"),
    "number": (3.5, "3.5"),
    "decimal": (decimal.Decimal("3.50"), "3.50"),
    "integer": (2**53 + 1, "9007199254740993"),
}


@pytest.mark.parametrize("kind", ENTITIES)
def test_dates_and_numbers_are_the_same_entity_in_every_format(folder: Path, kind: str) -> None:
    value, text = ENTITIES[kind]
    rows = [row | {"when": value} for row in ROWS]
    write_all(folder, [row | {"when": "x"} for row in ROWS])
    write(folder / "data/de/train.parquet", rows)
    write(folder / "data/de/validation.csv", rows)
    lines = [json.dumps(row | {"when": "?"}).replace('"?"', text) for row in ROWS]
    is_number = kind not in ("date", "time")
    (folder / "data/de/test.jsonl").write_text(
        "\n".join(lines) if is_number else "\n".join(json.dumps(row | {"when": text}) for row in ROWS)
    )
    for name in ("train.jsonl", "validation.jsonl"):
        (folder / "data/de" / name).unlink()
    pattern = "data/{language}/{split}.*"
    prepare(nli_task(pattern, source=files(pattern, entity_field="when")))
    for split in ("train", "validation", "test"):
        assert read_entities("de", split) == [text] * 3, split


def test_a_number_of_json_is_the_text_that_the_file_has(folder: Path) -> None:
    pattern = write_all(folder)
    line = '{"premise": "a", "hypothesis": "b", "label": "no", "entity": 1.10}\n'
    (folder / "data/de/train.jsonl").write_text(line)
    prepare(nli_task(pattern))
    assert read_entities("de", "train") == ["1.10"]


# Labels


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("classes", [["false", "true"], ["False", "True"]])
def test_labels_that_are_true_or_false_are_classes_of_that_name(
    folder: Path, suffix: str, classes: list[str]
) -> None:
    labels: list[Any] = [True, False, True]
    if suffix == "csv":
        labels = [classes[label] for label in labels]
    rows = [row | {"label": label} for row, label in zip(ROWS, labels, strict=True)]
    task = nli_task(write_all(folder, rows, suffix), classes=classes)
    prepare(task)
    assert read_examples(task, "de", "train")["label"].to_pylist() == [1, 0, 1]


# What prepare tells


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_translations_of_training_texts_are_told(folder: Path, suffix: str) -> None:
    pattern = write_all(folder)
    write(folder / f"data/de/train.{suffix}", rows_about(range(10), "de"))
    write(folder / f"data/de/validation.{suffix}", rows_about(range(8, 14), "andere"))
    write(folder / f"data/de/test.{suffix}", rows_about(range(20, 30), "de"))
    write(folder / f"data/fr/test.{suffix}", rows_about(range(5, 12), "fr"))
    pattern = f"data/{{language}}/{{split}}.{suffix}"
    notes = prepare(nli_task(pattern)).notes
    said = "texts are about the same as a training text, as translations are"
    assert notes == [f"de: 2 validation {said}", f"fr: 5 test {said}"]
    for split in ("de/train", "de/validation", "de/test", "fr/test"):
        write(folder / f"data/{split}.{suffix}", rows_about(range(7), split))
    assert len(prepare(nli_task(pattern)).notes) == 3
    assert len(prepare(nli_task("", source=files(pattern, aligned=True))).notes) == 3
    for path in folder.glob(f"data/*/*.{suffix}"):  # without the column, rows begin anew in each split
        write(path, [{"premise": f"{path}", "hypothesis": "h", "label": "yes"}])
    assert not [n for n in prepare(nli_task("", source=files(pattern, aligned=True))).notes if "about" in n]


def test_entities_with_another_label_in_another_language_are_told(folder: Path) -> None:
    pattern = write_all(folder)
    for language in ("de", "en"):
        write(folder / f"data/{language}/train.jsonl", rows_about(range(9), language))
        write(folder / f"data/{language}/validation.jsonl", ROWS)
        write(folder / f"data/{language}/test.jsonl", ROWS)
    task = nli_task(pattern, supervised=["de", "en"])
    assert not [note for note in prepare(task).notes if "entities" in note]
    moved = [row | {"entity": f"e{i + 1}"} for i, row in enumerate(rows_about(range(9), "en"))]
    twice = [row | {"label": label} for row in rows_about(range(20, 22), "en") for label in ("no", "yes")]
    write(folder / "data/en/train.jsonl", [*moved, *twice])
    said = "warning: 8 entities have another training label in one language than in another"
    assert f"{said}; are their texts translations?" in prepare(task).notes


def test_rows_of_no_language_of_the_task_are_told(folder: Path) -> None:
    rows = [row | {"lang": lang} for row in ROWS for lang in ("de", "fr", "DE", "it")]
    for split in ("train", "validation", "test"):
        write(folder / f"data/{split}.jsonl", rows)
    source = files("data/{split}.jsonl", language_field="lang")
    notes = prepare(nli_task("", source=source)).notes
    assert [note for note in notes if note.startswith("train: ")] == [
        "train: 3 rows of 'DE' are left out",
        "train: 3 rows of 'it' are left out",
    ]
    many = [row | {"lang": f"x{n}"} for row in ROWS for n in range(9)]
    write(folder / "data/train.jsonl", [*rows, *many])
    notes = prepare(nli_task("", source=source)).notes
    assert "train: so are rows of 6 other languages" in notes
    write(folder / "data/train.jsonl", rows)
    said = r"data/train.jsonl has no row with lang 'es'; there are: de, fr, DE, it"
    with pytest.raises(StageError, match=rf"the train split of 'es' is empty: {said}"):
        prepare(nli_task("", source=source, supervised=["es"]))


def test_rows_that_are_said_to_be_aligned_and_have_other_labels_are_told(folder: Path) -> None:
    pattern = write_all(folder)
    write(folder / "data/fr/test.jsonl", [ROWS[1], ROWS[0], ROWS[2]])
    notes = prepare(nli_task(pattern, source=files(pattern, aligned=True))).notes
    warning = "warning: 2 of 3 test rows have another label in 'fr' than in 'de'; are they aligned?"
    assert warning in notes
    assert sum("aligned" in note for note in notes) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_entity_column_that_is_named_must_be_there(folder: Path, suffix: str) -> None:
    pattern = write_all(folder, [row | {"ids": "a"} for row in ROWS], suffix)
    with pytest.raises(StageError, match=r"has no column 'id'; did you mean ids\?"):
        prepare(nli_task(pattern, source=files(pattern, entity_field="id")))


def test_an_entity_is_a_text_a_number_or_a_uuid(folder: Path) -> None:
    pattern = write_all(folder, [row | {"id": [1]} for row in ROWS], "parquet")
    prepare(nli_task(pattern))
    with pytest.raises(StageError, match=r"row 1: id is \[1\], which cannot say what a text is about"):
        prepare(nli_task(pattern, source=files(pattern, entity_field="id")))
    ids = [uuid.UUID(int=number) for number in range(len(ROWS))]
    for language, split in (("de", "train"), ("de", "validation"), ("de", "test"), ("fr", "test")):
        path = folder / f"data/{language}/{split}.parquet"
        texts = pa.Table.from_pylist(ROWS)
        pq.write_table(texts.append_column("id", pa.array([one.bytes for one in ids], pa.uuid())), path)
    prepare(nli_task(pattern, source=files(pattern, entity_field="id")))
    assert read_entities("de", "train") == list(map(str, ids))


def test_a_column_that_python_cannot_hold_is_named(folder: Path) -> None:
    pattern = write_all(folder, suffix="parquet")
    days = pa.array([10**12] * len(ROWS), pa.timestamp("s"))  # the year 33658
    path = folder / "data/de/train.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("entity", days), path)
    with pytest.raises(StageError, match=r"cannot read column 'entity' of data/de/train\.parquet: "):
        prepare(nli_task(pattern))
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("more", days), path)
    prepare(nli_task(pattern))


def test_only_the_columns_that_are_needed_are_read_of_parquet(folder: Path) -> None:
    write(folder / "texts.parquet", [row | {"votes": {"a": 1}, "votes.b": 2, "more": [0.5]} for row in ROWS])
    found = Input(Path("texts.parquet"), None, ["premise"], None, needed=["label"], only=["votes.b", "id"])
    [window] = reading.windows(found, 8)
    assert isinstance(window, pa.Table)
    assert window.column_names == ["premise", "label", "votes.b"]


def test_missing_entities_and_repeated_texts_are_counted(folder: Path) -> None:
    pattern = write_all(folder)
    rows = rows_about(range(4), "de")
    write(folder / "data/de/train.jsonl", [*rows, {**rows[0], "entity": None}])
    notes = prepare(nli_task(pattern)).notes
    assert "de: 1 of 5 train examples have no entity" in notes
    assert "de: 1 training texts are repetitions of others" in notes


def test_a_zero_shot_language_needs_no_column_in_validation_files(folder: Path) -> None:
    german = [{"text_de": "eins", "label": "no"}, {"text_de": "zwei", "label": "yes"}]
    for split in ("train", "validation"):
        write(folder / f"data/{split}.csv", german)
    write(folder / "data/test.csv", [row | {"text_fr": "un"} for row in german])
    source = files("data/{split}.csv", text_fields=["text_{language}"])
    task = nli_task("", source=source, text_fields=["text"])
    assert prepare(task).examples["fr"] == {"test": 2}
    write(folder / "data/test.csv", german)
    with pytest.raises(StageError, match=r"data/test.csv has no column 'text_fr'; did you mean text_de\?"):
        prepare(task)


def test_what_is_missing_is_said_with_what_there_is(folder: Path) -> None:
    write_all(folder, suffix="csv.gz")
    (folder / "data/de/train.csv.gz").rename(folder / "data/de/train.xlsx")
    said = r"there is no file data/de/train.csv, and in data/de: data/de/test.csv.gz, data/de/train.xlsx"
    with pytest.raises(StageError, match=rf"the train split of 'de' is empty: {said}"):
        prepare(nli_task("data/{language}/{split}.csv"))


def test_a_file_without_examples_among_others_is_refused(folder: Path) -> None:
    write_all(folder)
    (folder / "data/de/train-2.jsonl").write_text("\n")
    with pytest.raises(StageError, match=r"data/de/train-2.jsonl holds no examples; delete it if that is"):
        prepare(nli_task("data/{language}/{split}*.jsonl"))


def test_another_delimiter_is_asked_about_and_taken(folder: Path) -> None:
    write_all(folder)
    for path in folder.glob("data/*/*.jsonl"):
        path.with_suffix(".csv").write_text('premise;hypothesis;label\n"a; b";c,d;yes\n')
    pattern = "data/{language}/{split}.csv"
    message = r"has no column 'premise'; are its fields separated by ';'\? say so in task.source.delimiter"
    with pytest.raises(StageError, match=message):
        prepare(nli_task(pattern))
    prepare(nli_task(pattern, source=files(pattern, delimiter=";")))
    assert premises("de", "train") == ["a; b"]
    (folder / "data/de/train.csv").write_text("a;c;yes\n")
    columns = ["premise", "hypothesis", "label"]
    with pytest.raises(StageError, match=r"line 1: 1 values in 3 columns; are its fields separated by ';'"):
        prepare(nli_task(pattern, source=files(pattern, columns=columns)))


def test_numbers_that_pandas_made_fractions_of_are_numbers(folder: Path) -> None:
    rows = [row | {"label": label} for row, label in zip(ROWS, (0.0, 1.0, 0.0), strict=True)]
    for suffix in ("csv", "jsonl", "parquet"):
        task = nli_task(write_all(folder, rows, suffix))
        prepare(task)
        assert read_examples(task, "de", "train")["label"].to_pylist() == [0, 1, 0]
    with pytest.raises(StageError, match=r"label 0.5 is not one of"):
        prepare(nli_task(write_all(folder, [row | {"label": 0.5} for row in ROWS])))


def test_a_json_object_that_is_no_example_is_told_what_to_be(folder: Path) -> None:
    pattern = write_all(folder)
    (folder / "data/de/train.jsonl").write_text(json.dumps({"data": ROWS}, indent=1))
    with pytest.raises(StageError, match=r"line 1: not JSON .*; write one object a line, or one array"):
        prepare(nli_task(pattern))


# Windows


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_windows_change_nothing(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_about(range(50), "de") + rows_about(range(5), "de")
    pattern = write_all(folder, rows, suffix)
    write(folder / f"data/de/unlabelled.{suffix}", [{"text": f"t {i}"} for i in range(20)])
    found = []
    for size in (1 << 16, 7):
        monkeypatch.setattr(sources, "WINDOW", size)
        for limit in (None, 20):
            task = nli_task(pattern, max_examples=limit)
            done = prepare(task)
            tables = [read_examples(task, "de", split) for split in ("train", "test")]
            found.append(
                (
                    done.table(),
                    [table.to_pylist() for table in tables],
                    read_entities("de", "train"),
                    pretraining_texts(task, "de"),
                )
            )
    assert found[:2] == found[2:]


def test_a_text_of_megabytes_is_a_text(folder: Path) -> None:
    rows = [{"premise": "ä" * 3_000_000, "hypothesis": "b", "label": "no"}]
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        prepare(nli_task(write_all(folder, rows, suffix)))
        assert len(premises("de", "train")[0]) == 3_000_000
    for path in folder.glob("data/*/*.jsonl"):
        path.with_suffix(".json").write_text(json.dumps(rows))
    prepare(nli_task("data/{language}/{split}.json"))
    assert len(premises("de", "train")[0]) == 3_000_000


def test_a_hub_data_set_may_have_its_language_in_its_name(folder: Path) -> None:
    for language, splits in (("de", ("train", "validation", "test")), ("fr", ("test",))):
        for split in splits:
            write(folder / f"data/hub-{language}/{split}.jsonl", ROWS)
    task = nli_task("", source=HubSource(kind="hub", dataset="./data/hub-{language}"))
    done = prepare(task)
    assert done.examples == {"de": {"train": 3, "validation": 3, "test": 3}, "fr": {"test": 3}}
    assert premises("fr", "test") == EXPECTED
    manifest = json.loads((folder / "artifacts/data/manifest.json").read_text())
    assert manifest["revision"] is None


# Random tables

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TABLES = st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["no", "yes"])), min_size=1, max_size=6)
NAMES = ["premise", "hypothesis", "label"]
DELIMITERS = {"csv": ",", "semicolon csv": ";", "tsv": "\t", "bare tsv": "\t"}


def as_bytes(rows: list[tuple[str, str, str]], kind: str) -> bytes:
    """Write a table as others do."""
    if kind in ("json", "pretty json"):
        objects = [dict(zip(NAMES, row, strict=True)) for row in rows]
        return json.dumps(objects, indent=1 if kind == "pretty json" else None, ensure_ascii=False).encode()
    if kind == "bare tsv":
        return "".join("\t".join(row) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=DELIMITERS[kind], lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


DAMAGE = st.none() | st.tuples(st.integers(0, 300), st.sampled_from(b'",\n\\\xff[]{}:\t'), st.booleans())


@pytest.mark.parametrize("kind", ["json", "pretty json", *DELIMITERS])
@hypothesis.given(rows=TABLES, damage=DAMAGE, block=st.sampled_from([1, 3, 1 << 16]))
def test_a_random_array_or_headless_table_is_read_as_it_is_or_refused(
    kind: str, rows: list[tuple[str, str, str]], damage: tuple[int, int, bool] | None, block: int
) -> None:
    if kind == "bare tsv":  # which cannot say them
        marks = str.maketrans("\t\n\r", "   ")
        rows = [(first.translate(marks), second.translate(marks), label) for first, second, label in rows]
    data = as_bytes(rows, kind)
    if damage:
        place, byte, replaces = damage[0] % len(data), damage[1], damage[2]
        data = data[:place] + bytes([byte]) + data[place + replaces :]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", block)
        path = Path(name) / f"table.{kind.split()[-1]}"
        path.write_bytes(data)
        options: dict[str, Any] = {}
        if kind in DELIMITERS:
            quoting = "none" if kind == "bare tsv" else "csv"
            options = {"quoting": quoting, "columns": NAMES, "delimiter": DELIMITERS[kind]}
        source = Input(path, None, NAMES[:2], None, needed=NAMES[2:], **options)
        found, refused = read_or_refused(source, NAMES)
    if damage is None and "CR alone" not in refused:  # which a writer may leave unquoted
        assert (found, refused) == (rows, "")
    elif refused:
        assert str(path) in refused
        assert "\n" not in refused
    elif kind.endswith("json"):
        assert found == [tuple(row[name] for name in NAMES) for row in json.loads(data)]
    else:
        text = io.StringIO(data.decode(), newline="")
        rules: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if kind == "bare tsv" else {}
        read = csv.reader(text, delimiter=DELIMITERS[kind], **rules)
        assert found == [tuple(row) for row in read if row]


@hypothesis.given(rows=TABLES)
def test_a_random_table_is_the_same_in_every_format(rows: list[tuple[str, str, str]]) -> None:
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(NAMES)})
    with tempfile.TemporaryDirectory() as name:
        pq.write_table(table, Path(name) / "a.parquet")
        parquet = Input(Path(name) / "a.parquet", None, NAMES[:2], None, needed=NAMES[2:])
        [window] = reading.windows(parquet, 100)
        assert isinstance(window, pa.Table)
        found: list[list[Any]] = [[tuple(row.values()) for row in window.to_pylist()]]
        data = as_bytes(rows, "json")
        for suffix, content in ((".json", data), (".json.gz", gzip.compress(data))):
            path = Path(name) / f"a{suffix}"
            path.write_bytes(content)
            source = Input(path, None, NAMES[:2], None, needed=NAMES[2:])
            found.append([tuple(row[name] for name in NAMES) for _, row in placed_rows(source)])
    assert found == [rows] * 3
