"""Shards: both formats give the same guarantees, to soft labels of every kind and against hostile files."""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from labels import CLASS_NAMES, FORMATS, only_shard, producer, shard_files, soft_labels, texts
from scipy.special import log_softmax
from zarr.storage import ZipStore

from cache import DamagedShardError, NotFiniteError, Outputs, SoftLabels, Store, example_ids

KINDS = {
    "logits": Outputs(),
    "float16": Outputs(dtype="float16"),
    "hidden": Outputs(hidden=True),
    "top": Outputs(top_k=2),
    "top, float16, hidden": Outputs(dtype="float16", top_k=1, hidden=True),
}


def equal(a: SoftLabels, b: SoftLabels) -> bool:
    return (
        a.ids.equals(b.ids)
        and a.n_classes == b.n_classes
        and a.columns.keys() == b.columns.keys()
        and all(
            a.columns[name].dtype == b.columns[name].dtype
            and np.array_equal(a.columns[name], b.columns[name])
            for name in a.columns
        )
    )


def read_all(store: Store) -> list[SoftLabels]:
    return [found for _, found in store.read(store.shards())]


@pytest.mark.parametrize("format_", FORMATS)
@given(data=st.data())
def test_what_is_written_is_read_again(
    format_: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    n_classes = data.draw(st.integers(2, 7))
    n_examples, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    outputs = Outputs(
        dtype=data.draw(st.sampled_from(["float32", "float16"])),
        top_k=data.draw(st.none() | st.integers(1, n_classes - 1)),
        hidden=data.draw(st.booleans()),
    )
    numbers = st.floats(-60_000, 60_000, width=32)
    logits = data.draw(arrays.arrays(np.float32, (n_examples, n_classes), elements=numbers))
    hidden = data.draw(arrays.arrays(np.float32, (n_examples, width), elements=numbers))
    names = data.draw(st.lists(st.text(), min_size=n_examples, max_size=n_examples))
    written = SoftLabels.pack(
        example_ids([names]), logits, hidden if outputs.hidden else None, outputs=outputs
    )
    store = Store(tmp_path_factory.mktemp("store"), producer(outputs=outputs, n_classes=n_classes))
    store.append(written, format_=format_)
    (found,) = read_all(store)
    assert equal(found, written)
    assert store.damaged == {}
    if outputs == Outputs():
        np.testing.assert_array_equal(found.logits, logits)
    if outputs.hidden:
        np.testing.assert_array_equal(found.hidden, hidden.astype(np.float16))
    top = found.columns.get("top_classes")
    best = found.logits.argmax(axis=1) if top is None else top[:, 0].astype(np.int64)
    np.testing.assert_array_equal(
        np.take_along_axis(logits, best[:, None], axis=1)[:, 0].astype(outputs.dtype),
        logits.max(axis=1).astype(outputs.dtype),
    )


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path, format_: str, kind: str) -> None:
    outputs = KINDS[kind]
    store = Store(tmp_path, producer(outputs=outputs))
    store.append(soft_labels(texts(7), outputs=outputs), format_=format_)
    path = only_shard(tmp_path)
    data = path.read_bytes()
    bits = np.random.default_rng(0).integers(len(data) * 8, size=200)
    for bit in bits.tolist():
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert read_all(store) == []
        assert list(store.damaged) == [path.name]
        store.damaged.clear()
    for size in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert read_all(store) == []
    path.write_bytes(data)
    assert len(read_all(store)) == 1


@pytest.mark.parametrize("format_", FORMATS)
def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path, format_: str) -> None:
    outputs = Outputs(hidden=True)
    for name, value in (("logits", np.nan), ("logits", -np.inf), ("hidden", np.inf)):
        labels = soft_labels(texts(7), outputs=outputs)
        labels.columns[name][[2, 4], 1] = value
        with pytest.raises(NotFiniteError) as caught:
            Store(tmp_path, producer(outputs=outputs)).append(labels, format_=format_)
        assert caught.value.count == 2
    assert shard_files(tmp_path) == []


def test_logits_too_large_for_float16_are_never_written(tmp_path: Path) -> None:
    outputs = Outputs(dtype="float16")
    logits = np.full((1, 3), 70_000, np.float32)
    with pytest.raises(NotFiniteError):
        Store(tmp_path, producer(outputs=outputs)).append(
            SoftLabels.pack(example_ids([["x"]]), logits, outputs=outputs)
        )


def test_soft_labels_of_another_kind_are_never_written(tmp_path: Path) -> None:
    for wrong in (
        soft_labels(texts(3), n_classes=4),
        soft_labels(texts(3), outputs=Outputs(top_k=1)),
        soft_labels(texts(3), outputs=Outputs(hidden=True)),
    ):
        with pytest.raises(ValueError, match="columns"):
            Store(tmp_path, producer()).append(wrong)


# The files, read without our code


def test_an_arrow_shard_is_readable_with_pyarrow_alone_and_small(tmp_path: Path) -> None:
    outputs = Outputs(hidden=True)
    labels = soft_labels(texts(50), outputs=outputs)
    Store(tmp_path, producer(outputs=outputs)).append(labels)
    path = only_shard(tmp_path)
    table = pa.ipc.open_file(path).read_all()
    assert table.schema.names == ["example_id", "logits", "hidden"]
    assert table["example_id"].to_pylist() == labels.ids.to_pylist()
    np.testing.assert_array_equal(np.array(table["logits"].to_pylist(), np.float32), labels.logits)
    np.testing.assert_array_equal(np.array(table["hidden"].to_pylist(), np.float16), labels.hidden)
    metadata = json.loads(table.schema.metadata[b"mblm"])
    assert metadata == {"schema": 1, "producer": producer(outputs=outputs).id, "classes": CLASS_NAMES}
    assert path.name == f"50-{hashlib.sha256(path.read_bytes()).hexdigest()}.arrow"


def test_a_zarr_shard_is_readable_with_zarr_alone(tmp_path: Path) -> None:
    outputs = Outputs(top_k=2)
    labels = soft_labels(texts(50), outputs=outputs)
    Store(tmp_path, producer(outputs=outputs)).append(labels, format_="zarr")
    path = only_shard(tmp_path)
    with ZipStore(path, mode="r") as archive:
        group = zarr.open_group(archive, mode="r")
        assert group.metadata.zarr_format == 3
        for name in ("top_classes", "top_logits", "log_sum_exp_rest"):
            np.testing.assert_array_equal(np.asarray(group[name]), labels.columns[name])
        assert [bytes(row) for row in np.asarray(group["example_id"])] == labels.ids.to_pylist()
        metadata = group.attrs["mblm"]
    assert metadata == {"schema": 1, "producer": producer(outputs=outputs).id, "classes": CLASS_NAMES}
    assert path.name == f"50-{hashlib.sha256(path.read_bytes()).hexdigest()}.zarr.zip"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_shard_takes_few_bytes(tmp_path: Path, format_: str) -> None:
    Store(tmp_path, producer()).append(soft_labels(texts(5000)), format_=format_)
    assert only_shard(tmp_path).stat().st_size / 5000 <= 30


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_soft_labels_give_the_same_file(tmp_path: Path, format_: str) -> None:
    store = Store(tmp_path, producer())
    assert len({store.append(soft_labels(texts(5)), format_=format_) for _ in range(2)}) == 1


# Wide class sets


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_largest_logits_and_the_rest_give_back_the_distribution(
    tmp_path: Path, format_: str, dtype: Any
) -> None:
    # 1,000 classes, 32 kept: the probabilities of these are exact. What is lost are the differences among
    # the others: a Kullback-Leibler divergence of 0.45 nats for logits drawn from N(0, 2²), whose largest
    # 32 hold no more than half of the probability, and 0.07 nats where one class stands out by 12.
    generator = np.random.default_rng(0)
    outputs = Outputs(top_k=32, dtype=dtype)
    logits = generator.normal(scale=2, size=(200, 1000)).astype(np.float32)
    sure = logits + 12 * (np.arange(1000) == generator.integers(1000, size=200)[:, None])
    for values, bound in ((logits, 0.5), (sure.astype(np.float32), 0.1)):
        labels = SoftLabels.pack(example_ids([texts(200)]), values, outputs=outputs)
        store = Store(tmp_path / f"{bound}", producer(outputs=outputs, n_classes=1000))
        store.append(labels, format_=format_)
        (found,) = read_all(store)
        true, again = log_softmax(values.astype(np.float64), axis=1), log_softmax(found.logits, axis=1)
        divergence = (np.exp(true) * (true - again)).sum(axis=1).mean()
        assert 0 <= divergence < bound
        top = found.columns["top_classes"].astype(np.int64)
        tolerance = 1e-5 if dtype == "float32" else 1e-2
        np.testing.assert_allclose(
            np.take_along_axis(again, top, axis=1), np.take_along_axis(true, top, axis=1), atol=tolerance
        )
        np.testing.assert_array_equal(found.columns["top_classes"][:, 0], values.argmax(axis=1))
        size = only_shard(tmp_path / f"{bound}").stat().st_size / 200
        assert size < 400  # bytes, against 4,016 for all logits; the class names are a share of it


# Hostile files. A name with the right digest is easy to make, so none of this is left to the digest.


def put(store: Store, data: bytes, *, rows: int = 7, extension: str = "arrow") -> None:
    folder = Path(str(store.folder))
    folder.mkdir(parents=True, exist_ok=True)
    for path in shard_files(folder):
        path.unlink()
    (folder / f"{rows}-{hashlib.sha256(data).hexdigest()}.{extension}").write_bytes(data)


def refused(store: Store) -> str:
    store.damaged.clear()
    assert read_all(store) == []
    (error,) = store.damaged.values()
    assert isinstance(error, DamagedShardError)
    return error.reason


def arrow_file(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, producer())


@pytest.fixture
def table(store: Store) -> pa.Table:
    """The content of a good shard."""
    store.append(soft_labels(texts(7)))
    return pa.ipc.open_file(only_shard(Path(str(store.folder))).read_bytes()).read_all()


def with_metadata(table: pa.Table, **values: Any) -> pa.Table:
    metadata = json.loads(table.schema.metadata[b"mblm"]) | values
    return table.replace_schema_metadata({"mblm": json.dumps(metadata)})


ARROW: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "another producer": (lambda t: with_metadata(t, producer="0" * 64), "belongs to producer 000"),
    "no schema": (lambda t: with_metadata(t, schema="1"), "schema version"),
    "other classes": (lambda t: with_metadata(t, classes=["a", "c", "b"]), "classes are not those"),
    "no metadata": (lambda t: t.replace_schema_metadata(None), "Expecting value"),
    "a list as metadata": (lambda t: t.replace_schema_metadata({"mblm": "[1]"}), "schema version"),
    "deep metadata": (lambda t: t.replace_schema_metadata({"mblm": "[" * 10**5}), "not a shard"),
    "fewer rows": (lambda t: t.slice(1), "holds 6 examples"),
    "a column less": (lambda t: t.select(["example_id"]), "columns are not those"),
    "a column more": (lambda t: t.append_column("x", pa.array(range(7))), "columns are not those"),
    "another order": (lambda t: t.select(["logits", "example_id"]), "columns are not those"),
    "another type": (
        lambda t: t.set_column(1, "logits", t["logits"].cast(pa.list_(pa.float64(), 3))),
        "columns are not those",
    ),
    "another width": (
        lambda t: t.set_column(1, "logits", pa.array([[0.0] * 4] * 7, pa.list_(pa.float32(), 4))),
        "columns are not those",
    ),
    "lists of any length": (
        lambda t: t.set_column(1, "logits", t["logits"].cast(pa.list_(pa.float32()))),
        "columns are not those",
    ),
    "nulls": (
        lambda t: t.set_column(1, "logits", pa.array([None] + [[0.0] * 3] * 6, pa.list_(pa.float32(), 3))),
        "nulls",
    ),
    "nulls inside": (
        lambda t: t.set_column(1, "logits", pa.array([[0.0, None, 1.0]] * 7, pa.list_(pa.float32(), 3))),
        "nulls",
    ),
    "NaN": (
        lambda t: t.set_column(
            1, "logits", pa.array([[0.0, float("nan"), 1.0]] * 7, pa.list_(pa.float32(), 3))
        ),
        "NaN",
    ),
    "a dictionary": (
        lambda t: t.set_column(0, "example_id", t["example_id"].dictionary_encode()),
        "columns are not those",
    ),
}


@pytest.mark.parametrize("case", ARROW)
def test_an_arrow_file_that_is_no_shard_of_the_producer_is_not_read(
    store: Store, table: pa.Table, case: str
) -> None:
    change, reason = ARROW[case]
    changed = change(table)
    if changed.schema.metadata is None and case != "no metadata":
        changed = changed.replace_schema_metadata(table.schema.metadata)
    put(store, arrow_file(changed))
    assert reason in refused(store)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_arrow_file_which_may_be_a_bomb_is_not_unpacked(
    store: Store, table: pa.Table, compression: str
) -> None:
    rows = 4_000_000
    bomb = pa.table(
        {
            "example_id": pa.array([b"\0" * 16], pa.binary(16)).take(pa.array(np.zeros(rows, np.int64))),
            "logits": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 3, np.float32)), 3),
        },
        schema=table.schema,
    )
    data = arrow_file(bomb, compression=compression)
    assert len(data) < rows  # of 112 million bytes
    put(store, data, rows=rows)
    before = pa.total_allocated_bytes()
    assert "uncompressed" in refused(store)
    assert pa.total_allocated_bytes() <= before


def test_only_what_a_reader_of_the_stream_sees_counts(store: Store, table: pa.Table) -> None:
    # The footer of this file points to a second batch, with other logits, behind the one that was checked.
    other = table.set_column(1, table.schema.field(1), pa.array([[9.0] * 3] * 7, pa.list_(pa.float32(), 3)))
    data = bytearray(arrow_file(pa.concat_tables([table, other])))
    put(store, bytes(data))
    (found,) = read_all(store)
    assert equal(found, soft_labels(texts(7)))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"ARROW1\0\0", b"PK\x05\x06" + b"\0" * 18, b"\xff" * 999], ids=str
)
@pytest.mark.parametrize("extension", ["arrow", "zarr.zip"])
def test_bytes_that_are_no_shard_are_not_read(store: Store, data: bytes, extension: str) -> None:
    put(store, data, extension=extension)
    assert refused(store)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_shard_of_a_newer_version_is_not_damaged_whatever_else_is_new_in_it(
    store: Store, format_: str
) -> None:
    store.append(soft_labels(texts(7)), format_=format_)
    path = only_shard(Path(str(store.folder)))
    if format_ == "arrow":
        table = with_metadata(pa.ipc.open_file(path.read_bytes()).read_all(), schema=2)
        data = arrow_file(table.append_column("more", pa.array(range(7))), compression="zstd")
        put(store, data)
    else:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        attributes = json.loads(found["zarr.json"])["attributes"]
        attributes["mblm"]["schema"] = 2
        described = edited(found, "zarr.json", attributes=attributes)["zarr.json"]
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("zarr.json", described)
            archive.writestr("more/c/0", bytes(10**6), zipfile.ZIP_DEFLATED)
        put(store, sink.getvalue(), extension="zarr.zip")
    assert read_all(store) == []
    assert store.damaged == {}
    (error,) = store.unreadable.values()
    assert str(error) == (
        f"{only_shard(Path(str(store.folder)))} cannot be read: written by a newer version "
        "(schema 2; this one reads up to 1); upgrade"
    )


def zip_file(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return sink.getvalue()


@pytest.fixture
def entries(store: Store) -> dict[str, bytes]:
    """The content of a good shard in Zarr's format."""
    store.append(soft_labels(texts(7)), format_="zarr")
    with zipfile.ZipFile(only_shard(Path(str(store.folder)))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edited(entries: dict[str, bytes], name: str, **values: Any) -> dict[str, bytes]:
    return entries | {name: json.dumps(json.loads(entries[name]) | values).encode()}


def grid(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


PICKLE = [{"name": "numcodecs.pickle", "configuration": {}}]
ZARR: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "a path out of the folder": (lambda e: e | {"../../x": b"1"}, "more than the columns"),
    "an absolute path": (lambda e: e | {"/etc/x": b"1"}, "more than the columns"),
    "no group": (lambda e: {k: v for k, v in e.items() if k != "zarr.json"}, "has no"),
    "no chunk": (lambda e: {k: v for k, v in e.items() if k != "logits/c/0/0"}, "has no"),
    "a short chunk": (lambda e: e | {"logits/c/0/0": b"1234"}, "not as long"),
    "huge sizes": (
        lambda e: edited(e, "logits/zarr.json", shape=[2**62, 3], chunk_grid=grid(2**62, 3)),
        "not as long",
    ),
    "negative sizes": (lambda e: edited(e, "logits/zarr.json", shape=[-7, 3]), "has shape"),
    "sizes that are no numbers": (lambda e: edited(e, "logits/zarr.json", shape=["7", True]), "has shape"),
    "another width": (lambda e: edited(e, "logits/zarr.json", shape=[3, 7]), "values per example"),
    "several chunks": (lambda e: edited(e, "logits/zarr.json", chunk_grid=grid(1, 3)), "one plain chunk"),
    "another type": (lambda e: edited(e, "logits/zarr.json", data_type="int32"), "one plain chunk"),
    "a codec that runs code": (lambda e: edited(e, "logits/zarr.json", codecs=PICKLE), "one plain chunk"),
    "no codecs": (lambda e: edited(e, "logits/zarr.json", codecs=None), "not a shard"),
    "deep JSON": (lambda e: e | {"logits/zarr.json": b"[" * 10**5}, "not a shard"),
    "another producer": (
        lambda e: edited(e, "zarr.json", attributes={"mblm": {"schema": 1, "producer": "x"}}),
        "belongs to producer x",
    ),
}


@pytest.mark.parametrize("case", ZARR)
def test_a_zip_file_that_is_no_shard_of_the_producer_is_not_read(
    store: Store, entries: dict[str, bytes], case: str
) -> None:
    change, reason = ZARR[case]
    put(store, zip_file(list(change(entries).items())), extension="zarr.zip")
    assert reason in refused(store)


def test_a_zip_bomb_is_not_unpacked(store: Store, entries: dict[str, bytes]) -> None:
    bomb = edited(entries, "logits/zarr.json", shape=[10**7, 3], chunk_grid=grid(10**7, 3))
    bomb["logits/c/0/0"] = bytes(12 * 10**7)
    data = zip_file(list(bomb.items()), zipfile.ZIP_DEFLATED)
    assert len(data) < 10**6
    put(store, data, rows=10**7, extension="zarr.zip")
    assert "compressed entries" in refused(store)


def test_a_zip_file_whose_entries_overlap_is_not_read(store: Store, entries: dict[str, bytes]) -> None:
    # Many directory entries of one stored member: each is as large as the file.
    data = zip_file([("zarr.json", bytes(10**5))])
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory = data[start:end] * 1000
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1000, 1000, len(directory), start, 0)
    put(store, data[:start] + directory + tail, extension="zarr.zip")
    assert "larger than the file" in refused(store)


def test_a_shard_that_is_a_folder_or_too_large_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(7)))
    monkeypatch.setattr("cache.shards.MAX_BYTES", 100)
    lookup = store.look_up(example_ids([texts(7)]))
    assert not lookup.found.any()
    assert "larger than 100 bytes" in next(iter(store.damaged.values())).reason
