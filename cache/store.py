"""The store: a memo of soft labels shared by every experiment, clone and user that points at it."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import platformdirs
import pyarrow as pa

from cache.errors import CacheError, DamagedShardError, ProducerError, StoreError
from cache.files import Folder, is_temporary
from cache.identity import Producer, canonical_json
from cache.lookup import Lookup
from cache.shards import MAX_BYTES, ShardName, read_shard, write_shard
from cache.soft_labels import SoftLabels

ENVIRONMENT_VARIABLE = "MBLM_TEACHER_CACHE"
FACTS = "producer.json"
LAST_USE = "last_use.json"
SET_ASIDE = "damaged"

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
        return canonical_json(
            {"at": self.at.isoformat(timespec="seconds"), "teacher": self.teacher, "language": self.language}
        )

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """Read a producer's ``last_use.json``; None where it is absent or makes no sense."""
        try:
            values = json.loads(folder.read(LAST_USE))
            at = datetime.fromisoformat(values["at"]).astimezone(UTC)
            return cls(at, str(values["teacher"]), str(values["language"]))
        except (FileNotFoundError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None


class Store:
    """The soft labels of one producer in a store.

    A folder of shards under the producer's id. There is no index: a shard exists once it has its name, so
    several processes may append at once, and a killed one loses no more than what it had not appended.

    Attributes:
        folder: ``<root>/<producer id>``.
        producer: Whose soft labels these are.
        damaged: The damaged shards that were met, by name.
    """

    def __init__(self, root: str | Path, producer: Producer) -> None:
        self.folder = Folder(root).folder(producer.id)
        self.producer = producer
        self.damaged: dict[str, DamagedShardError] = {}
        self._created = False

    @classmethod
    def open(cls, root: str | Path, producer_id: str) -> Self:
        """Open what lies in a store, by its producer's id.

        Raises:
            ProducerError: Its producer.json is absent, unreadable or not that of the id.
        """
        folder = Folder(root).folder(producer_id)
        return cls(root, _read_producer(folder, producer_id))

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

        A damaged shard counts as absent and is listed in `damaged`; one that vanished, because another
        process merged or deleted it since it was listed, is left out.
        """

        def read_one(name: str) -> SoftLabels | DamagedShardError | None:
            try:
                return read_shard(self.folder, name, producer=self.producer)
            except FileNotFoundError:
                return None
            except DamagedShardError as error:
                return error

        ordered = sorted(names)
        at_once = _AT_ONCE_HERE if self.folder.is_local else _AT_ONCE_FAR
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, len(ordered), at_once):
                some = ordered[start : start + at_once]
                for name, result in zip(some, pool.map(read_one, some), strict=True):
                    if isinstance(result, DamagedShardError):
                        self.damaged[name] = result
                    elif result is not None:
                        yield name, result

    def look_up(self, ids: pa.FixedSizeBinaryArray) -> Lookup:
        """Find the soft labels of examples.

        Args:
            ids: N example ids, repeated as often as wanted.

        Raises:
            ProducerError: The folder's producer.json belongs to another producer.
        """
        if FACTS in self.folder.list():  # absent where a first writer was killed before its first shard
            _read_producer(self.folder, self.producer.id)
        lookup = Lookup(ids)
        self.update(lookup)
        return lookup

    def update(self, lookup: Lookup) -> None:
        """Fill a look-up from the shards that it has not seen, whoever wrote them."""
        while True:
            sizes = self.shards()
            new = sizes.keys() - lookup.seen
            if not new:
                return
            lookup.seen |= new
            for name in [name for name in new if sizes[name] > MAX_BYTES]:
                self.damaged[name] = DamagedShardError(f"{self.folder}/{name}", "it is too large for a shard")
                new.remove(name)
            for name, soft_labels in self.read(new):
                try:
                    lookup.fill(soft_labels)
                except ValueError as error:
                    self.damaged[name] = DamagedShardError(f"{self.folder}/{name}", str(error))

    def create(self) -> None:
        """Make the producer's folder: a store that cannot be written to is noticed before the work."""
        if not self._created and FACTS not in self.folder.list():
            self.folder.write(FACTS, canonical_json(self.producer.facts))
        self._created = True

    def append(self, soft_labels: SoftLabels, *, format_: str = "arrow") -> str:
        """Add soft labels as one new shard. They are on disk when this returns.

        Returns:
            The shard's name.
        """
        self.create()
        return write_shard(self.folder, soft_labels, producer=self.producer, format_=format_)

    def note_use(self, *, teacher: str, language: str) -> None:
        """Write down who uses this, for people and for ``gc``; a read-only store still serves."""
        try:
            self.create()
            self.folder.write(LAST_USE, LastUse(datetime.now(UTC), teacher, language).encode())
        except (CacheError, OSError):
            return

    def foreign(self) -> list[str]:
        """List what lies in the folder and is nobody's: it is never read."""
        ours = {FACTS, LAST_USE, SET_ASIDE}
        return [
            name
            for name, entry in self.folder.list().items()
            if name not in ours
            and not is_temporary(name)
            and (entry.is_folder or ShardName.parse(name) is None)
        ]


def producer_ids(root: str | Path) -> list[str]:
    """List the producers that have a folder in a store."""
    return [
        name
        for name, entry in Folder(root).list().items()
        if entry.is_folder and _PRODUCER_ID.fullmatch(name)
    ]


def find_producer(root: str | Path, prefix: str) -> str:
    """Find a producer by the beginning of its id.

    Raises:
        StoreError: None or several begin like this.
    """
    found = [name for name in producer_ids(root) if name.startswith(prefix)]
    if len(found) != 1:
        what = "no producer" if not found else f"{len(found)} producers"
        raise StoreError(
            f"{what} in {root} with an id that begins with '{prefix}'; "
            "list them with: python -m pipeline cache ls"
        )
    return found[0]


def _read_producer(folder: Folder, producer_id: str) -> Producer:
    path = f"{folder}/{FACTS}"
    mend = "delete it and run teacher label again"
    try:
        facts: Any = json.loads(folder.read(FACTS))
    except FileNotFoundError:
        raise ProducerError(f"{path} is not there; run teacher label again") from None
    except (RecursionError, ValueError) as error:
        raise ProducerError(f"{path} is not JSON ({error}); {mend}") from error
    try:
        producer = Producer(facts)
        if producer.id == producer_id:
            return producer
    except (RecursionError, TypeError, ValueError):
        pass
    raise ProducerError(f"{path} describes another producer; {mend}")
