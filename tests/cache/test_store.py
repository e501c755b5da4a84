"""The store: found again by content, shared by many writers, honest about what is damaged."""

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labels import FORMATS, only_shard, producer, shard_files, soft_labels, texts
from processes import fork
from unreadable import fail_to_read, needs_proc

from cache import (
    Index,
    Outputs,
    Producer,
    ProducerError,
    Store,
    StoreError,
    UnreadableError,
    canonical_json,
    example_ids,
    store_root,
)
from cache.commands.compact import compact
from cache.commands.export import export
from cache.commands.verify import verify
from cache.folder import Folder
from cache.names import find_producer
from cache.store import LastUse, producer_ids


def test_the_environment_overrides_the_configured_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MBLM_TEACHER_CACHE", raising=False)
    assert store_root("/data/soft") == "/data/soft"
    assert store_root("~/soft") == str(Path.home() / "soft")
    assert store_root("s3://bucket/~soft") == "s3://bucket/~soft"
    assert Path(store_root(None)).name == "teachers"
    monkeypatch.setenv("MBLM_TEACHER_CACHE", "/shared/soft")
    assert store_root("/data/soft") == "/shared/soft"


# Ids that share a prefix are common among these, and each may occur several times.
IDS = st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([bytes([i]) * 16 for i in range(3)]))


@given(IDS, st.lists(st.integers(0, 30)))
def test_an_index_finds_the_first_of_each_id(present: list[bytes], picks: list[int]) -> None:
    absent = [b"absent id %06d" % i for i in range(3)]
    wanted = [(present + absent)[pick % len(present + absent)] for pick in picks]
    found = Index(pa.array(present, pa.binary(16))).positions(pa.array(wanted, pa.binary(16)))
    assert found.tolist() == [present.index(one) if one in present else -1 for one in wanted]


@given(IDS)
def test_an_index_knows_which_ids_stand_again(present: list[bytes]) -> None:
    again, first = Index(pa.array(present, pa.binary(16))).repeats()
    before = {place: present.index(one) for place, one in enumerate(present)}
    assert dict(zip(again.tolist(), first.tolist(), strict=True)) == {
        place: first for place, first in before.items() if first != place
    }


def test_an_index_of_many_ids_finds_all_of_them() -> None:
    ids = example_ids([texts(300_000)])
    order = np.random.default_rng(0).permutation(300_000)
    np.testing.assert_array_equal(Index(ids).positions(ids.take(pa.array(order))), order)
    assert (Index(ids).positions(example_ids([texts(9, first=10**6)])) == -1).all()
    np.testing.assert_array_equal(Index(ids.slice(5)).positions(ids.slice(7, 3)), [2, 3, 4])


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_appended_is_found_in_any_order_and_with_repetitions(tmp_path: Path, format_: str) -> None:
    labels = soft_labels(texts(7))
    store = Store(tmp_path, producer())
    store.append(labels.take(slice(0, 3)), format_=format_)
    store.append(labels.take(slice(3, 7)), format_=format_)
    wanted = ["text 5", "text 0", "text 5", "text 6"]
    found = Store(tmp_path, producer()).look_up(example_ids([wanted])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels(wanted).logits)
    lookup = store.look_up(example_ids([["text 1", "absent"]]))
    assert lookup.found.tolist() == [True, False]
    with pytest.raises(ValueError, match="1 of 2 examples have no soft label"):
        lookup.soft_labels()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve disk")
def test_columns_too_large_for_memory_are_on_disk_in_files_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs(hidden=True)
    labels = soft_labels(texts(7), outputs=outputs)
    store = Store(tmp_path / "store", producer(outputs=outputs))
    store.append(labels)
    monkeypatch.setattr("cache.lookup._IN_MEMORY", 50)  # bytes: the logits are more, the hidden states too
    wanted = example_ids([["text 5", "text 0", "text 5", *texts(7)]])
    lookup = store.look_up(wanted, overflow=tmp_path)
    held = Path("/proc/self/maps").read_text()
    found = lookup.soft_labels()
    in_memory = store.look_up(wanted).soft_labels()
    np.testing.assert_array_equal(found.logits, in_memory.logits)
    assert found.hidden is not None
    np.testing.assert_array_equal(found.hidden, in_memory.hidden)
    assert f"{tmp_path}/" in held
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(OSError, match=r"No space left|too large"):
        lookup._zeros((1 << 50,), np.dtype(np.float32))


def test_shards_of_both_formats_serve_together(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    for i, format_ in enumerate(FORMATS):
        store.append(soft_labels(texts(3, first=3 * i)), format_=format_)
    found = store.look_up(example_ids([texts(6)])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels(texts(6)).logits)


def test_a_look_up_takes_over_what_others_append_meanwhile(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    lookup = store.look_up(example_ids([texts(4)]))
    assert not lookup.found.any()
    Store(tmp_path, producer()).append(soft_labels(texts(3)))
    store.update(lookup)
    assert lookup.found.tolist() == [True, True, True, False]


def test_producers_do_not_see_each_others_soft_labels(tmp_path: Path) -> None:
    Store(tmp_path, producer(weights="1")).append(soft_labels(texts(3)))
    assert not Store(tmp_path, producer(weights="2")).look_up(example_ids([texts(3)])).found.any()


def test_the_same_example_in_several_shards_is_harmless(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    for some in (texts(7), texts(7), ["text 1", "new"]):
        store.append(soft_labels(some))
    found = store.look_up(example_ids([texts(7)])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels(texts(7)).logits)


def test_a_damaged_shard_counts_as_absent_and_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    damaged = only_shard(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    store.append(soft_labels(texts(2, first=3)))
    lookup = store.look_up(example_ids([texts(5)]))
    assert lookup.found.tolist() == [False] * 3 + [True] * 2
    assert str(store.damaged[damaged.name]).startswith(f"{damaged} is damaged: its content")


@needs_proc
def test_a_shard_that_cannot_be_read_counts_as_absent_but_not_as_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    failing = only_shard(tmp_path)
    fail_to_read(failing)
    store.append(soft_labels(texts(2, first=3)))
    lookup = store.look_up(example_ids([texts(5)]))
    assert lookup.found.tolist() == [False] * 3 + [True] * 2
    assert store.damaged == {}
    assert str(store.unreadable[failing.name]) == f"{failing} cannot be read: Input/output error"
    checked = verify(tmp_path, producer().id, on_bytes=lambda _: None)
    assert (checked.damaged, checked.unreadable) == ({}, {failing.name: "Input/output error"})


@needs_proc
def test_a_look_up_goes_on_without_a_producer_json_that_it_cannot_read(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    path = only_shard(tmp_path).with_name("producer.json")
    fail_to_read(path)
    assert store.look_up(example_ids([texts(3)])).found.all()
    assert store.unreadable.keys() == {"producer.json"}
    store.create()
    assert path.is_symlink()  # nobody has replaced it
    with pytest.raises(UnreadableError, match=r"producer\.json cannot be read: Input/output error"):
        Store.open(tmp_path, producer().id)


def test_facts_that_this_version_does_not_understand_are_not_another_producers(tmp_path: Path) -> None:
    newer = Producer({**producer().facts, "outputs": ["logits", "attentions"]})
    Store(tmp_path, newer).create()
    with pytest.raises(UnreadableError, match="which is not known here"):
        Store.open(tmp_path, newer.id)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Store(tmp_path, producer()).append(soft_labels(texts(3)))

    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(UnreadableError, match=f"{tmp_path} cannot be read: {os.strerror(number)}"):
            Folder(tmp_path).list()


def test_a_file_in_a_stores_place_is_not_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UnreadableError, match="store cannot be read: Not a directory"):
        producer_ids(tmp_path / "store")


def test_shards_whose_columns_do_not_fit_together_are_damaged(tmp_path: Path) -> None:
    outputs = Outputs(hidden=True)
    labels = soft_labels(texts(6), outputs=outputs)
    wide, narrow = labels.take(slice(0, 3)), labels.take(slice(3, 6))
    narrow = type(narrow)(narrow.ids, {**narrow.columns, "hidden": narrow.columns["hidden"][:, :2]}, 3)
    store = Store(tmp_path, producer(outputs=outputs))
    for one in (wide, narrow):
        store.append(one)
    assert store.look_up(labels.ids).found.sum() == 3
    (error,) = store.damaged.values()
    assert "not those of the producer's other shards" in error.reason
    assert len(verify(tmp_path, store.producer.id, on_bytes=lambda _: None).damaged) == 1
    # Most teachers' facts tell the width, and then the shard of another width is the damaged one.
    id2label = {str(i): name for i, name in enumerate("abc")}
    config = {"id2label": id2label, "hidden_size": 2}
    facts = {"outputs": ["logits", "hidden"], "config": config}
    known = Store(tmp_path, Producer(facts))
    known.append(narrow)
    with pytest.raises(ValueError, match=r"hidden holds 5 values of float16, not Column\(.* width=2\)"):
        known.append(wide)
    assert known.look_up(labels.ids).found.tolist() == [False] * 3 + [True] * 3
    projecting = Producer({**facts, "config": {**config, "word_embed_proj_dim": 5}})  # as OPT does
    assert projecting.columns["hidden"].width == 5


def test_of_several_answers_the_same_counts_before_and_after_a_compaction(tmp_path: Path) -> None:
    labels = soft_labels(texts(9))
    for endpoint in (False, True):
        facts: dict[str, Any] = {"endpoint": {"model": "x"}} if endpoint else {}
        store = Store(tmp_path, producer(**facts))
        for change in (0.0, 0.3, -0.2, 0.1):  # such as two runs at once were told
            logits = labels.columns["logits"] + np.float32(change)
            store.append(type(labels)(labels.ids, {"logits": logits}, 3))
        before = store.look_up(labels.ids).soft_labels().logits
        file = tmp_path / f"all-{endpoint}"
        export(tmp_path, store.producer.id, file, examples=None, on_bytes=lambda _: None)
        exported = {row["example_id"]: row["logits"] for row in pq.read_table(file).to_pylist()}
        assert exported == dict(zip(labels.ids.to_pylist(), before.tolist(), strict=True))
        found = verify(tmp_path, store.producer.id, on_bytes=lambda _: None)
        assert (found.repeated, found.contradicting) == (27, 0 if endpoint else 27)
        compact(tmp_path, store.producer.id, format_="arrow", on_bytes=lambda _: None)
        assert len(store.shards()) == 1
        np.testing.assert_array_equal(store.look_up(labels.ids).soft_labels().logits, before)


@pytest.mark.parametrize("hostile", ["pipe", "huge", "folder", "loop", "endless"])
def test_a_shards_name_on_something_else_neither_hangs_nor_fills_the_memory(
    tmp_path: Path, hostile: str
) -> None:
    store = Store(tmp_path, producer())
    kept = store.append(soft_labels(texts(3)))
    path = tmp_path / producer().id / kept.replace("3-", "4-")
    if hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif hostile == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if hostile == "loop" else "/dev/zero")
    assert store.look_up(example_ids([texts(3)])).found.all()
    assert set(store.damaged) <= {path.name}


def test_a_name_that_is_empty_is_no_place_for_a_store() -> None:
    with pytest.raises(StoreError, match="an empty name is no place"):
        Store("", producer())


def test_a_store_that_was_cleaned_up_meanwhile_can_be_appended_to(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    shutil.rmtree(tmp_path / producer().id)
    store.append(soft_labels(texts(2)))
    assert Store.open(tmp_path, producer().id).look_up(example_ids([texts(2)])).found.all()


def test_foreign_files_are_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    name = store.append(soft_labels(texts(3)))
    folder = only_shard(tmp_path).parent
    for other in ("notes.txt", f"x{name}", name.replace("arrow", "pickle"), f"{name}.bak", "٣" + name[1:]):
        (folder / other).write_text("not a shard")
    (folder / name.replace("3-", "4-")).mkdir()
    assert list(store.shards()) == [name]
    assert store.look_up(example_ids([texts(3)])).found.all()


def test_a_shard_that_vanishes_is_left_out_and_what_replaces_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, producer())
    for i in range(3):
        store.append(soft_labels(texts(2, first=2 * i)))
    list_shards = store.shards

    def merged_meanwhile() -> dict[str, int]:
        found = list_shards()
        if len(found) == 3:  # another process merges the shards as soon as they are listed
            store.append(soft_labels(texts(6)))
            for name in found:
                store.folder.delete(name)
        return found

    monkeypatch.setattr(store, "shards", merged_meanwhile)
    lookup = store.look_up(example_ids([texts(6)]))
    assert lookup.found.all()
    assert store.damaged == {}


def test_a_network_disk_that_knows_no_more_of_a_listed_shard_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, producer())
    kept = store.append(soft_labels(texts(2)))

    def stale(path: str, _flags: int) -> int:
        raise OSError(errno.ESTALE, "Stale file handle", path)

    gone = store.append(soft_labels(texts(2, first=2)))
    with monkeypatch.context() as patch:
        patch.setattr("cache.folder.os.open", stale)
        with pytest.raises(FileNotFoundError):
            store.folder.read(gone, limit=10**6)
        assert dict(store.read([gone])) == {}
    assert dict(store.read([kept])).keys() == {kept}


def test_a_disk_that_cannot_flush_folders_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(2)))
    assert store.look_up(example_ids([texts(2)])).found.all()


def test_a_folder_that_describes_another_producer_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    path = only_shard(tmp_path).with_name("producer.json")
    for content, message in (
        ("{}", "describes another producer"),
        ("[1]", "describes another producer"),
        ("{", "is not JSON"),
        ("[" * 10**5, "is not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ProducerError, match=message) as refused:
            store.look_up(example_ids([texts(3)]))
        assert str(refused.value).endswith(f"cache repair --store {tmp_path}")


def test_facts_that_make_no_sense_are_refused_in_one_line(tmp_path: Path) -> None:
    config = {"id2label": {"0": "no", "1": "yes"}, "mplm_config": 5}
    hostile = Producer({"outputs": ["logits", "hidden"], "config": config})
    (tmp_path / hostile.id).mkdir()
    (tmp_path / hostile.id / "producer.json").write_bytes(canonical_json(hostile.facts))
    with pytest.raises(UnreadableError):
        Store.open(tmp_path, hostile.id)


def test_a_store_is_opened_by_the_producers_id_or_its_beginning(tmp_path: Path) -> None:
    first, second = producer(weights="1"), producer(weights="2")
    for one in (first, second):
        Store(tmp_path, one).append(soft_labels(texts(3)))
    (tmp_path / "notes").mkdir()
    (tmp_path / ("0" * 64)).mkdir()  # what a clean-up left of a folder with foreign files
    (tmp_path / ("0" * 64) / "notes.txt").write_text("mine")
    assert producer_ids(tmp_path) == sorted([first.id, second.id])
    assert Store.open(tmp_path, find_producer(tmp_path, first.id[:6])).producer == first
    with pytest.raises(StoreError, match="2 producers in"):
        find_producer(tmp_path, "")
    with pytest.raises(StoreError, match=r"no producer in .* python -m pipeline cache ls"):
        find_producer(tmp_path, "x")
    (tmp_path / second.id / "producer.json").unlink()
    with pytest.raises(ProducerError, match="is not there"):
        Store.open(tmp_path, second.id)


def test_who_used_a_producer_last_is_written_down(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    assert LastUse.read(store.folder) is None
    store.note_use(teacher="some/teacher", language="de")
    use = LastUse.read(store.folder)
    assert use is not None
    assert (use.teacher, use.language) == ("some/teacher", "de")
    path = tmp_path / producer().id / "last_use.json"
    future = '{"at": "2999-01-01T00:00:00+00:00", "teacher": "", "language": ""}'
    for nonsense in ("", "[]", "[" * 10**5, '{"at": 1}', '{"at": "9999-12-31T23:59:59-23:59"}', future):
        path.write_text(nonsense)
        assert LastUse.read(store.folder) is None


@pytest.mark.parametrize("place", ["nowhere://x", "s4://bucket"])
def test_a_place_that_nothing_knows_is_refused(place: str) -> None:
    with pytest.raises(StoreError, match=place):
        Store(place, producer())


def _append_many(root: Path, worker: int) -> None:
    store = Store(root, producer())
    for batch in range(10):
        store.append(soft_labels([f"text {worker % 2}-{batch}-{i}" for i in range(20)]))


def test_four_processes_append_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    workers = [fork(_append_many, tmp_path, worker) for worker in range(4)]
    for worker in workers:
        worker.join()
    store = Store(tmp_path, producer())
    expected = [f"text {half}-{batch}-{i}" for half in range(2) for batch in range(10) for i in range(20)]
    found = store.look_up(example_ids([expected])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels(expected).logits)
    assert store.damaged == {}
    assert len(shard_files(tmp_path)) == 20  # two processes each wrote the same files
    assert not list(tmp_path.rglob("*.tmp"))
