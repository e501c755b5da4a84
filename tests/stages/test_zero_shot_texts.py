"""Translations into zero-shot languages: prepared without labels, taught what their originals say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from scipy.special import softmax
from tables import nli_task, write
from tiny import Run, tiny_params, write_input, write_jsonl, write_params

from stages.ablation.compare import Compared, reads_others
from stages.data.examples import pretraining_texts, read_entities, read_examples, taught_splits
from stages.data.task import FilesSource, TaskParams
from stages.errors import StageError
from stages.prepare import prepare
from stages.student import taught
from stages.student.objective import mixture_weights
from stages.student.params import DistillParams, Variant, ZeroShotTexts
from stages.student.sampling import ByLanguage
from stages.student.taught import n_taught
from stages.student.translations import averaged, inherited
from stages.student.variants import HARD_ONLY

ENTITIES = {"de": ["a", "b", "c", None], "en": ["b", "c", "d", None]}
LABELS = {"de": ["yes", "no", None, "yes"], "en": ["no", None, "yes", "no"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(language: str, entities: list[str | None], labels: list[str | None], **more: Any) -> list[Any]:
    return [
        {"premise": f"{language} {i}", "hypothesis": "h", "label": label, "entity": entity, **more}
        for i, (entity, label) in enumerate(zip(entities, labels, strict=True))
    ]


def task_of(french: list[Any] | None = None, **changes: Any) -> TaskParams:
    """Write three languages, of which French is zero-shot, and give the task."""
    for language in ("de", "en", "fr"):
        for split in ("validation", "test"):
            write(
                Path(f"data/{language}/{split}.jsonl"), rows(f"{split} {language}", ["x", "y"], ["yes", "no"])
            )
    for language in ("de", "en"):
        write(Path(f"data/{language}/train.jsonl"), rows(language, ENTITIES[language], LABELS[language]))
    write(
        Path("data/fr/train.jsonl"),
        rows("fr", ["c", "d", "a", "e", None], ["nonsense"] * 5) if french is None else french,
    )
    values: dict[str, Any] = {"supervised": ["de", "en"], "unlabelled": True, "zero_shot_texts": True}
    return nli_task("data/{language}/{split}.jsonl", **values | changes)


def french(task: TaskParams, name: str) -> list[Any]:
    found: list[Any] = read_examples(task, "fr", "unlabelled")[name].to_pylist()
    return found


def test_training_texts_of_zero_shot_languages_lose_their_labels() -> None:
    task = task_of()
    write(Path("data/fr/unlabelled.jsonl"), [{"premise": p, "hypothesis": "h"} for p in ("fr 1", "neu")])
    table = prepare(task).table()
    assert french(task, "premise") == ["fr 0", "fr 1", "fr 2", "fr 3", "fr 4", "neu"]  # each once
    assert french(task, "label") == [None] * 6
    assert read_entities("fr", "unlabelled") == ["c", "d", "a", "e", None, None]
    assert taught_splits(task, "fr") == ["unlabelled"]
    assert table.splitlines()[3].split() == ["fr", "–", "2", "2", "–", "6"]
    assert set(pretraining_texts(task, "fr").values()) == {*french(task, "premise"), "h"}


def test_a_training_file_of_a_zero_shot_language_needs_no_label() -> None:
    french_rows = [{"premise": "fr", "hypothesis": "h", "entity": "a"}]
    prepare(
        task := task_of(
            french_rows, source=FilesSource(kind="files", pattern="data/{language}/{split}.jsonl")
        )
    )
    assert french(task, "premise") == ["fr"]


def test_aligned_rows_are_translations_and_must_be_as_many() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=True)
    task = task_of(rows("fr", [None] * 4, [None] * 4), source=source)
    for language in ("de", "en"):
        labels = ["yes", None, "no", None]
        write(Path(f"data/{language}/train.jsonl"), rows(language, [None] * 4, labels))
    prepare(task)
    assert read_entities("fr", "unlabelled") == ["0", "1", "2", "3"]
    assert inherited(task, []).tables["fr"]["label"].to_pylist() == [1, None, 0, None]
    write(Path("data/fr/train.jsonl"), rows("fr", [None] * 3, [None] * 3))
    for limit in (None, 2):  # which rows are kept goes by their numbers
        with pytest.raises(StageError, match="the train split has 4 rows in 'de' and 3 in 'fr'"):
            prepare(task.model_copy(update={"max_examples": limit}))


def test_a_limit_is_of_each_split_and_keeps_translations_together() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=True)
    n = 40
    task = task_of(rows("fr", [None] * n, [None] * n), source=source, max_examples=10)
    for language in ("de", "en"):
        write(Path(f"data/{language}/train.jsonl"), rows(language, [None] * n, ["yes", "no"] * (n // 2)))
    write(Path("data/fr/unlabelled.jsonl"), rows("more", [None] * n, [None] * n))
    prepare(task)
    assert len(french(task, "premise")) == 20
    assert set(read_entities("de", "train")) <= set(read_entities("fr", "unlabelled"))
    assert inherited(task, []).tables["fr"].num_rows == 10


def test_aligned_rows_of_which_only_some_languages_say_what_they_are_about_are_refused() -> None:
    source = FilesSource(kind="files", pattern="data/{language}/{split}.jsonl", aligned=True)
    task = task_of([{"premise": f"fr {i}", "hypothesis": "h"} for i in range(4)], source=source)
    with pytest.raises(StageError, match="only some rows of the train split, or texts without labels, have"):
        prepare(task)
    for language in ("de", "en"):
        write(Path(f"data/{language}/train.jsonl"), rows(language, [None] * 4, ["yes", "no"] * 2))
    prepare(task)
    write(Path("data/de/unlabelled.jsonl"), [{"premise": "neu", "hypothesis": "h", "entity": "3"}])
    with pytest.raises(StageError, match="only some rows of the train split, or texts without labels, have"):
        prepare(task)


def test_a_column_per_language_may_lack_that_of_a_zero_shot_language() -> None:
    lines = {"train": "text_de,text_en,text_fr,label", "validation": "text_de,text_en,label"}
    lines["test"] = "text_de,text_en,text_fr,text_it,label"
    for split, head in lines.items():
        cells = [
            ",".join([*(f"{split} {name} {i}" for name in head.split(",")[:-1]), "yes"]) for i in range(2)
        ]
        Path(f"data/{split}.csv").parent.mkdir(exist_ok=True)
        Path(f"data/{split}.csv").write_text("\n".join([head, *cells]), encoding="utf-8")
    source = FilesSource(
        kind="files", pattern="data/{split}.csv", text_fields=["text_{language}"], aligned=True
    )
    task = task_of([], source=source, text_fields=["text"], zero_shot=["fr", "it"])
    prepare(task)
    assert french(task, "text") == ["train text_fr 0", "train text_fr 1"]
    assert taught_splits(task, "it") == []


@pytest.mark.parametrize("lacking", [1, 2])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_that_lacks_the_column_of_other_files_is_refused(split: str, lacking: int) -> None:
    for name in ("train", "validation", "test"):
        for number in (1, 2):
            columns = ["text_de", "text_en", "text_fr"]
            if (name, number) == (split, lacking):
                columns.remove("text_fr")
            lines = [
                ",".join([*columns, "label"]),
                ",".join([*(f"{name} {c} {number}" for c in columns), "yes"]),
            ]
            Path("data").mkdir(exist_ok=True)
            Path(f"data/{name}-{number}.csv").write_text("\n".join(lines))
    source = FilesSource(kind="files", pattern="data/{split}-*.csv", text_fields=["text_{language}"])
    said = (
        rf"data/{split}-{lacking}.csv has no column 'text_fr'; .*; give it what other files of the split have"
    )
    with pytest.raises(StageError, match=said):
        prepare(task_of([], source=source, text_fields=["text"], zero_shot=["fr"]))


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_row_that_lacks_the_column_of_other_rows_is_named(lacking: int) -> None:
    for split in ("train", "validation", "test"):
        rows = [{f"text_{name}": f"{name} {split} {i}" for name in ("de", "en", "fr")} for i in range(2)]
        if split == "train":
            del rows[lacking]["text_fr"]
        write_jsonl(Path(f"data/{split}.jsonl"), [row | {"label": "yes"} for row in rows])
    source = FilesSource(
        kind="files", pattern="data/{split}.jsonl", text_fields=["text_{language}"], aligned=True
    )
    with pytest.raises(StageError, match=f"line {lacking + 1} has no column 'text_fr'"):
        prepare(task_of([], source=source, text_fields=["text"], zero_shot=["fr"]))


def test_originals_that_contradict_each_other_give_no_label(capsys: pytest.CaptureFixture[str]) -> None:
    task = task_of(rows("fr", ["a", "b"], [None, None]))
    write(Path("data/de/train.jsonl"), rows("de", ["a", "a", "b"], ["yes", "no", "yes"]))
    write(Path("data/en/train.jsonl"), rows("en", ["b", "d"], ["yes", "no"]))
    prepare(task)
    found = inherited(task, [])
    assert found.tables["fr"]["label"].to_pylist() == [None, 1]
    assert found.n_contradictory == 1


def test_translations_have_the_labels_and_the_average_soft_label_of_their_originals() -> None:
    prepare(task := task_of())
    found = inherited(task, [])
    # Texts that teach: de a, b, then the other with a label, then c; en b, d, the other, then c.
    assert read_entities("de", "train") == ["a", "b", None]
    assert read_entities("en", "train") == ["b", "d", None]
    assert found.tables["fr"]["premise"].to_pylist() == ["fr 0", "fr 1", "fr 2"]
    assert found.originals.tolist() == [3, 5, 0]
    assert found.tables["fr"]["label"].to_pylist() == [None, 1, 1]  # of c, d and a
    assert found.n_others == 2
    assert n_taught(task, []) == 8 + 3
    logits = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    of_each = averaged(task, logits, temperature=2.0)
    mean = (softmax(logits[3] / 2) + softmax(logits[7] / 2)) / 2  # c in both languages
    np.testing.assert_allclose(softmax(of_each[found.originals[0]] / 2), mean, rtol=1e-5)
    np.testing.assert_allclose(softmax(of_each[0] / 2), softmax(logits[0] / 2), rtol=1e-5)


def test_the_baseline_learns_the_labels_of_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(task := task_of())
    for variant in HARD_ONLY:
        texts = taught.taught_texts(task, {}, DistillParams(variant=variant)).texts  # type: ignore[arg-type]
        assert texts.fields[0] == ["de 0", "de 1", "de 3", "en 0", "en 2", "en 3", "fr 1", "fr 2"]
        assert texts.numbers["language_ids"].tolist() == [0] * 3 + [1] * 3 + [-1] * 2
        assert (texts.numbers["labels"] >= 0).all()


def test_texts_of_no_branch_may_be_mixed_of_all() -> None:
    ids = torch.tensor([0, -1, 2])
    drawn = mixture_weights(ids, n_branches=3, weights="dirichlet", own_branch=False)
    assert (drawn > 0).tolist() == [[False, True, True], [True, True, True], [True, True, False]]
    torch.testing.assert_close(drawn.sum(1), torch.ones(3))


def test_each_language_has_a_share_of_its_own_in_an_epoch_also_those_without_a_branch() -> None:
    def of(n: int) -> pa.Table:
        return pa.table({"premise": ["a"] * n, "hypothesis": ["b"] * n, "label": pa.nulls(n, pa.int32())})

    texts = taught.texts_of(task_of(), {"de": of(50), "fr": of(30), "it": of(10)})
    assert texts.numbers["language_ids"].tolist() == [0] * 50 + [-1] * 40
    order = list(ByLanguage(texts, temperature=1e9, batch_size=8, seed=0))
    assert np.bincount(texts.languages[order]).tolist() == [30, 30, 30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled": False}, "zero_shot_texts is true, which needs unlabelled: true"),
        ({"zero_shot": []}, "zero_shot_texts is true, which needs zero-shot languages"),
    ],
)
def test_what_it_needs_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task_of(**changes)


def test_zero_shot_languages_without_texts_are_refused() -> None:
    task = task_of()
    Path("data/fr/train.jsonl").unlink()
    with pytest.raises(StageError, match="no zero-shot language has the split train or unlabelled"):
        prepare(task)


def test_texts_that_translate_nothing_are_refused() -> None:
    prepare(task := task_of(rows("fr", ["e", None], [None, None])))
    with pytest.raises(
        StageError, match="no text of a zero-shot language is a translation of one that teach"
    ):
        inherited(task, [])


def test_the_pipeline_teaches_translations_in_all_variants(run: Run) -> None:
    params = tiny_params()
    params["task"] |= {"unlabelled": True, "max_labels": 18, "zero_shot_texts": True}
    params["task"]["source"]["aligned"] = True
    params["student"]["distill"] |= {"hard_label_weight": 0.5, "sampling_temperature": 2.0}
    write_params(params)
    write_input(Path())
    extra = [{"text": "vreemd", "label": "?"}]
    write_jsonl(Path("data/nl/unlabelled.jsonl"), extra)
    for command in ("prepare", "teacher finetune --language de", "teacher finetune --language en"):
        assert run(*command.split()).code == 0
    for command in ("teacher label --language de", "teacher label --language en", "student pretrain"):
        assert run(*command.split()).code == 0
    done = run("student", "distill")
    card = Path("artifacts/student/README.md").read_text()
    assert "- It has read translations of training texts, without other labels, in: nl\n" in card
    assert "36 translations teach, in nl; 1 others are no translations" in done.err
    assert "mblm: 28 steps" in done.out  # of 36 texts in each of three languages, twice, in batches of 8
    done = run("student", "distill", "--set", "student.distill.variant=branches")
    assert "branches: 28 steps" in done.out, done.err
    done = run("student", "distill", "--set", "student.distill.zero_shot_texts=none")
    assert "mblm: 18 steps" in done.out
    assert "translations teach" not in done.err
    assert "It has read translations" not in Path("artifacts/student/README.md").read_text()
    run("student", "distill", "--set", "student.distill.variant=branches")
    assert "finetune: 28 steps" in run("student", "baseline").out
    assert run("student", "evaluate").code == 0
    assert run("report").code == 0
    page = Path("artifacts/report/report.html").read_text(encoding="utf-8")
    assert "no training data in\nnl, but for texts without labels of their own." in page
    assert json.loads(Path("artifacts/data/manifest.json").read_text())["examples"]["nl"] == {
        "validation": 9,
        "test": 12,
    }
    refused = run("student", "distill", "--set", "student.distill.hidden_weight=1")
    assert "error: student.distill.hidden_weight" in refused.err


@pytest.mark.parametrize(
    ("variant", "which", "silver", "taught"),
    [
        ("distill", "all", ["fr"], True),
        ("distill", "none", ["fr"], False),
        ("finetune", "all", ["fr"], False),  # what a teacher says of them
        ("finetune", "all", [], True),  # what their originals say
        ("finetune", "translations", ["fr"], True),
    ],
)
def test_such_texts_teach_a_run_that_reads_what_is_said_of_them(
    variant: Variant, which: ZeroShotTexts, silver: list[str], taught: bool
) -> None:
    pattern = "data/{language}/{split}.jsonl"
    task = nli_task(pattern, unlabelled=True, zero_shot_texts=True)
    assert reads_others(task, DistillParams(variant=variant, zero_shot_texts=which), silver) == taught


def test_tables_of_the_ablation_say_that_such_texts_taught() -> None:
    right = {"fr": np.ones((2, 1, 2), np.int64)}
    entities = {"fr": np.arange(2)}
    for which, said in (
        (["distill", "mblm"], "Texts of zero-shot languages taught, too"),
        (["mblm"], "Texts of zero-shot languages taught in mblm, too"),
        ([], "Differences with 95 %"),
    ):
        runs = ["distill", "mblm"]
        compared = Compared("test", runs, [0], {"zero-shot": ["fr"]}, right, entities, {}, which)
        assert compared.markdown().splitlines()[1].startswith(said)


def test_a_variety_learns_through_the_branch_that_it_is_used_through() -> None:
    task = task_of().model_copy(update={"zero_shot": ["de-AT", "fr"]})
    table = pa.table({"premise": ["a"], "hypothesis": ["b"], "label": pa.array([None], pa.int32())})
    texts = taught.texts_of(task, {"en": table, "de-AT": table, "fr": table})
    assert texts.numbers["language_ids"].tolist() == [1, 0, -1]
