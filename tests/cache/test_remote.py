"""A store on an object store, by a real S3 server on loopback, and on any other place that fsspec reaches."""

import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest
from labels import FORMATS, producer, soft_labels, texts
from tiny import LABEL, ROOT, Run, may_unshare
from warm import warm_python

from cache import Store, StoreError, UnreadableError, example_ids
from cache.commands.compact import compact
from cache.commands.gc import Victim, delete
from cache.commands.ls import ls
from cache.commands.repair import repair
from cache.commands.transfer import Copied, Plan, compare, copy
from cache.commands.verify import verify
from cache.folder import Folder
from cache.store import producer_ids


@pytest.fixture
def s3(s3_server: str, request: pytest.FixtureRequest) -> str:
    """The URL of a folder in an empty bucket."""
    name = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/soft"


@pytest.fixture(params=["s3", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store's URL on each of several file systems."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    if request.param == "memory":
        return f"memory://{tmp_path.name}/store"
    url: str = request.getfixturevalue("s3")
    return url


def ignore(_: int) -> None:
    """Progress that nobody looks at."""


@pytest.mark.parametrize("format_", FORMATS)
def test_a_store_serves_from_anywhere(place: str, format_: str) -> None:
    store = Store(place, producer())
    assert not store.look_up(example_ids([texts(3)])).found.any()
    for i in range(20):
        store.append(soft_labels(texts(2, first=2 * i)), format_=format_)
    found = Store(place, producer()).look_up(example_ids([texts(40)])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels(texts(40)).logits)
    store.note_use(teacher="some/teacher", language="de")
    (listed,) = ls(place)
    assert (listed.examples, listed.shards, listed.teacher) == (40, 20, "some/teacher")
    assert compact(place, producer().id, format_="arrow", on_bytes=ignore).after == 1
    checked = verify(place, producer().id, on_bytes=ignore)
    assert (checked.examples, checked.damaged, checked.foreign) == (40, {}, [])
    assert delete(place, Victim(listed, "a test")) is False  # compacted since it was listed
    assert delete(place, Victim(ls(place)[0], "a test"))
    assert producer_ids(place) == []


def test_a_damaged_shard_is_noticed_and_set_aside_anywhere(place: str) -> None:
    store = Store(place, producer())
    good = store.append(soft_labels(texts(3)))
    bad = store.append(soft_labels(texts(3, first=3)))
    file_system, path = fsspec.url_to_fs(f"{store.folder}/{bad}")
    file_system.pipe_file(path, file_system.cat_file(path)[:-1])
    assert verify(place, producer().id, on_bytes=ignore).damaged.keys() == {bad}
    assert repair(place, producer().id).examples == 3
    assert verify(place, producer().id, on_bytes=ignore).damaged == {}
    assert list(store.shards()) == [good]
    assert bad in store.folder.folder("damaged").list()


def test_an_empty_shard_is_damaged_anywhere(place: str) -> None:
    """An object store answers a request for a part of an empty object with an error."""
    store = Store(place, producer())
    bad = store.append(soft_labels(texts(3)))
    file_system, folder = fsspec.url_to_fs(str(store.folder))
    file_system.pipe_file(f"{folder}/{bad}", b"")
    assert verify(place, producer().id, on_bytes=ignore).damaged.keys() == {bad}
    assert not Store(place, producer()).look_up(soft_labels(texts(3)).ids).found.any()


def test_what_is_set_aside_anywhere_is_whole_and_replaces_nothing(place: str) -> None:
    store = Store(place, producer())
    bad = store.append(soft_labels(texts(3)))
    file_system, folder = fsspec.url_to_fs(str(store.folder))
    for content in (b"first", b"second"):
        file_system.pipe_file(f"{folder}/{bad}", content)
        repair(place, producer().id)
    for name, content in ((bad, b"first"), (f"{bad}.1", b"second")):
        assert file_system.cat_file(f"{folder}/damaged/{name}") == content
    assert bad not in store.folder.list()


@pytest.mark.parametrize("stopped_at", ["cp_file", "rm_file"])
def test_a_move_on_an_object_store_that_is_stopped_loses_nothing_and_is_made_again(
    s3: str, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    store = Store(s3, producer())
    bad = store.append(soft_labels(texts(3)))
    store.folder.write(bad, b"damaged")

    def stop(*_: object) -> None:
        raise ConnectionError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(store.folder._fs, stopped_at, stop)
        with pytest.raises(StoreError, match="the line is dead"):
            repair(s3, producer().id)
        assert store.folder.read(bad, limit=100) == b"damaged"
    [moved] = repair(s3, producer().id).damaged
    aside = store.folder.folder("damaged")
    assert bad not in store.folder.list()
    assert moved in aside.list()
    assert {aside.read(name, limit=100) for name in aside.list()} == {b"damaged"}


def test_a_file_that_is_written_anew_while_it_is_moved_stays_in_an_object_store(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3, producer())
    labels = soft_labels(texts(3))
    bad = store.append(labels)
    store.folder.write(bad, b"damaged")
    file_system = store.folder._fs
    copy_file = file_system.cp_file

    def labelled_meanwhile(source: str, target: str) -> None:
        copy_file(source, target)
        store.append(labels)

    monkeypatch.setattr(file_system, "cp_file", labelled_meanwhile)
    repair(s3, producer().id)
    assert store.look_up(labels.ids).found.all()
    assert store.folder.folder("damaged").read(bad, limit=100) == b"damaged"


def test_an_object_that_may_not_be_read_is_no_damaged_one_and_is_not_pushed(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3, producer())
    closed, open_ = (store.append(soft_labels(texts(2, first=2 * i))) for i in range(2))
    file_system = store.folder._fs
    read = file_system.cat_file

    def refuse(path: str, **options: int) -> bytes:
        if path.endswith(closed):  # as a server answers 403 for an object that is archived, or another's
            raise PermissionError("Access Denied")
        data: bytes = read(path, **options)
        return data

    monkeypatch.setattr(file_system, "cat_file", refuse)
    checked = verify(s3, producer().id, on_bytes=ignore)
    assert (checked.shards, checked.damaged, checked.unreadable) == (1, {}, {closed: "Access Denied"})
    with pytest.raises(UnreadableError, match=f"{closed} cannot be read: Access Denied"):
        repair(s3, producer().id)
    (error,) = copy(s3, tmp_path, compare(s3, tmp_path, [producer().id]), on_bytes=ignore).failed
    assert isinstance(error, UnreadableError)
    assert list(Store(tmp_path, producer()).shards()) == [open_]


def n_missing(plan: Plan) -> int:
    return sum(map(len, plan.missing.values()))


def test_push_and_pull_copy_only_what_is_missing(place: str, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    for weights in ("1", "2"):
        store = Store(here, producer(weights=weights))
        for i in range(11):
            store.append(soft_labels(texts(2, first=2 * i)))
        store.note_use(teacher=weights, language="de")
    first = compare(here, place, producer_ids(here))
    assert (n_missing(first), first.present) == (22, 0)
    sizes: list[int] = []
    assert copy(here, place, first, on_bytes=sizes.append) == Copied(shards=22)
    assert sum(sizes) == first.size == sum(one.size for one in ls(here))
    store.append(soft_labels(["new"]))
    second = compare(here, place, producer_ids(here))
    assert (n_missing(second), second.present) == (1, 22)
    copy(here, place, second, on_bytes=ignore)
    copy(place, back, compare(place, back, [store.producer.id]), on_bytes=ignore)
    found = Store(back, store.producer).look_up(example_ids([[*texts(22), "new"]])).soft_labels()
    np.testing.assert_array_equal(found.logits, soft_labels([*texts(22), "new"]).logits)
    assert [one.teacher for one in ls(back)] == ["2"]


def test_a_copy_that_was_cut_off_is_made_again_and_a_damaged_shard_is_not_copied(
    place: str, tmp_path: Path
) -> None:
    store = Store(tmp_path, producer())
    good, bad = (store.append(soft_labels(texts(2, first=2 * i))) for i in range(2))
    there = Store(place, producer())
    there.folder.write(good, b"torn")
    path = Path(str(store.folder)) / bad
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    plan = compare(tmp_path, place, [producer().id])
    assert n_missing(plan) == 2
    (error,) = copy(tmp_path, place, plan, on_bytes=ignore).failed
    assert bad in error.path
    assert list(there.shards()) == [good]
    assert there.look_up(example_ids([texts(2)])).found.all()


# Stage one with the store on S3


def test_stage_one_shares_a_store_on_s3(
    finished: Path, run: Run, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBLM_TEACHER_CACHE", s3)
    assert "0 cached, 57 to label" in run(*LABEL).err
    done = run(*LABEL)
    assert "57 cached, 0 to label" in done.err
    assert "57 soft labels, 0 of them new" in done.out
    assert "1 producer," in run("cache", "ls").out


def test_a_full_hit_on_s3_loads_no_teacher(
    finished: Path, run: Run, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBLM_TEACHER_CACHE", s3)
    run("cache", "push", s3, "--store", str(finished / "store"))
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from pipeline.__main__ import main\n"
        "sys.argv = ['pipeline', *sys.argv[1:]]; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *LABEL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "57 cached, 0 to label" in done.stderr
    assert done.stdout.endswith("False\n")


@pytest.mark.skipif(
    not may_unshare("-rm"),
    reason="this machine allows no mounts of one's own",
)
def test_a_store_that_may_only_be_read_serves(finished: Path) -> None:
    store = finished / "store"
    mounts = f"mount --bind {store} {store} && mount -o remount,bind,ro {store}"
    label = f"! touch {store}/x 2>/dev/null && {warm_python()} -m pipeline {' '.join(LABEL)}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounts} && {label}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "57 cached, 0 to label" in done.stderr
    assert done.returncode == 0


@pytest.mark.skipif(
    not may_unshare("-rm"),
    reason="this machine allows no mounts of one's own",
)
def test_a_store_that_may_only_be_read_is_noticed_before_the_teacher_runs(finished: Path) -> None:
    store = finished / "store"
    for path in store.rglob("*.arrow"):
        path.unlink()
    mounts = f"mount --bind {store} {store} && mount -o remount,bind,ro {store}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounts} && {warm_python()} -m pipeline {' '.join(LABEL)}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "0 cached, 57 to label" in done.stderr
    assert "label 'de'" not in done.stderr  # its progress bar
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"error: cannot write {store}/.*: Read-only file system; ask its owner", last)


@pytest.mark.parametrize(
    ("url", "environment", "message"),
    [
        ("s3://no-such-bucket-here/soft", {}, "cannot write to s3://no-such-bucket-here/soft/"),
        ("s3://bucket/soft", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot use s3://bucket/soft/"),
        ("s5://bucket/soft", {}, "s5://bucket/soft"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(
    finished: Path, s3_server: str, url: str, environment: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        [warm_python(), "-m", "pipeline", *LABEL],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MBLM_TEACHER_CACHE": url,
            "AWS_MAX_ATTEMPTS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr.splitlines()[-1]


def test_a_place_that_is_asked_at_once_and_does_not_answer_is_named() -> None:
    with pytest.raises(StoreError, match=r"cannot reach the store ftp://127\.0\.0\.1:1/soft"):
        Folder("ftp://127.0.0.1:1/soft")
