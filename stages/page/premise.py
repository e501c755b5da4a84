"""Section `premise`: whether the teachers know more than the student's own encoder learns from the labels."""

from stages.page.findings import Findings
from stages.page.tables import Table, percent


def premise(found: Findings) -> Table | None:
    """Compare teachers and baseline on validation data, language by language; None: it has no soft labels."""
    if found.premise is None:
        return None
    gains = {**found.premise.languages, "average": found.premise.average}
    rows = [
        [
            name,
            percent(gain.teachers),
            percent(gain.baseline),
            gain.points().replace("-", "−"),
            percent(gain.by_heart),
        ]
        for name, gain in gains.items()
    ]
    head = ["language", "teachers", "finetune", "teachers over finetune", "teachers on their training texts"]
    return Table("Teachers and finetune on validation data", head, rows, ["average"])
