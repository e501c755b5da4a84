"""The cost that soft labels on disk save."""

import json
from pathlib import Path

from page_reader import PAGE, read_page
from tiny import SIZES, Run, tiny_params


def test_cost_saved_is_what_the_text_says(varied: Path, run: Run) -> None:
    rows = read_page().table("Soft labels, and forward passes of the teachers")
    needed = SIZES["train"] * tiny_params()["student"]["distill"]["epochs"]
    labels = sum(SIZES.values())
    assert rows["de"]["of them with a soft label"] == "100 %"
    assert rows["de"]["soft labels"] == str(labels)
    assert rows["de"]["passes without the cache"] == str(needed)
    assert rows["together"]["saved, if no run came before"] == str(2 * (needed - labels))
    assert rows["de"]["million operations per token"] == "0.0"
    Path("artifacts/student/training.json").write_text(json.dumps({"variant": "mblm", "epochs": 6}))
    assert run("report").code == 0
    rows = read_page().table("Soft labels, and forward passes of the teachers")
    assert rows["de"]["passes without the cache"] == str(3 * needed)
    assert "no teacher was in memory" in PAGE.read_text(encoding="utf-8").lower()
