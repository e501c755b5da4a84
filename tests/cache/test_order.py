"""Whatever write or delete a chore fails at, every soft label is still in some shard."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels import producer, soft_labels, texts

from cache import SoftLabelSet, Store, example_ids
from cache.commands.compact import compact
from cache.commands.gc import Victim, delete
from cache.commands.ls import describe
from cache.commands.name import give_name
from cache.commands.repair import repair
from cache.commands.transfer import Copied, compare, copy
from cache.commands.verify import verify
from cache.folder import Folder
from cache.names import names
from cache.store import LAST_USE, NAME, LastUse

N = 12


def ignore(_: int) -> None:
    """Progress that nobody looks at."""


class Stopped(Exception):
    """Stands for a kill, a full disk or a lost connection at one operation."""


def stop_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let the n-th operation that changes a folder fail before it does anything."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Stopped
            return operation(*args, **kwargs)

        return call

    for name in ("write", "delete"):
        patch.setattr(Folder, name, counted(getattr(Folder, name)))
    for module in ("cache.soft_label_set", "cache.folder"):
        patch.setattr(f"{module}.write_atomically", counted(__import__("cache").write_atomically))
    for name in ("unlink", "replace", "touch"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store", producer())
    for i in range(4):
        store.append(soft_labels([*texts(N // 4, first=i * N // 4), "text 0"]))
    return store


def is_complete(store: Store) -> bool:
    lookup = Store(store.folder.url.rpartition("/")[0], producer()).look_up(example_ids([texts(N)]))
    return bool(lookup.found.all())


def until_done(chore: Callable[[], Any]) -> int:
    """Run a chore, stopped at its first, second, … operation, until nothing stops it; tell which was it."""
    for number in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, number)
            try:
                chore()
            except Stopped:
                continue
            return number
    raise AssertionError("it never ended")


def test_a_compaction_that_is_stopped_anywhere_loses_nothing(store: Store) -> None:
    root = store.folder.url.rpartition("/")[0]

    def chore() -> None:
        assert is_complete(store)
        compact(root, producer().id, format_="arrow", on_bytes=ignore)

    assert until_done(chore) > 4
    assert is_complete(store)


def test_two_compactions_at_once_lose_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Before each deletion of the first, the second runs from its beginning to its end.
    root = store.folder.url.rpartition("/")[0]
    remove = Folder.delete
    inside = False

    def compact_first(folder: Folder, name: str) -> None:
        nonlocal inside
        if not inside:
            inside = True
            compact(root, producer().id, format_="arrow", on_bytes=ignore)
            inside = False
        assert is_complete(store)
        remove(folder, name)

    monkeypatch.setattr(Folder, "delete", compact_first)
    compact(root, producer().id, format_="arrow", on_bytes=ignore)
    assert is_complete(store)


def test_a_repair_that_is_stopped_anywhere_keeps_the_damaged_file(store: Store) -> None:
    folder = Path(store.folder.url)
    path = sorted(folder.glob("*.arrow"))[0]
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)

    def chore() -> None:
        places = [place for place in (path, folder / "damaged" / path.name) if place.exists()]
        assert all(place.read_bytes() == damaged for place in places)
        assert places
        repair(folder.parent, producer().id)

    until_done(chore)
    chore()


def test_a_deletion_that_is_stopped_anywhere_leaves_a_producer_that_can_be_opened(store: Store) -> None:
    root = store.folder.url.rpartition("/")[0]

    def chore() -> None:
        Store.open(root, producer().id)
        delete(root, Victim(describe(root, producer().id), "a test"))

    assert until_done(chore) >= 4
    assert not Path(store.folder.url).exists()


def test_a_set_whose_writing_is_stopped_anywhere_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "de"
    SoftLabelSet.write(folder, language="de", parts=[(producer(), soft_labels(texts(5)))])

    def chore() -> None:
        found = SoftLabelSet.read(folder, language="de")
        found.join(example_ids([texts(5)]))
        SoftLabelSet.write(folder, language="de", parts=[(producer(), soft_labels(texts(7)))])

    assert until_done(chore) > 2
    found = SoftLabelSet.read(folder, language="de")
    np.testing.assert_array_equal(found.join(example_ids([texts(7)])).logits, soft_labels(texts(7)).logits)
    assert len(list(folder.iterdir())) == 2


def test_a_push_goes_on_where_it_was_stopped(store: Store, tmp_path: Path) -> None:
    root = store.folder.url.rpartition("/")[0]
    store.note_use(teacher="x", language="de")
    copied = []

    def chore() -> None:
        plan = compare(root, tmp_path / "there", [producer().id])
        copied.append(sum(map(len, plan.missing.values())))
        copy(root, tmp_path / "there", plan, on_bytes=ignore)

    until_done(chore)
    assert copied[0] == 4
    assert copied[-1] == 0
    assert Store(tmp_path / "there", producer()).look_up(example_ids([texts(N)])).found.all()


def test_a_push_of_a_store_that_is_compacted_meanwhile_names_what_vanished(
    store: Store, tmp_path: Path
) -> None:
    root = store.folder.url.rpartition("/")[0]
    plan = compare(root, tmp_path / "there", [producer().id])
    compact(root, producer().id, format_="arrow", on_bytes=ignore)
    done = copy(root, tmp_path / "there", plan, on_bytes=ignore)
    assert (done.shards, done.failed, len(done.vanished)) == (0, [], 4)
    again = compare(root, tmp_path / "there", [producer().id])
    assert copy(root, tmp_path / "there", again, on_bytes=ignore) == Copied(shards=1)


def test_many_names_are_copied_without_reading_the_target_again_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for number in range(12):
        store = Store(tmp_path / "here", producer(weights=str(number)))
        store.append(soft_labels(texts(2)))
        give_name(tmp_path / "here", store.producer.id, f"teacher-{number}")
        ids.append(store.producer.id)
    listed: list[str] = []
    list_folder = Folder.list

    def count(self: Folder) -> Any:
        listed.append(str(self))
        return list_folder(self)

    monkeypatch.setattr(Folder, "list", count)
    counts = []
    for some in (ids[:6], ids):
        listed.clear()
        there = tmp_path / f"there-{len(some)}"
        copy(tmp_path / "here", there, compare(tmp_path / "here", there, some), on_bytes=ignore)
        counts.append(len(listed))
        assert names(there) == {f"teacher-{number}": one for number, one in enumerate(some)}
    assert counts[1] <= 2 * counts[0]


def test_a_name_that_another_process_gave_away_meanwhile_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ours, theirs = (Store(root, producer(weights=str(root))) for root in (here, there))
    for store in (ours, theirs):
        store.append(soft_labels(texts(2)))
    give_name(here, ours.producer.id, "mine")
    write = Folder.write

    def write_after_another(self: Folder, name: str, data: bytes) -> None:
        if name == NAME and str(self) != str(theirs.folder):
            write(theirs.folder, NAME, data)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", write_after_another)
    copy(here, there, compare(here, there, [ours.producer.id]), on_bytes=ignore)
    assert names(there) == {"mine": theirs.producer.id}


def test_a_clock_that_is_behind_makes_no_use_older(store: Store) -> None:
    ahead = LastUse(datetime.now(UTC) + timedelta(hours=5), "ahead", "de")
    store.folder.write(LAST_USE, ahead.encode())
    store.note_use(teacher="behind", language="de")
    assert LastUse.read(store.folder) == LastUse(ahead.at, "behind", "de")
    store.append(soft_labels(texts(2, first=90)))
    assert LastUse.read(store.folder) == LastUse(ahead.at, "behind", "de")


def test_a_check_reads_what_took_the_place_of_shards_that_were_merged_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.folder.url.rpartition("/")[0]
    foreign = Store.foreign

    def merge_first(self: Store) -> list[str]:
        if len(self.shards()) > 1:
            compact(root, producer().id, format_="arrow", on_bytes=ignore)
        return foreign(self)

    monkeypatch.setattr(Store, "foreign", merge_first)
    found = verify(root, producer().id, on_bytes=ignore)
    assert (found.shards, found.examples, found.damaged, found.unreadable) == (1, N, {}, {})


def test_an_older_note_of_use_does_not_replace_a_newer_one(store: Store, tmp_path: Path) -> None:
    root, there = store.folder.url.rpartition("/")[0], Store(tmp_path / "there", producer())
    for teacher, expected in (("first", "first"), ("second", "second")):
        store.note_use(teacher=teacher, language="de")
        newer = LastUse.read(store.folder)
        copy(root, tmp_path / "there", compare(root, tmp_path / "there", [producer().id]), on_bytes=ignore)
        found = LastUse.read(there.folder)
        assert found is not None
        assert found.teacher == expected
    assert newer is not None
    older = LastUse(newer.at - timedelta(days=1), "older", "de")
    store.folder.write(LAST_USE, older.encode())
    copy(root, tmp_path / "there", compare(root, tmp_path / "there", [producer().id]), on_bytes=ignore)
    assert LastUse.read(there.folder) == newer
