"""Section `teachers`: how good the teachers are, and whether their classes are read rightly."""

from typing import NamedTuple

from stages.data.examples import SPLITS
from stages.page.findings import Findings
from stages.page.tables import Table, clip, percent


class TeacherTables(NamedTuple):
    """What the section shows.

    Attributes:
        quality: Soft labels against hard labels, by language.
        order: The declared class order against the best one, by soft-label set.
        silver: What teachers say of texts of zero-shot languages; None: nothing.
    """

    quality: Table
    order: Table
    silver: Table | None


def teachers(found: Findings) -> TeacherTables:
    """Say how good the teachers are, and whether their classes are read rightly."""
    return TeacherTables(_quality(found), _order(found), _silver(found) if found.silver else None)


def _silver(found: Findings) -> Table:
    rows = [
        [
            language,
            clip(", ".join(one.titles), 80),
            f"{one.n_texts:,}",
            percent(one.confidence),
            percent(one.accuracy),
            " ".join(name[:12] for name in one.producers),
        ]
        for language, one in found.silver.items()
    ]
    head = ["language", "teacher", "texts without labels", "confidence", "accuracy, test", "producer"]
    return Table("What teachers say of zero-shot languages' texts", head, rows)


def _quality(found: Findings) -> Table:
    rows = []
    all_taught = [found.teachers[language] for language in found.supervised]
    partly = any(share < 1 for taught in all_taught for share in taught.coverage.values())
    outside = any(taught.outside is not None for taught in all_taught)
    for language in found.supervised:
        taught = found.teachers[language]
        test = taught.test
        rows.append(
            [
                language,
                *(percent(taught.accuracy.get(split)) for split in SPLITS),
                f"{taught.entropy:.3f}",
                percent(test.calibration_error(calibrated=False) if test else None),
                percent(test.calibration_error(calibrated=True) if test else None),
                f"{test.temperature:.2f}" if test else "–",
                *([percent(taught.coverage[split]) for split in SPLITS] if partly else []),
                *([percent(taught.outside)] if outside else []),
            ]
        )
    accuracies = [f"accuracy, {split}" for split in SPLITS]
    head = [
        *("language", *accuracies, "entropy, train (bits)"),
        *("calibration error before", "after", "temperature"),
        *([f"covered, {split}" for split in SPLITS] if partly else []),
        *(["outside the classes"] if outside else []),
    ]
    return Table("Teachers against the hard labels", head, rows)


def _order(found: Findings) -> Table:
    rows = []
    for one in (one for language in found.supervised for one in found.teachers[language].sets):
        if one.order is None:
            rows.append([one.name, "–", "–", "–", "no labelled text"])
            continue
        reading = clip(one.order.reading(found.task.classes), 80) or "the declared one"
        verdict = "REFUTED" if one.order.is_refuted else "passed"
        rows.append([one.name, percent(one.order.declared), percent(one.order.best), reading, verdict])
    head = ["soft labels", "accuracy as declared", "with the best order", "the best order", "gate"]
    return Table("The class-order gate, over all labelled examples", head, rows)
