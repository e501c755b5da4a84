"""The store: a memo of soft labels shared by every experiment, clone and user that points at it."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import platformdirs
import pyarrow as pa

from cache.endpoint_notes import ENDPOINT
from cache.errors import CacheError, DamagedShardError, ProducerError, UnreadableError
from cache.folder import Folder, is_temporary
from cache.identity.digests import canonical_json
from cache.identity.producer import Producer
from cache.lookup import Lookup
from cache.schema import require_known_schema
from cache.shards import ShardName, read_shard, write_shard
from cache.soft_labels import SoftLabels
from cache.top_k import TOP_K

ENVIRONMENT_VARIABLE = "MBLM_TEACHER_CACHE"
FACTS = "producer.json"
LAST_USE = "last_use.json"
NAME = "name.json"
SET_ASIDE = "damaged"

MAX_JSON = 1 << 24
"""Larger JSON files are not read, in bytes."""

_CLOCKS_DIFFER = timedelta(days=1)  # at most, between the machines that share a store
_PRODUCER_ID = re.compile("[0-9a-f]{64}")
# Shards in flight: several hide an object store's latency; on a disk they would only wait for each other.
_AT_ONCE_FAR, _AT_ONCE_HERE = 8, 2


def store_root(configured: str | None) -> str:
    """Find the store: the environment variable, else the configured place, else the user's cache folder.

    Args:
        configured: ``cache.root`` of params.yaml: a folder, or a URL that fsspec knows.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE) or configured
    if not chosen:
        return str(platformdirs.user_cache_path("mblm") / "teachers")
    return chosen if "://" in chosen else str(Path(chosen).expanduser())


@dataclass(frozen=True)
class LastUse:
    """Who asked a store for a producer's soft labels last.

    Attributes:
        at: When, in UTC.
        teacher: What params.yaml calls the teacher.
        language: Of the examples.
    """

    at: datetime
    teacher: str
    language: str

    def encode(self) -> bytes:
        """Give the content of ``last_use.json``."""
        return canonical_json({"at": self.at.isoformat(), "teacher": self.teacher, "language": self.language})

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """Read a producer's ``last_use.json``; None where it is absent or makes no sense.

        Raises:
            UnreadableError: It is there, but cannot be read.
        """
        try:
            values = json.loads(folder.read(LAST_USE, limit=MAX_JSON))
            at = datetime.fromisoformat(values["at"]).astimezone(UTC)
            if at > datetime.now(UTC) + _CLOCKS_DIFFER:
                return None
            return cls(at, str(values["teacher"])[:200], str(values["language"])[:20])
        except (FileNotFoundError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None


class Store:
    """The soft labels of one producer in a store.

    A folder of shards under the producer's id. There is no index: a shard exists once it has its name, so
    several processes may append at once, and a killed one loses no more than what it had not appended.

    Attributes:
        root: The store's folder or URL.
        folder: ``<root>/<producer id>``.
        producer: Whose soft labels these are.
        damaged: The damaged shards that were met, by name.
        unreadable: The shards that were met and could not be read, by name, and so a producer.json.
    """

    def __init__(self, root: str | Path, producer: Producer) -> None:
        self.root = str(root)
        self.folder = Folder(root).folder(producer.id)
        self.producer = producer
        self.damaged: dict[str, DamagedShardError] = {}
        self.unreadable: dict[str, UnreadableError] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    @classmethod
    def open(cls, root: str | Path, producer_id: str) -> Self:
        """Open what lies in a store, by its producer's id.

        Raises:
            ProducerError: Its producer.json is absent, no JSON or not that of the id.
            UnreadableError: It cannot be read now, or a newer version wrote it.
        """
        return cls(root, _read_producer(root, producer_id))

    def shards(self) -> dict[str, int]:
        """List the names of the shards that are there now, with their sizes in bytes."""
        entries = self.folder.list()
        return {
            name: entry.size
            for name, entry in entries.items()
            if ShardName.parse(name) is not None and not entry.is_folder
        }

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, SoftLabels]]:
        """Read and check shards, a few at once, in the order of their names.

        A damaged shard counts as absent and is listed in `damaged`, one that cannot be read in `unreadable`;
        one that vanished, because another process merged or deleted it since it was listed, is left out.
        """

        def read_one(name: str) -> SoftLabels | DamagedShardError | UnreadableError | None:
            try:
                return read_shard(self.folder, name, producer=self.producer)
            except FileNotFoundError:
                return None
            except (DamagedShardError, UnreadableError) as error:
                return error

        ordered = sorted(names)
        at_once = _AT_ONCE_HERE if self.folder.is_local else _AT_ONCE_FAR
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, len(ordered), at_once):
                some = ordered[start : start + at_once]
                for name, result in zip(some, pool.map(read_one, some), strict=True):
                    if isinstance(result, SoftLabels):
                        result = self._fitting(name, result)
                    if isinstance(result, DamagedShardError):
                        self.damaged[name] = result
                    elif isinstance(result, UnreadableError):
                        self.unreadable[name] = result
                    elif result is not None:
                        yield name, result

    def _fitting(self, name: str, soft_labels: SoftLabels) -> SoftLabels | DamagedShardError:
        """Compare a shard's columns with those of the producer's other shards."""
        self._shapes = self._shapes or soft_labels.shapes()
        if soft_labels.shapes() == self._shapes:
            return soft_labels
        reason = "its columns are not those of the producer's other shards"
        return DamagedShardError(f"{self.folder}/{name}", reason)

    def require_readable(self) -> None:
        """Refuse to go on where nobody knows what some shards hold.

        Raises:
            UnreadableError: A shard that was met could not be read.
        """
        for error in self.unreadable.values():
            raise error

    def require_own(self) -> None:
        """Refuse a folder that belongs to another producer; it may also be nobody's yet.

        Raises:
            ProducerError: Its producer.json is no JSON, or another producer's.
            UnreadableError: Its producer.json cannot be read now, or a newer version wrote it.
        """
        if self.folder.exists(FACTS):
            _read_producer(self.root, self.producer.id)

    def look_up(self, ids: pa.FixedSizeBinaryArray, *, overflow: Path | None = None) -> Lookup:
        """Find the soft labels of examples.

        Args:
            ids: N example ids, repeated as often as wanted.
            overflow: See `Lookup`.

        Raises:
            ProducerError: The folder's producer.json belongs to another producer.
        """
        try:
            self.require_own()
        except UnreadableError as error:  # each shard says whose it is
            self.unreadable[FACTS] = error
        lookup = Lookup(ids, overflow=overflow)
        self.update(lookup)
        return lookup

    def update(self, lookup: Lookup) -> None:
        """Fill a look-up from the shards that it has not seen, whoever wrote them."""
        while True:
            new = self.shards().keys() - lookup.seen
            if not new:
                return
            lookup.seen |= new
            for _, soft_labels in self.read(new):
                lookup.fill(soft_labels)

    def create(self) -> None:
        """Write producer.json: a store that cannot be written to is noticed before the work.

        One that was met and could not be read stays as it is.
        """
        if FACTS not in self.unreadable:
            self.folder.write(FACTS, canonical_json(self.producer.facts))

    def append(self, soft_labels: SoftLabels, *, format_: str = "arrow", unique: bool = False) -> str:
        """Add soft labels as one new shard. They are on disk when this returns.

        Args:
            soft_labels: At least one, of this producer.
            format_: ``arrow`` or ``zarr``.
            unique: Give the shard a name that no other has, even one of the same soft labels.

        Returns:
            The shard's name.
        """
        if not self.folder.exists(FACTS):  # or no longer: somebody may have cleaned up
            self.create()
        if not unique:
            self._renew_use()
        return write_shard(self.folder, soft_labels, producer=self.producer, format_=format_, unique=unique)

    def note_use(self, *, teacher: str, language: str) -> None:
        """Write down who uses this, for people and for ``gc``; a read-only store still serves."""
        try:
            if not self.folder.exists(FACTS):
                self.create()
            self.folder.write(LAST_USE, LastUse(self._now(), teacher, language).encode())
        except (CacheError, OSError):
            return

    def _now(self) -> datetime:
        """Give the time, or that of the last use by a clock that is ahead of this one."""
        use = LastUse.read(self.folder)
        return max(datetime.now(UTC), use.at) if use else datetime.now(UTC)

    def _renew_use(self) -> None:
        """Tell ``gc`` that whoever used this last is still at it."""
        try:
            use = LastUse.read(self.folder)
            if use is not None:
                self.folder.write(LAST_USE, replace(use, at=max(use.at, datetime.now(UTC))).encode())
        except (CacheError, OSError):
            return

    def foreign(self) -> list[str]:
        """List what lies in the folder and is nobody's: it is never read."""
        ours = {FACTS, LAST_USE, NAME, SET_ASIDE, TOP_K, ENDPOINT}
        return [
            name
            for name, entry in self.folder.list().items()
            if name not in ours
            and not is_temporary(name)
            and (entry.is_folder or ShardName.parse(name) is None)
        ]


def producer_ids(root: str | Path) -> list[str]:
    """List the producers in a store: the folders of an id's name that hold a shard or a producer.json.

    One that cannot be listed is among them: whoever opens it will say so.
    """
    found = []
    for name, entry in Folder(root).list().items():
        if entry.is_folder and _PRODUCER_ID.fullmatch(name):
            try:
                inside = Folder(root).folder(name).list()
            except UnreadableError:
                found.append(name)
                continue
            if FACTS in inside or any(ShardName.parse(one) for one in inside):
                found.append(name)
    return found


def _read_producer(root: str | Path, producer_id: str) -> Producer:
    folder = Folder(root).folder(producer_id)
    path = f"{folder}/{FACTS}"
    mend = f"mend it with: python -m pipeline cache repair --store {root}"
    try:
        facts: Any = json.loads(folder.read(FACTS, limit=MAX_JSON))
    except FileNotFoundError:
        raise ProducerError(
            f"{path} is not there; run stage one with its teacher, import its file again, or delete {folder}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise ProducerError(f"{path} is not JSON ({error}); {mend}") from error
    require_known_schema(path, facts)
    try:
        producer = Producer(facts)
        is_own = producer.id == producer_id
    except (ProducerError, RecursionError, TypeError, ValueError):
        is_own = False
    if not is_own:
        raise ProducerError(f"{path} describes another producer; {mend}")
    try:
        _ = producer.columns
    except (AttributeError, KeyError, ProducerError, TypeError, ValueError) as error:  # facts nevertheless
        raise UnreadableError(path, str(error)) from error
    return producer
