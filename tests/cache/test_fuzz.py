"""The shard reader against hostile bytes: it gives sound soft labels or says that the shard is damaged.

A shard's name holds the digest of its bytes, and a zip file a checksum of each entry. Both are made right
again after a change: whoever makes a hostile file can do so too, and else no change would reach the parsers.
"""

import hashlib
import io
import random
import re
import resource
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pytest
from labels import FORMATS, only_shard, producer, soft_labels, texts
from processes import FORKS, fork

from cache import DamagedShardError, Outputs, Producer, SoftLabels, Store, UnreadableError
from cache.folder import Folder
from cache.identity.columns import SCALAR
from cache.shards import ShardName, read_shard

ROWS = 7
N_INPUTS = 20_000  # of each format
MEMORY = 1 << 30  # bytes that a process may take after its start; a shard here has 4,000
SECONDS = 240
OUTPUTS = (
    Outputs(),
    Outputs(dtype="float16"),
    Outputs(hidden=True),
    Outputs(top_k=2),
    Outputs(dtype="float16", top_k=1, hidden=True),
)
INTEGERS = (0, 1, 2, 6, 8, 16, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1)
# What may stand where JSON has a value, in latin-1: some of it is no JSON, or nothing that Python can hold.
VALUES = (
    *("null", "true", '""', '"x"', '"\\ud800"', '"\xff"', "[]", "{}", "[[]]", "[{}]", '{"": []}', "", ","),
    *("-1", "0", "7", "7.0", "1e999", "NaN", f"{2**64}", "9" * 4000, "9" * 5000),
    *("[" * 5000, '{"a":' * 5000, *("[" * depth + "]" * depth for depth in (500, 960, 980, 990))),
)
TOKEN = re.compile(r'"[^"]*"|[\w.-]+|\[[^\[\]{}]*\]|\{[^\[\]{}]*\}')


class InMemory:
    """A folder with one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __str__(self) -> str:
        return "memory"

    def read(self, _name: str, *, limit: int) -> bytes:
        assert len(self.data) <= limit
        return self.data


class Seed(NamedTuple):
    """A good shard, from which hostile ones are made."""

    data: bytes
    extension: str
    producer: Producer


def make_seeds(folder: Path, format_: str) -> list[Seed]:
    seeds = []
    for i, outputs in enumerate(OUTPUTS):
        store = Store(folder / f"{i}", producer(outputs=outputs))
        store.append(soft_labels(texts(ROWS), outputs=outputs), format_=format_)
        path = only_shard(folder / f"{i}")
        name = ShardName.parse(path.name)
        assert name is not None
        seeds.append(Seed(path.read_bytes(), name.extension, store.producer))
    return seeds


def is_read(data: bytes, seed: Seed) -> bool:
    """Tell whether bytes that have the right name are read; check what is read, or what is said."""
    name = f"{ROWS}-{hashlib.sha256(data).hexdigest()}.{seed.extension}"
    try:
        require_sound(read_shard(cast(Folder, InMemory(data)), name, producer=seed.producer), seed.producer)
    except (DamagedShardError, UnreadableError) as error:  # where the schema has become a newer one's
        reason = error.reason
    else:
        return True
    assert reason.isascii()
    assert reason.isprintable()
    assert 0 < len(reason) <= 200
    return False


def require_sound(found: SoftLabels, of: Producer) -> None:
    assert len(found.ids.to_pylist()) == ROWS
    assert found.columns.keys() == of.columns.keys()
    for name, (dtype, width) in of.columns.items():
        values = found.columns[name]
        assert values.dtype == dtype
        assert values.shape == ((ROWS,) if width == SCALAR else (ROWS, width or values.shape[-1]))
        assert np.isfinite(values).all()
    assert found.logits.shape == (ROWS, 3)
    assert (found.logits.argmax(axis=1) < 3).all()


def changed_bytes(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a few bytes, most often; else cut, insert, repeat, or go on as another file does."""
    start = dice.randrange(len(data) + 1)
    length = min(dice.choice((1, 2, 4, 8, 64, 512)), len(data) - start)
    before, run, after = data[:start], data[start : start + length], data[start + length :]
    match dice.randrange(12):
        case 0 | 1 if run:
            return before + bytes([run[0] ^ 1 << dice.randrange(8)]) + run[1:] + after
        case 2:
            return before + dice.randbytes(length) + after
        case 3:
            return before + dice.choice((b"\0", b"\xff")) * length + after
        case 4 | 5 | 6 | 7:
            width = dice.choice((2, 4, 8))
            aligned = start - start % width
            value = dice.choice((1, -1)) * dice.choice(INTEGERS) % (1 << 8 * width)
            return data[:aligned] + value.to_bytes(width, "little") + data[aligned + width :]
        case 8:
            return before
        case 9:
            return before + dice.randbytes(length) + run + after
        case 10:
            return before + run + run + after
        case _:
            other = dice.choice(others)
            return before + other[dice.randrange(len(other)) if dice.randrange(2) else start :]


def changed_json(dice: random.Random, data: bytes) -> bytes:
    """Put something else in the place of a key or value."""
    text = data.decode("latin-1")
    tokens = list(TOKEN.finditer(text))
    if not tokens:
        return data
    token = dice.choice(tokens)
    return (text[: token.start()] + dice.choice(VALUES) + text[token.end() :]).encode("latin-1")


def changed_metadata(dice: random.Random, data: bytes) -> bytes:
    """Change the JSON in an Arrow file, whose lengths and offsets follow."""
    batch = pa.ipc.open_file(data).get_batch(0)
    metadata = changed_json(dice, batch.schema.metadata[b"mblm"])
    batch = batch.replace_schema_metadata({b"mblm": metadata})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def changed_entry(dice: random.Random, data: bytes) -> bytes:
    """Change an entry of a zip file, whose checksums and offsets follow."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    index = dice.randrange(len(entries))
    name, content = entries[index]
    match dice.randrange(8):
        case 0:
            del entries[index]
        case 1:
            entries[index] = (dice.choice(entries)[0] + dice.choice(("", "x", "/")), content)
        case 2 | 3:
            entries[index] = (name, changed_bytes(dice, content, [content]))
        case _ if name.endswith(".json"):
            entries[index] = (name, changed_json(dice, content))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in dict(entries).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return sink.getvalue()


def hostile(seeds: Sequence[Seed], format_: str, number: int) -> tuple[bytes, Seed]:
    """Make an input; the same number always gives the same."""
    dice = random.Random(f"{format_} {number}")
    seed = dice.choice(seeds)
    data = seed.data
    if format_ == "zarr" and dice.randrange(4):
        data = changed_entry(dice, data)
    elif format_ == "arrow" and not dice.randrange(4):
        data = changed_metadata(dice, data)
    if data == seed.data or not dice.randrange(3):
        for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
            data = changed_bytes(dice, data, [other.data for other in seeds])
    return data, seed


def read_hostile(folder: Path, format_: str, number: Any, n_read: Any) -> None:
    seeds = make_seeds(folder, format_)
    assert all(is_read(seed.data, seed) for seed in seeds)
    statm = Path("/proc/self/statm")
    if statm.exists():  # on Linux
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number.value in range(N_INPUTS):
        n_read.value += is_read(*hostile(seeds, format_, number.value))


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_hostile_bytes_give_sound_soft_labels_or_a_damaged_shard(tmp_path: Path, format_: str) -> None:
    # In a process of its own: to read out of bounds or without end, or to fill the memory, is to fail.
    number, n_read = FORKS.Value("q", -1, lock=False), FORKS.Value("q", 0, lock=False)
    reader = fork(read_hostile, tmp_path, format_, number, n_read)
    reader.join(SECONDS)
    reader.kill()
    reader.join()
    replay = f"is_read(*hostile(make_seeds(folder, {format_!r}), {format_!r}, {number.value}))"
    assert reader.exitcode == 0, f"exit code {reader.exitcode}; once more with: {replay}"
    assert number.value == N_INPUTS - 1
    assert N_INPUTS // 50 < n_read.value < N_INPUTS // 2  # not all are broken before the parser sees them


@pytest.mark.parametrize("format_", FORMATS)
def test_metadata_does_not_fill_the_memory(tmp_path: Path, format_: str) -> None:
    """A list of empty lists takes 25 times as much memory as its text."""
    seed = make_seeds(tmp_path, format_)[0]
    long = b'"mblm":[' + b"[]," * 6_000_000 + b"[]]"
    if format_ == "arrow":
        batch = pa.ipc.open_file(seed.data).get_batch(0)
        sink = pa.BufferOutputStream()
        batch = batch.replace_schema_metadata({"mblm": long[7:]})
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        assert said_of(sink.getvalue().to_pybytes(), seed) == "its metadata is too long"
        return
    for entries, reason in (
        ({"zarr.json": b'{"attributes":{' + long + b"}}"}, "its metadata is too long"),
        ({str(number): b"" for number in range(1001)}, "it holds more than 1000 entries"),
    ):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        assert said_of(packed.getvalue(), seed) == reason


def said_of(data: bytes, seed: Seed) -> str:
    name = f"{ROWS}-{hashlib.sha256(data).hexdigest()}.{seed.extension}"
    with pytest.raises(DamagedShardError) as caught:
        read_shard(cast(Folder, InMemory(data)), name, producer=seed.producer)
    return caught.value.reason
