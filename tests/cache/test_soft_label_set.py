"""Soft-label sets: exactly what the manifest says, or refused with the command that mends it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels import CLASS_NAMES, FORMATS, only_shard, producer, shard_files, soft_labels, texts
from unreadable import fail_to_read, needs_proc

from cache import (
    ManifestError,
    MissingSoftLabelsError,
    Outputs,
    SoftLabelSet,
    UnreadableError,
    example_ids,
)


@pytest.fixture(params=FORMATS)
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "soft_labels" / "de"
    SoftLabelSet.write(
        folder,
        language="de",
        parts=[(producer(), soft_labels(texts(7)))],
        format_=request.param,
    )
    return folder


def test_a_set_joins_by_id_with_repetitions(written: Path) -> None:
    wanted = ["text 3", "text 0", "text 3"]
    found = SoftLabelSet.read(written, language="de")
    np.testing.assert_array_equal(found.join(example_ids([wanted])).logits, soft_labels(wanted).logits)
    assert found.classes == CLASS_NAMES


def test_a_large_set_is_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.soft_label_set._SHARD_BYTES", 100)
    outputs = Outputs(hidden=True)
    labels = soft_labels(texts(20), outputs=outputs)
    SoftLabelSet.write(tmp_path, language="de", parts=[(producer(outputs=outputs), labels)])
    assert len(shard_files(tmp_path)) == 10  # of 38 bytes per example
    found = SoftLabelSet.read(tmp_path, language="de").join(labels.ids)
    np.testing.assert_array_equal(found.logits, labels.logits)
    np.testing.assert_array_equal(found.hidden, labels.hidden)


def test_a_missing_soft_label_is_named_with_the_command_that_writes_it(written: Path) -> None:
    found = SoftLabelSet.read(written, language="de")
    with pytest.raises(MissingSoftLabelsError, match=r"2 of 3 examples in 'de'.*teacher label --language de"):
        found.join(example_ids([["text 3", "new", "newer"]]))


def test_writing_a_set_again_replaces_it(written: Path) -> None:
    only = ["only this"]
    SoftLabelSet.write(written, language="de", parts=[(producer(), soft_labels(only))])
    assert len(SoftLabelSet.read(written, language="de").join(example_ids([only]))) == 1
    only_shard(written)


def test_a_set_that_does_not_match_its_manifest_is_refused(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    shard = only_shard(written)
    (entry,) = manifest["producers"]
    broken: list[tuple[dict[str, Any], str]] = [
        ({"examples": 8}, "7 soft labels where the manifest says 8"),
        ({"language": "fr"}, "the soft labels are of language 'fr'"),
        ({"producers": []}, "its producers do not fit together"),
        ({"producers": [{**entry, "id": "0"}]}, "a producer id of the manifest is not that of its facts"),
        ({"producers": [{**entry, "shards": ["../../../etc/passwd"]}]}, "is not there"),
        ({"producers": [{**entry, "shards": [f"../de/{shard.name}"]}]}, "is not there"),
        ({"producers": [{**entry, "facts": {}}]}, "the manifest is not readable"),
    ]
    for change, message in broken:
        (written / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ManifestError, match=message) as caught:
            SoftLabelSet.read(written, language="de")
        assert "teacher label --language" in str(caught.value)
    for nonsense in ("{", "[]", "[" * 10**5, json.dumps(manifest) + " " * 2**24):
        (written / "manifest.json").write_text(nonsense)
        with pytest.raises(ManifestError, match="not readable"):
            SoftLabelSet.read(written, language="de")


def test_a_damaged_shard_of_a_set_is_refused(written: Path) -> None:
    shard = only_shard(written)
    found = SoftLabelSet.read(written, language="de")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"is damaged.*write the soft labels with"):
        found.join(example_ids([texts(1)]))
    shard.unlink()
    with pytest.raises(ManifestError, match="is not there"):
        SoftLabelSet.read(written, language="de")


@pytest.mark.parametrize("where", ["manifest", "facts"])
def test_a_set_of_a_newer_version_is_refused_and_nobody_is_told_to_write_over_it(
    written: Path, where: str
) -> None:
    path = written / "manifest.json"
    manifest = json.loads(path.read_text())
    newer = manifest if where == "manifest" else manifest["producers"][0]["facts"]
    newer["schema"] = 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(UnreadableError) as caught:
        SoftLabelSet.read(written, language="de")
    assert str(caught.value) == (
        f"{path} cannot be read: written by a newer version (schema 2; this one reads up to 1); upgrade"
    )


@needs_proc
def test_a_set_that_cannot_be_read_is_neither_damaged_nor_missing(written: Path) -> None:
    found = SoftLabelSet.read(written, language="de")
    shard = only_shard(written)
    content = fail_to_read(shard)
    with pytest.raises(UnreadableError, match=f"^{shard} cannot be read: Input/output error$"):
        found.join(example_ids([texts(1)]))
    shard.unlink()
    shard.write_bytes(content)
    fail_to_read(written / "manifest.json")
    with pytest.raises(UnreadableError, match=r"manifest\.json cannot be read: Input/output error$"):
        SoftLabelSet.read(written, language="de")
