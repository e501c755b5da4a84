"""Soft labels on disk: identities, shards, the store and soft-label sets."""

import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cache import (
    DamagedShardError,
    ManifestError,
    MissingSoftLabelsError,
    NotFiniteError,
    Producer,
    ProducerError,
    SoftLabels,
    SoftLabelSet,
    Store,
    example_id,
    example_ids,
    store_root,
)

CLASSES = ["a", "b", "c"]
N = 7


def producer(**facts: Any) -> Producer:
    id2label = {str(i): name for i, name in enumerate(CLASSES)}
    return Producer({"schema": 1, "config": {"id2label": id2label}, **facts})


def soft_labels(texts: list[str] | None = None) -> SoftLabels:
    texts = texts or [f"text {i}" for i in range(N)]
    seeds = [int.from_bytes(example_id(text)[:4], "big") for text in texts]
    logits = np.stack([np.random.default_rng(seed).normal(size=3) for seed in seeds])
    return SoftLabels(example_ids([texts]), logits.astype(np.float32))


def only_shard(folder: Path) -> Path:
    (path,) = folder.glob("*.arrow")
    return path


# Identity


def test_an_example_id_is_blake2b_of_the_length_prefixed_fields() -> None:
    data = b"\x05\0\0\0\0\0\0\0gr\xc3\xbcn" + b"\x01\0\0\0\0\0\0\0x"
    assert example_id("grün", "x") == hashlib.blake2b(data, digest_size=16).digest()
    assert example_id("grün", "x").hex() == "c9685dcd3f05d7d6883337c057dc5102"


def test_example_ids_tell_fields_apart_and_do_not_normalise() -> None:
    composed, decomposed = "\u00fc", "u\u0308"
    ids = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("abc", ""),
        ("", "abc"),
        (composed,),
        (decomposed,),
        ("abc ",),
    ]
    assert len({example_id(*fields) for fields in ids}) == len(ids)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8, "id2label": {"0": "no", "1": "yes"}}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "right"}')
    return folder


def identify(folder: Path, **facts: Any) -> str:
    options: dict[str, Any] = {"text_fields": ["text"], "max_tokens": 32, "dtype": "float32", **facts}
    return Producer.of_teacher(folder, **options).id


def test_what_can_change_a_logit_changes_the_producer_id(teacher: Path, tmp_path: Path) -> None:
    before = identify(teacher)
    assert identify(teacher, max_tokens=31) != before
    assert identify(teacher, dtype="bfloat16") != before
    assert identify(teacher, text_fields=["a", "b"]) != identify(teacher, text_fields=["b", "a"])
    changes = {
        "model.safetensors": "weightz",
        "tokenizer.json": '{"model": {"dropout": 0.1}}',
        "tokenizer_config.json": '{"truncation_side": "left"}',
        "config.json": '{"hidden_size": 8, "id2label": {"0": "yes", "1": "no"}}',
    }
    for name, content in changes.items():
        other = tmp_path / f"other-{name}"
        shutil.copytree(teacher, other)
        (other / name).write_text(content)
        assert identify(other) != before, name


def test_what_cannot_change_a_logit_does_not(teacher: Path, tmp_path: Path) -> None:
    before = identify(teacher)
    moved = tmp_path / "elsewhere" / "other name"
    shutil.copytree(teacher, moved)
    config = {"id2label": {"0": "no", "1": "yes"}, "hidden_size": 8, "transformers_version": "9"}
    (moved / "config.json").write_text(json.dumps({**config, "_name_or_path": "x", "dtype": "float16"}))
    (moved / "README.md").write_text("notes")
    (moved / "optimizer.bin").write_bytes(b"1")
    assert identify(moved) == before


def test_the_producer_id_of_a_known_teacher_never_changes(teacher: Path) -> None:
    # Changing this digest makes every shared store label everything again.
    assert identify(teacher) == "39fdad583b892a9b69c856f868b28d0271586cd4408e99181ed53767bdf667d5"


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer"])
def test_a_folder_that_is_no_teacher_is_refused(teacher: Path, absent: str) -> None:
    for path in teacher.glob(f"{absent}*"):
        path.unlink()
    with pytest.raises(ProducerError, match="is not a teacher: it has no"):
        identify(teacher)


def test_a_configuration_that_is_no_json_is_refused(teacher: Path) -> None:
    (teacher / "config.json").write_text("{")
    with pytest.raises(ProducerError, match="is not JSON"):
        identify(teacher)


def test_a_configuration_without_class_names_has_the_two_default_ones(teacher: Path) -> None:
    (teacher / "config.json").write_text("{}")
    found = Producer.of_teacher(teacher, text_fields=["text"], max_tokens=8, dtype="float32")
    assert found.classes == ["LABEL_0", "LABEL_1"]


# The store


def test_the_environment_overrides_the_configured_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MBLM_TEACHER_CACHE", raising=False)
    assert store_root("/data/soft") == Path("/data/soft")
    assert store_root(None).name == "teachers"
    monkeypatch.setenv("MBLM_TEACHER_CACHE", "/shared/soft")
    assert store_root("/data/soft") == Path("/shared/soft")


def test_what_is_appended_is_read_again_in_any_order(tmp_path: Path) -> None:
    labels = soft_labels()
    store = Store(tmp_path, producer())
    store.append(SoftLabels(labels.ids[:3], labels.logits[:3]))
    store.append(SoftLabels(labels.ids[3:], labels.logits[3:]))
    cached = Store(tmp_path, producer()).read()
    order = np.random.default_rng(0).permutation(N)
    positions = cached.positions(labels.ids.take(pa.array(order)))
    np.testing.assert_array_equal(cached.logits[positions], labels.logits[order])
    assert cached.positions(example_ids([["absent"]])).tolist() == [-1]


def test_producers_do_not_see_each_others_soft_labels(tmp_path: Path) -> None:
    Store(tmp_path, producer(weights="1")).append(soft_labels())
    assert len(Store(tmp_path, producer(weights="2")).read()) == 0


def test_appending_twice_is_harmless(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    for labels in (soft_labels(), soft_labels(), soft_labels(["text 1", "new"])):
        store.append(labels)
    cached = store.read()
    positions = cached.positions(soft_labels().ids)
    np.testing.assert_array_equal(cached.logits[positions], soft_labels().logits)


def test_logits_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    labels = soft_labels()
    labels.logits[2, 1] = np.nan
    labels.logits[4, 0] = np.inf
    with pytest.raises(NotFiniteError) as caught:
        Store(tmp_path, producer()).append(labels)
    assert caught.value.count == 2
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_shard_is_readable_with_pyarrow_alone_and_small(tmp_path: Path) -> None:
    labels = soft_labels([f"text {i}" for i in range(2000)])
    Store(tmp_path, producer()).append(labels)
    path = only_shard(tmp_path / producer().id)
    table = pa.ipc.open_file(path).read_all()
    assert table.schema.names == ["example_id", "logits"]
    assert table["example_id"].to_pylist() == labels.ids.to_pylist()
    np.testing.assert_array_equal(np.array(table["logits"].to_pylist(), np.float32), labels.logits)
    metadata = json.loads(table.schema.metadata[b"mblm"])
    assert metadata == {"schema": 1, "producer": producer().id, "classes": CLASSES}
    assert path.name == f"2000-{hashlib.sha256(path.read_bytes()).hexdigest()}.arrow"
    assert path.stat().st_size / 2000 <= 30


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels())
    path = only_shard(store.folder)
    data = path.read_bytes()
    bits = np.random.default_rng(0).integers(len(data) * 8, size=200)
    for bit in bits.tolist():
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert len(store.read()) == 0
        assert [error.path for error in store.damaged] == [path]
    for size in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert len(store.read()) == 0
    path.write_bytes(data)
    assert len(store.read()) == N
    assert store.damaged == []


def test_shards_that_are_well_made_but_foreign_are_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels())
    Store(tmp_path, producer(weights="other")).append(soft_labels())
    foreign = only_shard(tmp_path / producer(weights="other").id)
    shutil.copy(foreign, store.folder)
    text = b"hello"
    (store.folder / f"1-{hashlib.sha256(text).hexdigest()}.arrow").write_bytes(text)
    rows = pa.table({"example_id": [1]})
    with pa.OSFile(str(tmp_path / "rows"), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    data = (tmp_path / "rows").read_bytes()
    (store.folder / f"1-{hashlib.sha256(data).hexdigest()}.arrow").write_bytes(data)
    (store.folder / "notes.txt").write_text("not a shard")
    assert len(store.read()) == N
    assert len(store.damaged) == 3
    assert any("belongs to producer" in str(error) for error in store.damaged)


def test_a_folder_that_describes_another_producer_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels())
    for content, message in (("{}", "describes another producer"), ("{", "is not JSON")):
        (store.folder / "producer.json").write_text(content)
        with pytest.raises(ProducerError, match=message):
            store.read()


def _append_many(root: Path, worker: int) -> None:
    store = Store(root, producer())
    for batch in range(10):
        store.append(soft_labels([f"text {worker % 2}-{batch}-{i}" for i in range(20)]))


def test_four_processes_append_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    store = Store(tmp_path, producer())
    cached = store.read()
    texts = [f"text {half}-{batch}-{i}" for half in range(2) for batch in range(10) for i in range(20)]
    expected = soft_labels(texts)
    np.testing.assert_array_equal(cached.logits[cached.positions(expected.ids)], expected.logits)
    assert store.damaged == []
    assert not list(tmp_path.rglob("*.tmp"))


# Soft-label sets


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "soft_labels" / "de"
    SoftLabelSet.write(folder, language="de", producer=producer(), soft_labels=soft_labels())
    return folder


def test_a_set_joins_by_id_with_repetitions(written: Path) -> None:
    texts = ["text 3", "text 0", "text 3"]
    found = SoftLabelSet.read(written, language="de")
    np.testing.assert_array_equal(found.join(example_ids([texts])), soft_labels(texts).logits)
    assert found.producer.classes == CLASSES


def test_a_missing_soft_label_is_named_with_the_command_that_writes_it(written: Path) -> None:
    found = SoftLabelSet.read(written, language="de")
    with pytest.raises(MissingSoftLabelsError, match=r"2 of 3 examples in 'de'.*teacher label --language de"):
        found.join(example_ids([["text 3", "new", "newer"]]))


def test_writing_a_set_again_replaces_it(written: Path) -> None:
    SoftLabelSet.write(written, language="de", producer=producer(), soft_labels=soft_labels(["only this"]))
    after = SoftLabelSet.read(written, language="de")
    assert len(after.soft_labels) == 1
    assert len(list(written.glob("*.arrow"))) == 1


def test_a_set_that_does_not_match_its_manifest_is_refused(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    shard = only_shard(written)
    (entry,) = manifest["producers"]
    broken: list[tuple[dict[str, Any], str]] = [
        ({"examples": N + 1}, "7 soft labels where the manifest says 8"),
        ({"language": "fr"}, "the soft labels are of language 'fr'"),
        ({"producers": []}, "the manifest is not readable"),
        ({"producers": [{**entry, "id": "0"}]}, "producer id is not that of its facts"),
        ({"producers": [{**entry, "shards": ["../../../etc/passwd"]}]}, "is not there"),
        ({"producers": [{**entry, "shards": [f"../de/{shard.name}"]}]}, "is not there"),
        ({"producers": [{**entry, "facts": {}}]}, "the manifest is not readable"),
    ]
    for change, message in broken:
        (written / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ManifestError, match=message) as caught:
            SoftLabelSet.read(written, language="de")
        assert "teacher label --language" in str(caught.value)
    (written / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="not readable"):
        SoftLabelSet.read(written, language="de")


def test_a_damaged_shard_of_a_set_is_refused(written: Path) -> None:
    shard = only_shard(written)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"is damaged.*write the soft labels with"):
        SoftLabelSet.read(written, language="de")
    shard.unlink()
    with pytest.raises(ManifestError, match="is not there"):
        SoftLabelSet.read(written, language="de")


def test_a_damaged_shard_keeps_its_facts() -> None:
    error = DamagedShardError(Path("x"), "torn")
    assert (error.path, error.reason, str(error)) == (Path("x"), "torn", "x is damaged: torn")
