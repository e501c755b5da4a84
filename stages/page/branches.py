"""Section `branches`: what every branch of the student makes of every language."""

from stages.page.findings import Findings
from stages.page.tables import Cell, Heat, percent


def branches(found: Findings) -> Heat | None:
    """Lay out every branch on every language; None where the student has one branch only."""
    found_here = {branch for _, branch in found.branches}
    if len(found_here) < 2:
        return None
    names = [*found.supervised, *sorted(found_here - set(found.supervised))]
    low, high = min(found.branches.values()), max(found.branches.values())
    rows = []
    for language in (name for languages in found.groups.values() for name in languages):
        cells = []
        for branch in names:
            share = found.branches[language, branch]
            is_used = found.used[language] == branch
            level = (share - low) / max(high - low, 1e-9)
            cells.append(Cell(percent(share, unit=False), level, is_used=is_used))
        rows.append((language, cells))
    caption = (
        "Test accuracy of the student in percent. The outlined branch is the one that the language uses."
    )
    return Heat(caption, "language ↓ branch\u00a0→", names, rows)
