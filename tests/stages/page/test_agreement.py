"""The examples on which student and teacher differ."""

from pathlib import Path

import numpy as np
from page_reader import PAGE
from scipy.spatial.distance import jensenshannon

from pipeline.params import load_params
from stages.page.findings import find


def test_examples_are_those_on_which_student_and_teacher_differ_most(varied: Path) -> None:
    params = load_params(Path("params.yaml"))
    one = find(params.task, params.teachers, params.model_dump(exclude={"cache"}))
    student, teacher = one.student["de"], one.teachers["de"].test
    assert teacher is not None
    pairs = zip(student.probabilities(), teacher.probabilities(), strict=True)
    bits = [jensenshannon(p, q, base=2) ** 2 for p, q in pairs]
    texts = student.examples["text"].to_pylist()
    text = PAGE.read_text(encoding="utf-8").partition('<section id="disagreements"')[2]
    german = text.partition("<h3>de</h3>")[2].partition("</ol>")[0]
    shown = [part.partition("</bdi>")[0] for part in german.split('<blockquote dir="auto"><bdi>')[1:]]
    assert shown == [texts[i] for i in np.argsort(-np.array(bits), kind="stable")[:6]]
