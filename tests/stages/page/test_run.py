"""What was run, with its digests."""

from pathlib import Path

from page_reader import read_page


def test_what_was_run_is_told_with_its_digests(finished: Path) -> None:
    page = read_page()
    params = page.table("Parameters")
    assert params["student.distill.temperature"]["value"] == "2.0"
    assert not any(key.startswith("cache") for key in params)
    digests = page.table("Digests")
    assert digests["artifacts/student/model.safetensors"]
    assert sum(len(row["sha256"]) == 64 for row in digests.values()) == len(digests) == 3 + 2 + 2 + 2
    counts = page.table("Examples by language and split")
    expected = {"train": "–", "validation": "9", "test": "12", "test, cut to max_tokens": "0"}
    assert counts["nl"] == expected
