"""The summary says what the page says."""

import json
from pathlib import Path

import numpy as np
import pytest
from page_reader import PAGE, percent, read_page


def test_the_summary_says_what_the_page_says(varied: Path) -> None:
    summary = json.loads((PAGE.parent / "summary.json").read_text())
    assert set(summary) == {"supervised", "zero_shot"}
    text = PAGE.read_text(encoding="utf-8")
    for share in (
        *(summary[kind]["student"] for kind in summary),
        summary["supervised"]["teachers"],
        summary["supervised"]["same_class"],
    ):
        assert f'<dd class="value">{percent(share)}</dd>' in text
    agreement = read_page().table("Student and teacher")
    alike = [float(row["same class"].split()[0]) for row in agreement.values()]
    assert np.mean(alike) == pytest.approx(100 * summary["supervised"]["same_class"], abs=0.06)
