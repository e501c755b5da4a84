"""Teachers against the hard labels, and the class-order gate."""

from pathlib import Path

from page_reader import percent, read_page
from sklearn.metrics import accuracy_score
from tiny import Run

from cache import SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.data.examples import SPLITS, read_examples


def test_teachers_are_compared_with_the_hard_labels_of_each_split(varied: Path) -> None:
    task = load_params(Path("params.yaml")).task
    rows = read_page().table("Teachers against the hard labels")
    for language in task.supervised:
        label_set = SoftLabelSet.read(SOFT_LABELS / language, language=language)
        for split in SPLITS:
            table = read_examples(task, language, split)
            logits = label_set.join(table["example_id"]).logits
            right = accuracy_score(table["label"].to_numpy(), logits.argmax(axis=1))
            assert rows[language][f"accuracy, {split}"] == percent(right)
    gate = read_page().table("The class-order gate")
    assert {row["gate"] for row in gate.values()} == {"passed"}


def test_the_gate_is_seen_to_refuse_a_wrong_class_order(varied: Path, run: Run) -> None:
    swapped = "{animal: colour, colour: number, number: animal}"
    assert run("report", "--set", f"teachers.de.labels={swapped}").code == 0
    gate = read_page().table("The class-order gate")
    assert [gate[name]["gate"] for name in ("de", "en")] == ["REFUTED", "passed"]
    assert "animal: " in gate["de"]["the best order"]
