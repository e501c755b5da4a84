"""What a finished run left: several teachers, and what is missing or of other data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from page_reader import read_page
from tiny import SIZES, Run, write_jsonl

from cache import SoftLabels, SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import PREDICTIONS, SOFT_LABELS
from stages.data.examples import SPLITS, read_examples
from stages.page.findings import find
from stages.results.measures import probabilities


def test_several_teachers_are_one_in_the_mean_of_their_probabilities(varied: Path, run: Run) -> None:
    folder = SOFT_LABELS / "de/more-1"
    shutil.copytree(SOFT_LABELS / "en", folder)
    first = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    task = load_params(Path("params.yaml")).task
    table = pa.concat_tables([read_examples(task, "de", split) for split in SPLITS])
    ids = table["example_id"].combine_chunks()
    said = SoftLabels.pack(ids, np.roll(first.join(ids).logits, 1, axis=0))
    SoftLabelSet.write(folder, language="de", parts=[(first.producers[0], said)])
    teacher = {"base": "scratch", "revision": None, "finetune": True, "labels": None}
    assert run("report", "--set", f"teachers.de.more=[{json.dumps(teacher)}]").code == 0
    params = load_params(Path("params.yaml"), [f"teachers.de.more=[{json.dumps(teacher)}]"])
    test = find(params.task, params.teachers, params.model_dump()).teachers["de"].test
    assert test is not None
    each = [
        probabilities(part.join(ids).logits) for part in (first, SoftLabelSet.read(folder, language="de"))
    ]
    np.testing.assert_allclose(test.probabilities(), np.mean(each, axis=0)[-SIZES["test"] :], rtol=1e-6)
    assert set(read_page().table("The class-order gate")) == {"de", "de/more-1", "en"}


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("artifacts/predictions/student.arrow", "student evaluate"),
        ("artifacts/predictions/baseline.arrow", "student evaluate"),
        ("artifacts/plots/accuracy_by_branch.json", "student evaluate"),
        ("artifacts/student/losses.json", "student distill"),
        ("artifacts/baseline/validation.json", "student baseline"),
        ("artifacts/soft_labels/en/manifest.json", "teacher label --language en"),
        ("artifacts/data/de/train.arrow", "prepare"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_writes_it(
    finished: Path, run: Run, path: str, command: str
) -> None:
    Path(path).unlink()
    done = run("report")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"python -m pipeline {command}")
    assert str(Path(path).parent) in line


def test_predictions_of_other_data_are_refused(finished: Path, run: Run) -> None:
    write_jsonl(finished / "data/nl/test.jsonl", [{"text": "hond", "label": "animal"}])
    assert run("prepare").code == 0
    done = run("report")
    assert done.err == (
        "error: artifacts/predictions/student.arrow is of other examples of 'nl' than artifacts/data; "
        "write it again with: python -m pipeline student evaluate\n"
    )
    path = PREDICTIONS / "student.arrow"
    path.write_bytes(path.read_bytes()[:99])
    assert "student.arrow is broken" in run("report").err
