"""`cache import`: soft labels that somebody else made, out of files of all kinds."""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labels import producer, shard_files, soft_labels
from ruamel.yaml import YAML
from scipy.special import softmax
from tiny import CLASSES, ROOT, SIZES, Run, examples, tiny_params, write_jsonl, write_params
from unreadable import fail_to_read, needs_proc

from cache import Outputs, Store, example_ids
from cache.commands import import_ as store_import
from cache.commands.name import give_name
from cache.names import find_producer, name_of
from pipeline.params import load_params
from stages.errors import StageError
from stages.teacher.labelling.from_files import read_soft_labels
from stages.teacher.params import ValuesParams

BY = ("--language", "de", "--fact", "name=gpt", "--fact", "version=2")


@pytest.fixture
def prepared(workspace: Path, run: Run) -> Path:
    assert run("prepare").code == 0
    return workspace


def texts(language: str = "de") -> list[str]:
    return [row["text"] for split in ("train", "validation", "test") for row in examples(language, split)]


def likely(language: str = "de", seed: int = 0) -> np.ndarray[Any, Any]:
    """Probabilities of the tiny task's texts, the right class's the largest; shape ``(N, 3)``."""
    labels = [row["label"] for split in ("train", "validation", "test") for row in examples(language, split)]
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), [CLASSES.index(one) for one in labels]] += 4
    probs: np.ndarray[Any, Any] = softmax(logits, axis=1)
    return probs


def by_class(
    values: np.ndarray[Any, Any], language: str = "de", field: str = "probabilities"
) -> list[dict[str, Any]]:
    rows = zip(texts(language), values.tolist(), strict=True)
    return [{"text": text, field: dict(zip(CLASSES, row, strict=True))} for text, row in rows]


def logits_in(store: Path, called: str, of: list[str]) -> np.ndarray[Any, Any]:
    opened = Store.open(store, find_producer(store, called))
    return opened.look_up(example_ids([of])).soft_labels().logits


# What is read


def test_an_import_says_whose_they_are_and_how_good(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    done = run("cache", "import", "soft.jsonl", *BY, "--fact", "licence=CC BY-NC 4.0")
    assert re.fullmatch(
        r"de: 57 soft labels of 'gpt@2' \([0-9a-f]{12}\), 57 of them new; accuracy: train [0-9.]+%, "
        r"validation [0-9.]+%, test [0-9.]+%; calibration error: validation [0-9.]+%\n",
        done.out,
    )
    np.testing.assert_allclose(logits_in(tmp_path / "store", "gpt@2", texts()), np.log(likely()), rtol=1e-5)
    shown = run("cache", "show", "gpt@2").out
    assert re.search(r"licence +CC BY-NC 4\.0\n", shown)
    assert (
        "57 soft labels of 'gpt@2'"
        in run("cache", "import", "soft.jsonl", *BY, "--fact", "licence=CC BY-NC 4.0").out
    )


@pytest.mark.parametrize(
    ("sure", "right", "said"),
    [(0.9, 0.9, ""), (0.9, 0.6, ", too sure"), (0.5, 0.9, ", not sure enough")],
)
def test_soft_labels_that_are_too_sure_or_not_sure_enough_are_called_so(
    sure: float, right: float, said: str, prepared: Path, run: Run
) -> None:
    most_probable = likely().argmax(axis=1)
    of_validation = slice(SIZES["train"], SIZES["train"] + SIZES["validation"])
    n_wrong = round((1 - right) * SIZES["validation"])
    most_probable[of_validation][:n_wrong] = (most_probable[of_validation][:n_wrong] + 1) % 3
    values = np.full((len(texts()), 3), (1 - sure) / 2)
    values[np.arange(len(values)), most_probable] = sure
    write_jsonl(Path("soft.jsonl"), by_class(values))
    assert re.search(
        rf"calibration error: validation [0-9.]+%{said}\n", run("cache", "import", "soft.jsonl", *BY).out
    )


def test_soft_labels_that_know_no_more_than_one_class_are_called_so(prepared: Path, run: Run) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(np.tile([0.2, 0.5, 0.3], (len(texts()), 1))))
    said = run("cache", "import", "soft.jsonl", *BY).out
    assert "%; validation: no better than one class for every text; calibration error" in said


LAYOUTS = ("mapping", "list", "columns", "struct", "arrow list", "arrow columns", "arrow map", "json in csv")


def write_layout(
    folder: Path, layout: str, texts_: list[str], values: Any, dialect: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Write values as people do; gives the file and what is to be said of it."""
    how: dict[str, Any] = {"values": "probabilities", "field": "soft"}
    columns = [f"p_{name}" for name in CLASSES]
    named = [dict(zip(CLASSES, row, strict=True)) for row in values]
    if layout == "arrow columns":
        pq.write_table(
            pa.table({"text": texts_, **dict(zip(columns, zip(*values, strict=True), strict=True))}),
            folder / "a.parquet",
        )
        return folder / "a.parquet", how | {"field": "p_{class}"}
    if layout in ("struct", "arrow list", "arrow map"):
        type_ = {"arrow list": pa.list_(pa.float64()), "arrow map": pa.map_(pa.string(), pa.float64())}.get(
            layout
        )
        cells = {"arrow list": values, "arrow map": [list(one.items()) for one in named]}.get(layout, named)
        pq.write_table(pa.table({"text": texts_, "soft": pa.array(cells, type_)}), folder / "a.parquet")
        return folder / "a.parquet", how | ({"classes": CLASSES} if layout == "arrow list" else {})
    if layout in ("columns", "json in csv"):
        rows = [
            {
                "text": text,
                **(
                    dict(zip(columns, row, strict=True)) if layout == "columns" else {"soft": json.dumps(one)}
                ),
            }
            for text, row, one in zip(texts_, values, named, strict=True)
        ]
        path = folder / f"a.{dialect['suffix']}"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file,
                list(rows[0]),
                delimiter=dialect["delimiter"],
                lineterminator=dialect["end"],
                quoting=dialect["quoting"],
            )
            writer.writeheader()
            writer.writerows(rows)
        return path, how | {
            "delimiter": dialect["delimiter"],
            "quoting": "csv",
            "field": "p_{class}" if layout == "columns" else "soft",
        }
    cells = named if layout == "mapping" else values
    rows = [{"text": text, "soft": cell} for text, cell in zip(texts_, cells, strict=True)]
    encoded = (
        json.dumps(rows, ensure_ascii=dialect["ascii"])
        if dialect["array"]
        else "".join(json.dumps(row) + "\n" for row in rows)
    )
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(encoded.encode()))
    return path, how | ({} if layout == "mapping" else {"classes": CLASSES})


@settings(max_examples=60)
@given(data=st.data())
def test_the_same_values_are_the_same_soft_labels_in_every_format(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    some_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=20)
    said = data.draw(st.lists(some_text, min_size=1, max_size=12, unique=True))
    weights = data.draw(
        st.lists(st.tuples(*[st.floats(1e-4, 1)] * 3), min_size=len(said), max_size=len(said))
    )
    values = [[float(x) for x in np.array(row) / sum(row)] for row in weights]
    dialect = {
        "delimiter": data.draw(st.sampled_from(",;\t|")),
        "end": data.draw(st.sampled_from(["\n", "\r\n"])),
        "quoting": data.draw(st.sampled_from([0, 1, 2])),
        "suffix": data.draw(st.sampled_from(["csv", "tsv"])),
        "array": data.draw(st.booleans()),
        "ascii": data.draw(st.booleans()),
    }
    path, how = write_layout(folder, data.draw(st.sampled_from(LAYOUTS)), said, values, dialect)
    found = read_soft_labels(path, ValuesParams(**how), TASK)
    assert found.soft_labels.ids.equals(example_ids([said]))
    np.testing.assert_array_equal(found.soft_labels.logits, np.log(values).astype("f4"))


TASK = load_params(Path(__file__).parents[3] / "params.yaml").task.model_copy(
    update={"classes": CLASSES, "text_fields": ["text"]}
)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("probabilities", [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
        ("probabilities", [1.0005, 0, 0], [1, 1e-7, 1e-7]),  # rounding, and zeros
        ("log_probabilities", [-0.1, -3.0, -4.0], softmax([-0.1, -3, -4])),
        ("log_probabilities", [-0.1, -3.0, -400.0], softmax([-0.1, -3, np.log(1e-7)])),
        ("votes", [3, 1, 0], [0.75, 0.25, 1e-7]),
        ("logits", [-5, 0.25, 700], softmax([-5, 0.25, 700])),
    ],
)
def test_values_become_the_distribution_that_they_mean(
    tmp_path: Path, kind: str, row: list[float], expected: list[float]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", kind: dict(zip(CLASSES, row, strict=True))}])
    found = read_soft_labels(tmp_path / "a.jsonl", ValuesParams(), TASK).soft_labels
    np.testing.assert_allclose(softmax(found.logits, axis=1), [expected], atol=2e-7)


def test_classes_that_are_not_named_share_what_is_left(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "probabilities": {"number": 0.6}},
        {"text": "b", "probabilities": {"colour": 0.9, "animal": 0.06}},
        {"text": "c", "probabilities": {"animal": 0.5, "colour": None}},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    found = read_soft_labels(tmp_path / "a.jsonl", ValuesParams(), TASK)
    assert (found.outputs.top_k, set(found.soft_labels.columns)) == (
        2,
        {"top_classes", "top_logits", "log_sum_exp_rest"},
    )
    expected = [[0.2, 0.2, 0.6], [0.06, 0.9, 0.04], [0.5, 0.25, 0.25]]
    np.testing.assert_allclose(softmax(found.soft_labels.logits, axis=1), expected, rtol=1e-6)
    assert (np.diff(found.soft_labels.columns["top_logits"], axis=1) <= 0).all()  # the largest first


def test_more_classes_named_later_on_widen_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.teacher.labelling.from_files._ROWS", 2)
    rows = [{"text": str(n), "probabilities": {CLASSES[n % 3]: 0.4}} for n in range(5)]
    rows.append({"text": "all", "probabilities": dict(zip(CLASSES, [0.2, 0.3, 0.5], strict=True))})
    for last, k in ((5, 1), (6, None)):
        write_jsonl(tmp_path / "a.jsonl", rows[:last])
        found = read_soft_labels(tmp_path / "a.jsonl", ValuesParams(), TASK)
        probs = softmax(found.soft_labels.logits[:5], axis=1)
        np.testing.assert_allclose(probs, 0.3 + 0.1 * np.eye(3)[np.arange(5) % 3], rtol=1e-6)
        assert found.outputs.top_k == k


def test_rows_of_json_need_not_have_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.teacher.labelling.from_files._ROWS", 2)
    rows: list[dict[str, Any]] = [
        {"text": "a", "v_number": 1},
        {"text": "b", "v_animal": 1, "v_number": 3},
        {"text": "c", "v_colour": 4, "v_animal": 1},
    ]
    how = ValuesParams(values="votes", field="v_{class}")
    expected = np.array([[0, 0, 1], [0.25, 0, 0.75], [0.2, 0.8, 0]])
    for some in (rows, rows[::-1]):
        write_jsonl(tmp_path / "a.jsonl", some)
        found = read_soft_labels(tmp_path / "a.jsonl", how, TASK).soft_labels.take(
            np.argsort([r["text"] for r in some])
        )
        np.testing.assert_allclose(softmax(found.logits, axis=1), expected, atol=2e-7)
    write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "d", "v_verb": 1}])
    with pytest.raises(StageError, match="has a column 'v_verb', and no class is called so"):
        read_soft_labels(tmp_path / "a.jsonl", how, TASK)


def test_a_class_that_nobody_voted_for_may_be_a_column_of_nulls(tmp_path: Path) -> None:
    columns = {"v_animal": [2, 1], "v_colour": pa.nulls(2), "v_number": [None, 3]}
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "a.parquet")
    how = ValuesParams(values="votes", field="v_{class}")
    found = read_soft_labels(tmp_path / "a.parquet", how, TASK).soft_labels
    np.testing.assert_allclose(
        softmax(found.logits, axis=1), np.array([[1, 0, 0], [0.25, 0, 0.75]]), atol=2e-7
    )


# What is refused


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"probabilities": {"animal": -0.1, "colour": 1, "number": 0.1}}, "a probability is negative"),
        ({"probabilities": {"animal": 1.2, "colour": 0, "number": 0}}, "a probability is above 1"),
        ({"probabilities": {"animal": 0.5, "colour": 0.3, "number": 0.1}}, "less than 1 by over 0.01"),
        ({"probabilities": {"animal": 0.5, "colour": 0.3, "number": 0.3}}, "more than 1 by over 0.01"),
        ({"probabilities": {"animal": 0.5, "verb": 0.5}}, "'verb' is none of the classes: animal, colour"),
        ({"probabilities": [0.5, 0.3, 0.2]}, "name the classes in its order"),
        ({"probabilities": {}}, "it names no class"),
        ({"probabilities": None}, "probabilities is null, not a list or a mapping"),
        ({"probabilities": {"animal": "much"}}, "where numbers must be"),
        ({"votes": {"animal": 0, "colour": 0}}, "nobody voted"),
        ({"votes": {"animal": -1, "colour": 2}}, "votes are negative"),
        ({"logits": {"animal": 1.0, "colour": 2.0}}, "logits of some classes are missing"),
        ({"logits": {"animal": -1e300, "colour": 2.0, "number": 1.0}}, "too large for 32 bits"),
        ({"logits": {"animal": 1.0, "Animal": 9.0, "colour": 2.0, "number": 1.0}}, "two names of one class"),
        ({"votes": {"animal": [1], "colour": 2, "number": 1}}, "where numbers must be"),
        ({"votes": {"animal": 10**400, "colour": 2.0}}, "where numbers must be"),
        ({"log_probabilities": {"animal": 0.5}}, "the logarithm of a probability is above 0"),
        ({"log_probabilities": {"animal": -0.1, "colour": -0.2}}, "more than 1 by over 0.01"),
        (
            {"log_probabilities": {"animal": -20.0, "colour": -18.0, "number": -900.0}},
            "no class has a probability of 1e-07; take the row out",
        ),
    ],
)
def test_a_row_that_cannot_be_is_named(prepared: Path, run: Run, row: dict[str, Any], said: str) -> None:
    (field,) = row
    good = by_class(
        np.full((57, 3), 1 / 3 if field == "probabilities" else -2.0 if field[:3] == "log" else 1.0),
        field=field,
    )
    write_jsonl(Path("soft.jsonl"), [*good[:7], {"text": good[7]["text"], **row}])
    done = run("cache", "import", "soft.jsonl", *BY)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(rf"error: soft\.jsonl, line 8: .*{re.escape(said)}.*\n", done.err)
    assert not Path(prepared.parent / "store").exists()


def test_nan_and_infinity_of_parquet_are_refused(prepared: Path, run: Run) -> None:
    for value, said in (
        (np.nan, "a value is NaN"),
        (np.inf, "a logit is infinite, or too large for 32 bits"),
    ):
        table = {"text": ["a", "b"], **{name: [0.0, value] for name in CLASSES}}
        pq.write_table(pa.table(table), "soft.parquet")
        done = run("cache", "import", "soft.parquet", *BY, "--values", "logits")
        assert done.err == f"error: soft.parquet, row 2: {said}\n"


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"text": "a", "x": 1}], (), "in which column are the soft labels? name it with field"),
        (
            [{"text": "a", "soft": {"animal": 1}}],
            ("--field", "soft"),
            "what are the values in 'soft'? say values",
        ),
        (
            [{"text": "a", "soft": 1}],
            ("--field", "sof", "--values", "votes"),
            "no column 'sof'; did you mean soft?",
        ),
        (
            [{"text": "a", "p_animal": 1, "p_verb": 0}],
            ("--field", "p_{class}", "--values", "votes"),
            "has a column 'p_verb', and no class is called so",
        ),
        (
            [{"text": "a", "p_dog": 1}],
            ("--field", "p_{class}", "--values", "votes"),
            "has no column p_{class} of a class: animal, colour, number",
        ),
        (
            [{"text": "a", "votes": {"animal": 1}}],
            ("--text-field", "text", "--text-field", "x"),
            "an example has 1: text",
        ),
        ([{"sentence": "a", "votes": {}}], (), "has no column 'text'; there are: sentence, votes"),
        (
            [{"text": "a", "votes": [1, 2]}],
            ("--classes", "animal,colour,number"),
            "line 1: 2 values for 3 classes",
        ),
        (
            [{"text": "a", "votes": {"x": 1}}],
            ("--classes", "x,y"),
            "the teacher for 'de' has 2 classes (x, y), the task has 3",
        ),
        ([], (), "holds no examples"),
        (
            [{"text": "a", "votes": {"animal": 1}}],
            ("--values", "ranks"),
            "--values: Input should be 'logits', 'log_",
        ),
        ([{"text": "a", "votes": {"animal": 1}}], ("--fact", "gpt"), "--fact gpt: write it as name=value"),
        (
            [{"text": "a", "votes": {"animal": 1}}],
            ("--language", "fr"),
            "--language fr is none of the task's: de, en, nl",
        ),
        (
            [{"text": "a", "votes": {"animal": 1}}],
            ("--name", "two words"),
            "'two words' is no name for a producer",
        ),
    ],
)
def test_a_file_that_does_not_say_what_it_holds_is_refused(
    prepared: Path, run: Run, rows: list[dict[str, Any]], options: tuple[str, ...], said: str
) -> None:
    write_jsonl(Path("soft.jsonl"), rows) if rows else Path("soft.jsonl").write_text("")
    done = run("cache", "import", "soft.jsonl", *BY, *options)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_facts_are_needed_and_may_stand_in_a_file(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    assert "who made these soft labels?" in run("cache", "import", "soft.jsonl", "--language", "de").err
    YAML().dump({"name": "crowd", "version": 3, "licence": "CC0"}, Path("facts.yaml"))
    done = run(
        "cache", "import", "soft.jsonl", "--language", "de", "--facts", "facts.yaml", "--fact", "version=4"
    )
    assert "'crowd@4'" in done.out
    opened = Store.open(tmp_path / "store", find_producer(tmp_path / "store", "crowd@4"))
    assert opened.producer.imported == {"name": "crowd", "version": "4", "licence": "CC0"}
    Path("facts.yaml").write_text("version: 2026.10")
    done = run("cache", "import", "soft.jsonl", "--language", "de", "--facts", "facts.yaml")
    assert "version is 2026.1, which is no text; quote it" in done.err
    Path("facts.yaml").write_text("- a list")
    done = run("cache", "import", "soft.jsonl", "--language", "de", "--facts", "facts.yaml")
    assert "--facts facts.yaml is no mapping" in done.err


def test_one_text_has_one_soft_label(prepared: Path, run: Run) -> None:
    rows = by_class(likely())
    write_jsonl(Path("soft.jsonl"), [*rows, rows[3], rows[5]])
    assert json.loads(run("cache", "import", "soft.jsonl", *BY, "--json").out)["repeated"] == 2
    write_jsonl(Path("soft.jsonl"), [*rows, rows[3] | {"probabilities": {"animal": 1.0}}])
    done = run("cache", "import", "soft.jsonl", *BY)
    assert "soft.jsonl: line 4 and line 58 are the same text with different values" in done.err


def test_another_version_needs_another_name(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    assert run("cache", "import", "soft.jsonl", *BY).code == 0
    write_jsonl(Path("other.jsonl"), by_class(likely(seed=1)))
    done = run("cache", "import", "other.jsonl", *BY)
    assert "the store has other values for 57 of these texts" in done.err
    done = run("cache", "import", "other.jsonl", *BY, "--floor", "1e-5")  # another producer of the same name
    assert re.search(r"'gpt@2' is producer [0-9a-f]{12} in .*; choose another name", done.err)
    assert len(shard_files(tmp_path / "store")) == 1
    assert run("cache", "import", "other.jsonl", *BY, "--fact", "version=3").code == 0


def test_texts_of_another_language_are_noticed(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely("en"), "en"))
    done = run("cache", "import", "soft.jsonl", *BY)
    assert "57 of the 57 texts in soft.jsonl are not among those of 'de', and 57 are of 'en'" in done.err
    mixed = [
        *by_class(likely()),
        *({"text": f"neu {n}", "probabilities": {"animal": 1.0}} for n in range(20)),
    ]
    write_jsonl(Path("soft.jsonl"), mixed)
    done = run("cache", "import", "soft.jsonl", *BY)
    assert "77 soft labels of 'gpt@2'" in done.out
    assert "20 of texts that the data does not have" in done.out
    assert len(logits_in(tmp_path / "store", "gpt@2", ["neu 7"])) == 1


@pytest.mark.parametrize("splits", [("train", "validation", "test"), ()], ids=["no labels", "texts alone"])
def test_texts_of_a_zero_shot_language_are_its_own(
    workspace: Path, run: Run, splits: tuple[str, ...]
) -> None:
    rows = [{"text": f"hond {n}", "probabilities": {"animal": 1.0}} for n in range(20)]
    for path in Path("data/nl").iterdir():
        if path.stem not in splits:
            path.unlink()
    write_jsonl(Path("data/nl/unlabelled.jsonl"), [{"text": row["text"]} for row in rows])
    params = tiny_params()
    params["task"] |= {"unlabelled": True, "zero_shot_texts": bool(splits)}
    write_params(params)
    assert run("prepare").code == 0
    write_jsonl(Path("soft.jsonl"), rows)
    done = run("cache", "import", "soft.jsonl", "--language", "nl", *BY[2:])
    assert done.code == 0, done.err
    assert "20 soft labels of 'gpt@2'" in done.out
    assert "that the data does not have" not in done.out


def test_a_language_without_data_has_none_to_compare_with(prepared: Path, run: Run) -> None:
    shutil.rmtree("artifacts/data/nl")
    write_jsonl(Path("soft.jsonl"), by_class(likely("nl"), "nl"))
    done = run("cache", "import", "soft.jsonl", "--language", "nl", *BY[2:])
    assert "there is no data of 'nl' to compare with; write it: python -m pipeline prepare" in done.err


def test_classes_in_another_order_are_noticed(prepared: Path, run: Run) -> None:
    values = likely()
    rows = [{"text": text, "probabilities": row} for text, row in zip(texts(), values.tolist(), strict=True)]
    write_jsonl(Path("soft.jsonl"), rows)
    assert run("cache", "import", "soft.jsonl", *BY, "--classes", ",".join(CLASSES)).code == 0
    done = run(
        "cache", "import", "soft.jsonl", *BY, "--classes", "colour,number,animal", "--fact", "version=3"
    )
    assert "if its classes are read as" in done.err


def test_a_killed_import_goes_on(
    prepared: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    monkeypatch.setattr(store_import, "_SHARD_BYTES", 28 * 20)
    append = Store.append

    def append_one(self: Store, *args: Any, **options: Any) -> str:
        if len(self.shards()) == 1:
            raise KeyboardInterrupt
        return append(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", append_one)
        assert run("cache", "import", "soft.jsonl", *BY).code != 0
    assert len(shard_files(tmp_path / "store")) == 1
    assert "57 soft labels of 'gpt@2'" in (done := run("cache", "import", "soft.jsonl", *BY)).out
    assert "37 of them new" in done.out
    assert run("cache", "verify").code == 0


def test_what_was_imported_is_imported_again_after_damage(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    assert run("cache", "import", "soft.jsonl", *BY).code == 0
    (shard,) = shard_files(tmp_path / "store")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "it was imported, so import its file again" in run("cache", "repair").out
    assert "57 of them new" in run("cache", "import", "soft.jsonl", *BY).out


# There and back


@pytest.mark.parametrize(
    "outputs", [Outputs(), Outputs(dtype="float16"), Outputs(top_k=2), Outputs(hidden=True)], ids=str
)
def test_what_was_exported_comes_back_bit_for_bit(
    prepared: Path, run: Run, tmp_path: Path, outputs: Outputs
) -> None:
    made = producer(outputs=outputs, text_fields=["text"])
    made = made.with_facts({"config": {"id2label": {str(i): name for i, name in enumerate(CLASSES)}}})
    known, unknown = texts()[:20], ["of other data"]
    store = Store(tmp_path / "store", made)
    store.append(soft_labels([*known, *unknown], outputs=outputs))
    assert run("cache", "export", made.id[:12], "soft.parquet").code == 0
    assert (
        run("cache", "import", "soft.parquet", "--language", "de", "--name", "back", "--keep-unknown").code
        == 0
    )
    back = Store.open(tmp_path / "store", find_producer(tmp_path / "store", "back"))
    assert back.producer.facts["imported"] == {"exported_from": made.id, "facts": {}}
    assert back.producer.id != made.id
    ids = example_ids([[*unknown, *known]])
    expected, found = (one.look_up(ids).soft_labels() for one in (store, back))
    assert found.shapes() == expected.shapes()
    for name, values in expected.columns.items():
        assert found.columns[name].tobytes() == values.tobytes()


def test_facts_travel_with_an_exported_file(prepared: Path, run: Run, tmp_path: Path) -> None:
    values = np.log(likely()) - 0.1  # a tenth goes to no class
    write_jsonl(Path("soft.jsonl"), by_class(values, field="log_probabilities"))
    first = run("cache", "import", "soft.jsonl", *BY, "--fact", "licence=CC0")
    assert "outside the classes: 9.5%" in first.out
    assert run("cache", "export", "gpt@2", "soft.parquet").code == 0
    back = run("cache", "import", "soft.parquet", "--language", "de", "--name", "back")
    assert "outside the classes: 9.5%" in back.out
    assert re.search(r"licence +CC0\n", run("cache", "show", "back").out)


def test_an_exported_file_may_have_been_rewritten(prepared: Path, run: Run, tmp_path: Path) -> None:
    made = producer(text_fields=["text"]).with_facts(
        {"config": {"id2label": {str(i): name for i, name in enumerate(CLASSES)}}}
    )
    Store(tmp_path / "store", made).append(soft_labels(texts()[:20]))
    assert run("cache", "export", made.id[:12], "soft.parquet").code == 0
    table = pq.read_table("soft.parquet")
    place = table.schema.get_field_index("logits")

    def rewritten(column: Any) -> str:
        pq.write_table(table.set_column(place, "logits", column), "again.parquet")
        return run("cache", "import", "again.parquet", "--language", "de", "--name", "back").err

    rows = table["logits"].to_pylist()
    assert rewritten(pa.array(rows, pa.list_(pa.float64()))) == ""
    np.testing.assert_array_equal(logits_in(tmp_path / "store", "back", texts()[:20]), np.array(rows, "f4"))
    assert "'logits' does not hold float32, 3 in each row" in rewritten(pa.array([row[:2] for row in rows]))
    rows[4][1] = float("nan")
    assert rewritten(pa.array(rows)) == "error: again.parquet, row 5: logits is NaN or infinite\n"


def test_an_exported_file_that_was_changed_is_refused(prepared: Path, run: Run, tmp_path: Path) -> None:
    made = producer(text_fields=["text"])
    store = Store(tmp_path / "store", made)
    store.append(soft_labels(texts()[:20]))
    assert run("cache", "export", made.id[:12], "soft.parquet").code == 0
    table = pq.read_table("soft.parquet")
    said = table["text"].to_pylist()
    column = table.schema.get_field_index("text")
    pq.write_table(table.set_column(column, "text", [[*said[:4], "x", *said[5:]]]), "soft.parquet")
    done = run("cache", "import", "soft.parquet", "--language", "de")
    assert "soft.parquet, row 5: example_id is not that of the text" in done.err
    column = table.schema.get_field_index("example_id")
    for other in (pa.nulls(len(table), pa.binary(16)), pa.array(["abc"] * len(table))):
        pq.write_table(table.set_column(column, "example_id", other), "soft.parquet")
        done = run("cache", "import", "soft.parquet", "--language", "de")
        assert "soft.parquet has other ids than it was exported with" in done.err
    column = table.schema.get_field_index("text")
    pq.write_table(table.set_column(column, "text", pa.array(range(len(table)))), "soft.parquet")
    done = run("cache", "import", "soft.parquet", "--language", "de")
    assert "soft.parquet: the column 'text' holds int64 and no texts, as exported" in done.err


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"schema": 99}, "cannot be read: written by a newer version (schema 99"),
        ({"outputs": ["logits", "hidden"], "config": {"mplm_config": "x"}}, "encoder is no mapping"),
    ],
)
def test_an_exported_file_whose_facts_are_not_known_is_refused(
    prepared: Path, run: Run, tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    made = producer(text_fields=["text"])
    Store(tmp_path / "store", made).append(soft_labels(texts()[:20]))
    assert run("cache", "export", made.id[:12], "soft.parquet").code == 0
    table = pq.read_table("soft.parquet")
    config = {**made.facts["config"], **facts.get("config", {})}
    told = json.dumps({**made.facts, **facts, "config": config})
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"producer": told.encode()}), "soft.parquet"
    )
    done = run("cache", "import", "soft.parquet", "--language", "de")
    assert (done.code, message in done.err) == (1, True)


# Names


def test_names_are_of_one_producer_and_travel_with_it(tmp_path: Path, run: Run, workspace: Path) -> None:
    here, there = tmp_path / "store", str(tmp_path / "there")
    ids = []
    for weights in ("a", "b"):
        store = Store(here, producer(weights=weights))
        store.append(soft_labels(["x"]))
        ids.append(store.producer.id)
    assert run("cache", "name", ids[0][:8], "de@2026.11-large").out == f"{ids[0][:12]} is de@2026.11-large\n"
    assert (
        f"'de@2026.11-large' is producer {ids[0][:12]}"
        in run("cache", "name", ids[1], "de@2026.11-large").err
    )
    assert run("cache", "name", "de@2026.11-large", "de").code == 0
    assert (name_of(here, ids[0]), find_producer(here, "de")) == ("de", ids[0])
    assert run("cache", "push", there).err == ""
    assert (name_of(there, ids[0]), name_of(there, ids[1])) == ("de", None)
    give_name(here, ids[0], "fr")
    give_name(here, ids[1], "de")
    said = run("cache", "push", there).err.splitlines()
    assert set(said) == {
        f"{here} calls producer {ids[0][:12]} 'fr'; {there} calls it 'de'",
        f"{here} calls producer {ids[1][:12]} 'de'; {there} calls another producer so",
    }
    assert (name_of(there, ids[0]), name_of(there, ids[1])) == ("de", None)  # there, the name is taken
    rows = run("cache", "ls", "--store", there).out.splitlines()
    assert rows[0].split()[:2] == ["producer", "name"]
    assert {row.split()[0]: row.split()[1] for row in rows[1:3]} == {ids[0][:12]: "de", ids[1][:12]: "–"}


def test_an_id_finds_its_producer_whatever_names_there_are(tmp_path: Path, run: Run, workspace: Path) -> None:
    stores = [Store(tmp_path / "store", producer(weights=str(n))) for n in range(2)]
    for store in stores:
        store.append(soft_labels(["x"]))
    one, other = (store.producer.id for store in stores)
    assert f"is the beginning of producer {other[:12]}'s id" in run("cache", "name", one, other[:6]).err
    assert f"is the beginning of producer {other[:12]}'s id" in run("cache", "name", one, other).err
    assert "is what an id looks like" in run("cache", "name", one, "0" * 64).err
    assert run("cache", "name", one, "de").code == 0


@needs_proc
def test_a_producer_that_may_not_be_read_is_in_nobodys_way(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "store", producer(weights=str(n))) for n in range(2)]
    for store in stores:
        store.append(soft_labels(["x"]))
    one, other = (store.producer.id for store in stores)
    give_name(tmp_path / "store", one, "de")
    give_name(tmp_path / "store", other, "en")
    fail_to_read(tmp_path / "store" / other / "name.json")
    assert find_producer(tmp_path / "store", "de") == one
    assert find_producer(tmp_path / "store", one[:12]) == one
    give_name(tmp_path / "store", one, "fr")


def test_gc_leaves_what_nobody_can_compute_again(prepared: Path, run: Run, tmp_path: Path) -> None:
    write_jsonl(Path("soft.jsonl"), by_class(likely()))
    assert run("cache", "import", "soft.jsonl", *BY).code == 0
    old = ("cache", "gc", "--unused-for", "0h", "--yes")
    assert "nothing to delete" in run(*old).out
    [path] = (tmp_path / "store").glob("*/producer.json")
    path.write_text("{", encoding="utf-8")  # whose soft labels these are is no longer known
    assert "nothing to delete" in run(*old).out
    assert "deleted 1 producer" in run(*old, "--imported").out


def test_a_producer_knows_whether_it_was_imported() -> None:
    assert producer().imported is None
    assert producer().with_facts({"imported": "no"}).imported is None


def test_the_same_values_are_the_same_whatever_stands_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many classes are kept, some other row of the file decides; the rest of a row is then rounded."""
    monkeypatch.chdir(tmp_path)
    classes = [f"class {number}" for number in range(12)]
    task = load_params(ROOT / "params.yaml").task.model_copy(
        update={"classes": classes, "text_fields": ["text"]}
    )
    first = np.random.default_rng(0).uniform(0.1, 0.9, 60).round(3).tolist()
    one = [{"text": f"{i}", "p": {classes[i % 12]: p}} for i, p in enumerate(first)]
    three = {"text": "three", "p": {"class 1": 0.2, "class 3": 0.3, "class 4": 0.1}}
    monkeypatch.setattr("stages.teacher.labelling.from_files._ROWS", 60)
    files = {"soft.jsonl": [*one, three, *one], "again.jsonl": [three, *one[::-1]]}
    labels = []
    for name, rows in files.items():
        write_jsonl(Path(name), rows)
        values = ValuesParams.model_validate({"values": "probabilities", "field": "p"})
        labels.append(read_soft_labels(Path(name), values, task).soft_labels)
    maker = producer(n_classes=12, outputs=Outputs(top_k=3), imported={"facts": {"name": "gpt"}})
    into = [store_import.import_(tmp_path / "store", maker, these, format_="arrow") for these in labels]
    assert [(one.new, one.present) for one in into] == [(61, 0), (0, 61)]
