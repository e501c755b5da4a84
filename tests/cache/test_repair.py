"""Repair: it sets aside what is damaged, moves it whole, and leaves alone what it cannot judge."""

import os
import signal
from pathlib import Path

import pytest
from labels import producer, soft_labels, texts
from processes import fork
from unreadable import fail_to_read, needs_proc

from cache import Store, StoreError, UnreadableError, canonical_json, example_ids
from cache.commands.compact import compact
from cache.commands.gc import Victim, delete
from cache.commands.ls import describe
from cache.commands.repair import repair
from cache.folder import Folder
from cache.shards import MAX_BYTES


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of three shards, of two examples each."""
    store = Store(tmp_path / "store", producer())
    for i in range(3):
        store.append(soft_labels(texts(2, first=2 * i)))
    return store


@pytest.fixture
def folder(store: Store) -> Path:
    return Path(str(store.folder))


def damage(folder: Path, index: int = 0) -> tuple[Path, bytes]:
    """Cut the last byte off a shard; gives it and what is left of it."""
    path = sorted(folder.glob("*.arrow"))[index]
    path.write_bytes(path.read_bytes()[:-1])
    return path, path.read_bytes()


@needs_proc
def test_where_a_shard_cannot_be_read_repair_moves_nothing(store: Store, folder: Path) -> None:
    damage(folder)
    failing = sorted(folder.glob("*.arrow"))[1]
    content = fail_to_read(failing)
    before = sorted(folder.iterdir())
    with pytest.raises(UnreadableError, match=f"{failing} cannot be read: Input/output error"):
        repair(store.root, producer().id)
    assert sorted(folder.iterdir()) == before
    failing.unlink()
    failing.write_bytes(content)  # the disk answers again
    assert repair(store.root, producer().id).examples == 2
    assert store.look_up(example_ids([texts(6)])).found.sum() == 4


@needs_proc
@pytest.mark.parametrize("name", ["producer.json", "shard"])
def test_without_its_producer_json_too_repair_moves_only_what_it_has_read(
    store: Store, folder: Path, name: str
) -> None:
    if name == "producer.json":
        fail_to_read(folder / name)
    else:
        (folder / "producer.json").unlink()
        fail_to_read(sorted(folder.glob("*.arrow"))[0])
    before = sorted(folder.iterdir())
    with pytest.raises(UnreadableError, match="Input/output error"):
        repair(store.root, producer().id)
    assert sorted(folder.iterdir()) == before


def test_a_producer_json_of_a_newer_version_is_not_set_aside(store: Store, folder: Path) -> None:
    newer = canonical_json({**producer().facts, "schema": 2})
    (folder / "producer.json").write_bytes(newer)
    damage(folder)
    with pytest.raises(UnreadableError, match=r"a newer version \(schema 2; this one reads up to 1\)"):
        repair(store.root, producer().id)
    assert not (folder / "damaged").exists()
    store.look_up(example_ids([texts(1)]))
    store.create()
    assert (folder / "producer.json").read_bytes() == newer


def test_what_is_set_aside_is_the_file_itself(store: Store, folder: Path) -> None:
    path, content = damage(folder)
    inode = path.stat().st_ino
    repair(store.root, producer().id)
    moved = folder / "damaged" / path.name
    assert (moved.read_bytes(), moved.stat().st_ino) == (content, inode)


def test_a_file_too_large_to_read_is_set_aside_whole(store: Store, folder: Path) -> None:
    path = sorted(folder.glob("*.arrow"))[0]
    os.truncate(path, MAX_BYTES + 1)
    with path.open("rb") as file:
        start = file.read(100)
    assert repair(store.root, producer().id).damaged.keys() == {path.name}
    moved = folder / "damaged" / path.name
    assert moved.stat().st_size == MAX_BYTES + 1
    with moved.open("rb") as file:
        assert file.read(100) == start


def test_what_was_set_aside_before_is_not_replaced(store: Store, folder: Path) -> None:
    path, first = damage(folder)
    contents = [first, b"other", b"third"]
    for content in contents:
        path.write_bytes(content)
        repair(store.root, producer().id)
    names = [path.name, f"{path.name}.1", f"{path.name}.2"]
    assert files_in(folder / "damaged") == dict(zip(names, contents, strict=True))
    assert delete(store.root, Victim(describe(store.root, producer().id), "a test"))
    assert not folder.exists()


@pytest.mark.parametrize("labelled_again", [False, True])
def test_two_repairs_at_once_set_a_file_aside_once(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, labelled_again: bool
) -> None:
    path = sorted(folder.glob("*.arrow"))[0]
    ((_, labels),) = store.read([path.name])
    whole = path.read_bytes()
    _, content = damage(folder)
    listing = Folder.list
    n_listed = 0

    def repaired_meanwhile(self: Folder) -> object:
        """Run the second from its beginning to its end when the first has judged."""
        nonlocal n_listed
        n_listed += 1
        if n_listed == 3:
            repair(store.root, producer().id)
            if labelled_again:
                assert store.append(labels) == path.name
        return listing(self)

    monkeypatch.setattr(Folder, "list", repaired_meanwhile)
    repair(store.root, producer().id)
    assert n_listed > 3
    assert files_in(folder / "damaged") == {path.name: content}
    assert path.exists() == labelled_again
    assert not labelled_again or path.read_bytes() == whole


def repair_until_killed(root: str, when: str) -> None:
    replace = Path.replace

    def die(source: Path, target: Path) -> None:
        if when == "after":
            replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    patch = pytest.MonkeyPatch()
    patch.setattr(Path, "replace", die)
    repair(root, producer().id)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_that_is_killed_at_the_move_loses_no_byte(store: Store, folder: Path, when: str) -> None:
    path, content = damage(folder)
    killed = fork(repair_until_killed, store.root, when)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert path.exists() == (when == "before")
    repair(store.root, producer().id)
    assert not path.exists()
    assert content in files_in(folder / "damaged").values()


def test_a_move_that_fails_leaves_the_file_and_nothing_else(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = damage(folder)

    def stop(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            repair(store.root, producer().id)
    assert path.read_bytes() == content
    assert files_in(folder / "damaged") == {}
    (folder / "damaged").rmdir()
    (folder / "damaged").write_text("no folder")
    with pytest.raises(StoreError, match="cannot move"):
        repair(store.root, producer().id)
    assert path.read_bytes() == content


@needs_proc
def test_compact_deletes_nothing_that_it_has_not_read(store: Store, folder: Path) -> None:
    fail_to_read(sorted(folder.glob("*.arrow"))[0])
    before = sorted(folder.iterdir())
    with pytest.raises(UnreadableError, match="Input/output error"):
        compact(store.root, producer().id, format_="arrow", on_bytes=lambda _: None)
    assert sorted(folder.iterdir()) == before
