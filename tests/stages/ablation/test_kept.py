"""Runs that are kept: taken where they are made of the same, and compared without any data."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from tiny import LABEL, ROOT, VARIANTS, Run, set_bias, write_jsonl

from pipeline.params import load_params
from stages.ablation.finished import read_column, write_column
from stages.artifacts import ABLATION
from stages.results.predictions import read_predictions, write_predictions

KEPT = ("--set", "ablation.kept=kept")
TRAIN = ("ablation", "train", "--run", "mblm", "--seed", "1")
PREDICTIONS = ABLATION / "predictions" / "mblm-1.arrow"


@pytest.fixture
def kept(compared: Path, run: Run) -> Path:
    """A folder in which all runs of the ablation were kept."""
    done = run("ablation", "keep", *KEPT)
    assert (done.code, done.out) == (0, "kept: 10 runs\n")
    return compared


def test_tables_of_kept_runs_need_no_data(kept: Path, run: Run) -> None:
    tables = {name: (ABLATION / f"{name}.md").read_text() for name in ("test", "validation", "sweep")}
    shutil.rmtree("data")
    shutil.rmtree("artifacts")
    shutil.rmtree(ABLATION)
    done = run("ablation", "compare", "--kept", *KEPT)
    assert (done.code, done.out) == (0, tables["test"] + "\n" + tables["validation"])
    assert run("ablation", "compare", "--kept", "--sweep", *KEPT).out == tables["sweep"]
    done = run("ablation", "compare", "--kept", *KEPT, "--set", "student.distill.temperature=3")
    assert done.code == 1
    assert (
        "distill-0.arrow was made with another student.distill.temperature: the default, not 3.0" in done.err
    )
    done = run("ablation", "compare", "--kept", *KEPT, "--set", "ablation.seeds=[0, 1, 7]")
    assert done.code == 1
    assert "finetune-7.arrow is not there; write it with: python -m pipeline ablation keep" in done.err


def test_they_hold_no_text_and_no_label(kept: Path) -> None:
    files = [path for path in Path("kept").rglob("*") if path.is_file()]
    assert len(files) == 2 * len(VARIANTS) + 2 + 1
    for path in files:
        if path.suffix == ".arrow":
            names = pa.ipc.open_file(path).schema.names
            assert names == ["entity" if path.stem == "entities" else "right"]


@pytest.mark.parametrize("name", ["mblm-1", "lambda-0.9-1"])
def test_a_run_that_was_kept_is_not_trained_again(kept: Path, run: Run, name: str) -> None:
    tables = [(ABLATION / f"{table}.md").read_text() for table in ("test", "validation", "sweep")]
    for folder in ("predictions", "sweep"):
        (ABLATION / folder / f"{name}.arrow").unlink(missing_ok=True)
    done = run("ablation", "train", "--run", name[:-2], "--seed", "1", *KEPT)
    assert done.code == 0
    assert done.out == f"{name[:-2]}, seed 1: taken from kept, whatever code it was trained with\n"
    assert run("ablation", "compare", *KEPT).code == run("ablation", "compare", "--sweep", *KEPT).code == 0
    assert [(ABLATION / f"{table}.md").read_text() for table in ("test", "validation", "sweep")] == tables
    # What was taken can be kept again, as it is.
    before = {path: path.read_bytes() for path in Path("kept").rglob("*.arrow")}
    assert run("ablation", "keep", *KEPT).code == 0
    assert {path: path.read_bytes() for path in Path("kept").rglob("*.arrow")} == before


@pytest.mark.parametrize("what", ["parameters", "soft labels", "encoder", "training texts", "test texts"])
def test_a_run_of_something_else_is_trained(kept: Path, run: Run, what: str) -> None:
    name, options = "mblm", [*KEPT]
    if what == "parameters":
        options += ["--set", "student.distill.temperature=3"]  # which the plan on disk does not know
    elif what == "soft labels":
        set_bias(Path("artifacts/teachers/de"), [0.0, 0.1, 0.0])
        assert run(*LABEL).code == 0
    elif what == "encoder":
        options += ["--set", "student.pretrain.scratch.mlm_steps=3"]
        assert run("ablation", "pretrain", "--seed", "1", *options).code == 0
    else:
        name = "finetune"  # of which no soft label says that texts are others
        split = "train" if what == "training texts" else "test"
        path = Path(f"data/de/{split}.jsonl")
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
        assert run("prepare", *options).code == 0
    done = run("ablation", "train", "--run", name, "--seed", "1", *options)
    assert done.code == 0, done.err
    assert "(validation)" in done.out


def leave_one_run() -> None:
    """Delete all finished runs but one."""
    for kind in ("predictions", "sweep"):
        for other in Path(ABLATION / kind).glob("*.arrow"):
            if other != PREDICTIONS:
                other.unlink()


def test_finished_runs_of_other_parameters_are_neither_kept_nor_compared(kept: Path, run: Run) -> None:
    hotter = ("--set", "student.distill.temperature=3")
    assert run("ablation", "plan", *hotter).code == 0
    for command in ("keep", "compare"):
        done = run("ablation", command, *KEPT, *hotter)
        assert done.code == 1
        said = "distill-0.arrow was made with another student.distill.temperature: the default, not 3.0;"
        assert said in done.err
    assert "(validation)" in run(*TRAIN, *KEPT, *hotter).out
    done = run("ablation", "compare", *KEPT)
    assert "mblm-1.arrow was made with another student.distill.temperature: 3.0, not the" in done.err


OTHER_TEACHERS = "was made with other soft labels than those that the teachers' accuracies are of; train it"


def test_runs_of_other_soft_labels_do_not_stand_beside_accuracies_of_these(kept: Path, run: Run) -> None:
    set_bias(Path("artifacts/teachers/de"), [0.0, 0.1, 0.0])
    assert run(*LABEL).code == 0
    for command in (("keep", *KEPT), ("compare",), ("compare", "--sweep")):
        done = run("ablation", *command)
        assert done.code == 1
        assert OTHER_TEACHERS in done.err


def test_what_an_earlier_version_noted_of_evaluations_decides_no_run(kept: Path, run: Run) -> None:
    path = Path("kept/predictions/mblm-1.arrow")
    right, facts = read_column(path, "right", write_again="")
    facts["made_of"]["evaluate"] = {"batch_size": 256}
    write_column(path, "right", right, {name: facts[name] for name in ("made_of", "examples")})
    PREDICTIONS.unlink()
    assert "taken from kept" in run(*TRAIN, *KEPT).out


def test_runs_of_other_soft_labels_stay_apart_from_accuracies_of_new_teachers(kept: Path, run: Run) -> None:
    set_bias(Path("artifacts/teachers/de"), [0.0, 0.1, 0.0])
    assert run(*LABEL).code == 0
    leave_one_run()
    assert "(validation)" in run("ablation", "train", "--run", "finetune", "--seed", "0").out
    PREDICTIONS.unlink()
    assert run("ablation", "keep", *KEPT).out == "kept: 1 runs\n"
    done = run("ablation", "compare", "--kept", *KEPT)
    assert done.code == 1
    assert OTHER_TEACHERS in done.err


def test_what_changes_speed_and_memory_only_trains_nothing_again(kept: Path, run: Run) -> None:
    smaller = ("--set", "student.evaluate.batch_size=2")
    before = {path: path.read_bytes() for path in (ABLATION / "plan").rglob("*.json")}
    assert run("ablation", "plan", *smaller).code == 0
    assert {path: path.read_bytes() for path in (ABLATION / "plan").rglob("*.json")} == before
    assert run("ablation", "compare", "--kept", *KEPT, *smaller).code == 0


def test_translations_are_a_part_of_what_a_run_is_made_of(kept: Path, run: Run) -> None:
    averaged = ("--set", "student.distill.average_translations=true")

    def number_entities(first: int) -> None:
        for language in ("de", "en"):
            path = Path(f"data/{language}/train.jsonl")
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            numbered = enumerate(rows, start=first if language == "de" else 0)
            write_jsonl(path, [row | {"entity": str(number)} for number, row in numbered])
        assert run("prepare").code == 0

    number_entities(0)
    assert "(validation)" in run(*TRAIN, *averaged).out
    leave_one_run()
    assert run("ablation", "keep", *KEPT, *averaged).code == 0
    assert "taken from kept" in run(*TRAIN, *KEPT, *averaged).out
    number_entities(3)
    assert "(validation)" in run(*TRAIN, *KEPT, *averaged).out


def test_kept_runs_of_different_examples_are_not_compared(kept: Path, run: Run) -> None:
    path = Path("data/nl/test.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    assert run("prepare").code == 0
    leave_one_run()
    assert "(validation)" in run(*TRAIN).out
    assert run("ablation", "keep", *KEPT).code == 0
    done = run("ablation", "compare", "--kept", *KEPT)
    assert done.code == 1
    assert "finetune-0.arrow is of other examples of nl/test than kept/entities.arrow" in done.err


@pytest.mark.parametrize("what", ["encoder", "training texts", "soft labels"])
def test_kept_runs_that_differ_in_more_than_settings_are_not_compared(
    kept: Path, run: Run, what: str
) -> None:
    options: list[str] = []
    if what == "encoder":
        options = ["--set", "student.pretrain.scratch.mlm_steps=3"]
        assert run("ablation", "pretrain", "--seed", "1", *options).code == 0
    elif what == "training texts":
        path = Path("data/de/train.jsonl")
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
        assert run("prepare").code == 0
    else:
        set_bias(Path("artifacts/teachers/de"), [0.0, 0.1, 0.0])
        assert run(*LABEL).code == 0
    assert "(validation)" in run(*TRAIN, *options).out
    leave_one_run()
    assert run("ablation", "keep", *KEPT).code == 0
    done = run("ablation", "compare", "--kept", *KEPT)
    assert done.code == 1
    assert (OTHER_TEACHERS if what == "soft labels" else f"{what} than kept/predictions/") in done.err
    assert done.err.endswith(" again: make ablation\n")


def test_a_run_that_was_kept_by_an_earlier_version_is_taken_and_completed(kept: Path, run: Run) -> None:
    path = Path("kept/predictions/mblm-1.arrow")
    right, facts = read_column(path, "right", write_again="")
    parts = {"encoder", "training_texts", "soft_labels"}
    earlier = {key: value for key, value in facts["made_of"].items() if key not in parts}
    assert len(earlier) == len(facts["made_of"]) - 3
    whole = path.read_bytes()
    write_column(path, "right", right, facts | {"made_of": earlier})
    assert run("ablation", "compare", "--kept", *KEPT).code == 0
    assert "taken from kept" in run(*TRAIN, *KEPT).out
    assert PREDICTIONS.read_bytes() == whole


def test_predictions_of_an_earlier_version_do_not_say_what_they_are_made_of(kept: Path, run: Run) -> None:
    task = load_params(Path("params.yaml")).task
    write_predictions(
        task,
        "mblm-1",
        read_predictions(task, "mblm-1", folder=PREDICTIONS.parent).values(),
        folder=PREDICTIONS.parent,
    )
    assert run("ablation", "compare").code == 0
    done = run("ablation", "keep", *KEPT)
    assert done.code == 1
    assert "mblm-1.arrow does not say what it was made of: an earlier version wrote it; write it" in done.err


def test_a_language_that_was_not_kept_is_no_reason_to_guess(kept: Path, run: Run) -> None:
    shutil.copytree("data/nl", "data/fr")
    options = (*KEPT, "--set", "task.zero_shot=[nl, fr]")
    assert run("prepare", *options).code == 0
    assert "(validation)" in run(*TRAIN, *options).out


def test_a_run_that_was_taken_is_of_its_examples(kept: Path, run: Run) -> None:
    assert "taken" in run(*TRAIN, *KEPT).out
    rows = [{"text": "neu", "label": "animal"}]
    write_jsonl(Path("data/nl/test.jsonl"), rows)
    assert run("prepare").code == 0
    shutil.copyfile(PREDICTIONS, ABLATION / "predictions/finetune-0.arrow")
    done = run("ablation", "compare", *KEPT)
    assert done.code == 1
    assert "is of other examples of nl/test than artifacts/data; write it with: python -m" in done.err


def test_a_language_may_lose_its_test_file(kept: Path, run: Run) -> None:
    Path("data/nl/test.jsonl").rename("data/nl/unlabelled.jsonl")
    assert run("prepare").code == 0
    assert "taken" in run(*TRAIN, *KEPT).out
    one = (
        "--set",
        "ablation.variants=[mblm]",
        "--set",
        "ablation.seeds=[1]",
        "--set",
        "ablation.sweep.seeds=[1]",
    )
    assert run("ablation", "compare", *KEPT, *one).code == 0
    assert "nl" not in (ABLATION / "test.md").read_text()
    assert "nl" in (ABLATION / "validation.md").read_text()
    shutil.rmtree(ABLATION / "sweep")
    for path in (ABLATION / "predictions").iterdir():
        if path != PREDICTIONS:
            path.unlink()
    assert run("ablation", "keep", *KEPT).code == 0
    assert run("ablation", "compare", "--kept", *KEPT, *one).code == 0
    done = run("ablation", "compare", "--kept", *KEPT)
    assert done.code == 1
    assert (
        "kept/predictions/finetune-0.arrow is of other examples of nl/test than kept/entities.arrow"
        in done.err
    )


@pytest.mark.parametrize("without", ["parts", "made_of", "examples"])
def test_a_kept_run_that_does_not_say_what_it_is_of_is_broken(kept: Path, run: Run, without: str) -> None:
    path = Path("kept/predictions/mblm-1.arrow")
    file = pa.ipc.open_file(path.read_bytes())
    facts = json.loads(file.schema.metadata[b"mblm"])
    facts |= {"parts": []} if without == "parts" else {}
    facts = {name: value for name, value in facts.items() if name != without or without == "parts"}
    table = file.read_all().slice(0, 0 if without == "parts" else None)
    with pa.ipc.new_file(path, table.schema.with_metadata({"mblm": json.dumps(facts)})) as new:
        new.write_table(table)
    done = run("ablation", "compare", "--kept", *KEPT)
    assert done.code == 1
    assert f"{path} is broken (it does not say what it is of)" in done.err


@pytest.mark.parametrize("broken", [b"", b"ARROW1 and nothing more"])
def test_a_kept_run_that_is_broken_is_named(kept: Path, run: Run, broken: bytes) -> None:
    path = Path("kept/predictions/mblm-1.arrow")
    path.write_bytes(broken)
    for command in (TRAIN, ("ablation", "compare", "--kept")):
        done = run(*command, *KEPT)
        assert done.code == 1
        assert f"{path} is broken (" in done.err.splitlines()[-1]


def test_a_folder_must_be_named_and_runs_be_finished(kept: Path, run: Run) -> None:
    done = run("ablation", "keep")
    assert (done.code, done.err.strip()) == (
        1,
        "error: ablation.kept is null; name a folder, such as recipes/mine",
    )
    assert "ablation.kept is null" in run("ablation", "compare", "--kept").err
    shutil.rmtree("kept/sweep")
    assert (
        "kept has no runs of a sweep; run some" in run("ablation", "compare", "--kept", "--sweep", *KEPT).err
    )
    assert "ablation.kept is ''" in run("ablation", "keep", "--set", "ablation.kept=''").err
    shutil.rmtree(ABLATION / "predictions")
    shutil.rmtree(ABLATION / "sweep")
    assert "is finished; run them with: make ablation" in run("ablation", "keep", *KEPT).err


KEEPING = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.with_suffix("").is_dir()]


@pytest.mark.parametrize("path", KEEPING, ids=lambda path: path.stem)
def test_the_tables_of_kept_recipes_are_those_of_the_results(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = run("ablation", "compare", "--kept", "--params", f"recipes/{path.name}")
    assert done.code == 0, done.err
    assert done.out.count("| teachers") == 2
    results = Path("docs/results.md").read_text(encoding="utf-8")
    for part in done.out.strip().split("\n\n"):
        assert part in results
